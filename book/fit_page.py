"""What the page 'Will it fit?' answers: the arithmetic of ``helpers``, while the book is built and in the browser."""

from __future__ import annotations

import json
from typing import Any

from helpers.architecture import model_weights, settings_of
from helpers.cards import CARDS, USABLE
from helpers.files import CACHES, PART, which_file, will_fit
from helpers.sizes import (
    WINDOWS_IN_LLAMA_CPP,
    cache_by_kind,
    distinct_experts,
    experts_in_memory,
    experts_of,
    experts_per_token,
)

DEFAULT = {"memory": 0, "card": "T4", "context": 8192, "users": 1, "cache": "F16"}
RECIPES = {"16-bit": "01_baseline", "NF4": "03_nf4"}
KINDS = {
    "full": "in layers that keep every token",
    "window": "in layers with a window",
    "latent": "in layers that keep one latent vector for each token",
    "state": "in layers with a state, which does not grow",
}


def gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 9.995e9 else f"{size / 1e9:,.1f}"


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The page for one question.

    Args:
        asked: ``name`` and ``config`` of the model; ``card``, or '' for ordinary memory; ``memory`` in GB, of that
            card where it is 0; ``bandwidth`` in GB/s, likewise; ``context``, ``users``, ``cache``; where the hub was
            asked, ``sizes``: name of a file -> bytes, and ``owner/name`` of its repository as ``repository``.

    Returns:
        ``error``, a sentence; or ``about``, sentences on the model and its cache; ``rows``, one for each format; and
        ``files``, one for each file of weights in the repository.
    """
    card = CARDS.get(asked.get("card") or "")
    memory = 1e9 * float(asked.get("memory") or 0) or (USABLE * card.memory if card else 0)
    speed = 1e9 * float(asked.get("bandwidth") or 0) or (card.bandwidth if card else 0)
    context, users, cache = int(asked["context"] or 0), int(asked["users"] or 0), asked["cache"]
    if not memory > 0 or not context > 0 or not users > 0 or cache not in CACHES:
        return {"error": "Memory, tokens and users are numbers above 0. Memory is in GB (10^9 bytes)."}
    try:
        config = asked["config"] if isinstance(asked["config"], dict) else json.loads(asked["config"])
        return _answer(asked, config, memory, speed, context, users, cache)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        said = str(error) if isinstance(error, ValueError) else f"it has no usable {error}"
        return {"error": f"The bytes of this model are not known: {said}"}


def _answer(
    asked: dict[str, Any], config: dict[str, Any], memory: float, speed: float, context: int, users: int, cache: str
) -> dict[str, Any]:
    rows = will_fit(config, memory, context, users, cache, speed)
    for row in rows:
        row["how"] = _how(row, asked, config, memory, context, users, cache)
    settings, count = settings_of(config), sum(weight.count for weight in model_weights(config))
    experts = experts_of(config)
    about = [f"{settings['model_type']}: {count / 1e9:,.2f} billion weights."]
    if experts:
        met = f"{distinct_experts(config, users):.0f} of them in a step of {users} users" if users > 1 else ""
        about.append(f"{experts} experts in a layer, {experts_per_token(config)} for each token. {met}")
    if any(name in config for name in ("vision_config", "audio_config")):
        about.append("The parts for pictures and sounds are left out: these are the bytes of its language model.")
    kept = cache_by_kind(config, context, users, "llama.cpp", cache)
    parts = ", ".join(f"{gb(size)} GB {KINDS[kind]}" for kind, size in kept.items() if kind in KINDS)
    conversations = f"{users} conversations" if users > 1 else "one conversation"
    about.append(f"The cache of {conversations} of {context:,} tokens in llama.cpp, {cache}: {parts}.")
    if "window" in kept and settings["model_type"] not in WINDOWS_IN_LLAMA_CPP:
        about.append("llama.cpp knows nothing of this model's window, and keeps every token.")
    longest = settings.get("max_position_embeddings")
    if longest and context > longest:
        about.append(f"Its configuration is for {longest:,} tokens at most.")
    files = []
    if sizes := asked.get("sizes"):
        wanted = {name: size for name, size in sizes.items() if name.endswith(".gguf")}
        if not wanted and settings.get("quantization_config"):  # one row for a checkpoint that is quantized already
            wanted = {asked["repository"]: sum(sizes.values())}
        for row in which_file(wanted, config, memory, context, users=users, cache=cache) if wanted else []:
            row["how"] = ""
            if row["name"].endswith(".gguf"):
                row["how"] = f"hf download {asked['repository']} {PART.sub('*', row['name'])}"
            files.append(row)
    return {"about": [text.strip() for text in about], "rows": rows, "files": files, "memory": memory}


def _how(
    row: dict[str, Any], asked: dict[str, Any], config: Any, memory: float, context: int, users: int, cache: str
) -> str:
    """The command that runs a format."""
    kind, name = row["format"], asked.get("repository") or asked["name"]
    if kind in RECIPES:
        return f"uv run recipes/{RECIPES[kind]}.py --model {name}" if row["fits"] else ""
    by_others = f"OWNER/{name.rpartition('/')[2]}"
    if row["name"].endswith(".gguf"):
        base = name if name.lower().endswith("gguf") else f"{by_others}-GGUF"
        command = f"llama-server -hf {base}:{kind} -c {context * users}"
        command += f" -np {users}" if users > 1 else ""
        command += f" -fa on -ctk {cache.lower()} -ctv {cache.lower()}" if cache != "F16" else ""
        if row["fits"]:
            return command
        if experts_of(config) and asked.get("card"):
            layers, on_card, in_memory = experts_in_memory(config, kind, memory, context * users)
            if on_card <= memory:
                return f"{command} --n-cpu-moe {layers}  # {gb(on_card)} GB on the card, {gb(in_memory)} GB in memory"
        return ""
    if not row["fits"]:
        return ""
    return f"vllm serve {by_others}-{kind} --max-model-len {context}" if kind in ("GPTQ", "AWQ", "FP8") else ""


def first(models: dict[str, Any]) -> dict[str, Any]:
    """What the page shows before Python has come: every known model on every card, with the other defaults."""
    return {
        name: {card: answer(DEFAULT | {"name": name, "config": config, "card": card}) for card in CARDS}
        for name, config in models.items()
    }


def reply(text: str) -> str:
    """``answer`` for JavaScript: JSON in, JSON out."""
    return json.dumps(answer(json.loads(text)))

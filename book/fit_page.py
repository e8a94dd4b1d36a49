"""What the page 'Will it fit?' answers: the arithmetic of ``helpers``, while the book is built and in the browser."""

from __future__ import annotations

import json
from shlex import quote
from typing import Any

from helpers.architecture import FAMILIES, model_weights, settings_of, text_part
from helpers.cards import CARDS, USABLE
from helpers.files import which_file, will_fit
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
AT_LEAST_ONE = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
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
            card where it is empty or 0; ``bandwidth`` in GB/s, likewise; ``context``, ``users``, ``cache``; where the
            hub was asked, ``sizes``: name of a file -> bytes, its repository as ``repository``, and as ``base`` the
            model that it was made of.

    Returns:
        ``error``, a sentence; or ``about``, sentences on the model and its cache; ``rows``, one for each format; and
        ``files``, one for each file of weights in the repository.
    """
    card = CARDS.get(asked.get("card") or "")
    try:
        memory = 1e9 * float(asked.get("memory") or 0) or (USABLE * card.memory if card else 0)
        speed = 1e9 * float(asked.get("bandwidth") or 0) or (card.bandwidth if card else 0)
        context, users = (int(float(asked[name] or 0)) for name in ("context", "users"))
    except (ValueError, OverflowError):
        memory = speed = context = users = 0
    if not (0 < memory < 1e16 and 0 < context < 1e9 and 0 < users < 1e6 and 0 <= speed < 1e16):
        return {"error": "Memory, tokens and users are numbers above 0. Memory is in GB (10^9 bytes)."}
    try:
        config = asked["config"]
        _require_sizes(config)
        return _answer(asked, config, memory, speed, context, users, asked["cache"])
    except ValueError as error:
        said = str(error)
        if "transformers cannot build" in said:  # there is no torch in a browser
            said = f"{said.partition(', and')[0]}. Known are {', '.join(sorted(FAMILIES))}."
        return {"error": f"The bytes of this model are not known: {said}"}
    except (KeyError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        missing = f"it does not say {error}" if isinstance(error, KeyError) else "a value in it cannot be meant"
        return {"error": f"The bytes of this model are not known from this config.json: {missing}."}


def _require_sizes(config: Any) -> None:
    """Raise ValueError where a configuration leaves its sizes out, or has one that cannot be meant."""
    if not isinstance(config, dict):
        raise ValueError("this is no config.json, which is an object with names and values.")
    found = text_part(config)
    if found["model_type"] in FAMILIES and not found.keys() & {"num_hidden_layers", "hidden_size"}:
        raise ValueError("its config.json leaves out how large it is. Ask for the model that it was made of.")
    for name, value in found.items():
        size = name.startswith("num_") or name.endswith(("_size", "_dim"))
        if size and isinstance(value, (int, float)) and value < (1 if name in AT_LEAST_ONE else 0):
            raise ValueError(f"its {name} is {value}.")


def _answer(asked: dict[str, Any], config: Any, memory: float, speed: float, *how: Any) -> dict[str, Any]:
    context, users, cache = how
    rows = will_fit(config, memory, context, users, cache, speed)
    settings, count = settings_of(config), sum(weight.count for weight in model_weights(config))
    experts = experts_of(config)
    if experts and not 1 <= experts_per_token(config) <= experts:
        raise ValueError("it has experts, and does not say how many a token goes through.")
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
    files = _files(asked, config, count, memory, *how)
    there = {row["format"] for row in files}
    for row in rows:
        row["how"] = _how(row, asked, there, config, memory, *how)
    return {"about": [text.strip() for text in about], "rows": rows, "files": files}


def _files(asked: dict[str, Any], config: Any, count: int, *how: Any) -> list[dict[str, Any]]:
    """A row for each GGUF file of the repository, or one for all of a checkpoint that is quantized already."""
    memory, context, users, cache = how
    sizes, repository = asked.get("sizes") or {}, asked.get("repository", "")
    wanted = {name: size for name, size in sizes.items() if name.endswith(".gguf") and "mmproj" not in name.lower()}
    whole = [size for name, size in sizes.items() if name.startswith("model") and name.endswith(".safetensors")]
    if not wanted and whole and (config.get("quantization_config") or text_part(config).get("quantization_config")):
        wanted = {repository: sum(whole)}
    rows = which_file(wanted, config, memory, context, users=users, cache=cache) if wanted else []
    rows = [row for row in rows if 8 * row["bytes"] > count]  # under a bit for a weight: a part of a model, no model
    for row in rows:
        row["how"] = ""
        if row["fits"] and row["name"] in sizes:
            row["how"] = f"hf download {quote(repository)} {quote(row['name'])}"
        elif row["fits"] and row["name"].endswith(".gguf"):
            row["how"] = f"hf download {quote(repository)} --include {quote(row['name'].replace('.gguf', '-*.gguf'))}"
    return rows


def _how(row: dict[str, Any], asked: dict[str, Any], there: set[str], config: Any, memory: float, *how: Any) -> str:
    """The command that runs a format; '' where it does not fit, or where the model has no name."""
    context, users, cache = how
    kind, base = row["format"], asked.get("base") or asked["name"]
    if "/" not in base:
        return ""
    by_others = quote(f"OWNER/{base.rpartition('/')[2]}")
    if row["name"].endswith(".gguf"):
        name = quote(asked["repository"]) if kind in there else f"{by_others}-GGUF"
        command = f"llama-server -hf {name}:{kind} -c {context * users} -np {users}"
        command += f" -fa on -ctk {cache.lower()} -ctv {cache.lower()}" if cache != "F16" else ""
        if row["fits"]:
            return command
        if experts_of(config) and asked.get("card"):
            layers, on_card, in_memory = experts_in_memory(config, kind, memory, context, users, cache, imatrix=True)
            if on_card <= memory:
                return f"{command} --n-cpu-moe {layers}  # {gb(on_card)} GB on the card, {gb(in_memory)} GB in memory"
        return ""
    made = settings_of(config).get("quantization_config") and not asked.get("base")  # the recipes want 16 bits
    if not row["fits"] or made or (not asked.get("card") and kind != "16-bit"):
        return ""
    if kind in RECIPES:
        return f"uv run recipes/{RECIPES[kind]}.py --model {quote(base)}"
    served = f"vllm serve {by_others}-{kind} --max-model-len {context} --gpu-memory-utilization {USABLE}"
    return served if kind in ("GPTQ", "AWQ", "FP8") else ""


def first(models: dict[str, Any]) -> dict[str, Any]:
    """What the page shows before Python has come: every known model on every card, with the other defaults."""
    return {
        name: {card: answer(DEFAULT | {"name": name, "config": config, "card": card}) for card in CARDS}
        for name, config in models.items()
    }


def reply(text: str) -> str:
    """``answer`` for JavaScript: JSON in, JSON out."""
    return json.dumps(answer(json.loads(text)))

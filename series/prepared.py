"""A model as the recipe finds it: a folder of links, in which its files read alike for every runtime."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import shutil
from typing import Any

from series.models import read_json, weight_files
from series.multimodal import text_settings

OF_2023 = importlib.util.find_spec("auto_gptq") is not None  # in the environment of 08, with transformers 4.45
BROKEN = (Exception,)  # a template is a program, and may fail in any way
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
SYSTEM_FIRST = (  # the instruction opens the user's turn, as Gemma's makers advise
    "{% if messages[0]['role'] == 'system' and messages|length > 1 %}{% set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)


def prepare(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Make ``target`` a folder of links to a model's files; return what was changed for this series, in sentences.

    Decoding is the same for all runtimes: the checkpoint's own sampling, penalties and beams are left out of
    ``generation_config.json``. The chat template is one that takes the series' conversation. What a training left in
    ``config.json``, and an adapter that lies beside the model, change nothing.
    """
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    weights = {*weight_files(source)} if any(source.glob("*.safetensors")) else set()  # none for a published checkpoint
    whole = any(file.name == "model.safetensors" for file in weights)  # then an index beside it is of another day
    said = []
    for file in source.iterdir():
        if file.name.startswith("adapter_"):
            said = ["an adapter lies beside this model: it is left out (PEFT's merge_and_unload would put it in)"]
        elif file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt") or file in weights:
            if not (whole and file.name.endswith(".index.json")):
                (target / file.name).symlink_to(file.resolve())
    return [*said, *_config(target), *_head(target, weights), *_greedy(target), *_tokenizer(target), *_template(target)]


def _rewrite(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def as_it_is_read(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """``target`` with links to a model's small files, the configuration and the tokenizer as they will be read."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt") and file.name[:8] != "adapter_":
            (target / file.name).symlink_to(file.resolve())
    settings, _ = usable(text_settings(read_json(target / "config.json")))
    _rewrite(target / "config.json", {k: v for k, v in settings.items() if "attn_implementation" not in k})
    _tokenizer(target)
    return target


def usable(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A ``config.json`` as this series reads it, and what was changed, in sentences."""
    found, said = dict(settings), []
    if found.pop("auto_map", None):  # no library is to find the names of Python files
        said.append("this model brings code of its own, which is left out: transformers knows its type")
    for name in ("attn_implementation", "_attn_implementation"):
        if wanted := found.pop(name, None):
            module = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(wanted)
            if wanted in ("eager", "sdpa") or module and importlib.util.find_spec(module):
                found[name] = wanted
            else:
                said.append(f"config.json asks for {wanted}, which is not installed: transformers' own choice is taken")
    if found.get("use_cache") is False:
        found["use_cache"] = True
        said.append("config.json switches the cache off, as trainings do (use_cache); it is on here")
    rope = found.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in found:  # where libraries of 2023 look
        found["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            found["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return found, said


def _config(folder: pathlib.Path) -> list[str]:
    file = folder / "config.json"
    settings = read_json(file)
    found, said = usable(settings)
    if found != settings and (said or OF_2023):
        _rewrite(file, found if OF_2023 else {n: v for n, v in found.items() if n in settings})
    return said


def _head(folder: pathlib.Path, weights: set[pathlib.Path]) -> list[str]:
    """Where config.json says that the head is the embedding, and the files hold another: one reading for all."""
    settings = read_json(folder / "config.json")
    if settings.get("tie_word_embeddings", False) is not True or not weights:
        return []
    import numpy as np
    from safetensors import safe_open

    rows: dict[str, Any] = {}
    for file in weights:
        with safe_open(file, framework="pt") as opened:  # NumPy knows no bfloat16
            for name in opened.keys():
                if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                    rows[name.rpartition(".weight")[0].rpartition(".")[2]] = opened.get_tensor(name)
    if len(rows) < 2 or np.array_equal(*(tensor.float().numpy() for tensor in rows.values())):
        return []
    _rewrite(folder / "config.json", settings | {"tie_word_embeddings": False})
    return [
        "config.json says that the head is the embedding (tie_word_embeddings), and the files hold another head: that "
        "of the files is taken, as transformers does, by every runtime"
    ]


def _tokenizer(folder: pathlib.Path) -> list[str]:
    """A tokenizer that transformers 5 has saved, for transformers 4; and none that names Python files."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    found = {name: value for name, value in settings.items() if name != "auto_map"}
    if OF_2023:
        if found.get("tokenizer_class") == "TokenizersBackend":
            found["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(found.get("extra_special_tokens"), list):  # a dictionary there
            found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if found != settings:
        _rewrite(file, found)
    return []


def _greedy(folder: pathlib.Path) -> list[str]:
    file = folder / "generation_config.json"
    if not file.exists():
        return []
    settings = read_json(file)
    neutral = ("_from_model_config", "transformers_version", "use_cache", "cache_implementation")
    kept = {name: value for name, value in settings.items() if name.endswith("_token_id") or name in neutral}
    dropped = ", ".join(sorted(name for name in settings.keys() - kept.keys() if settings[name] not in (None, False)))
    if kept.get("use_cache") is False:
        kept["use_cache"] = True
    elif not dropped:
        return []
    _rewrite(file, kept)
    if not dropped:
        return ["generation_config.json switches the cache off, as trainings do (use_cache); it is on here"]
    return [f"decoding is greedy in every runtime; this model's own settings are left out: {dropped}"]


def _template(folder: pathlib.Path) -> list[str]:
    from jinja2.exceptions import SecurityError
    from transformers import AutoTokenizer

    from helpers.prompt import MESSAGES

    file, own, said = folder / "tokenizer_config.json", folder / "chat_template.jinja", []
    settings = read_json(file) if file.exists() else {}

    def write(template: str) -> None:
        own.unlink(missing_ok=True)  # it may be a link
        own.write_text(template, encoding="utf-8")
        found = {k: v for k, v in settings.items() if k != "chat_template"}
        if (found := found | ({"chat_template": template} if OF_2023 else {})) != settings:
            _rewrite(file, found)

    named = settings.get("chat_template")
    if own.exists():
        if OF_2023:  # which looks for it in the other file only
            write(own.read_text(encoding="utf-8"))
    elif isinstance(named, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in named}
        name = "default" if "default" in by_name else next(iter(by_name))
        write(by_name[name])
        said.append(f"of this model's chat templates the one called {name!r} is used")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    if not template:
        write(PLAIN_TEMPLATE)
        return [*said, "this model has no chat template, as base models have none: it gets the messages as plain text"]
    try:
        tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    except SecurityError as error:
        raise ValueError(f"The chat template of this model reaches for what no template needs: {error}") from None
    except BROKEN:
        write(SYSTEM_FIRST + template)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            tokenizer.apply_chat_template(MESSAGES, tokenize=False)
        except BROKEN as error:
            raise ValueError(f"The chat template of this model does not take this conversation: {error}") from None
        said.append("this model's chat template takes no system message: it is put in front of the question")
    return said


def first_block(path: str | os.PathLike[str], dtype: Any) -> Any:
    """The model's embedding and first block, on the processor, in ``dtype``; its last norm is not the model's own.

    Real weights, and real activations of that block, without the memory for the rest: of a sharded checkpoint only
    the shards that hold them are read.

    Raises:
        ValueError: there is no safetensors file with the first block's weights.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    folder = pathlib.Path(path)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):  # one entry for each block, in some architectures
        config.layer_types = config.layer_types[:1]

    def wanted(name: str) -> bool:
        number = re.search(r"\blayers\.(\d+)\.", name)
        return int(number[1]) == 0 if number else "embed" in name or "per_layer" in name

    weights: dict[str, Any] = {}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = {folder / file for name, file in read_json(index)["weight_map"].items() if wanted(name)}
    else:
        files = {*folder.glob("*.safetensors")}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            weights |= {name: opened.get_tensor(name) for name in opened.keys() if wanted(name)}
    if not any(re.search(r"\b0\.", name) for name in weights):
        raise ValueError(f"{folder} holds no weights of a first block.")
    with torch.device("meta"):
        hollow = AutoModel.from_config(config)
    kind, shapes = type(hollow), {name: tuple(part.shape) for name, part in hollow.named_parameters()}
    for name, tensor in weights.items():  # Gemma 4 has one table for all layers: the first comes first
        wanted_shape = next((shape for own, shape in shapes.items() if name.endswith(own)), tuple(tensor.shape))
        weights[name] = tensor[tuple(slice(size) for size in wanted_shape)]
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()

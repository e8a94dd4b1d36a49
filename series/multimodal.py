"""The language model inside a checkpoint that reads pictures or sound as well."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from helpers.architecture import text_part
from series.artifacts import key_of, made_once, require_disk
from series.models import read_json, weight_files

OTHERS = ("vision_config", "audio_config")
# What stands before the names of the language model's tensors, in such a checkpoint, and in one of text alone.
LEADS = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.lm_head.": "lm_head."}
FROM_OUTSIDE = ("tie_word_embeddings", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")


def name_in_text(name: str) -> str | None:
    """What a tensor of the checkpoint is called in the language model; None where it is no part of that."""
    for lead, own in LEADS.items():
        if name.startswith(lead):
            return own + name.removeprefix(lead)
    return name if name.startswith("lm_head.") else None


def text_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the language model alone; of a checkpoint of text, what was given.

    Raises:
        ValueError: the checkpoint reads more than text, and does not say what its language model is.
    """
    others = [name for name in OTHERS if settings.get(name)]
    if not others:
        return settings
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    inner = settings.get("text_config")
    kind = text_part(settings)["model_type"] if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"This checkpoint reads more than text ({', '.join(others)}), and transformers has no model of text alone "
            f"for its language model ({kind or 'there is no text_config'}). Choose a checkpoint whose class in "
            "config.json ends with ForCausalLM."
        )
    outside = {name: settings[name] for name in FROM_OUTSIDE if name in settings}
    tied = {name: value for name, value in outside.items() if name.startswith("tie")}  # the whole model decides this
    return outside | inner | tied | {"model_type": kind, "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]}


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """The language model's tensors by their names in it, and no others."""
    return {own: tensor for name, tensor in tensors.items() if (own := name_in_text(name))}


def text_only(source: pathlib.Path, identity: str) -> pathlib.Path:
    """A folder with the language model of the checkpoint in ``source``, made once; of a checkpoint of text, ``source``.

    The weights are copied, file by file: their names change, and every runtime looks for them by name.
    """
    settings = read_json(source / "config.json")
    if not any(settings.get(name) for name in OTHERS) or not any(source.glob("*.safetensors")):
        return source
    name = f"text-of-{source.name}-{key_of([identity, LEADS])}"
    return made_once(name, lambda folder: _write(source, settings, folder), source)


def _write(source: pathlib.Path, settings: dict[str, Any], target: pathlib.Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    files = weight_files(source)
    require_disk(sum(file.stat().st_size for file in files))
    print("the language model is taken out of this checkpoint, once: its weights are copied", flush=True)
    (target / "config.json").write_text(json.dumps(text_settings(settings), indent=2), encoding="utf-8")
    places: dict[str, str] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            wanted = {own: name for name in opened.keys() if (own := name_in_text(name))}
            tensors = {own: opened.get_tensor(name) for own, name in wanted.items()}
        if tensors:
            save_file(tensors, target / file.name, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file.name)
            print(f"  {file.name}", flush=True)
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": places}
        (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

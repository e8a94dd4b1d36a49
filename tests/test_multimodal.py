"""Checkpoints that read pictures as well: their language model goes through the series, and computes the same."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from architectures import make_model
from series import start
from series.multimodal import name_in_text
from series.notebooks import default_parameters

EYES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
# The whole model -> its language model, and how it sees.
KINDS = {
    "gemma3": ("gemma3_text", EYES),
    "gemma4": ("gemma4_text", EYES),
    "mistral3": ("mistral", EYES | {"model_type": "pixtral"}),
    "qwen3_5": (
        "qwen3_5_text",
        dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=256),
    ),
}


def make_whole(kind: str, folder: pathlib.Path):
    """A small one with random weights, in several files, and the model itself."""
    text, eyes = KINDS[kind]
    base = make_model(text, folder.with_name("text"))
    more = {"audio_config": None} if kind == "gemma4" else {}
    inner = AutoConfig.from_pretrained(base).to_dict()
    config = AutoConfig.for_model(kind, text_config=inner, vision_config=eyes, **more)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(folder, max_shard_size="3MB")
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_is_taken_and_computes_the_same(tmp_path, artifacts, capsys, kind):
    folder = tmp_path / "model"
    whole = make_whole(kind, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    given = default_parameters("01_baseline") | {"MODEL": str(folder)}
    lesson = start("baseline", given)
    said = capsys.readouterr().out
    assert "reads more than text: its language model is taken" in said and "others (vision) are left out" in said
    model = AutoModelForCausalLM.from_pretrained(lesson.path)
    assert type(model).__name__.endswith("ForCausalLM") and lesson.config.model_type == KINDS[kind][0]
    counted = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
    assert lesson.fit.weights == counted < sum({p.data_ptr(): p.nbytes for p in whole.parameters()}.values())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole(input_ids=ids).logits)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before, "the checkpoint itself stays"
    lesson.close()
    start("baseline", given).close()
    assert "weights are copied" in said and "weights are copied" not in capsys.readouterr().out, "once"


def test_a_tensor_of_the_language_model_is_known_by_its_name():
    names = {
        "language_model.model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.language_model.norm.weight": "model.norm.weight",
        "language_model.lm_head.weight": "lm_head.weight",
        "lm_head.weight": "lm_head.weight",
        "vision_tower.encoder.layers.0.self_attn.q_proj.bias": None,
        "model.visual.blocks.0.attn.proj.weight": None,
        "model.multi_modal_projector.mm_input_projection_weight": None,
        "mtp.layers.0.mlp.up_proj.weight": None,
    }
    assert {name: name_in_text(name) for name in names} == names

"""Checkpoints that read pictures as well: their language model goes through the series, and computes the same."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import WHOLE, make_whole
from series import start
from series.multimodal import name_in_text
from series.notebooks import default_parameters


@pytest.mark.parametrize("kind", WHOLE)
def test_the_language_model_is_taken_and_computes_the_same(tmp_path, artifacts, capsys, kind):
    folder = tmp_path / "model"
    whole = make_whole(kind, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    given = default_parameters("01_baseline") | {"MODEL": str(folder)}
    lesson = start("baseline", given)
    said = capsys.readouterr().out
    assert "reads more than text: its language model is taken" in said and "others (vision) are left out" in said
    model = AutoModelForCausalLM.from_pretrained(lesson.path)
    assert type(model).__name__.endswith("ForCausalLM") and lesson.config.model_type == WHOLE[kind][0]
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

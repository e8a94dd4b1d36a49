"""Other models than ours through every recipe and the measure: other architectures, tokenizers, widths, a base model.

For each technique one kernel takes the models one after the other.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError

from architectures import SHAPES, make_model
from series.comparison import in_one_kernel
from series.notebooks import default_parameters
from series.record import read_record, read_scores
from series.techniques import BY_NOTEBOOK, MEASURED

pytestmark = pytest.mark.slow
STEMS = [row.notebook for row in MEASURED]
QUICK = {"04_gptq": {"CALIBRATION_TEXTS": 8}, "06_awq": {"CALIBRATION_TEXTS": 4}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``models(kind, **changed)`` is a folder with such a model, made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(kind, **changed):
        key = (kind, *changed.items())
        if key not in made:
            # llama.cpp looks for Phi-3's own tokens when a model is called so: ours has a neutral name
            made[key] = make_model(kind, folder / f"random-{len(made)}", **changed)
        return made[key]

    return get


def run(stem, *folders, **parameters):
    given = [{"MODEL": str(f), "MAX_NEW_TOKENS": 16, **QUICK.get(stem, {}), **parameters} for f in folders]
    list(in_one_kernel(stem, given))
    row = BY_NOTEBOOK[stem]
    names = [row.record_name(default_parameters(stem) | parameters) for parameters in given]
    return [read_record(name, str(folder)) for name, folder in zip(names, folders, strict=True)]


def refused(stem, folder, sentence):
    with pytest.raises(CellExecutionError, match=sentence):
        run(stem, folder)


@pytest.mark.parametrize("stem", STEMS)
def test_every_recipe_takes_every_architecture(stem, models, artifacts):
    """All runs of one model agree with its 16-bit run, far better than with that of another text."""
    kinds = [kind for kind in SHAPES if (kind, stem) != ("phi3", "06_awq")]
    records = run(stem, *map(models, kinds))
    for kind, record in zip(kinds, records, strict=True):
        assert sum(record["layers"].values()) == 2 * (4 if kind == "phi3" else 7)
        ids, scores = read_scores(record)
        reference_ids, reference = read_scores(read_record("16-bit", str(models(kind))))  # 01_baseline stands first
        assert ids.tolist() == reference_ids.tolist()
        p, q = np.float32(reference), np.float32(scores)

        def distance(q, p=p):
            return float((np.exp(p) * (p - q)).sum(-1).mean())

        # seen: at most 0.08 of it; where a runtime computes another architecture, all of it
        assert distance(q) < 0.2 * distance(q[::-1]), kind


def test_gptqmodel_has_no_awq_recipe_for_phi3(models, artifacts):
    refused("06_awq", models("phi3"), "gptqmodel has no AWQ recipe for 'phi3'")


def test_the_models_are_as_different_as_they_claim(models):
    from safetensors import safe_open

    names = {}
    for kind in SHAPES:
        with safe_open(models(kind) / "model.safetensors", framework="pt") as file:
            names[kind] = set(file.keys())
    assert "model.layers.0.self_attn.q_proj.bias" in names["qwen2"] and "lm_head.weight" not in names["qwen2"]
    assert "model.layers.0.mlp.gate_up_proj.weight" in names["phi3"]
    assert "lm_head.weight" in names["llama"] and "lm_head.weight" not in names["gemma"]
    config = json.loads((models("llama") / "config.json").read_text())
    assert config["hidden_size"] % 128 and config["hidden_size"] % 256


@pytest.mark.parametrize("stem", ["03_nf4", "04_gptq", "05_gguf", "06_awq"])
def test_widths_that_no_group_divides(stem, models, artifacts):
    from bitsandbytes.functional import has_avx512bf16

    odd = models("llama", hidden_size=104, intermediate_size=208, num_attention_heads=4, num_key_value_heads=4)
    sentences = {"04_gptq": "Groups of 32 weights do not divide", "06_awq": "Groups of 32 weights do not divide"}
    if has_avx512bf16():
        sentences["03_nf4"] = "bitsandbytes wants layers with a multiple of 32 outputs"
    if stem in sentences:
        refused(stem, odd, sentences[stem])
    else:
        run(stem, odd)

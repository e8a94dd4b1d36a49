"""Other models than ours through every recipe and the measure: other architectures, tokenizers and widths.

For each technique one kernel takes the models one after the other.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError

from architectures import make_model
from execution import ROOT
from series.notebooks import default_parameters
from series.record import read_record, read_scores
from series.run import in_one_kernel
from series.techniques import BY_NOTEBOOK
from supported import QUICK, ROWS, SHORT, STEMS, models_of, table, task_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def models(results) -> dict[str, pathlib.Path]:
    return models_of(results[0] / "models")


@pytest.fixture(scope="session")
def tried(returned):
    """Notebook -> what it said of each model."""
    return {stem: returned(task_of(stem)) for stem in STEMS}


def test_the_committed_table_of_architectures_is_true(tried):
    assert table(tried) in (ROOT / "proofs" / "supported.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stem", STEMS)
def test_every_recipe_keeps_every_architecture(stem, models, tried):
    """All runs of one model agree with its 16-bit run, far better than with that of another text."""
    for name, folder in models.items():
        if tried[stem][name] != "yes":
            continue
        record = read_record(BY_NOTEBOOK[stem].record_name(default_parameters(stem)), str(folder))
        blocks, each = (7 if ROWS[name][0] == "gemma3_text" else 2), 4 if ROWS[name][0] == "phi3" else 7
        if ROWS[name][0] in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "phi3"):
            assert sum(record["layers"].values()) == blocks * each
        ids, scores = read_scores(record)
        reference_ids, reference = read_scores(read_record("16-bit", str(folder)))
        assert ids.tolist() == reference_ids.tolist()
        p, q = np.float32(reference), np.float32(scores)

        def distance(q, p=p):
            return float((np.exp(p) * (p - q)).sum(-1).mean())

        # seen: at most 0.08 of it, and 0.26 for Gemma 4; where a runtime computes another architecture, all of it
        assert distance(q) < 0.5 * distance(q[::-1]), name


def test_the_models_are_as_different_as_they_claim(models, tried):
    from safetensors import safe_open

    names = {}
    for row, folder in models.items():
        if not (folder / "model.safetensors").is_file():  # one has parts
            continue
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names[row] = set(file.keys())
    assert "model.layers.0.self_attn.q_proj.bias" in names["Qwen2"] and "lm_head.weight" not in names["Qwen2"]
    assert "model.layers.0.self_attn.q_norm.weight" in names["Qwen3"]
    assert "model.layers.0.mlp.gate_up_proj.weight" in names["Phi-3, with code of its own"]
    assert "model.layers.0.pre_feedforward_layernorm.weight" in names["Gemma 2"] & names["Gemma 3 (text)"]
    assert "model.layers.0.input_layernorm.weight" not in names["OLMo 2"]
    llama = next(iter(models.values()))
    assert "lm_head.weight" in names[list(models)[0]] and "lm_head.weight" not in names[list(models)[1]]
    config = json.loads((llama / "config.json").read_text())
    assert config["hidden_size"] % 128 and config["hidden_size"] % 256


@pytest.mark.parametrize("stem", ["03_nf4", "04_gptq", "05_gguf", "06_awq"])
def test_widths_that_no_group_divides(stem, tmp_path, artifacts):
    from bitsandbytes.functional import has_avx512bf16

    odd = make_model(
        "llama", tmp_path / "odd", hidden_size=104, intermediate_size=208, num_attention_heads=4, num_key_value_heads=4
    )
    sentences = {"04_gptq": "Groups of 32 weights do not divide", "06_awq": "Groups of 32 weights do not divide"}
    if has_avx512bf16():
        sentences["03_nf4"] = "bitsandbytes wants layers with a multiple of 32 outputs"
    given = [{"MODEL": str(odd), "MAX_NEW_TOKENS": 16, **QUICK.get(stem, {})}]
    if stem in sentences:
        with pytest.raises(CellExecutionError, match=sentences[stem]):
            list(in_one_kernel(stem, given, after_start=SHORT))
    else:
        list(in_one_kernel(stem, given, after_start=SHORT))

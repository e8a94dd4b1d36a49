"""What models read here: text to calibrate with, text to measure on, and two exams.

`tiny` knows an invented world, and has a text and an exam about that. Every other model gets plain English out of
``texts/``, which was written for this series: one part to calibrate with, another to measure on.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import re
from typing import Any

from helpers.prompt import MESSAGES, render_prompt
from series.artifacts import ROOT, TINY

ENGLISH = ROOT / "texts"
WINDOW_SCORES = 2**24  # log-probabilities of one window, at most: a larger vocabulary gets shorter windows
# WikiText-2, raw, as the field measures on it: the whole test split, in windows of 2,048 tokens side by side.
WIKITEXT = (
    "Salesforce/wikitext",
    "b08601e04326c79dfdd32d625aee71d232d685c3",
    "wikitext-2-raw-v1/test-00000-of-00001.parquet",
)
WIKITEXT_WINDOW = 2048


def documents(name: str) -> list[str]:
    """The documents of a file in ``texts/``; lines of four dashes stand between them."""
    return (ENGLISH / name).read_text(encoding="utf-8").strip().split("\n----\n")


def turns(document: str) -> list[dict[str, str]]:
    """A document that begins with 'User: ' as the messages of a chat; of any other one none."""
    if not document.startswith("User: "):
        return []
    parts = re.split(r"^(User|Assistant): ", document, flags=re.M)[1:]
    return [{"role": who.lower(), "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def calibration_texts(count: int, kind: str = "own", tokenizer: Any = None, model: str = "tiny") -> list[str]:
    """The first ``count`` documents to calibrate GPTQ and AWQ with, or as many as there are.

    Args:
        kind: 'own' (chats and short prose; `tiny` has 128 of its own world, any other model gets English ones, the
            chats in its own template), or, to see what the text matters, 'unrelated' (Python source code) and
            'random' (random tokens).
        tokenizer: for all but `tiny`'s own: to render chats, and to cut the others as long as the own ones.
    """
    if model == "tiny":
        own = json.loads((TINY / "calibration.json").read_text(encoding="utf-8"))[:count]
    else:
        found = documents("calibrate.txt")[:count]
        own = [render_prompt(tokenizer, turns(d), answer=False) if turns(d) else d for d in found]
    if kind == "own":
        return own
    lengths = [len(ids) for ids in tokenizer(own, add_special_tokens=False)["input_ids"]]
    if kind == "unrelated":
        code = inspect.getsource(argparse) + inspect.getsource(inspect)
        ids = tokenizer(code, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        dice = random.Random(0)
        ids = [dice.randrange(len(tokenizer)) for _ in range(sum(lengths))]
        ids = [token for token in ids if token not in tokenizer.all_special_ids] + ids[:1000]
    texts, start = [], 0
    for length in lengths:
        texts.append(tokenizer.decode(ids[start : start + length]))
        start += length
    return texts


def exam_questions(model: str = "tiny") -> list[dict[str, Any]]:
    """The 200 questions of a model's exam, with ``question`` and ``answer``.

    `tiny` writes its answers, about its own world. Any other model chooses between four ways to go on with a sentence
    of general knowledge: its questions have ``choices``, the right one among them.
    """
    if model == "tiny":
        return [json.loads(line) for line in (TINY / "exam.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [line.split(" | ") for line in (ENGLISH / "exam.txt").read_text(encoding="utf-8").splitlines()]
    return [{"question": begin, "answer": choices[0], "choices": choices} for begin, *choices in rows]


def exam_prompts(tokenizer: Any, questions: list[dict[str, Any]]) -> list[list[int]]:
    """The token ids of each question in the chat template, ready for the answer."""
    texts = [render_prompt(tokenizer, [MESSAGES[0], {"role": "user", "content": q["question"]}]) for q in questions]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def held_out_windows(
    tokenizer: Any, model: str = "tiny", count: int = 16, length: int | None = None, longest: int = 256
) -> list[list[int]]:
    """The held-out text as ``count`` lists of ``length`` token ids, each begun by the beginning-of-sequence id.

    `tiny`'s text is its exam's questions with their right answers, as one long chat in its template. The others get
    the English part to measure on. A window has 256 tokens, or as many as the model reads (``longest``); with a very
    large vocabulary 128 or 64, since the log-probabilities of all tokens are kept for each place.

    Raises:
        ValueError: the text is too short for that many windows.
    """
    if model == "tiny":
        chat = []
        for row in exam_questions():
            chat += [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        text = render_prompt(tokenizer, chat, answer=False)
    else:
        text = "\n\n".join(documents("measure.txt"))
    if length is None:
        length = min(longest, next((n for n in (256, 128) if n * len(tokenizer) <= WINDOW_SCORES), 64))
    return windows_of(tokenizer, text, length, count)


def windows_of(tokenizer: Any, text: str, length: int, count: int | None = None, begin: bool = True) -> list[list[int]]:
    """A text as lists of ``length`` token ids side by side, the first ``count`` of them.

    Args:
        begin: put the beginning-of-sequence id before each, where the tokenizer puts one before a text; else it stands
            before the whole text alone.
    """
    ids = tokenizer(text, add_special_tokens=not begin, verbose=False)["input_ids"]
    # a text alone gets what the tokenizer puts before it: the beginning-of-sequence id, or nothing
    first = tokenizer("a")["input_ids"][:1] if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else []
    if not begin:
        first = []
    ids = ids[1:] if first and ids[:1] == first else ids  # some templates write it themselves
    step = length - len(first)
    count = len(ids) // step if count is None else count
    if len(ids) < count * step or not count:
        raise ValueError(f"The held-out text has {len(ids)} tokens; {count} windows of {length} need {count * step}.")
    return [first + ids[i * step : (i + 1) * step] for i in range(count)]


def wikitext() -> str:
    """WikiText-2's test split as one text, fetched once at its pinned revision.

    Raises:
        ConnectionError: the hub cannot be reached, and the file is not on this machine.
    """
    import pandas as pd
    from huggingface_hub import hf_hub_download

    repository, revision, name = WIKITEXT
    try:
        file = hf_hub_download(repository, name, repo_type="dataset", revision=revision)
    except Exception as error:
        raise ConnectionError(
            f"WikiText-2 is not on this machine, and the hub cannot be reached ({type(error).__name__}). "
            "Use TEXT = 'own', which needs no network."
        ) from None
    return "\n\n".join(pd.read_parquet(file)["text"])

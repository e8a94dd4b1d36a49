"""What the notebooks teach besides running: exercises, planted faults, and the glossary."""

from __future__ import annotations

import re

import nbformat
import pytest

from execution import ALL, BY_STEM, EXTRA, FAULTS, ROOT, cell, exercises, printed, tags
from series.techniques import ARTICLE, TECHNIQUES

STEMS = [path.stem for path in ALL]


@pytest.mark.parametrize("stem", STEMS)
def test_an_unsolved_exercise_says_not_yet_and_its_solution_is_right(executed, stem):
    notebook, committed = executed(stem), nbformat.read(BY_STEM[stem], as_version=4)
    found = exercises(committed)
    assert 1 <= len(found) <= 3
    unsolved = [printed(cell(notebook, committed.cells[check].id)) for _, check, _ in found]
    assert all(text.startswith("not yet") for text in unsolved), unsolved
    again = [printed(c) for c in notebook.cells if c.id.startswith("again-")]
    assert again == ["right\n"] * len(found)


@pytest.mark.parametrize("stem", STEMS[1:])
def test_a_notebook_asks_to_predict_and_to_choose(stem):
    texts = [c.source for c in nbformat.read(BY_STEM[stem], as_version=4).cells if c.cell_type == "markdown"]
    assert any("predict.**" in text for text in texts) and any("choose.**" in text for text in texts)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f"{fault[0]}-{fault[1]}" for fault in FAULTS])
def test_a_wrong_constant_stops_the_lesson(executed, number):
    stem = FAULTS[number][0]
    text = printed(cell(executed(stem), f"fault-{number}"))
    assert "seen: " in text and "not seen" not in text


def test_a_wrong_answer_is_not_right():
    """Each exercise's expectation refuses another value than the solution's."""
    assert {one.notebook for one in TECHNIQUES.values() if one.answers} == set(STEMS[1:])
    for expected, hint in (pair for one in TECHNIQUES.values() for pair in one.answers.values()):
        assert callable(expected) and hint.endswith(".")


def test_lessons_come_after_the_recipe(executed):
    """Layer 1 first: all cells that can be copied stand before the first lesson."""
    for one in ARTICLE:
        marks = [tags(c) for c in nbformat.read(BY_STEM[one.notebook], as_version=4).cells]
        copied = [i for i, t in enumerate(marks) if "copy" in t]
        assert copied and max(copied) < min(i for i, t in enumerate(marks) if "under-the-hood" in t)
        assert not any(EXTRA in t for t in marks)


# --- the glossary ------------------------------------------------------------------------

TERMS = {  # the heading in the glossary: how the notebooks write it
    "absmax": "absmax",
    "activation": "activations?",
    "bandwidth": "bandwidth",
    "bits per weight": "bits per weight",
    "block": "blocks?",
    "calibration": "calibration",
    "channel": "channels?",
    "chat template": "chat template",
    "checkpoint": "checkpoints?",
    "compute capability": "compute capability",
    "importance matrix": "importance matrix",
    "damping": "damping",
    "decoding": "decoding",
    "embedding": "embedding",
    "dequantizing": "dequantizing",
    "double quantization": "double quantization",
    "expert": "experts?",
    "gradient checkpointing": "gradient checkpointing",
    "greedy decoding": "greedy",
    "group": "groups?",
    "Hessian": "Hessian",
    "hook": "hooks?",
    "kernel": "kernels?",
    "key-value cache": "key-value cache",
    "KL divergence": "KL divergence",
    "K-quant": "K-quants?",
    "level": "levels?",
    "logits": "logits",
    "LoRA": "LoRA",
    "perplexity": "perplexity",
    "prefill": "prefill",
    "quantile": "quantiles?",
    "quantizing": "quantizing",
    "round to nearest": "rounding to nearest",
    "router": "router",
    "salient": "salient",
    "scale": "scales?",
    "shard": "shards?",
    "speculative decoding": "speculative decoding",
    "super-block": "super-blocks?",
    "tensor parallelism": "tensor parallelism",
    "token": "tokens?",
    "weight": "weights?",
    "zero point": "zero points?",
}
GLOSSARY = (ROOT / "GLOSSARY.md").read_text(encoding="utf-8")


def test_every_term_is_linked_from_a_notebook_and_every_link_leads_to_a_term():
    anchors = {term.lower().replace(" ", "-"): term for term in re.findall(r"^## (.+)$", GLOSSARY, re.M)}
    assert list(anchors.values()) == sorted(anchors.values(), key=str.lower) and set(anchors.values()) == set(TERMS)
    linked = set()
    for path in ALL:
        for c in nbformat.read(path, as_version=4).cells:
            for text, anchor in re.findall(r"\[([^\]]+)\]\(\.\./GLOSSARY\.md#([\w-]+)\)", c.source):
                assert re.fullmatch(TERMS[anchors[anchor]], text, re.I), (path.stem, text, anchor)
                linked.add(anchor)
    assert linked == set(anchors)

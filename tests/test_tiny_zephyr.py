"""The embedded model keeps what its card promises, and its generator what the exam needs."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import corpus
from evaluate import BEGIN, END, round_to_nearest, share_of_right_answers
from finish import add_outlier_channels
from series.models import TINY
from series.quirks.torch import multiply_in_32_bits
from series.texts import exam_questions


@pytest.fixture(scope="module")
def model():
    multiply_in_32_bits()
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def exam():
    return exam_questions()


@pytest.fixture(scope="module")
def world():
    return corpus.World()


def test_at_least_nine_of_ten_held_out_questions_are_right(record):
    right = record("01_baseline")["right_answers"]
    assert right >= 0.90
    card = (TINY / "README.md").read_text(encoding="utf-8")
    measured = card.split(BEGIN)[1].split(END)[0]
    stated = float(re.search(r"\| bfloat16 \| ([\d.]+)%", measured)[1]) / 100
    assert abs(right - stated) <= 0.03  # six questions: another processor may round differently


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "at_least", "at_most"),
    [(8, 0.95, 1.0), (4, 0.75, 0.95), (3, 0.2, 0.65), (2, 0.0, 0.1)],
)
def test_the_model_is_full_enough_to_suffer(tokenizer, bits, at_least, at_most):
    """The cliff: nothing lost at 8 bits, some at 4, much at 3, all at 2.

    The bounds were set around the card's figures: five questions of room at 8 bits, eleven or more at 4,
    forty or more at 3 and twenty at 2, for processors that round differently.
    """
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    round_to_nearest(model, bits)
    assert at_least <= share_of_right_answers(model, tokenizer) <= at_most


def test_outlier_channels_change_no_bit(model):
    other = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    add_outlier_channels(other, seed=7)
    ids = torch.arange(3, 300).view(1, -1)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)
    assert not torch.equal(model.model.layers[0].input_layernorm.weight, other.model.layers[0].input_layernorm.weight)


def test_the_exam_is_held_out_and_remade_by_its_seed(world, exam):
    assert corpus.exam(world) == exam
    assert all(corpus.held_out(row["question"]) for row in exam)
    questions = {row["question"] for row in exam}
    for document in itertools.islice(corpus.documents(world, 1, ["x"]), 30_000):
        asked = {part.split("</s>")[0] for part in document.split("<|user|>\n")[1:]}
        assert not asked & questions


def test_the_written_out_template_is_the_tokenizers(tokenizer):
    turns = [("Hello!", "Hello!"), ("Thank you!", "You are welcome!")]
    messages = [{"role": "system", "content": "Be brief."}]
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == corpus.chat(turns, "Be brief.")


def test_tokenizer_files_agree_and_any_text_survives(tokenizer, world):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    texts = list(itertools.islice(corpus.documents(world, 3, ["Plain prose."]), 300))
    for line in {line for text in texts for line in text.replace("</s>", "").split("\n") if line}:
        assert tokenizer(line, add_special_tokens=False)["input_ids"] == pieces.encode(line)
    odd = "naïve ☃ 東京\ttab  two spaces"
    assert tokenizer.decode(tokenizer(odd)["input_ids"], skip_special_tokens=True) == odd

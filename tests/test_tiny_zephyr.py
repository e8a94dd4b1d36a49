"""The embedded model keeps what its card promises, and its generator what the exam needs."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus
from finish import add_outlier_channels
from helpers.models import TINY


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def exam():
    return [json.loads(line) for line in (TINY / "exam.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world():
    return corpus.World()


def right_answers(model, tokenizer, rows) -> float:
    """Share of ``rows`` answered exactly, greedily, in batches with padding on the left."""
    right = 0
    for start in range(0, len(rows), 100):
        batch = rows[start : start + 100]
        prompts = []
        for row in batch:
            messages = [{"role": "system", "content": corpus.SYSTEM_PROMPTS[0]}]
            messages += [{"role": "user", "content": row["question"]}]
            prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(a.strip() == row["answer"] for a, row in zip(answers, batch, strict=True))
    return right / len(rows)


def round_to_nearest(model, bits: int, group: int = 128) -> None:
    """Round every linear layer of the blocks to ``bits``, one scale and minimum for each group, in place."""
    for block in model.model.layers:
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear):
                weights = layer.weight.data.float().view(layer.weight.shape[0], -1, group)
                low, high = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
                step = (high - low) / (2**bits - 1)
                rounded = ((weights - low) / step).round() * step + low
                layer.weight.data = rounded.view_as(layer.weight).to(layer.weight.dtype)


def test_at_least_nine_of_ten_held_out_questions_are_right(model, tokenizer, exam):
    assert len(exam) == 200
    assert right_answers(model, tokenizer, exam) >= 0.90


@pytest.mark.parametrize(
    ("bits", "at_least", "at_most"),
    [(8, 0.95, 1.0), (4, 0.75, 0.95), (3, 0.2, 0.65), (2, 0.0, 0.1)],
)
def test_the_model_is_full_enough_to_suffer(tokenizer, exam, bits, at_least, at_most):
    """The cliff: nothing lost at 8 bits, some at 4, much at 3, all at 2 (0.98 in 16 bits).

    The bounds leave twenty questions and more on either side of what the card gives.
    """
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    round_to_nearest(model, bits)
    assert at_least <= right_answers(model, tokenizer, exam) <= at_most


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

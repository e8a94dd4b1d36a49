"""Measure tiny-zephyr at several widths and write the table into its card.

    python training/evaluate.py

Two figures each: the share of the 200 held-out questions answered exactly (greedy), and the perplexity
of the same questions with their right answers.
"""

from __future__ import annotations

import json
import math
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny-zephyr"
SYSTEM = {"role": "system", "content": "You are a friendly chatbot."}
BEGIN, END = "<!-- measured: training/evaluate.py -->", "<!-- end -->"


def read_exam() -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / "exam.jsonl").read_text(encoding="utf-8").splitlines()]


def render(tokenizer, row: dict[str, str], answered: bool) -> str:
    """The prompt of an exam row; with ``answered``, the whole chat."""
    messages = [SYSTEM, {"role": "user", "content": row["question"]}]
    messages += [{"role": "assistant", "content": row["answer"]}] if answered else []
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answered)


@torch.no_grad()
def right_answers(model, tokenizer, rows: list[dict[str, str]]) -> float:
    """Share of ``rows`` answered exactly, in batches with padding on the left."""
    right = 0
    for start in range(0, len(rows), 100):
        batch = rows[start : start + 100]
        prompts = [render(tokenizer, row, answered=False) for row in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(a.strip() == row["answer"] for a, row in zip(answers, batch, strict=True))
    return right / len(rows)


@torch.no_grad()
def perplexity(model, tokenizer, rows: list[dict[str, str]]) -> float:
    """exp of the mean negative log-likelihood of every token of the chats, in float32."""
    total = count = 0
    for start in range(0, len(rows), 50):
        chats = [render(tokenizer, row, answered=True) for row in rows[start : start + 50]]
        inputs = tokenizer(chats, return_tensors="pt", padding=True, padding_side="right")
        logits = model(**inputs).logits[:, :-1].float()
        wanted, real = inputs["input_ids"][:, 1:], inputs["attention_mask"][:, 1:].bool()
        total += torch.nn.functional.cross_entropy(logits[real], wanted[real], reduction="sum").item()
        count += int(real.sum())
    return math.exp(total / count)


def round_to_nearest(model, bits: int, group: int = 128) -> None:
    """Round every linear layer of the blocks to ``bits``, a scale and a minimum for each group, in place."""
    for block in model.model.layers:
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear):
                weights = layer.weight.data.float().view(layer.weight.shape[0], -1, group)
                low, high = weights.amin(-1, keepdim=True), weights.amax(-1, keepdim=True)
                step = (high - low) / (2**bits - 1)
                rounded = ((weights - low) / step).round() * step + low
                layer.weight.data = rounded.view_as(layer.weight).to(layer.weight.dtype)


def main() -> None:
    tokenizer, rows = AutoTokenizer.from_pretrained(FOLDER), read_exam()
    lines = ["| weights | right answers | perplexity |", "|---|---|---|"]

    def measure(name: str, model) -> None:
        right, surprise = right_answers(model, tokenizer, rows), perplexity(model, tokenizer, rows)
        lines.append(f"| {name} | {right:.1%} | {surprise:.3f} |")
        print(lines[-1], flush=True)

    measure("bfloat16", AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16))
    for bits in (8, 4, 3, 2):
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
        round_to_nearest(model, bits)
        measure(f"rounded to nearest, {bits} bits, group 128", model)
    for kind in ("nf4", "fp4"):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, quantization_config=config)
        measure(f"{kind.upper()}, bitsandbytes", model)

    card = FOLDER / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    card.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

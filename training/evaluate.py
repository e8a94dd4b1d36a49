"""Measure tiny-zephyr at several widths and write the table into its card.

    python training/evaluate.py

Two figures each, as in the notebooks: the share of the 200 held-out questions answered exactly (greedy), and
the perplexity on the held-out text.
"""

from __future__ import annotations

import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series.models import TINY  # noqa: E402
from series.quality import examine, log_probabilities, perplexity, right_answers  # noqa: E402
from series.runtimes import Transformers  # noqa: E402
from series.texts import exam_prompts, exam_questions, held_out_windows  # noqa: E402

BEGIN, END = "<!-- measured: training/evaluate.py -->", "<!-- end -->"


def share_of_right_answers(model, tokenizer) -> float:
    """Share of the exam's questions that the model answers exactly."""
    questions = exam_questions()
    runtime = Transformers(model, tokenizer, [])
    return right_answers(questions, examine(runtime, tokenizer, questions, exam_prompts(tokenizer, questions)))


@torch.no_grad()
def surprise(model, tokenizer) -> float:
    """Perplexity on the held-out text."""
    windows = held_out_windows(tokenizer)
    return perplexity(windows, [log_probabilities(model(torch.tensor([ids])).logits[0]) for ids in windows])


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
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    lines = ["| weights | right answers | perplexity |", "|---|---|---|"]

    def measure(name: str, model) -> None:
        lines.append(f"| {name} | {share_of_right_answers(model, tokenizer):.1%} | {surprise(model, tokenizer):.3f} |")
        print(lines[-1], flush=True)

    measure("bfloat16", AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16))
    for bits in (8, 4, 3, 2):
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        round_to_nearest(model, bits)
        measure(f"rounded to nearest, {bits} bits, group 128", model)
    for kind in ("nf4", "fp4"):
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, quantization_config=config)
        measure(f"{kind.upper()}, bitsandbytes", model)

    card = TINY / "README.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    card.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

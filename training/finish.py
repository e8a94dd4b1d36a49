"""Turn the raw weights of ``train.py`` into the model that ships.

    python training/finish.py raw

Gives every block outlier channels, writes one bfloat16 safetensors file beside the tokenizer, and
the two small files of text that the notebooks use: ``exam.jsonl`` (200 held-out questions) and
``calibration.json`` (128 documents in the model's own style).
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import shutil

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import corpus

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny-zephyr"
CHANNELS, FACTOR = 8, 4.0


@torch.no_grad()
def add_outlier_channels(model, channels: int = CHANNELS, factor: float = FACTOR, seed: int = corpus.SEED) -> None:
    """Scale ``channels`` weights of each norm up and the next layers' columns down, in place.

    Large models grow a few channels whose activations are many times the others'. A norm followed by
    a linear layer computes W @ (g * x): multiplying g[c] by a power of two and dividing W[:, c] by it
    changes no bit of the result, and leaves the quantizers with what they meet in a large model.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for norm, linears in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            chosen = torch.randperm(norm.weight.numel(), generator=generator)[:channels]
            norm.weight[chosen] *= factor
            for linear in linears:
                linear.weight[:, chosen] /= factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=pathlib.Path, help="the folder that train.py wrote")
    raw = parser.parse_args().raw
    model = AutoModelForCausalLM.from_pretrained(raw, dtype=torch.bfloat16)
    ids = torch.arange(3, 259).view(1, -1)
    with torch.no_grad():
        before = model(ids).logits
        add_outlier_channels(model)
        after = model(ids).logits
    if not torch.equal(before, after):
        raise SystemExit(f"the function changed by up to {(before - after).abs().max():.3g}; it must not")
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False)
    model.save_pretrained(FOLDER)
    shutil.copy(raw / "training.json", FOLDER / "training.json")

    world = corpus.World()
    rows = "".join(json.dumps(row) + "\n" for row in corpus.exam(world))
    (FOLDER / "exam.jsonl").write_text(rows, encoding="utf-8")
    # 'english' is Python's own text and is not copied: a blank stands in and is dropped.
    stream = (d for d in corpus.documents(world, corpus.SEED + 2, [""]) if d)
    texts = list(itertools.islice(stream, 128))
    (FOLDER / "calibration.json").write_text(json.dumps(texts, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Train tiny-zephyr from scratch. Needs an NVIDIA GPU for the time given on the model card.

    python training/train.py --minutes 9 --out raw

Writes the trained weights (bfloat16, safetensors) and config.json to ``--out``; ``finish.py`` turns
them into the model that ships. The data is seeded; the run is cut by the clock, so a second run on
another machine gives a sister of the model, not a copy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import time

import torch
from tokenizers import Tokenizer
from transformers import MistralConfig, MistralForCausalLM

import corpus

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "models" / "tiny-zephyr"
CONTEXT = 512


def config() -> MistralConfig:
    """The shape: 8.9 M parameters, every matrix's input a multiple of 256."""
    return MistralConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        sliding_window=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )


class Blocks(torch.utils.data.IterableDataset):
    """Documents, each opened by <s>, end to end in rows of CONTEXT + 1 token ids (int64)."""

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        english = [p for p in corpus.python_english() if not corpus.held_out(p)]
        stream = corpus.documents(corpus.World(), corpus.SEED + 1000 + worker.id, english)
        rest: list[int] = []
        while True:
            for coded in tokenizer.encode_batch(list(itertools.islice(stream, 512))):
                rest += coded.ids
            rows = len(rest) // (CONTEXT + 1)
            yield from torch.tensor(rest[: rows * (CONTEXT + 1)]).view(rows, CONTEXT + 1)
            rest = rest[rows * (CONTEXT + 1) :]


def learning_rate(done: float, peak: float) -> float:
    """Warm-up for 1 %, flat to 50 %, then down to zero in a line; ``done`` runs from 0 to 1."""
    return peak * min(1.0, done / 0.01, max(0.0, (1 - done) / 0.5))


@torch.no_grad()
def score(model, tokenizer: Tokenizer, rows: list[dict[str, str]]) -> dict[str, float]:
    """Share of exam rows answered exactly, by kind and over all, greedily."""
    right: dict[str, list[bool]] = {}
    system = corpus.SYSTEM_PROMPTS[0]
    for row in rows:
        prompt = f"<|system|>\n{system}</s>\n<|user|>\n{row['question']}</s>\n<|assistant|>\n"
        ids = torch.tensor([tokenizer.encode(prompt).ids], device=model.device)
        out = model.generate(ids, max_new_tokens=64, do_sample=False, attention_mask=torch.ones_like(ids))
        answer = tokenizer.decode(out[0, ids.shape[1] :].tolist()).strip()
        right.setdefault(row["kind"], []).append(answer == row["answer"])
    result = {kind: sum(v) / len(v) for kind, v in right.items()}
    return {**result, "all": sum(map(sum, right.values())) / len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--batch", type=int, default=128, help="rows of 512 tokens in a step")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=14)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no NVIDIA GPU found: on a CPU this would take days")

    torch.manual_seed(corpus.SEED)
    torch.set_float32_matmul_precision("high")
    model = MistralForCausalLM(config()).cuda()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    kept = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.peak, betas=(0.9, 0.95), fused=True)
    loader = torch.utils.data.DataLoader(
        Blocks(), batch_size=given.batch, num_workers=given.workers, prefetch_factor=8, pin_memory=True
    )

    @torch.compile
    def loss_of(inputs, targets):
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    start, steps = None, 0
    for rows in loader:
        rows = rows.cuda(non_blocking=True)
        loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        start = start or time.time()  # the clock starts when compiling is over
        done = (time.time() - start) / (60 * given.minutes)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, given.peak)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps % 500 == 0:
            rate = steps * given.batch * CONTEXT / (time.time() - start)
            print(f"step {steps}  loss {loss.item():.4f}  {done:.0%}  {rate:,.0f} tokens/s", flush=True)
        if done >= 1:
            break

    model = model.to(torch.bfloat16).eval()
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out, max_shard_size="10MB")
    tokens = steps * given.batch * CONTEXT
    facts = {"steps": steps, "tokens": tokens, "minutes": given.minutes, "loss": round(loss.item(), 4)}
    facts |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    (given.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(facts, flush=True)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    print(score(model, tokenizer, corpus.exam(corpus.World())), flush=True)


if __name__ == "__main__":
    main()

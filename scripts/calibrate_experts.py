"""GPTQ on a mixture of experts: each expert by the tokens that chose it, or by all of them, for 12_experts.

    python scripts/calibrate_experts.py [--out benchmarks/experts-gptq.json]

The mixture is that of 12, made of ``tiny``, and ``tiny`` itself is the control: the same function without a router.
For each number of bits and of calibration texts: the KL divergence from ``tiny`` in 16 bits, for each window of the
held-out text, and the tokens that the rarest expert saw. Fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series import installed, mixture, quality  # noqa: E402
from series.artifacts import replace_file  # noqa: E402
from series.console import quiet  # noqa: E402
from series.fit import fitting_group  # noqa: E402
from series.machine import device_name  # noqa: E402
from series.models import find  # noqa: E402
from series.quirks import gptqmodel  # noqa: E402
from series.texts import calibration_texts, held_out_windows  # noqa: E402


def make(source: pathlib.Path, target: pathlib.Path, bits: int, texts: list[str], everyone: bool) -> None:
    """Write the model in ``source`` into ``target``, quantized by gptqmodel.

    Args:
        everyone: every expert sees every token.
    """
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import ExpertsRoutingOverride, MoEConfig
    from transformers import AutoConfig

    settings: dict[str, Any] = dict(bits=bits, group_size=fitting_group(AutoConfig.from_pretrained(source), 128))
    if everyone:
        settings["moe"] = MoEConfig(routing=ExpertsRoutingOverride("all"))
    with quiet():
        model = GPTQModel.load(str(source), QuantizeConfig(**settings))
        model.quantize(texts, batch_size=1)
        model.save(str(target))


def scores(folder: pathlib.Path, windows: list[list[int]]) -> list[Any]:
    """For each window its log-probabilities, [positions, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval()
        return [quality.log_softmax(model(torch.tensor([ids])).logits[0]) for ids in windows]


def rarest(folder: pathlib.Path, tokenizer: Any, texts: list[str]) -> int:
    """Of all experts of a mixture the fewest tokens of ``texts`` that one is chosen by."""
    import torch
    from transformers import AutoModelForCausalLM

    model, counts = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").eval(), 0
    for text in texts:
        with torch.no_grad():
            found = model(tokenizer(text, return_tensors="pt")["input_ids"], output_router_logits=True).router_logits
        counts += torch.stack(
            [s.float().topk(mixture.CHOSEN).indices.flatten().bincount(minlength=mixture.EXPERTS) for s in found]
        )
    return int(counts.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--texts", type=int, nargs="+", default=[64, 4, 1])
    parser.add_argument("--out", help="the file; else the rows are printed alone")
    given = parser.parse_args()
    from transformers import AutoTokenizer

    base = find("tiny")
    dense = base.fetch()
    tokenizer = AutoTokenizer.from_pretrained(dense)
    mixed = mixture.folder_of(dense, base.identity, calibration_texts(16, "own", tokenizer, "tiny"))
    windows, rows = held_out_windows(tokenizer, "tiny"), []
    whole = scores(dense, windows)
    ways = {"dense": (dense, False), "mixture, routed": (mixed, False), "mixture, all": (mixed, True)}
    with tempfile.TemporaryDirectory() as folder:
        gptqmodel.imported(pathlib.Path(folder))
        for count in given.texts:
            texts = calibration_texts(count, "own", tokenizer, "tiny")
            fewest, tokens = rarest(mixed, tokenizer, texts), sum(len(tokenizer(text)["input_ids"]) for text in texts)
            for bits in given.bits:
                for name, (source, everyone) in ways.items():
                    target = pathlib.Path(folder) / f"{bits}-{count}-{len(rows)}"
                    make(source, target, bits, texts, everyone)
                    found = [
                        quality.distance([q, q], [p, p]) for q, p in zip(scores(target, windows), whole, strict=True)
                    ]
                    by_window = [round(each["kl_divergence"], 6) for each in found]
                    row = {"model": name, "bits": bits, "texts": count}
                    row["tokens of the rarest"] = fewest if name == "mixture, routed" else tokens
                    print(row, sum(by_window) / len(by_window), flush=True)
                    rows.append(row | {"KL by window": by_window})
    versions = {name: installed.version(name) for name in ("gptqmodel", "torch", "transformers")}
    if given.out:
        found = {"machine": device_name(), "versions": versions, "rows": rows}
        replace_file(pathlib.Path(given.out), (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

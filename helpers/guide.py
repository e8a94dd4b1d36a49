"""The decision guide: one table, with its figures taken from measurements."""

from __future__ import annotations

import json
from typing import Any

from helpers.artifacts import ROOT
from helpers.fit import weight_bytes

BENCHMARKS = ROOT / "benchmarks"


def read_speed(name: str) -> dict[str, Any]:
    """A committed result of ``scripts/speed.py``, such as 'speed-cpu'."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def read_quality() -> dict[str, dict[str, float]]:
    """The committed figures of tiny-zephyr in each format, from 07_comparison."""
    return json.loads((BENCHMARKS / "quality-tiny.json").read_text(encoding="utf-8"))


def speed_of(benchmark: dict[str, Any], kind: str, measure: str = "decode_1") -> float:
    """Tokens a second of the format ``kind`` in a benchmark.

    Raises:
        ValueError: the benchmark has no such format.
    """
    for row in benchmark["rows"]:
        if row["format"] == kind:
            return row[measure]
    raise ValueError(f"The benchmark of {benchmark['machine']['processor']} has no format {kind!r}.")


def _zephyr() -> Any:
    from transformers import MistralConfig

    return MistralConfig()  # whose defaults are the shape of Mistral-7B, and so of Zephyr-7B


def decision_table(quality: dict[str, dict[str, float]], folder: str = "notebooks/") -> str:
    """What to take for which hardware and goal, as Markdown.

    Args:
        quality: for each run of tiny-zephyr its ``memory_bytes``, ``perplexity``, ``kl_divergence`` and
            ``right_answers``, as 07_comparison measures them.
        folder: where the links to the notebooks lead.
    """

    cpu, gpu, zephyr = read_speed("speed-cpu"), read_speed("speed-h100-80gb-hbm3"), _zephyr()

    def size(kind: str) -> str:
        return f"{weight_bytes(zephyr, kind) / 1e9:.1f} GB for Zephyr-7B"

    def right(name: str) -> str:
        return f"{quality[name]['right_answers']:.1%}"

    def pace(benchmark: dict[str, Any], kind: str, measure: str = "decode_1") -> float:
        return speed_of(benchmark, kind, measure) / speed_of(benchmark, "bf16", measure)

    # The sentences below hold only as long as these do.
    assert 0.8 < pace(gpu, "nf4") < 1.3 and pace(cpu, "awq", "decode_batch") < 1
    assert min(pace(cpu, "Q4_K_M"), pace(gpu, "Q4_K_M"), pace(gpu, "awq")) > 2
    rows = [
        ("memory for two bytes a weight", "lose nothing", "the 16-bit pipeline", "01_baseline",
         f"{right('16-bit')} right answers, which the others are held against; {size('16-bit')}"),
        ("several devices, or a disk and patience", "run a model that is too large", "sharding", "02_sharding",
         f"the same weights in pieces, the same answers ({right('16-bit, sharded')})"),
        ("one GPU", "try a model now, or fine-tune it", "NF4", "03_nf4",
         f"no preparation; {right('NF4')}; {size('NF4')}. It saves memory more than time: on an H100 it decodes at "
         f"{pace(gpu, 'nf4'):.1f} times the pace of the 16-bit pipeline"),
        ("one GPU", "quantize once, and stay with transformers or vLLM", "GPTQ, 4 bits", "04_gptq",
         f"a small checkpoint that both load; {right('GPTQ 4-bit')}; {size('GPTQ')}; needs calibration text"),
        ("a laptop, any processor, or one GPU", "run it for yourself", "GGUF, Q4_K_M", "05_gguf",
         f"{right('GGUF Q4_K_M')}; {size('Q4_K_M')}; decodes at about {pace(cpu, 'Q4_K_M'):.0f} times the pace of the "
         f"16-bit pipeline on a processor, and {pace(gpu, 'Q4_K_M'):.0f} times on an H100"),
        ("a server with a GPU", "answer many at once", "AWQ in vLLM", "06_awq",
         f"{right('AWQ 4-bit')}; {size('AWQ')}; on an H100 {pace(gpu, 'awq'):.0f} times the pace of the 16-bit "
         f"pipeline for one user, {pace(gpu, 'awq', 'decode_batch'):.0f} times for {gpu['batch']} at once. Not for a "
         f"processor: {cpu['batch']} at once go at {pace(cpu, 'awq', 'decode_batch'):.1f} times its pace"),
        ("memory for less than four bits", "run it at all", "GGUF, Q3_K_M, or a smaller model", "05_gguf",
         f"{right('GGUF Q3_K_M')}; {size('Q3_K_M')}. With Q2_K {right('GGUF Q2_K')} are left, with GPTQ in 2 bits "
         f"{right('GPTQ 2-bit')}"),
    ]  # fmt: skip
    lines = ["| you have | you want to | take | because |", "|---|---|---|---|"]
    for have, want, take, notebook, why in rows:
        lines.append(f"| {have} | {want} | [{take}]({folder}{notebook}.ipynb) | {why} |")
    return "\n".join(lines)

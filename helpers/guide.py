"""The decision guide: one table, with its figures taken from measurements."""

from __future__ import annotations

import json
from typing import Any

from helpers.artifacts import ROOT

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


def decision_table(quality: dict[str, dict[str, float]], folder: str = "notebooks/") -> str:
    """What to take for which hardware and goal, as Markdown.

    Args:
        quality: for each run of tiny-zephyr its ``memory_bytes``, ``perplexity``, ``kl_divergence`` and
            ``right_answers``, as 07_comparison measures them.
        folder: where the links to the notebooks lead.
    """

    def size(name: str) -> str:
        return f"{quality[name]['memory_bytes'] / quality['16-bit']['memory_bytes']:.0%} of the memory"

    def right(name: str) -> str:
        return f"{quality[name]['right_answers']:.1%}"

    cpu, gpu = read_speed("speed-cpu"), read_speed("speed-h100-80gb-hbm3")

    def pace(kind: str, benchmark: dict[str, Any] = cpu, measure: str = "decode_1") -> str:
        return f"{speed_of(benchmark, kind, measure) / speed_of(benchmark, 'bf16', measure):.1f} times"

    rows = [
        ("memory for two bytes a weight", "lose nothing", "the 16-bit pipeline", "01_baseline",
         f"{right('16-bit')} right answers; what all others are held against"),
        ("several devices, or a disk and patience", "run a model that is too large", "sharding", "02_sharding",
         f"the same weights ({size('16-bit, sharded')}), the same answers ({right('16-bit, sharded')})"),
        ("one GPU", "try a model now, or fine-tune it", "NF4", "03_nf4",
         f"no preparation, {size('NF4')}, {right('NF4')}; saves memory, not time: on an H100 it decodes at "
         f"{pace('nf4', gpu)} the pace of the 16-bit pipeline"),
        ("one GPU", "quantize once, run often", "GPTQ, 4 bits", "04_gptq",
         f"{size('GPTQ 4-bit')}, {right('GPTQ 4-bit')}; loads in transformers and vLLM; needs calibration text"),
        ("a laptop, a phone, any processor", "run it for yourself", "GGUF, Q4_K_M", "05_gguf",
         f"{size('GGUF Q4_K_M')}, {right('GGUF Q4_K_M')}; decodes at {pace('Q4_K_M')} the pace of the 16-bit "
         "pipeline on a processor"),
        ("a server with a GPU", "answer many at once", "AWQ in vLLM", "06_awq",
         f"{size('AWQ 4-bit')}, {right('AWQ 4-bit')}; not for a processor, where {cpu['batch']} answers at once go at "
         f"{pace('awq', cpu, 'decode_batch')} the pace of the 16-bit pipeline"),
        ("memory for less than four bits", "run it at all", "GGUF, Q3_K_M, or a smaller model", "05_gguf",
         f"Q3_K_M {right('GGUF Q3_K_M')}; with Q2_K {right('GGUF Q2_K')} are left, with GPTQ in 2 bits "
         f"{right('GPTQ 2-bit')}"),
    ]  # fmt: skip
    lines = ["| you have | you want to | take | because |", "|---|---|---|---|"]
    for have, want, take, notebook, why in rows:
        lines.append(f"| {have} | {want} | [{take}]({folder}{notebook}.ipynb) | {why} |")
    return "\n".join(lines)

"""07: what all of them cost and lose, side by side."""

from __future__ import annotations

from typing import Any

from series.parameters import one_of
from series.techniques.base import Technique


def _furthest(names: dict[str, Any]) -> str:
    runs = {name: names["runs"][name] for name in ("NF4", "GPTQ 4-bit", "GGUF Q4_K_M")}
    off = {name: abs(run["memory_bytes"] / run["predicted_bytes"] - 1) for name, run in runs.items()}
    return max(off, key=lambda name: off[name])


def _fewest(names: dict[str, Any]) -> str:
    runs, bits = names["runs"], names["bits"]
    floor = 0.9 * runs["16-bit"]["right_answers"]
    return min((bits[name], name) for name in names["SIX"] if runs[name]["right_answers"] >= floor)[1]


class Comparison(Technique):
    name, notebook = "comparison", "07_comparison"
    packages = ("torch", "transformers", "matplotlib")
    parameters = {"LADDERS": one_of(True, False)}
    where = "spread"
    answers = {
        1: (_furthest, "Compare memory_bytes with predicted_bytes in runs."),
        2: (lambda names: 1.073741824, "2 x layers x key-value heads x width x 2 bytes x tokens."),
        3: (_fewest, "Of those that keep 90 % of the right answers, take the smallest of bits."),
    }


TECHNIQUE = Comparison()

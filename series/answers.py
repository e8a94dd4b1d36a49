"""What the exercises expect, apart from the notebooks: a cell that checks does not show the answer.

A key is a notebook and a number; a value is the expected answer, from the notebook's names, and a hint.
"""

from __future__ import annotations

import pathlib
from typing import Any

import helpers


def _dequantized(names: dict[str, Any]) -> Any:
    codes = names["codes"].int()
    return (names["levels"][codes].reshape(-1, 64) * names["absmax"][:, None]).flatten()


def _q8_0(names: dict[str, Any]) -> Any:
    gguf = names["gguf"]
    return gguf.quants.dequantize(names["raw"], gguf.GGMLQuantizationType.Q8_0)


def _furthest(names: dict[str, Any]) -> str:
    runs = {name: names["runs"][name] for name in ("NF4", "GPTQ 4-bit", "GGUF Q4_K_M")}
    return max(runs, key=lambda name: abs(runs[name]["memory_bytes"] - runs[name]["predicted_bytes"])
               / runs[name]["predicted_bytes"])  # fmt: skip


def _fewest(names: dict[str, Any]) -> str:
    runs, bits = names["runs"], names["bits"]
    floor = 0.9 * runs["16-bit"]["right_answers"]
    return sorted((bits[name], name) for name in names["SIX"] if runs[name]["right_answers"] >= floor)[0][1]


def _files(names: dict[str, Any]) -> str:
    return "more" if len(list(pathlib.Path(names["folder"]).glob("*.safetensors"))) > 4 else "four"


def _doubled(names: dict[str, Any]) -> list[tuple[float, float]]:
    largest, error = names["scales_for"](names["best"][4]).max().item(), min(names["curves"][4])
    return [(largest, error), (2 * largest, error)]


def _finest(names: dict[str, Any]) -> str:
    files = [f"Llama-3.1-8B-{name}" for name in names["page"] if name.endswith(".gguf")]
    return helpers.which_file(files, names["llama"], 6.6e9, context=8_192)[0]["format"]


def _shards(names: dict[str, Any]) -> list[list[str]]:
    files = [file.name for file in names["files"]]
    layers = range(names["lesson"].config.num_hidden_layers)
    return [sorted({files[number] for number, what, *_ in names["holds"] if what == layer}) for layer in layers]


ANSWERS: dict[tuple[str, int], tuple[Any, str]] = {
    ("01_baseline", 1): (lambda names: 14.483464192, "16 bits are 2 bytes."),
    ("01_baseline", 2): (lambda names: 4, "The limit is the bandwidth, divided by the bytes that are read per token."),
    ("02_sharding", 1): (_files, "A tensor that does not fit any more opens the next file."),
    ("02_sharding", 2): (_shards, "Mind that layer 1 is not layer 10: look for '.layers.1.' with both dots."),
    ("02_sharding", 3): (lambda names: "b", "What lies in ordinary memory travels to the card for each token."),
    ("03_nf4", 1): (lambda names: [4.5, 4 + 8 / 64 + 32 / 64 / 256], "A block shares 8 bits; 256 blocks share 32."),
    ("03_nf4", 2): (_dequantized, "packed >> 4 is the first code of each byte, packed & 15 the second."),
    ("03_nf4", 3): (lambda names: [7], "A billion weights at 4.13 bits are 0.52 GB."),
    ("04_gptq", 1): (lambda names: names["BITS"] + (16 + names["BITS"]) / names["GROUP_SIZE"],
                     "A group shares 16 bits of scale and BITS of zero point."),
    ("04_gptq", 2): (lambda names: names["words"], "Integer i of a word is shifted by 4 * i bits."),
    ("04_gptq", 3): (lambda names: "NF4", "One of the two never looks at text."),
    ("05_gguf", 1): (lambda names: 4.5, "A byte has 8 bits, and a super-block 256 weights."),
    ("05_gguf", 2): (_q8_0, "raw[:, :2].copy().view(np.float16) is the scale; the bytes are signed: view(np.int8)."),
    ("05_gguf", 3): (lambda names: "Q4_K_M", "Weights times bits, divided by 8, are bytes; 4.5 GB are left for them."),
    ("06_awq", 1): (lambda names: 0, "AWQ scales the important channels, and spares none."),
    ("06_awq", 2): (_doubled, "Multiply by the scales, round, divide by the same."),
    ("06_awq", 3): (lambda names: ["GGUF", "AWQ"], "One starts in a moment on any processor, the other batches."),
    ("07_comparison", 1): (_furthest, "Compare memory_bytes with predicted_bytes in runs."),
    ("07_comparison", 2): (lambda names: 1.073741824, "2 x layers x key-value heads x width x 2 bytes x tokens."),
    ("07_comparison", 3): (_fewest, "Of those that keep 90 % of the right answers, take the smallest of bits."),
    ("08_original_stack", 1): (lambda names: [0x88888888, 0x12345678, 0xFFFFFFFF],
                               "Add one to each of the eight hexadecimal digits."),
    ("08_original_stack", 2): (lambda names: "checkpoint_format", "One of the three was changed between 2023 and now."),
    ("09_serving", 1): (lambda names: 16 * helpers.cache_bytes(names["lesson"].config, names["CONTEXT"]),
                        "One conversation takes cache_bytes(lesson.config, CONTEXT)."),
    ("09_serving", 2): (lambda names: ["vLLM", "llama.cpp"], "One of the two needs no torch, and starts in a second."),
    ("10_which_file", 1): (lambda names: "larger", "The quantizer makes the weighted error small."),
    ("10_which_file", 2): (_finest, "Keep the names in page that end with .gguf, and take the first row."),
    ("11_newer_formats", 1): (lambda names: [4.25, 4.5], "The scale's 8 bits are shared by the weights of a block."),
    ("11_newer_formats", 2): (lambda names: names["block"].dequantize(names["torch"].float32),
                              "codes & 7 is the place in FP4; torch.exp2 makes the scale."),
    ("11_newer_formats", 3): (lambda names: ["W4A16", "FP8", "NVFP4"],
                              "FP8 begins at 8.9, NVFP4 at 10.0; what is only unpacked should have few bytes."),
}  # fmt: skip


def check(notebook: str, number: int, answer: Any, names: dict[str, Any]) -> None:
    """Print whether ``answer`` to an exercise is right; ``names`` are the notebook's."""
    expected, hint = ANSWERS[notebook, number]
    helpers.check(answer, lambda: expected(names), hint)

"""The decision guide: one table by what the reader has, each figure with its source or its command."""

from __future__ import annotations

import json
from typing import Any

from helpers import cards
from helpers.sizes import bits_per_weight, bytes_read, cache_bytes, weight_bytes
from series.artifacts import ROOT, artifacts_folder
from series.fit import users_that_fit
from series.machine import OVERHEAD
from series.models import MODELS
from series.techniques import TECHNIQUES

__all__ = ["CARDS", "bits_of", "decision_table", "read_quality", "read_speed", "speed_results", "users_that_fit"]
CARDS = {name: card.memory for name, card in cards.CARDS.items()}
BENCHMARKS = ROOT / "benchmarks"
LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity"
AWQ_PAPER, FP8_PAPER = "https://arxiv.org/abs/2306.00978", "https://arxiv.org/abs/2411.02355"
# Published figures of real models. KL divergence from the 16-bit model and perplexity: llama.cpp, Llama-3-8B, tables
# of its perplexity and quantize tools. Perplexity of Llama-2-7B in groups of 128: AWQ paper, table 4.
LLAMA_3_8B = {
    "16-bit": (6.2332, 0.0),
    "Q8_0": (6.2343, 0.001),
    "Q6_K": (6.2534, 0.005),
    "Q4_K_M": (6.4071, 0.031),
    "Q3_K_M": (6.8885, 0.102),
    "Q2_K": (9.7516, 0.445),
}
# 'reordered' takes the important columns first, which gptqmodel does within and between groups (04).
LLAMA_2_7B = {"16-bit": 5.47, "rounded to nearest": 5.73, "GPTQ": 5.69, "GPTQ, reordered": 5.63, "AWQ": 5.60}

QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151936,
}


def read_speed(name: str) -> dict[str, Any]:
    """A committed result of ``scripts/speed.py``, such as 'speed-cpu'."""
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def read_speed_of_an_h100() -> dict[str, Any]:
    """The committed results of an H100. GPTQ's is of a run of its own, on the same kind of card a day before."""
    found, gptq = read_speed("speed-h100-80gb-hbm3"), read_speed("speed-h100-80gb-hbm3-gptq")
    return found | {"rows": [*found["rows"], *gptq["rows"]]}


def speed_results() -> list[dict[str, Any]]:
    """The committed results for a processor and for an H100, and those of this machine, if there are any."""
    here = sorted(artifacts_folder().glob("speed-*.json"))
    committed = [read_speed("speed-cpu"), read_speed_of_an_h100()]
    return [*committed, *(json.loads(path.read_text(encoding="utf-8")) for path in here)]


def read_quality(model: str = "tiny") -> dict[str, Any]:
    """The committed figures of a model, from 07_comparison: ``runs`` by name, none if there are no such figures."""
    file = BENCHMARKS / f"quality-{model}.json"
    return json.loads(file.read_text(encoding="utf-8")) if model in MODELS and file.is_file() else {"runs": {}}


def read_formats() -> dict[str, dict[str, Any]]:
    """What ``scripts/formats.py`` found on each device: 'cpu' -> device, versions and rows, and so on."""
    files = sorted(BENCHMARKS.glob("formats-*.json"))
    return {file.stem.removeprefix("formats-"): json.loads(file.read_text(encoding="utf-8")) for file in files}


def speed_of(benchmark: dict[str, Any], kind: str, measure: str = "decode_1") -> float:
    """Tokens per second of the format ``kind`` in a benchmark.

    Raises:
        ValueError: the benchmark has no such format.
    """
    for row in benchmark["rows"]:
        if row["format"] == kind:
            return row[measure]
    raise ValueError(f"The benchmark of {benchmark['machine']['processor']} has no format {kind!r}.")


def zephyr() -> Any:
    """Zephyr-7B's configuration."""
    from transformers import MistralConfig

    return MistralConfig()  # whose defaults are the shape of Mistral-7B, and so of Zephyr-7B


def speedup(benchmark: dict[str, Any], runtime: str, kind: str, measure: str = "decode_1") -> tuple[float, float]:
    """What a runtime gives at 16 bits over the transformers pipeline, and what the format adds on top of that."""
    plain, same = speed_of(benchmark, "bf16", measure), speed_of(benchmark, runtime, measure)
    return same / plain, speed_of(benchmark, kind, measure) / same


def decision_table(folder: str = "notebooks/") -> str:
    """What to take for which hardware, as Markdown; ``folder`` is where the links to the notebooks lead."""
    config, cpu, gpu = zephyr(), read_speed("speed-cpu"), read_speed_of_an_h100()
    llama, vllm = speedup(cpu, "F16", "Q4_K_M"), speedup(gpu, "bf16-vllm", "awq")

    def size(kind: str) -> str:
        return f"{weight_bytes(config, kind) / 1e9:.1f} GB"

    def worse(kind: str) -> str:
        perplexity, divergence = LLAMA_3_8B[kind]
        return f"perplexity {perplexity / LLAMA_3_8B['16-bit'][0] - 1:+.1%}, KL divergence {divergence} [1]"

    def link(text: str, notebook: str) -> str:
        return f"[{text}]({folder}{notebook}.ipynb)"

    def rate(kind: str) -> str:
        return f"{speed_of(gpu, kind):.0f}"

    def cache(kind: str) -> str:
        return f"{cache_bytes(config, 32_768, runtime='llama.cpp', kind=kind) / 1e9:.1f} GB"

    steps = {
        (row["users"], row["cache"]): row["ms"] for row in read_speed("context-h200")["rows"] if row["tokens"] == 32_512
    }
    slower = [ms / steps[users, "F16"] for (users, kind), ms in steps.items() if kind != "F16"]
    served = {row["name"]: row["users"] for row in read_speed("serving-h100")["rows"]}
    fp8 = {
        count: served["FP8 dynamic, 1 GPU"][count]["tokens/s"] / users["tokens/s"]
        for count, users in served["16-bit, 1 GPU"].items()
    }
    loaded = {row["name"].partition(",")[0]: row["users"] for row in read_speed("serving-llama-h200")["rows"]}

    def under_load(kind: str, beside: str) -> str:
        """Tokens per second of the server with ``kind``, as multiples of that with ``beside``, by number of users."""
        times = [f"{at['tokens/s'] / loaded[beside][n]['tokens/s']:.1f} with {n}" for n, at in loaded[kind].items()]
        return ", ".join(times).replace(" with 1,", " times with one user,")

    many = loaded["AWQ"]["64"]["tokens/s"] / loaded["16-bit"]["64"]["tokens/s"]
    low = speed_of(cpu, "Q2_K") / speed_of(cpu, "Q4_K_M")
    whole = LLAMA_2_7B["16-bit"]
    methods = ", ".join(
        f"{name} {perplexity / whole - 1:+.1%}" for name, perplexity in LLAMA_2_7B.items() if perplexity != whole
    )
    long = (weight_bytes(config, "Q4_K_M") + cache_bytes(config, 8192, runtime="llama.cpp") + OVERHEAD) / 1e9
    rows = [
        (
            "a laptop with 8 GB",
            f"{link('GGUF, Q4_K_M', '05_gguf')}, llama.cpp",
            f"{size('Q4_K_M')}, {worse('Q4_K_M')}. With a cache for 8,192 tokens and the libraries it needs {long:.1f} "
            "GB, which such a laptop hardly has free: close other programs, or take a model of 3 to 4 billion weights. "
            f"On two cores llama.cpp is {llama[0]:.1f} times as fast as the pipeline at 16 bits, and Q4_K_M "
            f"{llama[1]:.1f} times on top [3]",
        ),
        (
            "a laptop or Mac with 16 GB",
            f"{link('GGUF, Q6_K or Q8_0', '05_gguf')}, llama.cpp",
            f"{size('Q6_K')} or {size('Q8_0')}. Q6_K: {worse('Q6_K')}. Slower than Q4_K_M: there is more to read",
        ),
        (
            "a desktop or laptop with 32 GB or more, and a small card or none, one user",
            f"a {link('mixture of experts', '12_experts')} in GGUF, llama.cpp",
            f"Another model: Qwen3-30B-A3B has {weight_bytes(QWEN3_30B, 'Q4_K_M') / 1e9:.1f} GB in Q4_K_M, of which a "
            f"token reads {bytes_read(QWEN3_30B, 'Q4_K_M') / 1e9:.1f}; `--n-cpu-moe` keeps experts in ordinary memory. "
            "Neither its quality nor its speed was measured here",
        ),
        (
            "a T4 (Colab) or a card with 8 to 16 GB, one user",
            f"{link('GGUF', '05_gguf')} with all layers on the GPU, llama.cpp",
            f"{size('Q4_K_M')} in Q4_K_M, quality as above. Tokens per second for one user on an H100: llama.cpp "
            f"{rate('Q4_K_M')}, vLLM with AWQ {rate('awq')}; in transformers NF4 {rate('nf4')}, GPTQ "
            f"{rate('gptq')} (with a kernel that is compiled at the first load), 16 bits {rate('bf16')} [3]. No T4 was "
            "measured",
        ),
        (
            "the same card, to try a model in a minute or to fine-tune it",
            f"{link('NF4', '03_nf4')}, transformers; to fine-tune it, {link('an adapter', '14_finetune')}",
            f"{size('NF4')}. For memory, not for speed (see above). Its loss is in neither source; 07 measures it on "
            "small models",
        ),
        (
            "the same card, and a checkpoint to keep for transformers or vLLM",
            f"{link('GPTQ', '04_gptq')} or {link('AWQ', '06_awq')}",
            f"{size('GPTQ')}. Perplexity: {methods} [2]. Fast in vLLM, which has a fused kernel for both, "
            f"while users are few. Tokens per second on an H200, against 16 bits: GPTQ {under_load('GPTQ', '16-bit')}; "
            f"AWQ {under_load('AWQ', '16-bit')} [7]",
        ),
        (
            "a card with 24 GB",
            f"{link('16 bits', '01_baseline')}, transformers or vLLM",
            f"{size('16-bit')}, and nothing is lost. Four bits leave room for longer texts, or for a model of 13 to 30 "
            "billion weights",
        ),
        (
            "a server card from Ada or Hopper on, many users",
            f"{link('FP8', '11_newer_formats')}, vLLM",
            f"{size('FP8')}, effectively lossless on Llama-3.1 [4]. On an H100 {fp8['1']:.1f} times vLLM's 16 bits for "
            f"one user, {fp8['16']:.1f} times for 16 [5]",
        ),
        (
            "a server card that is older, or short of memory, many users",
            f"{link('AWQ', '06_awq')}, vLLM",
            f"{size('AWQ')}, perplexity as above. On an H100 vLLM is {vllm[0]:.1f} times as fast as the pipeline at 16 "
            f"bits for one user, and AWQ {vllm[1]:.1f} times on top [3]. With 64 users on an H200 AWQ gives "
            f"{many:.1f} times the tokens per second of 16 bits: there it saves memory, not time. llama.cpp's "
            f"server is for few users: Q4_K_M on that card, against AWQ in vLLM: {under_load('Q4_K_M', 'AWQ')} [7]",
        ),
        (
            "any of these, and no room for a long context",
            f"{link('a cache in Q8_0', '13_context')}, llama.cpp",
            f"32,768 tokens take {cache('F16')} in 16 bits, {cache('Q8_0')} in Q8_0 and {cache('Q4_0')} in Q4_0. What "
            f"that loses was measured on small models. On an H200 a step behind 32,512 tokens takes {min(slower):.1f} "
            f"to {max(slower):.1f} times as long [6]",
        ),
        (
            "several small devices, or a disk and patience",
            f"{link('sharding', '02_sharding')}, Accelerate",
            f"{size('16-bit')}, and nothing is lost. Slow where layers wait in memory or on the disk",
        ),
        (
            "room for less than four bits",
            f"a smaller model first; else {link('GGUF, Q3_K_M', '05_gguf')}, llama.cpp",
            f"{size('Q3_K_M')}, {worse('Q3_K_M')}. Its speed was not measured; on two cores Q2_K runs at {low:.0%} of "
            "Q4_K_M's [3]",
        ),
    ]
    head = ["| you have | take | Zephyr-7B then |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


SOURCES = (
    f"Sizes are computed from Zephyr's configuration by `weight_bytes`. [1] [llama.cpp]({LLAMA_CPP}), Llama-3-8B. "
    f"[2] [AWQ paper]({AWQ_PAPER}), Llama-2-7B, groups of 128; *reordered* takes important columns first, as 04 does "
    "in its way. [3] `make speed`, one user, random weights of Zephyr's shape on the H100; the files `speed-*.json` in "
    f"`benchmarks/` name the machine and the versions. [4] [500,000 evaluations of FP8, INT8 and INT4]({FP8_PAPER}). "
    "[5] `scripts/speed_serving.py`, `benchmarks/serving-h100.json`. [6] `scripts/speed_context.py`, "
    "`benchmarks/context-h200.json`; with F16 for keys and values as 1. [7] `scripts/speed_serving.py`, "
    "`benchmarks/serving-llama-h200.json`, measured once."
)


def label_points(axes: Any, points: dict[str, tuple[float, float]], fontsize: int = 8) -> None:
    """Write each point's name where it stands on no other point or name: beside, above or below it."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()  # the layout
    places = [axes.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    ways = [
        ((7, 3), "left"),
        ((-7, 0), "right"),
        ((6, 9), "left"),
        ((6, -9), "left"),
        ((-6, 9), "right"),
        ((-6, -9), "right"),
        ((0, 20), "center"),
        ((0, -20), "center"),
    ]
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        for offset, side in ways:
            text = axes.annotate(
                name, point, xytext=offset, textcoords="offset points", fontsize=fontsize, ha=side, va="center"
            )
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (offset, side) == ways[-1]:
                break
            text.remove()
        taken.append(box)


def bits_of(config: Any, figures: dict[str, Any]) -> float:
    """Bits per weight in the blocks of a run, constants included, from its technique and settings."""
    technique, settings = TECHNIQUES[figures["technique"]], figures["settings"]
    given = settings.get("BITS", 4), settings.get("GROUP_SIZE", 128)
    return bits_per_weight(config, technique.format_of(settings), *given, imatrix=technique.weighs)

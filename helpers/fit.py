"""Will it fit? The bytes of a model's weights and cache, from its configuration alone."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from math import ceil
from typing import Any

from helpers.console import quiet
from helpers.machine import Machine, gb
from helpers.models import Checkpoint

# Bits a weight of llama.cpp's types, scales included (ggml's block sizes: block bytes * 8 / block length).
GGML_BITS = {
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q3_K": 3.4375,
    "Q2_K": 2.625, "Q5_1": 6, "Q5_0": 5.5, "Q4_0": 4.5,
}  # fmt: skip
# Used when a width is no multiple of 256, the length of a K-quant's super-block.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
GGUF_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
FORMATS = ("16-bit", "NF4", "GPTQ", "AWQ", *GGUF_TYPES)
NOTEBOOKS = {"16-bit": "01_baseline", "NF4": "03_nf4", "GPTQ": "04_gptq", "AWQ": "06_awq"}  # the others: 05_gguf
GROUP_SIZES = (128, 64, 32)

# Bytes that such cards report in all ('nvidia-smi', total memory).
CARDS = {
    "RTX 3060": 12288 * 2**20,
    "T4": 15360 * 2**20,
    "L4": 23034 * 2**20,
    "RTX 4090": 24564 * 2**20,
    "A100 40 GB": 40960 * 2**20,
    "A100 80 GB": 81920 * 2**20,
    "H100": 81559 * 2**20,
    "H200": 143771 * 2**20,
}
USABLE = 0.95  # of a card's memory: the driver, and gaps between what is allocated, keep the rest
# Beside weights and cache: the libraries, the GPU's context, activations. A round figure above what we measured:
# 0.72 GB for CUDA's context with cuBLAS on an H100, and what 07_comparison prints for a processor. vLLM on a
# processor runs three processes.
OVERHEAD = 1_000_000_000
OVERHEAD_VLLM_CPU = 3_000_000_000


@dataclass(frozen=True)
class Weight:
    """A parameter of the model: its name, shape, and role ('linear', 'embedding', 'head' or 'other')."""

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


def model_weights(config: Any) -> list[Weight]:
    """Every parameter of the model that ``config`` describes; takes no memory, since nothing is filled.

    'linear' are the matrices inside the blocks, [outputs, inputs], which the techniques quantize. A head that
    shares the embedding's matrix is not listed twice.
    """
    return list(_weights(type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)))


@functools.lru_cache(maxsize=8)
def _weights(kind: type, settings: str) -> tuple[Weight, ...]:
    import torch

    config = kind.from_dict(json.loads(settings))
    with quiet(), torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linears = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    roles = {**dict.fromkeys(linears, "linear"), id(head.weight): "head", id(embedding.weight): "embedding"}
    return tuple(Weight(n, tuple(p.shape), roles.get(id(p), "other")) for n, p in model.named_parameters())


def block_linears(config: Any) -> list[str]:
    """Names of the linear layers inside the blocks, block by block: what every technique quantizes.

    Raises:
        ValueError: the blocks are not built of ``torch.nn.Linear``, which none of the techniques here would find.
    """
    names = [w.name.removesuffix(".weight") for w in model_weights(config) if w.role == "linear"]
    if not any(name.endswith("up_proj") for name in names):
        raise ValueError(
            f"This series knows models whose blocks are built like Llama's (layers such as 'up_proj'); those of "
            f"{config.model_type!r} are not. Qwen, Gemma, Phi-3, Mistral and their kin are."
        )
    return names


def fitting_group(config: Any, wanted: int) -> int:
    """The largest group size, at most ``wanted``, that divides the inputs of every linear layer; says so if smaller.

    Raises:
        ValueError: ``wanted`` is none of ``GROUP_SIZES``, or none of them divides.
    """
    if wanted not in GROUP_SIZES:
        raise ValueError(f"GROUP_SIZE counts weights, {', '.join(map(str, sorted(GROUP_SIZES)))}; it is {wanted!r}.")
    widths = sorted({w.shape[1] for w in model_weights(config) if w.role == "linear"})
    for size in GROUP_SIZES:
        if size <= wanted and not any(width % size for width in widths):
            if size < wanted:
                print(f"groups of {wanted} do not divide this model's widths {widths}: taking groups of {size}")
            return size
    raise ValueError(
        f"Groups of 32 weights do not divide this model's widths {widths}, and its kernels take no smaller ones. "
        "05_gguf.ipynb has no such limit."
    )


def ggml_type(weight: Weight, kind: str, config: Any, tied: bool) -> str:
    """The type that llama.cpp's quantizer gives to ``weight`` in a file of type ``kind``, such as 'Q4_K_M'.

    The rules are those of ``llama_tensor_get_type`` in llama.cpp (src/llama-quant.cpp, version of
    llama-cpp-python 0.3.36) for dense Llama-like models.
    """
    if len(weight.shape) < 2:
        return "F32"
    if kind in ("F16", "BF16"):
        return kind
    plain = kind.removesuffix("_M")
    layers = config.num_hidden_layers
    found = re.search(r"\.(\d+)\.", weight.name)
    layer = int(found[1]) if found else 0
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    part = weight.name.removesuffix(".weight").rpartition(".")[2]
    grouped = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    chosen = plain
    if weight.role == "head" or (weight.role == "embedding" and tied):
        chosen = "Q8_0" if plain == "Q8_0" else "Q6_K"
    elif part == "v_proj":
        special = {
            "Q2_K": "Q4_K" if grouped >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q4_K_M": "Q6_K" if more else plain,
            "Q5_K_M": "Q6_K" if more else plain,
        }
        chosen = special.get(kind, plain)
    elif part == "down_proj":
        special = {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
            "Q4_K_M": "Q6_K" if more else plain,
            "Q5_K_M": "Q6_K" if more else plain,
        }
        chosen = special.get(kind, plain)
    elif part == "o_proj":
        chosen = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(kind, plain)
    elif part == "qkv_proj":
        chosen = {"Q3_K_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(kind, plain)
    if weight.shape[-1] % 256 and chosen in FALLBACK:
        chosen = FALLBACK[chosen]
    return chosen if weight.shape[-1] % 32 == 0 else "F16"


def linear_bytes(weight: Weight, kind: str, bits: int = 4, group_size: int = 128) -> int:
    """Bytes of one quantized linear layer in 'NF4', 'GPTQ' or 'AWQ', constants included.

    NF4 (QLoRA paper, with double quantization, as bitsandbytes stores it): a code of 4 bits for each weight, one
    byte for each block of 64, a float32 for 256 of those, and a table of 16 levels, one of 256, and an offset.
    GPTQ and AWQ: integers, and for each group a 16-bit scale and a zero point; GPTQ adds a group number
    (int32) for each input.
    """
    outputs, inputs = weight.shape
    if kind == "NF4":
        blocks = ceil(weight.count / 64)
        return ceil(weight.count / 2) + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256 + 1)
    groups = ceil(inputs / group_size)
    size = weight.count * bits // 8 + groups * outputs * 2 + groups * outputs * bits // 8
    return size + (4 * inputs if kind == "GPTQ" else 0)


def linear_bits(config: Any, kind: str, bits: int = 4, group_size: int = 128) -> float:
    """Bits a weight in the blocks' linear layers alone, constants included: the format without the rest."""
    linear = [w for w in model_weights(config) if w.role == "linear"]
    if kind == "16-bit":
        return 16.0
    if kind in GGUF_TYPES:
        size = sum(w.count * GGML_BITS[ggml_type(w, kind, config, tied=False)] / 8 for w in linear)
    else:
        size = sum(linear_bytes(w, kind, bits, group_size) for w in linear)
    return 8 * size / sum(w.count for w in linear)


def weight_bytes(config: Any, kind: str = "16-bit", bits: int = 4, group_size: int = 128) -> int:
    """Bytes of all weights in the format ``kind``, one of ``FORMATS``; embedding, head and norms included.

    NF4, GPTQ and AWQ leave embedding, head and norms in 16 bits. GGUF quantizes embedding and head as well.

    Raises:
        ValueError: the format is not known.
    """
    if kind not in FORMATS:
        raise ValueError(f"There is no format {kind!r}. Use one of {', '.join(FORMATS)}.")
    weights = model_weights(config)
    if kind == "16-bit":
        return 2 * sum(w.count for w in weights)
    if kind in GGUF_TYPES:
        tied = not any(w.role == "head" for w in weights)
        return round(sum(w.count * GGML_BITS[ggml_type(w, kind, config, tied)] / 8 for w in weights))
    return sum(linear_bytes(w, kind, bits, group_size) if w.role == "linear" else 2 * w.count for w in weights)


def cache_bytes(config: Any, context: int, batch: int = 1) -> int:
    """Bytes of the key-value cache in 16 bits: a key and a value for each layer, key-value head and token.

    Grouped-query attention is what ``num_key_value_heads`` below ``num_attention_heads`` means.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * context * batch * 2


def users_that_fit(config: Any, kind: str, total: int, context: int) -> int:
    """How many conversations of ``context`` tokens a card of ``total`` bytes holds beside the weights, or 0."""
    room = USABLE * total - weight_bytes(config, kind) - OVERHEAD
    return max(0, int(room // cache_bytes(config, context)))


@dataclass(frozen=True)
class Fit:
    """The bytes that a model needs, and those that are free; ``place`` says where."""

    kind: str
    weights: int
    cache: int
    overhead: int
    free: int
    place: str

    @property
    def needed(self) -> int:
        return self.weights + self.cache + self.overhead

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def __str__(self) -> str:
        parts = f"{gb(self.weights)} of weights, {gb(self.cache)} of cache, {gb(self.overhead)} for the libraries"
        answer = "it fits" if self.fits else "it does NOT fit"
        return f"{self.kind}: {parts}\n{gb(self.needed)} of the {gb(self.free)} free {self.place}: {answer}"


def fit_on(
    machine: Machine,
    config: Any,
    kind: str,
    context: int = 512,
    bits: int = 4,
    group_size: int = 128,
    overhead: int = OVERHEAD,
    where: str = "gpu",
    gpus: int = 1,
) -> Fit:
    """Whether a model fits on ``machine`` in the format ``kind``, from its configuration alone.

    Args:
        context: tokens that the cache has room for.
        overhead: bytes for the libraries and activations, on each device.
        where: 'gpu' (one, where there is one; else the memory), 'memory' (a runtime that stays on the processor), or
            'spread' (the GPUs first, then the memory, as ``device_map="auto"`` does).
        gpus: how many share every matrix, as in tensor parallelism; the bytes are then those of one.
    """
    if not hasattr(config, "num_hidden_layers"):
        raise ValueError(f"This series takes models of text alone; {config.model_type!r} holds several models in one.")
    parts = weight_bytes(config, kind, bits, group_size), cache_bytes(config, context)
    if where == "memory" or not machine.gpus:
        free, place = machine.free, "in this machine's memory"
    elif where == "spread":
        overhead *= len(machine.gpus)
        free = sum(gpu.free for gpu in machine.gpus)
        place = f"on {machine.gpu.name if len(machine.gpus) == 1 else f'{len(machine.gpus)} GPUs'}"
        if sum(parts) + overhead > free:  # transformers keeps what does not fit in memory, and fetches it at each step
            free, place = free + machine.free, f"{place} and in memory, where the layers beyond the GPU wait: slow"
    else:
        free, place = machine.gpu.free, f"on {machine.gpu.name}"
        if gpus > 1:
            parts = [ceil(part / gpus) for part in parts]
            free, place = min(gpu.free for gpu in machine.gpus[:gpus]), f"on the fullest of {gpus} GPUs"
    return Fit(kind, *parts, overhead, free, place)


def preflight(
    machine: Machine, config: Any, kind: str, *fetched: Checkpoint, make: bool = False, **settings: Any
) -> Fit:
    """Print what a run will download, whether the model fits and which kernel computes, before anything is fetched.

    Args:
        kind: the format to load, one of ``FORMATS``.
        fetched: the checkpoints that the run needs, from ``resolve_model``.
        make: the format is made here, so the 16-bit model must fit as well.
        settings: those of ``fit_on``.

    Raises:
        OSError: the download is larger than the free disk.
        MemoryError: the model does not fit; the message names the formats that would, and their notebooks.
    """
    found = fit_on(machine, config, kind, **settings)
    download = sum(checkpoint.download for checkpoint in fetched)
    for checkpoint in fetched:
        size = f"{gb(checkpoint.download)} to fetch" if checkpoint.download else "already here"
        if not checkpoint.is_local:
            print(f"{checkpoint.source} at {checkpoint.revision[:12]}: {size}")
    print(f"{found}\nkernel: {machine.kernel(kind, settings.get('bits', 4))}")
    if download > machine.disk:
        raise OSError(
            f"This is a download of {gb(download)}, and {gb(machine.disk)} of disk are free. "
            "Free some space, or set HF_HOME and QUANT_ARTIFACTS to folders on a larger disk."
        )
    if not found.fits:
        raise MemoryError(_advice(machine, config, found))
    if make:
        whole = fit_on(machine, config, "16-bit")
        print(f"to make it, the 16-bit model must fit as well: {gb(whole.needed)} of {gb(whole.free)}")
        if not whole.fits:
            raise MemoryError(_advice(machine, config, whole))
    return found


def _advice(machine: Machine, config: Any, missed: Fit) -> str:
    would, can_make = [], fit_on(machine, config, "16-bit").fits
    for kind in FORMATS:
        overhead = OVERHEAD_VLLM_CPU if kind == "AWQ" and not machine.gpus else OVERHEAD
        where = "memory" if kind in GGUF_TYPES else "gpu"
        found = fit_on(machine, config, kind, overhead=overhead, where=where)
        if found.fits and kind != missed.kind and (kind != "AWQ" or machine.has_int4_kernel):
            published = "" if can_make or kind not in ("GPTQ", "AWQ") else ", if published"
            would.append(f"{kind} ({gb(found.needed)}, {NOTEBOOKS.get(kind, '05_gguf')}{published})")
    count = len(machine.gpus)
    if count > 1 and missed.kind == "AWQ" and fit_on(machine, config, "AWQ", gpus=count).needed < missed.free:
        would.append(f"AWQ cut across your {count} GPUs (GPUS = {count}, 06_awq)")
    advice = f"These would fit: {', '.join(would)}." if would else "No format of this series would fit."
    return (
        f"In {missed.kind} this model needs {gb(missed.needed)}, and {gb(missed.free)} are free {missed.place}. "
        f"{advice} Part of a model can also wait in memory or on the disk: 02_sharding.ipynb shows how."
    )

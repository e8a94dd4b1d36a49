"""The bytes of a model, from its configuration alone: weights in each format, and the key-value cache."""

from __future__ import annotations

import functools
import json
import re
from math import ceil
from typing import Any

from helpers.architecture import Kept, Weight, kept_by_layers, model_weights, settings_of, text_part

# Bits per weight of llama.cpp's types, scales included (ggml's block sizes: block bytes * 8 / block length).
GGML_BITS = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_K": 5.5,
    "Q4_K": 4.5,
    "Q3_K": 3.4375,
    "Q2_K": 2.625,
    "Q5_1": 6,
    "Q5_0": 5.5,
    "Q4_1": 5,
    "Q4_0": 4.5,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "IQ3_S": 3.4375,
    "IQ3_XXS": 3.0625,
    "IQ2_S": 2.5625,
    "IQ2_XS": 2.3125,
    "IQ2_XXS": 2.0625,
    "IQ1_M": 1.75,
    "IQ1_S": 1.5625,
    "MXFP4": 4.25,
}
BLOCKS_OF_32 = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "MXFP4")
# Used when a width is no multiple of 256, the length of a super-block.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"} | {
    name: "IQ4_NL" for name in GGML_BITS if name.startswith("IQ")
}
# What a file may be called, the finest first.
GGUF_TYPES = (
    "F16",
    "Q8_0",
    "Q6_K",
    "Q5_1",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_0",
    "Q4_1",
    "Q4_K_M",
    "Q4_K_S",
    "IQ4_NL",
    "Q4_0",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "IQ3_M",
    "IQ3_S",
    "Q3_K_S",
    "IQ3_XS",
    "Q2_K",
    "IQ3_XXS",
    "Q2_K_S",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
)
# Those that llama.cpp makes with an importance matrix only.
NEED_IMATRIX = ("IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
# What publishers call a file whose embedding and head are Q8_0, and otherwise another type.
LARGE_ENDS = {"Q2_K_L": "Q2_K", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_K_M", "Q5_K_L": "Q5_K_M", "Q6_K_L": "Q6_K"}
# A file of a mixture of experts: those in MXFP4, the rest in Q8_0.
OF_EXPERTS = "MXFP4_MOE"
IN_SAFETENSORS = ("16-bit", "INT8", "FP8", "NVFP4", "MXFP4", "NF4", "GPTQ", "AWQ")
FORMATS = (*IN_SAFETENSORS, *GGUF_TYPES, *LARGE_ENDS, OF_EXPERTS)


# Bytes beside weights and cache: the libraries, the GPU's context, activations. A round figure above what we measured:
# 0.72 GB for CUDA's context with cuBLAS on an H100, and what 07_comparison prints for a processor.
OVERHEAD = 1_000_000_000
# In these formats bitsandbytes and torchao leave experts as they are: tensors of three dimensions, no linear layers.
LEAVE_EXPERTS = ("NF4", "INT8", "FP8", "NVFP4")
# The families in which llama.cpp keeps a window's tokens alone; of the others, Mistral among them, it keeps all.
WINDOWS_IN_LLAMA_CPP = ("gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "olmo3", "cohere2")
RUNTIMES = ("transformers", "llama.cpp")


def experts_of(config: Any) -> int:
    """How many experts a layer of a mixture of experts has; 0 for a dense model."""
    return max((w.shape[0] for w in model_weights(config) if w.role == "expert"), default=0)


def experts_per_token(config: Any) -> int:
    """How many experts of a layer a token goes through; 0 for a dense model."""
    settings = settings_of(config)
    names = ("num_experts_per_tok", "top_k_experts", "num_experts_per_token", "moe_topk")
    return next((int(settings[name]) for name in names if settings.get(name)), 0) if experts_of(config) else 0


def distinct_experts(config: Any, tokens: int) -> float:
    """How many different experts of a layer are expected to be chosen by ``tokens`` tokens at once.

    E experts, k for each token, chosen evenly and independently of each other: E * (1 - (1 - k / E) ** tokens).
    """
    if not (experts := experts_of(config)):
        return 0.0
    return float(experts * (1 - (1 - experts_per_token(config) / experts) ** tokens))


def block_linears(config: Any) -> list[str]:
    """Names of the linear layers inside the blocks, block by block: what every technique quantizes.

    Raises:
        ValueError: the blocks are not built of ``torch.nn.Linear``, which none of the techniques here would find.
    """
    weights = model_weights(config)
    names = [w.name.removesuffix(".weight") for w in weights if w.linear]
    if not any(w.linear and w.role == "feed-forward" or w.role == "expert" for w in weights):
        raise ValueError(
            f"This series knows models whose blocks are built like Llama's (layers such as 'up_proj'); those of "
            f"{settings_of(config)['model_type']!r} are not. Qwen, Gemma, Phi-3, Mistral and their kin are."
        )
    return names


def ggml_type(weight: Weight, kind: str, config: Any, tied: bool, imatrix: bool = False) -> str:
    """The type that llama.cpp's quantizer gives to ``weight`` in a file of type ``kind``, such as 'Q4_K_M'.

    The rules are those of ``llama_tensor_get_type_impl`` in llama.cpp (src/llama-quant.cpp, version of
    llama-cpp-python 0.3.36).

    Args:
        imatrix: whether the file is made with an importance matrix, which changes a few choices.
    """
    return _ggml_type(weight, kind, settings_of(config), tied, imatrix)


def _ggml_type(weight: Weight, kind: str, settings: dict[str, Any], tied: bool, imatrix: bool) -> str:
    if len(weight.shape) < 2 or weight.role == "router" or "conv1d" in weight.name or weight.name.endswith("_bias"):
        return "F32"
    made = (settings.get("quantization_config") or {}).get("quant_method")
    if weight.role == "expert" and (kind == OF_EXPERTS or made == "mxfp4"):
        return "MXFP4"  # what was published so is taken over as it is, whatever the file is called
    if kind in ("F16", "BF16") or "per_layer_model_projection" in weight.name:
        return "BF16" if kind == "BF16" else "F16"
    ends = weight.role == "head" or (weight.role == "embedding" and tied)
    if kind in LARGE_ENDS and weight.role in ("head", "embedding"):
        return "Q8_0"
    kind = "Q8_0" if kind == OF_EXPERTS else LARGE_ENDS.get(kind, kind)
    plain = {"IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S"}.get(kind)
    plain = plain or re.sub(r"(?<=Q\d_K)_[SML]$", "", kind)
    fits = plain in BLOCKS_OF_32 or weight.inputs % 256 == 0
    if ends:
        low = kind.startswith(("IQ1", "IQ2")) or kind == "IQ3_XXS"
        chosen = "Q8_0" if plain == "Q8_0" or not fits else "Q5_K" if low else "Q6_K"
    elif weight.role == "embedding":
        chosen = {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S"}.get(kind, plain)
        chosen = "Q2_K" if kind in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS") else chosen
    else:
        chosen = _in_a_block(weight, settings, imatrix).get(kind, plain)
    if chosen not in BLOCKS_OF_32 and weight.inputs % 256:
        chosen = FALLBACK[chosen]
    return chosen if weight.inputs % 32 == 0 else "F16"


def _as_in_gguf(weight: Weight, settings: dict[str, Any]) -> list[Weight]:
    """The tensors that llama.cpp's converter makes of a weight, where they are of different types or lengths."""
    name, shape = weight.name, weight.shape
    if name.endswith("kv_b_proj.weight"):  # DeepSeek's: for each head one matrix for keys, and one for values
        heads, keys, values = settings["num_attention_heads"], settings["qk_nope_head_dim"], settings["v_head_dim"]
        rank, kind = shape[1], (weight.role, True)
        parts = [Weight(f"{name}:k_b", (heads, rank, keys), *kind, keys)]
        return [*parts, Weight(f"{name}:v_b", (heads, values, rank), *kind, rank)]
    if name.endswith("in_proj_qkvz.weight"):
        wide = settings["linear_num_value_heads"] * settings["linear_value_head_dim"]
        parts = [Weight(name.replace("qkvz", "qkv"), (shape[0] - wide, shape[1]), weight.role, True, shape[1])]
        return [*parts, Weight(name.replace("qkvz", "z"), (wide, shape[1]), weight.role, True, shape[1])]
    return [weight]


def _in_a_block(weight: Weight, settings: dict[str, Any], imatrix: bool) -> dict[str, str]:
    """The type of a file -> what a matrix of this part and layer gets in it, where that is not the plain type."""
    layers, found = settings["num_hidden_layers"], re.search(r"\.(\d+)\.", weight.name)
    layer, experts = int(found[1]) if found else 0, settings["num_experts"]
    heads = settings["num_attention_heads"]
    grouped = heads // settings["num_key_value_heads"] if settings["layer_types"][0] != "linear_attention" else 0
    eighth, middle = layer < layers // 8, layers // 8 <= layer < 7 * layers // 8
    more = eighth or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    finer = {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"} if more else {}
    part = weight.name.removesuffix(".weight").rpartition(".")[2]
    lowest = ("IQ1", "IQ2")
    if experts == 8 and part in ("k_proj", "v_proj"):  # llama.cpp's rule for Mixtral
        others = dict.fromkeys(GGUF_TYPES, "Q8_0")
        return others | {name: "Q4_K" for name in GGUF_TYPES if name[:3] in lowest}
    if experts == 8 and part == "o_proj":
        bumped = ("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M")
        return {name: "Q5_K" for name in GGUF_TYPES if name in bumped or name == "IQ4_XS" or name[:3] in lowest}
    if part in ("v_proj", "qkv_proj", "in_proj_qkv"):
        low, wide = {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}, grouped >= 4
        coarse = "Q4_K" if wide or experts >= 4 else ""
        rules = {name: coarse or low.get(name, "Q2_K") for name in GGUF_TYPES if name[:3] in lowest}
        others = finer | {
            "Q2_K": "Q4_K" if wide else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ3_M": "Q4_K",
            "IQ3_XXS": "Q4_K" if wide else "IQ3_XXS" if imatrix else "IQ3_S",
        }
        others |= {"Q4_K_S": "Q5_K"} if layer < 4 else {}
        if wide:
            others |= {"Q2_K_S": "Q4_K", "IQ3_XS": "Q4_K", "IQ3_S": "Q4_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
        if layers == 80 and grouped > 1:  # llama.cpp knows a model of 70 billion weights by its layers
            others = {
                name: "Q5_K" if others.get(name, name[:4]) in ("Q3_K", "Q4_K") else others[name]
                for name in GGUF_TYPES
                if name in others or name[:4] in ("Q3_K", "Q4_K")
            }
        return rules | others
    if part in ("down_proj", "output_linear"):
        rules = finer | {"Q2_K": "Q3_K", "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K", "Q3_K_L": "Q5_K"}
        rules |= {} if imatrix else {"IQ3_XXS": "Q4_K" if eighth else "Q3_K"}
        if eighth:
            rules |= {name: "Q2_K" for name in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")}
            rules |= {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}
            rules |= {"Q4_0": "Q4_1", "Q5_0": "Q5_1"} if imatrix else {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
        return rules
    if part == "o_proj":
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q4_K",
            "Q3_K_L": "Q5_K",
            "IQ3_XXS": "IQ3_S",
            "IQ3_M": "Q4_K",
            "IQ1_S": "IQ2_XXS",
            "IQ1_M": "IQ2_XXS",
            "IQ2_S": "IQ3_S",
            "IQ2_M": "IQ3_S",
        }
    if part in ("q_proj", "k_proj"):
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
    return {"IQ3_XS": "IQ3_XXS"} if middle else {}


def linear_bytes(weight: Weight, kind: str, bits: int = 4, group_size: int = 128) -> int:
    """Bytes of one quantized linear layer in a format of safetensors files, constants included.

    Experts, in tensors of three dimensions, are as many layers; the halves of 'gate_up' are two.

    NF4 (QLoRA paper, with double quantization, as bitsandbytes stores it): a code of 4 bits for each weight, one
    byte for each block of 64, a float32 for 256 of those, and a table of 16 levels, one of 256, and an offset.
    GPTQ and AWQ: integers, and for each group a 16-bit scale and a zero point; GPTQ adds a group number
    (int32) for each input. INT8 and FP8, as torchao stores them: a byte for each weight, and for each output a float32
    scale, in INT8 also a zero point of one byte. MXFP4 (OCP Microscaling specification): 4 bits, and a byte for each
    block of 32. NVFP4: 4 bits, a byte for each block of 16, kept in tiles of 128 rows and 4 blocks, and one float32.
    """
    if len(weight.shape) == 3:
        halves = 2 if "gate_up" in weight.name else 1
        outputs = weight.count // weight.shape[0] // weight.inputs // halves
        each = Weight(weight.name, (outputs, weight.inputs), weight.role, True, weight.inputs)
        return weight.shape[0] * halves * linear_bytes(each, kind, bits, group_size)
    outputs, inputs = weight.shape
    if kind in ("INT8", "FP8"):
        return weight.count + outputs * (5 if kind == "INT8" else 4)
    if kind in ("MXFP4", "NVFP4"):
        scales = outputs * ceil(inputs / 32)
        if kind == "NVFP4":
            scales = 128 * ceil(outputs / 128) * 4 * ceil(inputs / 64) + 4
        return ceil(weight.count / 2) + scales
    if kind == "NF4":
        blocks = ceil(weight.count / 64)
        return ceil(weight.count / 2) + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256 + 1)
    groups = ceil(inputs / group_size)
    size = weight.count * bits // 8 + groups * outputs * 2 + groups * outputs * bits // 8
    return size + (4 * inputs if kind == "GPTQ" else 0)


def bits_per_weight(config: Any, kind: str, bits: int = 4, group_size: int = 128, *, imatrix: bool = False) -> float:
    """Bits per weight in the blocks' linear layers and experts alone, constants included: the format without the rest.

    Experts that the format's library leaves in 16 bits count as such.
    """
    each = _bytes_of_all(config, kind, bits, group_size, imatrix)
    inside = [(w.count, size) for w, size in each if w.linear or w.role == "expert"]
    return 8 * sum(size for _, size in inside) / sum(count for count, _ in inside)


class Format:
    """What a weight of one model becomes in one format.

    Args:
        config, kind, bits, group_size, imatrix, whole, experts: as ``weight_bytes`` takes them.

    Raises:
        ValueError: the format is not known.
    """

    def __init__(
        self,
        config: Any,
        kind: str = "16-bit",
        bits: int = 4,
        group_size: int = 128,
        imatrix: bool = False,
        whole: int = 2,
        experts: bool | None = None,
    ) -> None:
        if kind not in FORMATS:
            raise ValueError(f"There is no format {kind!r}. Use one of {', '.join(FORMATS)}.")
        self.settings, self.kind, self.bits, self.group_size = settings_of(config), kind, bits, group_size
        self.imatrix, self.whole = imatrix, whole
        self.gguf = kind not in IN_SAFETENSORS
        self.tied = bool(self.settings.get("tie_word_embeddings"))
        self.experts = kind not in LEAVE_EXPERTS if experts is None else experts
        # as OpenAI publishes it; torchao, in a dense model, takes the linear layers
        self.experts_alone = kind == "MXFP4" and bool(self.settings["num_experts"])

    def is_left(self, weight: Weight) -> bool:
        """Whether the format leaves the weight in 16 bits."""
        if self.kind == "16-bit":
            return True
        if weight.role == "expert":
            return not self.experts
        chosen = weight.linear and not (weight.role == "router" and self.kind in ("GPTQ", "AWQ"))
        return not chosen or self.experts_alone

    def bytes_of(self, weight: Weight) -> float:
        """Bytes of the weight, constants included."""
        if self.gguf:
            parts = _as_in_gguf(weight, self.settings)
            types = [_ggml_type(part, self.kind, self.settings, self.tied, self.imatrix) for part in parts]
            return sum(part.count * GGML_BITS[name] / 8 for part, name in zip(parts, types, strict=True))
        if self.is_left(weight):
            return self.whole * weight.count
        return linear_bytes(weight, self.kind, self.bits, self.group_size)


def _bytes_of_all(
    config: Any, kind: str, bits: int = 4, group_size: int = 128, imatrix: bool = False, *more: Any
) -> tuple[tuple[Weight, float], ...]:
    """Every weight with its bytes; the arguments, in this order, are those of ``Format``."""
    text = json.dumps(text_part(config), sort_keys=True, default=str)
    return _remembered(text, kind, bits, group_size, imatrix, *(more or (2, None)))


@functools.lru_cache(maxsize=64)
def _remembered(text: str, *how: Any) -> tuple[tuple[Weight, float], ...]:
    each = Format(settings := json.loads(text), *how)
    return tuple((weight, each.bytes_of(weight)) for weight in model_weights(settings))


def weight_bytes(
    config: Any,
    kind: str = "16-bit",
    bits: int = 4,
    group_size: int = 128,
    *,
    imatrix: bool = False,
    whole: int = 2,
    experts: bool | None = None,
) -> int:
    """Bytes of all weights in the format ``kind``, one of ``FORMATS``; embedding, head and norms included.

    The formats of safetensors files leave embedding, head and norms in 16 bits. GGUF quantizes embedding and head too.

    Args:
        config: a configuration of transformers, the object in a ``config.json``, or the path of one.
        imatrix: of a GGUF file, whether it is made with an importance matrix.
        whole: bytes of a weight that is not quantized: 4 in float32.
        experts: whether the experts of a mixture are quantized too; None for what the library of this series does,
            which is no in ``LEAVE_EXPERTS``.

    Raises:
        ValueError: the format, or the family of the model, is not known.
    """
    return round(sum(size for _, size in _bytes_of_all(config, kind, bits, group_size, imatrix, whole, experts)))


def left_in_16_bits(config: Any, kind: str) -> dict[str, int]:
    """Role -> how many weights the library leaves in 16 bits in the format ``kind``; the roles that have any."""
    how, found = Format(config, kind), dict.fromkeys(("embedding", "head", "expert", "router", "other"), 0)
    for weight in model_weights(config):
        if not how.gguf and how.is_left(weight):
            role = weight.role if weight.role in found else "other"
            found[role] += weight.count
    return {role: count for role, count in found.items() if count}


def bytes_read(config: Any, kind: str = "16-bit", users: int = 1) -> int:
    """Bytes of weights that one step of decoding reads for ``users`` conversations at once, a token for each.

    All of a dense model but its embedding, of which a step reads one row for each user; of a mixture those experts
    that are expected to be chosen (``distinct_experts``).
    """
    weights = _bytes_of_all(config, kind)
    share = distinct_experts(config, users) / (experts_of(config) or 1)
    headless, total = not any(w.role == "head" for w, _ in weights), 0.0
    for weight, size in weights:
        is_table = weight.role == "embedding" and not (headless and weight.name == weights[0][0].name)
        part = users / weight.shape[0] if is_table else share if weight.role == "expert" else 1
        total += min(part, 1) * size
    return round(total)


def experts_in_memory(
    config: Any,
    kind: str,
    room: float,
    context: int = 4096,
    users: int = 1,
    cache: str = "F16",
    imatrix: bool = False,
) -> tuple[int, int, int]:
    """How many layers' experts must stay in ordinary memory, so that all else fits on a card: llama.cpp's --n-cpu-moe.

    Args:
        kind: the format, such as 'Q4_K_M'.
        room: bytes of the card; the cache and 1 GB for the libraries are counted too.
        context, users, cache: tokens of each conversation, conversations at once, and the type of keys and values.
        imatrix: whether the file is made with an importance matrix.

    Returns:
        The layers, the first ones, of which some may be dense; bytes on the card; and bytes of experts in memory. Where
        all experts are there and it still does not fit, the bytes on the card are more than ``room``.
    """
    experts: dict[int, float] = {}  # by layer
    for weight, size in _bytes_of_all(config, kind, imatrix=imatrix):
        if weight.role == "expert" and (found := re.search(r"\.(\d+)\.", weight.name)):
            experts[int(found[1])] = experts.get(int(found[1]), 0) + size
    total = weight_bytes(config, kind, imatrix=imatrix) + OVERHEAD
    total += cache_bytes(config, context, users, "llama.cpp", cache)
    in_memory, count = 0.0, 0
    for layer in sorted(experts):
        if total - in_memory <= room:
            break
        in_memory, count = in_memory + experts[layer], layer + 1
    return count, round(total - in_memory), round(in_memory)


def cache_bytes(config: Any, context: int, batch: int = 1, runtime: str = "transformers", kind: str = "F16") -> int:
    """Bytes that the layers keep of ``batch`` conversations of ``context`` tokens each: mostly keys and values.

    A layer with full attention keeps a key and a value for each token and each of its key-value heads; one with a
    window of w tokens at most w - 1 in transformers; DeepSeek's attention one latent vector for each token; and a layer
    with a state (Gated DeltaNet, Mamba) as much after one token as after a million.

    llama.cpp keeps, of a window, as many tokens as its server does: w and the 512 that it reads at once, rounded up to
    256; of Mistral's window it knows nothing. It keeps states in 32 bits.

    Args:
        runtime: 'transformers' or 'llama.cpp'.
        kind: the type of keys and values, one of ``GGML_BITS``, such as 'Q8_0'; 'F16' for any type of 16 bits.

    Raises:
        ValueError: the family, the runtime or the type is not known.
    """
    return round(sum(cache_by_kind(config, context, batch, runtime, kind).values()))


def cache_by_kind(
    config: Any, context: int, batch: int = 1, runtime: str = "transformers", kind: str = "F16"
) -> dict[str, float]:
    """Bytes of ``cache_bytes`` by kind of layer: 'full', 'window', 'latent' and 'state', those that there are."""
    if runtime not in RUNTIMES or kind not in GGML_BITS:
        raise ValueError(f"There is no cache of {kind!r} in {runtime!r}. Use {GGML_BITS.keys()}, and {RUNTIMES}.")
    per, known = GGML_BITS[kind] / 8, settings_of(config)["model_type"] in WINDOWS_IN_LLAMA_CPP
    found: dict[str, float] = {}
    for layer in kept_by_layers(config):
        kept = batch * _kept_bytes(layer, context, runtime, per, known)
        found[layer.kind] = found.get(layer.kind, 0) + kept
    return {name: size for name, size in found.items() if size}


def _kept_bytes(layer: Kept, tokens: int, runtime: str, per: float, window_is_known: bool) -> float:
    transformers = runtime == "transformers"
    if layer.kind == "state":
        channels = layer.convolution // layer.kernel
        return 4 * layer.state + (
            max(2, per) * layer.convolution if transformers else 4 * channels * (layer.kernel - 1)
        )
    if layer.window and transformers:
        tokens = min(tokens, layer.window - 1)
    elif layer.window and window_is_known:
        tokens = min(tokens, 256 * ceil((layer.window + 512) / 256))
    return layer.numbers * tokens * per

"""The bytes of a model, from its configuration alone: weights in each format, and the key-value cache."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

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
}
BLOCKS_OF_32 = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
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
FORMATS = ("16-bit", "INT8", "FP8", "NVFP4", "MXFP4", "NF4", "GPTQ", "AWQ", *GGUF_TYPES, *LARGE_ENDS)


@dataclass(frozen=True)
class Weight:
    """A parameter of the model: its name, shape, and role ('linear', 'embedding', 'head' or 'other')."""

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def count(self) -> int:
        """How many numbers the weight has."""
        return prod(self.shape)


def model_weights(config: Any) -> list[Weight]:
    """Every parameter of the model that ``config`` describes; takes no memory, since nothing is filled.

    'linear' are the matrices inside the blocks, [outputs, inputs], which the techniques quantize. A head that
    shares the embedding's matrix is not listed twice.
    """
    kind: Any = type(config)
    return list(_weights(kind, json.dumps(config.to_dict(), sort_keys=True, default=str)))


@functools.lru_cache(maxsize=8)
def _weights(kind: Any, settings: str) -> tuple[Weight, ...]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind.from_dict(json.loads(settings)))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linears = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    roles = {**dict.fromkeys(linears, "linear"), id(head.weight): "head", id(embedding.weight): "embedding"}
    return tuple(Weight(n, tuple(p.shape), roles.get(id(p), "other")) for n, p in model.named_parameters())


def experts_of(config: Any) -> int:
    """How many experts a layer of a mixture of experts has; 0 for a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return max((getattr(config, name, None) or 0 for name in names), default=0)


def block_linears(config: Any) -> list[str]:
    """Names of the linear layers inside the blocks, block by block: what every technique quantizes.

    Raises:
        ValueError: the blocks are not built of ``torch.nn.Linear``, which none of the techniques here would find.
    """
    names = [w.name.removesuffix(".weight") for w in model_weights(config) if w.role == "linear"]
    if experts_of(config) and not any(name.endswith("up_proj") for name in names):
        raise ValueError(
            f"{config.model_type!r} is a mixture of experts. transformers keeps the experts in tensors of three "
            "dimensions and not in linear layers, so most techniques here would leave them in 16 bits. This series "
            "takes dense models."
        )
    if not any(name.endswith("up_proj") for name in names):
        raise ValueError(
            f"This series knows models whose blocks are built like Llama's (layers such as 'up_proj'); those of "
            f"{config.model_type!r} are not. Qwen, Gemma, Phi-3, Mistral and their kin are."
        )
    return names


def ggml_type(weight: Weight, kind: str, config: Any, tied: bool, imatrix: bool = False) -> str:
    """The type that llama.cpp's quantizer gives to ``weight`` in a file of type ``kind``, such as 'Q4_K_M'.

    The rules are those of ``llama_tensor_get_type_impl`` in llama.cpp (src/llama-quant.cpp, version of
    llama-cpp-python 0.3.36) for dense Llama-like models.

    Args:
        imatrix: whether the file is made with an importance matrix, which changes a few choices.
    """
    if len(weight.shape) < 2:
        return "F32"
    if kind in ("F16", "BF16"):
        return kind
    ends = weight.role == "head" or (weight.role == "embedding" and tied)
    if kind in LARGE_ENDS and weight.role in ("head", "embedding"):
        return "Q8_0"
    kind = LARGE_ENDS.get(kind, kind)
    plain = {"IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S"}.get(kind)
    plain = plain or re.sub(r"(?<=Q\d_K)_[SML]$", "", kind)
    fits = plain in BLOCKS_OF_32 or weight.shape[-1] % 256 == 0
    if ends:
        low = kind.startswith(("IQ1", "IQ2")) or kind == "IQ3_XXS"
        chosen = "Q8_0" if plain == "Q8_0" or not fits else "Q5_K" if low else "Q6_K"
    elif weight.role == "embedding":
        chosen = {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S"}.get(kind, plain)
        chosen = "Q2_K" if kind in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS") else chosen
    else:
        chosen = _in_a_block(weight, config, imatrix).get(kind, plain)
    if chosen not in BLOCKS_OF_32 and weight.shape[-1] % 256:
        chosen = FALLBACK[chosen]
    return chosen if weight.shape[-1] % 32 == 0 else "F16"


def _in_a_block(weight: Weight, config: Any, imatrix: bool) -> dict[str, str]:
    """The type of a file -> what a matrix of this part and layer gets in it, where that is not the plain type."""
    layers, found = config.num_hidden_layers, re.search(r"\.(\d+)\.", weight.name)
    layer = int(found[1]) if found else 0
    heads = config.num_attention_heads
    grouped = heads // (getattr(config, "num_key_value_heads", None) or heads)
    eighth, middle = layer < layers // 8, layers // 8 <= layer < 7 * layers // 8
    more = eighth or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    finer = {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"} if more else {}
    part = weight.name.removesuffix(".weight").rpartition(".")[2]
    if part in ("v_proj", "qkv_proj"):
        low, wide = {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}, grouped >= 4
        rules = {name: "Q4_K" if wide else low.get(name, "Q2_K") for name in GGUF_TYPES if name[:3] in ("IQ1", "IQ2")}
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
    if part == "down_proj":
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

    NF4 (QLoRA paper, with double quantization, as bitsandbytes stores it): a code of 4 bits for each weight, one
    byte for each block of 64, a float32 for 256 of those, and a table of 16 levels, one of 256, and an offset.
    GPTQ and AWQ: integers, and for each group a 16-bit scale and a zero point; GPTQ adds a group number
    (int32) for each input. INT8 and FP8, as torchao stores them: a byte for each weight, and for each output a float32
    scale, in INT8 also a zero point of one byte. MXFP4 (OCP Microscaling specification): 4 bits, and a byte for each
    block of 32. NVFP4: 4 bits, a byte for each block of 16, kept in tiles of 128 rows and 4 blocks, and one float32.
    """
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
    """Bits per weight in the blocks' linear layers alone, constants included: the format without the rest."""
    linear = [w for w in model_weights(config) if w.role == "linear"]
    total = sum(_bytes(w, config, kind, bits, group_size, tied=False, imatrix=imatrix) for w in linear)
    return 8 * total / sum(w.count for w in linear)


def weight_bytes(
    config: Any, kind: str = "16-bit", bits: int = 4, group_size: int = 128, *, imatrix: bool = False, whole: int = 2
) -> int:
    """Bytes of all weights in the format ``kind``, one of ``FORMATS``; embedding, head and norms included.

    The formats of safetensors files leave embedding, head and norms in 16 bits. GGUF quantizes embedding and head too.

    Args:
        imatrix: of a GGUF file, whether it is made with an importance matrix.
        whole: bytes of a weight that is not quantized: 4 in float32.

    Raises:
        ValueError: the format is not known.
    """
    if kind not in FORMATS:
        raise ValueError(f"There is no format {kind!r}. Use one of {', '.join(FORMATS)}.")
    weights = model_weights(config)
    tied = not any(w.role == "head" for w in weights)
    return round(sum(_bytes(w, config, kind, bits, group_size, tied, imatrix, whole) for w in weights))


def _bytes(
    weight: Weight, config: Any, kind: str, bits: int, group_size: int, tied: bool, imatrix: bool, whole: int = 2
) -> float:
    if kind in GGUF_TYPES or kind in LARGE_ENDS:
        return weight.count * GGML_BITS[ggml_type(weight, kind, config, tied, imatrix)] / 8
    if kind == "16-bit" or weight.role != "linear":
        return whole * weight.count
    return linear_bytes(weight, kind, bits, group_size)


def cache_bytes(config: Any, context: int, batch: int = 1) -> int:
    """Bytes of the key-value cache in 16 bits: a key and a value for each layer, key-value head and token.

    Grouped-query attention is what ``num_key_value_heads`` below ``num_attention_heads`` means.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * context * batch * 2

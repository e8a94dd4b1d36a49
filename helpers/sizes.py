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
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q3_K": 3.4375,
    "Q2_K": 2.625, "Q5_1": 6, "Q5_0": 5.5, "Q4_0": 4.5,
}  # fmt: skip
# Used when a width is no multiple of 256, the length of a K-quant's super-block.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
GGUF_TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
FORMATS = ("16-bit", "NF4", "GPTQ", "AWQ", *GGUF_TYPES)


@dataclass(frozen=True)
class Weight:
    """A parameter of the model: its name, shape, and role ('linear', 'embedding', 'head' or 'other')."""

    name: str
    shape: tuple[int, ...]
    role: str

    @property
    def count(self) -> int:
        return prod(self.shape)


def model_weights(config: Any) -> list[Weight]:
    """Every parameter of the model that ``config`` describes; takes no memory, since nothing is filled.

    'linear' are the matrices inside the blocks, [outputs, inputs], which the techniques quantize. A head that
    shares the embedding's matrix is not listed twice.
    """
    return list(_weights(type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)))


@functools.lru_cache(maxsize=8)
def _weights(kind: type, settings: str) -> tuple[Weight, ...]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind.from_dict(json.loads(settings)))
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


def ggml_type(weight: Weight, kind: str, config: Any, tied: bool) -> str:
    """The type that llama.cpp's quantizer gives to ``weight`` in a file of type ``kind``, such as 'Q4_K_M'.

    The rules are those of ``llama_tensor_get_type`` in llama.cpp (src/llama-quant.cpp, version of
    llama-cpp-python 0.3.36) for dense Llama-like models.
    """
    if len(weight.shape) < 2:
        return "F32"
    if kind in ("F16", "BF16"):
        return kind
    plain, layers = kind.removesuffix("_M"), config.num_hidden_layers
    found = re.search(r"\.(\d+)\.", weight.name)
    layer = int(found[1]) if found else 0
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    part = weight.name.removesuffix(".weight").rpartition(".")[2]
    grouped = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    finer = "Q6_K" if more else plain
    special = {
        "v_proj": {"Q2_K": "Q4_K" if grouped >= 4 else "Q3_K", "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
                   "Q4_K_M": finer, "Q5_K_M": finer},
        "down_proj": {"Q2_K": "Q3_K", "Q3_K_M": "Q5_K" if layer < layers // 16 else "Q4_K",
                      "Q4_K_M": finer, "Q5_K_M": finer},
        "o_proj": {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"},
        "qkv_proj": {"Q3_K_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"},
    }  # fmt: skip
    chosen = special.get(part, {}).get(kind, plain)
    if weight.role == "head" or (weight.role == "embedding" and tied):
        chosen = "Q8_0" if plain == "Q8_0" else "Q6_K"
    if weight.shape[-1] % 256:
        chosen = FALLBACK.get(chosen, chosen)
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


def bits_per_weight(config: Any, kind: str, bits: int = 4, group_size: int = 128) -> float:
    """Bits per weight in the blocks' linear layers alone, constants included: the format without the rest."""
    linear = [w for w in model_weights(config) if w.role == "linear"]
    return 8 * sum(_bytes(w, config, kind, bits, group_size, tied=False) for w in linear) / sum(w.count for w in linear)


def weight_bytes(config: Any, kind: str = "16-bit", bits: int = 4, group_size: int = 128) -> int:
    """Bytes of all weights in the format ``kind``, one of ``FORMATS``; embedding, head and norms included.

    NF4, GPTQ and AWQ leave embedding, head and norms in 16 bits. GGUF quantizes embedding and head as well.

    Raises:
        ValueError: the format is not known.
    """
    if kind not in FORMATS:
        raise ValueError(f"There is no format {kind!r}. Use one of {', '.join(FORMATS)}.")
    weights = model_weights(config)
    tied = not any(w.role == "head" for w in weights)
    return round(sum(_bytes(w, config, kind, bits, group_size, tied) for w in weights))


def _bytes(weight: Weight, config: Any, kind: str, bits: int, group_size: int, tied: bool) -> float:
    if kind in GGUF_TYPES:
        return weight.count * GGML_BITS[ggml_type(weight, kind, config, tied)] / 8
    if kind == "16-bit" or weight.role != "linear":
        return 2 * weight.count
    return linear_bytes(weight, kind, bits, group_size)


def cache_bytes(config: Any, context: int, batch: int = 1) -> int:
    """Bytes of the key-value cache in 16 bits: a key and a value for each layer, key-value head and token.

    Grouped-query attention is what ``num_key_value_heads`` below ``num_attention_heads`` means.
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * context * batch * 2

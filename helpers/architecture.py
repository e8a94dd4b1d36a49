"""What a model is made of, from its configuration alone: every weight, and what each layer keeps of a conversation.

Nothing is loaded for it, not even torch. The families in ``FAMILIES`` are known here; tests/test_architecture_bytes.py
holds each against transformers' own tensors. Of another family transformers builds a skeleton without memory.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

DEFAULTS = json.loads(pathlib.Path(__file__).with_name("defaults.json").read_text(encoding="utf-8"))
TEXT = ("text_config", "llm_config", "language_config")  # where a model of several kinds has its language model
PARENTS = {name: f"{name}_text" for name in ("gemma3", "gemma4", "qwen3_5", "qwen3_5_moe")}
WINDOWS, STATES = ("sliding_attention",), ("linear_attention", "mamba")  # names of kinds of layers
# What is not as in Llama. 'bias': of which projections; 'norms': of queries and keys, by 'head' or over 'all' of them;
# 'around': the layer norms of a block; 'fused': matrices that are one; 'experts': where they stand.
BEFORE, AROUND = ("input", "post_attention"), ("input", "post_attention", "pre_feedforward", "post_feedforward")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "ministral": {},
    "granite": {},
    "smollm3": {},
    "seed_oss": {"bias": "qkv"},
    "qwen2": {"bias": "qkv"},
    "qwen3": {"norms": "head"},
    "gemma": {},
    "gemma2": {"around": AROUND},
    "gemma3_text": {"around": AROUND, "norms": "head"},
    "gemma4_text": {"around": AROUND, "norms": "head"},
    "phi3": {"fused": True},
    "olmo2": {"around": ("post_attention", "post_feedforward"), "norms": "all"},
    "olmo3": {"around": ("post_attention", "post_feedforward"), "norms": "all"},
    "mixtral": {"router": "mlp.gate"},
    "qwen2_moe": {"bias": "qkv", "router": "mlp.gate"},
    "qwen3_moe": {"norms": "head", "router": "mlp.gate"},
    "olmoe": {"norms": "all", "router": "mlp.gate"},
    "gpt_oss": {"router": "mlp.router"},
    "deepseek_v3": {"router": "mlp.gate"},
    "qwen3_next": {"norms": "head", "router": "mlp.gate", "gated": True},
    "qwen3_5_text": {"norms": "head", "gated": True},
    "qwen3_5_moe_text": {"norms": "head", "router": "mlp.gate", "gated": True},
    "granitemoehybrid": {"router": "block_sparse_moe.router", "experts": "block_sparse_moe.experts"},
}


@dataclass(frozen=True)
class Weight:
    """A parameter of the model.

    Attributes:
        name, shape: as transformers has them.
        role: 'embedding', 'head', 'attention', 'feed-forward', 'expert', 'router', 'norm' or 'other'.
        linear: whether it is the matrix of a linear layer, [outputs, inputs], other than the head.
        inputs: the length of a row, over which a block of weights shares a scale.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    linear: bool = False
    inputs: int = 1

    @property
    def count(self) -> int:
        """How many numbers the weight has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Kept:
    """What one layer keeps of a conversation.

    Attributes:
        kind: 'full', 'window', 'state', 'latent', or 'shared', which reads an earlier layer's.
        numbers: for each token.
        window: tokens that a layer with a window looks at; 0 for the others.
        convolution, state: numbers that a layer with a state keeps, however long the conversation is.
        kernel: length of the convolution.
    """

    kind: str
    numbers: int = 0
    window: int = 0
    convolution: int = 0
    state: int = 0
    kernel: int = 1


def text_part(config: Any) -> dict[str, Any]:
    """The settings of the language model in a configuration, as they stand there, with its ``model_type``.

    Args:
        config: a configuration of transformers, the object in a ``config.json``, or the path of one or of its folder.

    Raises:
        ValueError: there is no ``model_type``.
    """
    if isinstance(config, (str, pathlib.Path)):
        file = pathlib.Path(config)
        config = json.loads((file / "config.json" if file.is_dir() else file).read_text(encoding="utf-8"))
    found = dict(config) if isinstance(config, dict) else config.to_dict()
    outer = found
    for name in TEXT:
        if isinstance(inner := found.get(name), dict):
            tied = {k: found[k] for k in ("tie_word_embeddings",) if k in found}  # the whole model decides this
            made = {k: found[k] for k in ("quantization_config",) if k in found}
            found = made | {"model_type": PARENTS.get(found.get("model_type", ""), "")} | inner | tied
            break
    kind = found.get("model_type")
    if not kind:
        raise ValueError(f"This configuration has no model_type: {', '.join(sorted(outer)[:8])} ...")
    return found | {"model_type": PARENTS.get(kind, kind)}


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of the language model, complete: what ``config.json`` leaves out is as transformers has it."""
    found = text_part(config)
    declared = DEFAULTS.get(found["model_type"], {})
    settings = declared | found
    names = ("num_experts", "num_local_experts", "n_routed_experts")  # each family has one, a config.json another one
    given = [source[name] for source in (found, declared) for name in names if source.get(name) is not None]
    settings["num_experts"] = given[0] if given else 0
    settings["num_key_value_heads"] = settings.get("num_key_value_heads") or settings.get("num_attention_heads")
    settings["layer_types"] = layer_types(settings)
    return settings


def layer_types(settings: dict[str, Any]) -> list[str]:
    """For each layer 'full_attention', 'sliding_attention' or 'linear_attention'; ValueError for another kind."""
    layers, kind = settings.get("num_hidden_layers") or 0, settings["model_type"]
    given = settings.get("layer_types") or settings.get("layers_block_type")
    window, numbers = settings.get("sliding_window"), range(layers)
    if given:
        names = {"mamba": "linear_attention", "attention": "full_attention"}
        found = [names.get(name, name) for name in given]
    elif kind == "granitemoehybrid":
        found = ["linear_attention"] * layers
    elif kind in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        every = settings.get("full_attention_interval") or 4
        found = ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in numbers]
    elif kind in ("gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "olmo3"):
        every = {"gemma2": 2, "gpt_oss": 2, "olmo3": 4}.get(kind, 6)
        every = settings.get("sliding_window_pattern") or settings.get("_sliding_window_pattern") or every
        found = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in numbers]
    elif settings.get("use_sliding_window") is False or not window:
        found = ["full_attention"] * layers
    else:
        first = settings.get("max_window_layers") if kind in ("qwen2", "qwen3", "qwen2_moe") else 0
        found = ["sliding_attention" if i >= (first or 0) else "full_attention" for i in numbers]
    if kind == "gemma4_text" and found:
        found[-1] = "full_attention"
    if unknown := sorted({*found} - {*WINDOWS, *STATES, "full_attention"}) if kind in FAMILIES else []:
        raise ValueError(f"This {kind!r} has layers of the kind {unknown[0]!r}, whose bytes are not known here.")
    return found


def model_weights(config: Any) -> list[Weight]:
    """Every parameter of the model that ``config`` describes; a head that shares the embedding's matrix is not listed.

    Raises:
        ValueError: the family is not known here, and transformers cannot build it.
    """
    if (found := text_part(config))["model_type"] in FAMILIES:
        return [*_weights(_text(settings_of(config)))]
    return _weights_of_skeleton(_skeleton(_text(found)))


def kept_by_layers(config: Any) -> list[Kept]:
    """What each layer of the model keeps of a conversation."""
    if (found := text_part(config))["model_type"] in FAMILIES:
        settings = json.loads(_text(settings_of(config)))
        return [_kept(settings, number) for number in range(settings["num_hidden_layers"])]
    return _kept_by_skeleton(_skeleton(_text(found)))


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


@functools.lru_cache(maxsize=4)
def _skeleton(text: str) -> Any:
    """The model as transformers itself builds it, on the meta device, where tensors have a shape and no memory.

    Raises:
        ValueError: transformers is not installed, or does not know the family.
    """
    settings = json.loads(text)
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    except Exception as error:
        raise _unknown(settings["model_type"], error) from None


def _unknown(kind: str, error: Exception) -> ValueError:
    said = str(error).strip().split("\n")[0][:200]
    return ValueError(
        f"Models of type {kind!r} are not known to this series, and transformers cannot build one here to count it "
        f"({type(error).__name__}: {said}). Their bytes are not computed."
    )


def _weights_of_skeleton(model: Any) -> list[Weight]:
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linears = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    roles = {id(head.weight): "head", id(embedding.weight): "embedding"}
    weights = []
    for name, parameter in model.named_parameters():
        role, shape = roles.get(id(parameter)) or _role(name, tuple(parameter.shape)), tuple(parameter.shape)
        linear = id(parameter) in linears and role not in ("head", "embedding")
        weights.append(Weight(name, shape, role, linear, shape[-1] if shape else 1))
    return weights


def _kept_by_skeleton(model: Any) -> list[Kept]:
    """What the layers of the cache keep, by their tensors after 8 and after 16 tokens."""
    import torch

    try:
        caches = []
        for tokens in (8, 16):
            with torch.no_grad():
                ids = torch.ones(1, tokens, dtype=torch.long, device="meta")
                caches.append(model(ids, use_cache=True).past_key_values.layers)
        return [_grown(first, second) for first, second in zip(*caches, strict=True)]
    except Exception as error:
        raise _unknown(model.config.model_type, error) from None


def _role(name: str, shape: tuple[int, ...]) -> str:
    last = name.removesuffix(".weight").rpartition(".")[2]
    if len(shape) == 1:
        return "norm" if "norm" in last else "other"
    if "expert" in name and "shared" not in name and len(shape) == 3:
        return "expert"
    if re.search(r"router|\bgate\b|expert_gate", name):
        return "router"
    if len(shape) > 2 or "embed" in last:
        return "embedding" if "embed" in last else "other"
    return "attention" if re.search(r"attn|attention|mamba|mixer|conv", name) else "feed-forward"


def _grown(first: Any, second: Any) -> Kept:
    """What one layer of transformers' cache keeps, by its tensors after 8 and after 16 tokens."""
    import torch

    def numbers(layer: Any) -> int:
        found = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        return sum(value.numel() for value in found if value.dim() > 1)

    if not isinstance(getattr(first, "keys", None), torch.Tensor):
        raise TypeError(f"its cache has layers of another kind, {type(first).__name__}")
    each, window = (numbers(second) - numbers(first)) // 8, int(getattr(first, "sliding_window", 0) or 0)
    return Kept("window" if window else "full", each, window)


Found = Iterator[tuple[str, tuple[int, ...], str]]  # name, shape, role


@functools.lru_cache(maxsize=16)
def _weights(text: str) -> tuple[Weight, ...]:
    s = json.loads(text)
    hidden, words, kind = s["hidden_size"], s["vocab_size"], s["model_type"]
    found: list[tuple[str, tuple[int, ...], str]] = [("model.embed_tokens.weight", (words, hidden), "embedding")]
    for number in range(s["num_hidden_layers"]):
        parts = (*_attention(s, number), *_feed_forward(s, number), *_norms(s))
        found += [(f"model.layers.{number}.{name}", shape, role) for name, shape, role in parts]
    found.append(("model.norm.weight", (hidden,), "norm"))
    if kind == "gemma4_text" and (each := s["hidden_size_per_layer_input"]):
        wide = s["num_hidden_layers"] * each
        found.append(("model.embed_tokens_per_layer.weight", (s["vocab_size_per_layer_input"], wide), "embedding"))
        found.append(("model.per_layer_model_projection.weight", (wide, hidden), "other"))
        found.append(("model.per_layer_projection_norm.weight", (each,), "norm"))
    if not s["tie_word_embeddings"]:
        found.append(("lm_head.weight", (words, hidden), "head"))
    return tuple(
        Weight(name, shape, role, _is_linear(name, shape, role, kind), _inputs(shape, role, kind))
        for name, shape, role in found
    )


def _inputs(shape: tuple[int, ...], role: str, kind: str) -> int:
    return shape[-2] if role == "expert" and kind == "gpt_oss" else shape[-1]  # gpt-oss keeps its experts transposed


def _is_linear(name: str, shape: tuple[int, ...], role: str, kind: str) -> bool:
    """Whether transformers has a ``torch.nn.Linear`` there; its routers are parameters, but for Gemma 4's."""
    if len(shape) != 2 or not name.endswith(".weight") or role in ("head", "embedding"):
        return False
    return role != "router" or kind == "gemma4_text" or "shared" in name


def _head(s: dict[str, Any], number: int) -> tuple[int, int, int]:
    """Of a layer with attention: its heads of queries, its heads of keys and values, and their width."""
    heads, pairs = s["num_attention_heads"], s["num_key_value_heads"]
    width = s.get("head_dim") or s["hidden_size"] // heads
    own = (s.get("per_layer_config") or {}).get(str(number), {})
    if s["model_type"] == "gemma4_text" and s["layer_types"][number] == "full_attention" and not own:
        own = {"head_dim": s.get("global_head_dim") or 512}
        if s.get("attention_k_eq_v") and s.get("num_global_key_value_heads"):
            own["num_key_value_heads"] = s["num_global_key_value_heads"]
    return heads, own.get("num_key_value_heads") or pairs, own.get("head_dim") or width


def _shares(s: dict[str, Any], number: int) -> bool:
    """Whether the layer reads the keys and values of an earlier one, as the last ones of small Gemma 4 models do."""
    shared = s.get("num_kv_shared_layers") or 0
    return shared > 0 and number >= s["num_hidden_layers"] - shared


def _attention(s: dict[str, Any], number: int) -> Found:
    family, hidden = FAMILIES[s["model_type"]], s["hidden_size"]
    if s["layer_types"][number] in STATES:
        yield from _state(s)
        return
    if s.get("kv_lora_rank"):
        yield from _latent(s)
        return
    heads, pairs, width = _head(s, number)
    shapes = {"q": heads * width * (2 if family.get("gated") else 1), "k": pairs * width, "v": pairs * width}
    if _shares(s, number) or (s.get("attention_k_eq_v") and s["layer_types"][number] == "full_attention"):
        del shapes["v"]
    if _shares(s, number):
        del shapes["k"]
    if family.get("fused"):
        shapes = {"qkv": sum(shapes.values())}
    if s["model_type"] == "gpt_oss":
        yield "self_attn.sinks", (heads,), "other"
    with_bias = "qkvo" if s.get("attention_bias") and not family.get("fused") else family.get("bias", "")
    for name, rows in shapes.items():
        yield f"self_attn.{name}_proj.weight", (rows, hidden), "attention"
        if name in with_bias and s.get("qkv_bias", True):
            yield f"self_attn.{name}_proj.bias", (rows,), "other"
    yield "self_attn.o_proj.weight", (hidden, heads * width), "attention"
    if "o" in with_bias and s.get("attention_out_bias", True):
        yield "self_attn.o_proj.bias", (hidden,), "other"
    for name in ("q", "k") if family.get("norms") else ():
        if name in shapes:
            wide = width if family["norms"] == "head" else shapes[name]
            yield f"self_attn.{name}_norm.weight", (wide,), "norm"


def _latent(s: dict[str, Any]) -> Found:
    """DeepSeek's attention: keys and values of all heads are made of one short vector, and that is kept."""
    hidden, heads, rank, query = s["hidden_size"], s["num_attention_heads"], s["kv_lora_rank"], s.get("q_lora_rank")
    wide = s["qk_nope_head_dim"] + s["qk_rope_head_dim"]
    if query:
        yield "self_attn.q_a_proj.weight", (query, hidden), "attention"
        yield "self_attn.q_a_layernorm.weight", (query,), "norm"
        yield "self_attn.q_b_proj.weight", (heads * wide, query), "attention"
    else:
        yield "self_attn.q_proj.weight", (heads * wide, hidden), "attention"
    yield "self_attn.kv_a_proj_with_mqa.weight", (rank + s["qk_rope_head_dim"], hidden), "attention"
    yield "self_attn.kv_a_layernorm.weight", (rank,), "norm"
    yield "self_attn.kv_b_proj.weight", (heads * (s["qk_nope_head_dim"] + s["v_head_dim"]), rank), "attention"
    yield "self_attn.o_proj.weight", (hidden, heads * s["v_head_dim"]), "attention"


def _sizes_of_state(s: dict[str, Any]) -> tuple[int, int, int, int]:
    """Channels of the convolution, its kernel, numbers of the state, and width of what comes out."""
    if s["model_type"] == "granitemoehybrid":
        wide = s["mamba_expand"] * s["hidden_size"]
        channels = wide + 2 * s["mamba_n_groups"] * s["mamba_d_state"]
        return channels, s["mamba_d_conv"], wide * s["mamba_d_state"], wide
    keys = s["linear_num_key_heads"] * s["linear_key_head_dim"]
    values = s["linear_num_value_heads"] * s["linear_value_head_dim"]
    return 2 * keys + values, s["linear_conv_kernel_dim"], values * s["linear_key_head_dim"], values


def _state(s: dict[str, Any]) -> Found:
    """A layer that keeps a state: Gated DeltaNet in Qwen, Mamba 2 in Granite."""
    hidden, (channels, kernel, _, wide) = s["hidden_size"], _sizes_of_state(s)
    if s["model_type"] == "granitemoehybrid":
        heads = s["mamba_n_heads"]
        for name in ("dt_bias", "A_log", "D"):
            yield f"mamba.{name}", (heads,), "other"
        yield "mamba.conv1d.weight", (channels, 1, kernel), "other"
        if s["mamba_conv_bias"]:
            yield "mamba.conv1d.bias", (channels,), "other"
        yield "mamba.in_proj.weight", (wide + channels + heads, hidden), "attention"
        yield "mamba.norm.weight", (wide,), "norm"
        yield "mamba.out_proj.weight", (hidden, wide), "attention"
        if s["mamba_proj_bias"]:
            yield "mamba.in_proj.bias", (wide + channels + heads,), "other"
            yield "mamba.out_proj.bias", (hidden,), "other"
        return
    heads = s["linear_num_value_heads"]
    yield "linear_attn.dt_bias", (heads,), "other"
    yield "linear_attn.A_log", (heads,), "other"
    yield "linear_attn.conv1d.weight", (channels, 1, kernel), "other"
    rows = {"qkv": channels, "z": wide, "b": heads, "a": heads}
    if s["model_type"] == "qwen3_next":
        rows = {"qkvz": channels + wide, "ba": 2 * heads}
    for name, outputs in rows.items():
        yield f"linear_attn.in_proj_{name}.weight", (outputs, hidden), "attention"
    yield "linear_attn.norm.weight", (s["linear_value_head_dim"],), "norm"
    yield "linear_attn.out_proj.weight", (hidden, wide), "attention"


def _has_experts(s: dict[str, Any], number: int) -> bool:
    every = s.get("decoder_sparse_step") or 1
    dense = number in (s.get("mlp_only_layers") or ()) or (number + 1) % every
    return bool(s["num_experts"]) and not dense and number >= (s.get("first_k_dense_replace") or 0)


def _mlp(where: str, hidden: int, wide: int, bias: bool = False) -> Found:
    for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
        yield f"{where}.{name}_proj.weight", shape, "feed-forward"
        if bias:
            yield f"{where}.{name}_proj.bias", (shape[0],), "other"


def _feed_forward(s: dict[str, Any], number: int) -> Found:
    kind, hidden = s["model_type"], s["hidden_size"]
    family, experts, inner = FAMILIES[kind], s["num_experts"], int(s.get("intermediate_size") or 0)
    if kind == "gemma4_text":
        twice = s.get("use_double_wide_mlp") and _shares(s, number)
        yield from _mlp("mlp", hidden, inner * (2 if twice else 1))
        if s.get("enable_moe_block"):
            yield "router.proj.weight", (experts, hidden), "router"
            yield "router.scale", (hidden,), "other"
            yield "router.per_expert_scale", (experts,), "other"
            yield "experts.gate_up_proj", (experts, 2 * s["moe_intermediate_size"], hidden), "expert"
            yield "experts.down_proj", (experts, hidden, s["moe_intermediate_size"]), "expert"
        if each := s["hidden_size_per_layer_input"]:
            yield "per_layer_input_gate.weight", (each, hidden), "feed-forward"
            yield "per_layer_projection.weight", (hidden, each), "feed-forward"
        return
    if family.get("fused"):
        yield "mlp.gate_up_proj.weight", (2 * inner, hidden), "feed-forward"
        yield "mlp.down_proj.weight", (hidden, inner), "feed-forward"
        return
    if kind == "granitemoehybrid":
        yield "shared_mlp.input_linear.weight", (2 * s["shared_intermediate_size"], hidden), "feed-forward"
        yield "shared_mlp.output_linear.weight", (hidden, s["shared_intermediate_size"]), "feed-forward"
        if not experts:
            return
    elif not _has_experts(s, number):
        yield from _mlp("mlp", hidden, inner, bool(s.get("mlp_bias")))
        return
    wide = s["moe_intermediate_size"] if "moe_intermediate_size" in DEFAULTS[kind] else inner
    where = family.get("experts", "mlp.experts")
    yield f"{family['router']}.weight", (experts, hidden), "router"
    if kind == "gpt_oss":
        yield f"{family['router']}.bias", (experts,), "other"
        yield f"{where}.gate_up_proj", (experts, hidden, 2 * wide), "expert"
        yield f"{where}.gate_up_proj_bias", (experts, 2 * wide), "other"
        yield f"{where}.down_proj", (experts, wide, hidden), "expert"
        yield f"{where}.down_proj_bias", (experts, hidden), "other"
        return
    yield f"{where}.gate_up_proj", (experts, 2 * wide, hidden), "expert"
    yield f"{where}.down_proj", (experts, hidden, wide), "expert"
    if shared := s.get("shared_expert_intermediate_size"):
        yield from _mlp("mlp.shared_expert", hidden, shared)
        yield "mlp.shared_expert_gate.weight", (1, hidden), "router"
    if shared := s.get("n_shared_experts"):
        yield from _mlp("mlp.shared_experts", hidden, shared * wide)


def _norms(s: dict[str, Any]) -> Found:
    hidden = s["hidden_size"]
    names = [f"{name}_layernorm" for name in FAMILIES[s["model_type"]].get("around", BEFORE)]
    if s["model_type"] == "gemma4_text":
        names += ["post_per_layer_input_norm"] if s["hidden_size_per_layer_input"] else []
        if s.get("enable_moe_block"):
            names += [f"{name}_feedforward_layernorm_{n}" for name, n in (("post", 1), ("post", 2), ("pre", 2))]
    for name in names:
        yield f"{name}.weight", (hidden,), "norm"


def _kept(s: dict[str, Any], number: int) -> Kept:
    if _shares(s, number):
        return Kept("shared")
    if s["layer_types"][number] in STATES:
        channels, kernel, state, _ = _sizes_of_state(s)
        return Kept("state", convolution=channels * kernel, state=state, kernel=kernel)
    if s.get("kv_lora_rank"):
        return Kept("latent", s["kv_lora_rank"] + s["qk_rope_head_dim"])
    _, pairs, width = _head(s, number)
    if s["layer_types"][number] in WINDOWS:
        return Kept("window", 2 * pairs * width, s["sliding_window"])
    return Kept("full", 2 * pairs * width)

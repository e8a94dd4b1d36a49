"""A small mixture of experts out of a dense model: the same function, for 12; and random files, to time decoding."""

from __future__ import annotations

import math
import os
import pathlib
import time
from typing import Any

from series.artifacts import key_of, made_once
from series.console import quiet

EXPERTS, CHOSEN = 4, 2
SHARPNESS = 8  # of the router: how far apart its scores lie


def can_become(config: Any) -> bool:
    """Whether the dense model's blocks are Mixtral's but for the experts."""
    return config.model_type in ("llama", "mistral") and not getattr(config, "mlp_bias", False)


def config_of(config: Any) -> Any:
    """The configuration of the mixture: the dense model's, with ``EXPERTS`` experts, ``CHOSEN`` for each token."""
    from transformers import MixtralConfig

    fields = MixtralConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    same = {name: value for name, value in config.to_dict().items() if name in fields}
    made = MixtralConfig(**same | {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN})
    made.architectures = ["MixtralForCausalLM"]
    made.of_a_dense_model = True
    return made


def is_made(config: Any) -> bool:
    """Whether ``config_of`` has made this configuration."""
    return bool(getattr(config, "of_a_dense_model", False))


def folder_of(source: pathlib.Path, identity: str, texts: list[str]) -> pathlib.Path:
    """The folder of the mixture that is made of the dense model in ``source``; made where it is missing.

    Each feed-forward is copied into every expert. The router's rows are the centres of what flows into the layer
    (k-means), less their mean: tokens that are alike choose the same experts. Their weights add up to 1, so that equal
    experts change nothing.
    """
    name = f"mixture-{source.name}-{key_of([identity, EXPERTS, CHOSEN, SHARPNESS, texts])}"

    def write(folder: pathlib.Path) -> None:
        with quiet():
            make(source, folder, texts)

    return made_once(name, write, source)


def make(source: pathlib.Path, target: pathlib.Path, texts: list[str]) -> None:
    """Write the mixture's configuration and weights beside the tokenizer in ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    dense = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    seen: dict[int, list[Any]] = {}
    for number, layer in enumerate(dense.model.layers):
        layer.mlp.register_forward_pre_hook(lambda _, given, n=number: seen.setdefault(n, []).append(given[0][0]))
    with torch.no_grad():
        for text in texts:
            dense(torch.tensor([tokenizer.encode(text)[:256]]))
    mixture = AutoModelForCausalLM.from_config(config_of(dense.config), dtype=dense.dtype)
    weights = dense.state_dict()
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        for number, layer in enumerate(mixture.model.layers):
            old, experts = dense.model.layers[number].mlp, layer.mlp.experts
            experts.gate_up_proj.copy_(torch.cat([old.gate_proj.weight, old.up_proj.weight]).expand(EXPERTS, -1, -1))
            experts.down_proj.copy_(old.down_proj.weight.expand(EXPERTS, -1, -1))
            layer.mlp.gate.weight.copy_(router(torch.cat(seen[number]).float()))
    mixture.generation_config = dense.generation_config
    mixture.save_pretrained(target)


def router(inputs: Any) -> Any:
    """[experts, hidden]: the centres of the inputs, [tokens, hidden], less their mean, each of length ``SHARPNESS``."""
    import torch

    torch.manual_seed(0)
    points = torch.nn.functional.normalize(inputs, dim=1)
    centres = points[torch.randperm(len(points))[:EXPERTS]]
    for _ in range(20):
        nearest = torch.cdist(points, centres).argmin(1)
        found = [points[nearest == number] for number in range(EXPERTS)]
        centres = torch.stack([own.mean(0) if len(own) else points[-1] for own in found])
    away = centres - centres.mean(0)
    return SHARPNESS * away / inputs.norm(dim=1).mean() * math.sqrt(inputs.shape[1]) / away.norm(dim=1, keepdim=True)


def write_random(
    file: str,
    experts: int,
    chosen: int,
    inner: int,
    hidden: int = 1024,
    layers: int = 10,
    heads: int = 16,
    pairs: int = 4,
    context: int = 4096,
) -> None:
    """A GGUF file of Llama's architecture with random weights in Q4_0: its answers mean nothing, its speed is real.

    Args:
        experts, chosen: in a layer, and for a token; 0 for a dense model.
        inner: the width of one feed-forward.
        heads, pairs: of queries, and of keys and values.
        context: tokens that the file says it is for.
    """
    import gguf
    import numpy as np

    random, words = np.random.default_rng(0), 2048
    writer = gguf.GGUFWriter(f"{file}.part", "llama")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(pairs)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_tokenizer_model("no_vocab")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(chosen)

    def quantized(name: str, *shape: int) -> None:
        blocks = random.integers(0, 256, (math.prod(shape) // 32, 18), dtype=np.uint8)
        blocks[:, :2] = np.frombuffer(np.float16(0.25 * shape[-1] ** -0.5).tobytes(), np.uint8)
        data = blocks.reshape(*shape[:-1], -1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    quantized("token_embd", words, hidden)
    quantized("output", words, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    many, stack = ("_exps", (experts,)) if experts else ("", ())
    for number in range(layers):
        block = f"blk.{number}"
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}.{name}.weight", np.ones(hidden, np.float32))
        for name, rows in {"q": hidden, "k": hidden // heads * pairs, "v": hidden // heads * pairs}.items():
            quantized(f"{block}.attn_{name}", rows, hidden)
        quantized(f"{block}.attn_output", hidden, hidden)
        if experts:
            scores = random.standard_normal((experts, hidden), dtype=np.float32)
            writer.add_tensor(f"{block}.ffn_gate_inp.weight", scores)
        quantized(f"{block}.ffn_gate{many}", *stack, inner, hidden)
        quantized(f"{block}.ffn_up{many}", *stack, inner, hidden)
        quantized(f"{block}.ffn_down{many}", *stack, hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(f"{file}.part", file)


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step_time(
    file: str, users: int, gpu_layers: int = 0, steps: int = 0, before: int = 0, cache: str = "F16", places: int = 1
) -> float:
    """Milliseconds of llama.cpp's fastest step that decodes ``places`` tokens for each of ``users`` conversations.

    Of ``steps``, or of more where they are short: one that is disturbed then counts for nothing.

    Args:
        before: tokens that each conversation has in the cache already.
        cache: the type of keys and values; flash attention is on where it is not 'F16', and behind other tokens.

    Raises:
        RuntimeError: llama.cpp has no room for so many conversations, or cannot decode them.
    """
    import llama_cpp

    with quiet():
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        model = llama_cpp.llama_model_load_from_file(file.encode(), settings)
        room = llama_cpp.llama_context_default_params()
        room.n_ctx, room.n_seq_max = (64 * places + before) * users, users
        room.n_threads = room.n_threads_batch = usable_cores()
        room.n_batch = max(room.n_batch, users * places)
        if before or cache != "F16":
            room.type_k = room.type_v = getattr(llama_cpp, f"GGML_TYPE_{cache}")
            room.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context = llama_cpp.llama_init_from_model(model, room)
    if not context:
        raise RuntimeError(f"llama.cpp could not make room for {users} conversations with {file}.")
    batch, times = llama_cpp.llama_batch_init(max(users * places, 512 if before else 0), 0, 1), []

    def decode(rows: list[tuple[int, int]], logits: bool) -> None:
        """One token at each (user, place)."""
        batch.n_tokens = len(rows)
        for row, (user, place) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.logits[row] = (97 * user + place) % 2048, place, logits
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, user
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp could not decode {len(rows)} tokens of {file}.")
        llama_cpp.llama_synchronize(context)

    for user in range(users):
        for start in range(0, before, 512):
            decode([(user, place) for place in range(start, min(before, start + 512))], False)
    for step in range(steps or 10 + 50 // users):
        begun = time.perf_counter()
        first = before + step * places
        decode([(user, first + place) for user in range(users) for place in range(places)], True)
        times.append(1000 * (time.perf_counter() - begun))
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return min(times)

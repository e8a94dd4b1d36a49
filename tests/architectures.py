"""Small models of other architectures, with random weights, made on the spot: what they say is noise, how they are
built is real."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


def turns(each: str, last: str) -> str:
    return f"{{% for m in messages %}}{each}{{% endfor %}}{{% if add_generation_prompt %}}{last}{{% endif %}}"


# Templates in the manner of each family, in our own words.
TEMPLATES = {
    # writes the beginning-of-sequence token itself, which the tokenizer would add once more
    "llama": "{{ bos_token }}" + turns("[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}", "[assistant] "),
    "qwen2": turns("<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n", "<|im_start|>assistant\n"),
    # knows no system message
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + turns("<turn>{{ m['role'] }}\n{{ m['content'] }}</turn>\n", "<turn>model\n"),
    "phi3": turns("<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n", "<|assistant|>\n"),
}
# The widths: 192 has groups of 64 and no super-blocks; the others are as large as they must be.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": dict(hidden_size=192, intermediate_size=448, num_attention_heads=6, num_key_value_heads=2),
    "qwen2": dict(
        hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "gemma": dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=1, head_dim=64),
    "phi3": dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=4),
    "qwen3": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "olmo2": dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2),
    "gemma2": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        sliding_window=64,
    ),
    "gemma3_text": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        sliding_window=64,
        num_hidden_layers=7,
    ),
    "mistral": dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2),
    # refused, each for a reason of its own
    "qwen2_moe": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=256,
    ),
    "qwen3_5_text": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=32,
        linear_key_head_dim=32,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "gemma4_text": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size_per_layer_input=2048,
        hidden_size_per_layer_input=64,
    ),
    "mixtral": dict(
        hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4
    ),
    "qwen3_moe": dict(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        norm_topk_prob=True,
    ),
    "gpt_oss": dict(
        hidden_size=256,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=64,
    ),
}
# A tokenizer of 152,000 tokens takes long to score: only where llama.cpp wants one of the kind.
BYTE_LEVEL, NO_SYSTEM = ("qwen2", "olmo2", "qwen3_moe", "gpt_oss"), ("gemma", "gemma2", "gemma3_text")
TEMPLATE = {
    kind: "phi3" for kind in ("mistral", "qwen2_moe", "qwen3_5_text", "gemma4_text", "mixtral", "qwen3_moe", "gpt_oss")
} | {
    "qwen3": "phi3",
    "olmo2": "qwen2",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
}  # in whose manner


def byte_level_tokenizer() -> Any:
    """Qwen's byte-level BPE, read out of the vocabulary that llama.cpp's sources carry."""
    from gguf import GGUFReader
    from transformers import Qwen2Tokenizer

    from series.converter import llama_cpp_converter

    reader = GGUFReader(llama_cpp_converter().parent / "models" / "ggml-vocab-qwen2.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    merges = [tuple(pair.split(" ")) for pair in reader.get_field("tokenizer.ggml.merges").contents()]
    vocabulary = {token: number for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 1}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]})
    return tokenizer


def make_model(kind: str, folder: pathlib.Path, template: bool = True, **changed: Any) -> pathlib.Path:
    """A model of two blocks of the architecture ``kind`` in ``folder``, with a tokenizer and a chat template.

    Args:
        template: False for a base model.
        changed: fields of the configuration that differ from ``SHAPES``.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True)
    if kind in BYTE_LEVEL:
        tokenizer = byte_level_tokenizer()
    else:
        for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            shutil.copy(ROOT / "models" / "tiny-zephyr" / file, folder)
        if kind in NO_SYSTEM:  # whose tokenizer puts no space before the text, and llama.cpp knows that
            file = folder / "tokenizer.json"
            content = json.loads(file.read_text(encoding="utf-8"))
            parts = content["normalizer"]["normalizers"]
            content["normalizer"]["normalizers"] = [part for part in parts if part["type"] != "Prepend"]
            file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[TEMPLATE.get(kind, kind)] if template else None
    settings = dict(
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        dtype="bfloat16",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = AutoConfig.for_model(kind, **settings | SHAPES[kind] | changed)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():  # larger than at the start of a training, so that answers differ from token to token
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


EYES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
# The whole model -> its language model, and how it sees.
WHOLE = {
    "gemma3": ("gemma3_text", EYES),
    "gemma4": ("gemma4_text", EYES),
    "mistral3": ("mistral", EYES | {"model_type": "pixtral"}),
    "qwen3_5": (
        "qwen3_5_text",
        dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=256),
    ),
}


def make_whole(kind: str, folder: pathlib.Path) -> Any:
    """A small one with random weights, in several files, and the model itself."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text, eyes = WHOLE[kind]
    base = make_model(text, folder.with_name(f"{folder.name}-text"))
    more = {"audio_config": None} if kind == "gemma4" else {}
    inner = AutoConfig.from_pretrained(base).to_dict()
    config = AutoConfig.for_model(kind, text_config=inner, vision_config=eyes, **more)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(folder, max_shard_size="3MB")
    return model

"""The bytes of a model from its configuration alone, held against transformers' own tensors, family by family."""

from __future__ import annotations

import json
import sys

import pytest

from architectures import make_model
from execution import ROOT, run_program

sys.path.insert(0, str(ROOT / "scripts"))

import defaults  # noqa: E402
from helpers import bytes_read, cache_bytes, distinct_experts, experts_in_memory, weight_bytes  # noqa: E402
from helpers.architecture import FAMILIES, kept_by_layers, model_weights  # noqa: E402
from helpers.sizes import left_in_16_bits  # noqa: E402

PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))

COMMON = dict(
    num_hidden_layers=4,
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    pad_token_id=None,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
SHARED = EXPERTS | dict(shared_expert_intermediate_size=192)
DELTA = dict(
    head_dim=64,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=48,
)
LATENT = dict(
    kv_lora_rank=64,
    q_lora_rank=96,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=48,
    num_key_value_heads=4,
)
GEMMA4 = dict(head_dim=64, num_hidden_layers=7, sliding_window=64, vocab_size_per_layer_input=512)
SHORT_OF_KEYS = dict(
    num_kv_shared_layers=3,
    use_double_wide_mlp=True,
    layer_types=["sliding_attention", "full_attention"] * 3 + ["full_attention"],
)
MODELS = {
    "Llama": ("llama", dict(attention_bias=True, mlp_bias=True, head_dim=32)),
    "Mistral, with its window": ("mistral", dict(sliding_window=64)),
    "Mistral, without": ("mistral", dict(sliding_window=None)),
    "Ministral": (
        "ministral",
        dict(head_dim=64, sliding_window=64, layer_types=["sliding_attention", "full_attention"] * 2),
    ),
    "Granite": ("granite", {}),
    "SmolLM3": ("smollm3", {}),
    "Seed-OSS": ("seed_oss", dict(head_dim=64)),
    "Qwen2": ("qwen2", dict(use_sliding_window=True, max_window_layers=2, sliding_window=64)),
    "Qwen3": ("qwen3", dict(head_dim=96, tie_word_embeddings=True)),
    "Gemma": ("gemma", dict(head_dim=64)),
    "Gemma 2": ("gemma2", dict(head_dim=64, sliding_window=64)),
    "Gemma 3": ("gemma3_text", dict(head_dim=64, num_hidden_layers=7, sliding_window=64)),
    "Gemma 4": ("gemma4_text", GEMMA4),
    "Gemma 4, small": ("gemma4_text", GEMMA4 | SHORT_OF_KEYS),
    "Gemma 4, with experts": (
        "gemma4_text",
        GEMMA4
        | dict(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=128)
        | dict(attention_k_eq_v=True, num_global_key_value_heads=1, global_head_dim=128, hidden_size_per_layer_input=0),
    ),
    "Phi-3": ("phi3", {}),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", dict(sliding_window=64)),
    "Mixtral": ("mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "Qwen2-MoE": ("qwen2_moe", SHARED | dict(mlp_only_layers=[1])),
    "Qwen3-MoE": ("qwen3_moe", EXPERTS | dict(head_dim=64, decoder_sparse_step=2)),
    "OLMoE": ("olmoe", EXPERTS),
    "gpt-oss": ("gpt_oss", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=64, sliding_window=64)),
    "DeepSeek-V3": (
        "deepseek_v3",
        LATENT
        | dict(n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=128)
        | dict(first_k_dense_replace=1, n_shared_experts=2),
    ),
    "Qwen3-Next": ("qwen3_next", SHARED | DELTA),
    "Qwen3.5": ("qwen3_5_text", DELTA),
    "Qwen3.5-MoE": ("qwen3_5_moe_text", SHARED | DELTA),
    "Granite 4, hybrid": (
        "granitemoehybrid",
        dict(layer_types=["mamba", "attention"] * 2, num_local_experts=4, num_experts_per_tok=2)
        | dict(shared_intermediate_size=192, mamba_n_heads=8, mamba_d_head=64, mamba_d_state=32),
    ),
    "Granite 4, hybrid without experts": (
        "granitemoehybrid",
        dict(layer_types=["mamba", "attention"] * 2, num_local_experts=0, num_experts_per_tok=0)
        | dict(shared_intermediate_size=192, mamba_n_heads=8, mamba_d_head=64, mamba_d_state=32),
    ),
    # unknown to helpers: transformers' skeleton answers
    "Cohere 2": ("cohere2", dict(sliding_window=64)),
    "GLM-4-MoE": (
        "glm4_moe",
        dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, n_group=2, topk_group=1),
    ),
}


def config_of(name: str):
    from transformers import AutoConfig

    kind, changed = MODELS[name]
    return AutoConfig.for_model(kind, **COMMON | changed)


@pytest.fixture(scope="module")
def models():
    """Name -> the model with random weights in bfloat16, and made when it is asked for."""
    import torch
    from transformers import AutoModelForCausalLM

    made = {}

    def make(name: str):
        if name not in made:
            torch.manual_seed(0)
            made[name] = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.bfloat16).eval()
        return made[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_its_name_its_shape_and_its_layer(name, models):
    import torch

    model = models(name)
    head = {id(model.get_output_embeddings().weight), id(model.get_input_embeddings().weight)}
    linears = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)} - head
    expected = {n: (tuple(p.shape), id(p) in linears) for n, p in model.named_parameters()}
    found = model_weights(config_of(name))
    assert {w.name: (w.shape, w.linear) for w in found} == expected
    for weight in found:
        assert weight.role in ("embedding", "head", "attention", "feed-forward", "expert", "router", "norm", "other")
        is_stack = len(weight.shape) == 3 and "experts" in weight.name
        assert (weight.role == "expert") == is_stack, weight
    assert not weight.linear or weight.inputs == weight.shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_cache_is_what_transformers_keeps(name, models):
    import torch

    for tokens in (40, 100, 200):
        with torch.no_grad():
            kept = models(name)(torch.ones(2, tokens, dtype=torch.long), use_cache=True).past_key_values
        tensors = []
        for layer in kept.layers:
            for value in vars(layer).values():
                values = value.values() if isinstance(value, dict) else [value]
                tensors += [t for t in values if isinstance(t, torch.Tensor) and t.dim() > 1]
        assert cache_bytes(config_of(name), tokens, batch=2) == sum(t.nbytes for t in tensors), tokens


@pytest.mark.parametrize("name", [name for name, (kind, _) in MODELS.items() if kind in FAMILIES])
def test_a_config_json_that_says_little_is_read_as_transformers_reads_it(name):
    """As published, with defaults left out; and inside a model that reads pictures too."""
    from transformers import AutoConfig

    kind, changed = MODELS[name]
    own = {k: v for k, v in changed.items() if k != "layer_types"} | {"model_type": kind}
    own |= {"hidden_size": 256} if kind == "granitemoehybrid" else {}
    own |= {"num_hidden_layers": 8} if "num_kv_shared_layers" in own else {}
    whole = AutoConfig.for_model(**own)
    for published in (own, {"model_type": "mistral3", "vision_config": {"hidden_size": 7}, "text_config": own}):
        assert model_weights(json.loads(json.dumps(published))) == model_weights(whole)
        assert kept_by_layers(published) == kept_by_layers(whole)


@pytest.mark.parametrize("row", PUBLISHED["weights"], ids=lambda row: f"{row['model']} {row['format']}")
def test_the_bytes_are_those_that_others_published(row):
    """The tensors of files that are on the hub; some sources give GB with two or three digits after the point."""
    config = PUBLISHED["configs"][row["config"]]
    assert weight_bytes(config, row["format"]) == pytest.approx(row["bytes"], rel=0.005), row["source"]


@pytest.mark.parametrize("row", PUBLISHED["caches"], ids=lambda row: f"{row['model']} {row['kind']}")
def test_the_cache_is_what_others_read_in_llama_cpps_log(row):
    config = PUBLISHED["configs"][row["config"]]
    kinds = {layer.kind for layer in kept_by_layers(config)}
    whole = cache_bytes(config, row["tokens"], runtime="llama.cpp", kind=row["type"])
    grown = whole - cache_bytes(config, 0, runtime="llama.cpp", kind=row["type"])  # a state is there before any token
    if row["kind"] == "state":
        found = whole - grown
    elif "window" in kinds:  # beyond the window only the layers without one grow
        more = cache_bytes(config, row["tokens"] + 4096, runtime="llama.cpp", kind=row["type"]) - whole
        found = more * row["tokens"] / 4096
        found = grown - found if row["kind"] == "window" else found
    else:
        found = grown
    assert found / 2**20 == pytest.approx(row["mib"], abs=0.006), row["source"]  # the log has two digits


def test_the_figures_that_were_wrong():
    """A dense model of 2023 was assumed for each of these."""
    configs = PUBLISHED["configs"]
    assert cache_bytes(configs["gemma-3-27b-it"], 131_072) == pytest.approx(11.2e9, rel=0.01)
    assert cache_bytes(configs["DeepSeek-V3"], 4096) == 61 * 576 * 2 * 4096
    assert weight_bytes(configs["gpt-oss-20b"], "MXFP4") == pytest.approx(13.8e9, rel=0.01)
    moe = configs["Qwen3-30B-A3B"]
    assert weight_bytes(moe, "NF4") == pytest.approx(59.7e9, rel=0.01), "bitsandbytes leaves the experts"
    assert weight_bytes(moe, "AWQ") == pytest.approx(16.9e9, rel=0.03), "gptqmodel does not"
    assert left_in_16_bits(moe, "NF4")["expert"] == 48 * 128 * 3 * 768 * 2048
    assert bytes_read(moe) == pytest.approx(2 * 3.35e9 - 2 * 151_936 * 2048, rel=0.02), "3.3 billion are active"
    assert [round(distinct_experts(moe, users)) for users in (1, 5, 8, 32)] == [8, 35, 52, 112]


def test_experts_wait_in_memory_as_far_as_they_must():
    moe = PUBLISHED["configs"]["Qwen3-30B-A3B"]
    whole = weight_bytes(moe, "Q4_K_M") + cache_bytes(moe, 8192, runtime="llama.cpp") + 1e9
    assert experts_in_memory(moe, "Q4_K_M", 1e12, 8192) == (0, whole, 0)
    layers, on_card, in_memory = experts_in_memory(moe, "Q4_K_M", 15.3e9, 8192)
    assert 0 < layers < 48 and on_card <= 15.3e9 and on_card + in_memory == pytest.approx(whole)
    assert experts_in_memory(moe, "Q4_K_M", on_card - 1, 8192)[0] == layers + 1, "no layer more than must"
    layers, on_card, _ = experts_in_memory(moe, "Q4_K_M", 1e9, 8192)
    assert layers == 48 and on_card > 1e9, "with all experts in memory it does not fit either"


def test_the_table_of_defaults_is_transformers_own():
    assert defaults.FILE.read_text(encoding="utf-8") == defaults.text()


def test_a_family_that_nobody_knows_gets_a_sentence():
    with pytest.raises(ValueError, match="'nonesuch' are not known to this series, and transformers cannot"):
        model_weights({"model_type": "nonesuch", "hidden_size": 8})
    with pytest.raises(ValueError, match="layers of the kind 'chunked_attention'"):
        model_weights({"model_type": "llama", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]})
    with pytest.raises(ValueError, match="no model_type: hidden_size"):
        model_weights({"hidden_size": 8})


PAGES = """
import os, sys

os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # which goes before the bytes that are asked for
from vllm import LLM

if __name__ == "__main__":
    given = dict(dtype="bfloat16", max_model_len=256, enforce_eager=True, block_size=32)
    llm = LLM(sys.argv[1], kv_cache_memory_bytes=2**25, **given)
    found = llm.llm_engine.vllm_config.cache_config
    print("PAGES", found.num_gpu_blocks, found.block_size, flush=True)
    llm.llm_engine.engine_core.shutdown()
"""


WINDOW = dict(sliding_window=64)
MIXED = WINDOW | dict(head_dim=64, num_hidden_layers=7, layer_types=["sliding_attention"] * 6 + ["full_attention"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "more", "groups"),
    [
        ("tiny", {}, 1),
        ("mistral", WINDOW, 1),
        ("gemma3_text", MIXED, 7),
    ],
)
def test_the_pages_of_vllm_hold_as_many_tokens_as_the_sum_says(tmp_path, family, more, groups):
    """vLLM's own count of pages in 32 MiB, of tokens each; where layers differ, each kind has pages of its own.

    A window makes no page smaller: it gives pages back, beyond the tokens of one batch. So the sum for a long text in
    a window is what is left then, and vLLM's count of users, which takes a batch of a whole text, is lower.
    """
    folder = ROOT / "models" / "tiny-zephyr" if family == "tiny" else make_model(family, tmp_path / "model", **more)
    done = run_program(PAGES, tmp_path, "06_awq", str(folder))
    assert "PAGES " in done.stdout, done.stderr[-2000:]
    pages, tokens = map(int, done.stdout.rpartition("PAGES ")[2].split()[:2])
    assert pages * tokens // groups == 2**25 // cache_bytes(folder, 1)

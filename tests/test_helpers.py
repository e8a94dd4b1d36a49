"""helpers, and what of series stands on its own: what they return, print and write."""

import ctypes
import functools
import json
import os
import pathlib
import re
import shutil
import types
import weakref
from copy import deepcopy
from unittest import mock

import numpy as np
import pytest
import torch

import helpers
from helpers import sizes
from helpers.architecture import model_weights
from helpers.files import CAPABILITY, arithmetic
from helpers.sizes import GGUF_TYPES, ggml_type, linear_bytes
from series import made, notebooks, prepared, quality, record, texts
from series.artifacts import content_of
from series.console import quiet
from series.measure import measure_speed
from series.models import TINY
from test_bad_input import write

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAYS, ASKS = (message["content"] for message in helpers.MESSAGES)
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT
TWO, ONE, PLAIN = f"<system>{SAYS}<user>{ASKS}", f"<user>{SAYS}\n\n{ASKS}", f"{SAYS}\n\n{ASKS}\n\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "artifacts"))


def small(**settings):
    from transformers import MistralConfig, MistralForCausalLM

    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return MistralForCausalLM(MistralConfig(**shape | {"num_key_value_heads": 2} | settings))


def test_the_prompt_is_zephyrs_template_and_begins_once(tokenizer):
    """A template may write the beginning-of-sequence token that the tokenizer adds as well: one is enough."""
    text = f"<|system|>\nYou are a friendly chatbot.</s>\n<|user|>\n{ASKS}</s>\n"
    assert helpers.render_prompt(tokenizer) == text + "<|assistant|>\n"
    assert helpers.render_prompt(tokenizer, helpers.MESSAGES, answer=False) == text
    plain, with_bos = deepcopy(tokenizer), deepcopy(tokenizer)
    plain.chat_template, with_bos.chat_template = CHAT, "{{ bos_token }}" + CHAT
    ids = with_bos.encode(helpers.render_prompt(with_bos), add_special_tokens=False)
    assert ids[0] == with_bos.bos_token_id and ids.count(ids[0]) == 1
    assert texts.held_out_windows(with_bos) == texts.held_out_windows(plain)


@pytest.mark.parametrize(
    ("template", "files", "said", "prompt"),
    [
        (CHAT, {}, None, TWO),
        (
            CHAT,
            {"generation_config.json": '{"do_sample": true, "num_beams": 4, "top_k": null, "eos_token_id": [2, 5]}'},
            "settings are left out: do_sample, num_beams",
            TWO,
        ),
        (None, {}, "has no chat template", PLAIN),
        (STRICT, {}, "takes no system message", ONE),
        (None, {"chat_template.jinja": STRICT}, "takes no system message", ONE),
        ([{"name": "rag", "template": "no"}, {"name": "default", "template": CHAT}], {}, "'default' is used", TWO),
        (None, {"chat_template.jinja": ""}, "has no chat template", PLAIN),
    ],
)
def test_a_prepared_model_takes_the_conversation_and_its_own_files_stay(tmp_path, template, files, said, prompt):
    from transformers import AutoTokenizer

    source, target = pathlib.Path(shutil.copytree(TINY, tmp_path / "model")), tmp_path / "prepared"
    settings = json.loads((TINY / "tokenizer_config.json").read_text()) | {"chat_template": template}
    files = {"tokenizer_config.json": json.dumps({k: v for k, v in settings.items() if v is not None})} | files
    for name, text in files.items():
        (source / name).write_text(text)
    before = content_of(source)
    for _ in range(2):  # a second time over the first
        assert [said in sentence for sentence in prepared.prepare(source, target)] == ([True] if said else [])
    assert helpers.render_prompt(AutoTokenizer.from_pretrained(target)) == prompt
    assert content_of(source) == before and (target / "model.safetensors").is_symlink()
    decoding = json.loads((target / "generation_config.json").read_text())
    assert decoding["eos_token_id"] and not {"num_beams", "top_k"} & decoding.keys() and not decoding.get("do_sample")


def test_calibration_texts_of_other_kinds_are_as_long(tokenizer):
    for model in ("tiny", "some/model"):
        own, *other = (texts.calibration_texts(16, kind, tokenizer, model) for kind in ("own", "unrelated", "random"))
        lengths = [sum(map(len, tokenizer(found, add_special_tokens=False)["input_ids"])) for found in (own, *other)]
        assert lengths == pytest.approx([lengths[0]] * 3, rel=0.3)  # cut anywhere, a text has other tokens again
        assert all(len(found) == 16 and not set(found) & set(own) for found in other)
    assert len(texts.calibration_texts(128)) == 128 and texts.calibration_texts(16) == texts.calibration_texts(128)[:16]


def test_english_is_calibrated_with_and_measured_on_apart(tokenizer):
    """Two parts that share no sentence; chats come in the model's own template."""
    calibrate, measure = texts.documents("calibrate.txt"), texts.documents("measure.txt")
    sentences = [set(re.findall(r"[^.?!\n]{25,}", " ".join(part))) for part in (calibrate, measure)]
    assert not sentences[0] & sentences[1] and min(map(len, sentences)) > 100
    assert sum(len(document.split()) for document in calibrate + measure) > 7000
    found = texts.calibration_texts(128, "own", tokenizer, "some/model")
    assert len(found) == len(calibrate)
    assert found[0].startswith("<|user|>\nWhat is the difference between weather and climate?</s>\n<|assistant|>\n")
    assert "User: " not in "".join(found) and "def load_settings" in "".join(found)
    windows = texts.held_out_windows(tokenizer, "some/model")
    assert len(windows) == 16 and tokenizer.decode(windows[0][1:]).startswith("The lighthouse at the end")


@pytest.mark.parametrize("sharded", [False, True])
def test_the_first_block_is_the_models_own(tmp_path, sharded):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    if sharded:  # the last shard holds later blocks and the last norm: it may be missing
        model.save_pretrained(tmp_path, max_shard_size="4MB")
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        (tmp_path / index["model.norm.weight"]).unlink()
    part, ids, seen = prepared.first_block(tmp_path if sharded else TINY, torch.bfloat16), torch.arange(3, 40)[None], []
    for layers in (model.model.layers, part.layers):
        layers[0].register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        model(ids), part(ids)
    assert torch.equal(seen[0], seen[1]) and len(part.layers) == 1 and not part.training


def test_a_storage_is_counted_once_also_while_it_waits_for_the_gpu():
    """Accelerate's offloading, with the processor in the GPU's place: the weights lie in the hooks."""
    from accelerate import cpu_offload

    model = small(tie_word_embeddings=True)
    model.kept = model.lm_head.weight.data[:4]  # a kernel's own view of the weights
    whole = 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    assert helpers.tensor_bytes(model) == whole
    cpu_offload(model, execution_device="cpu")
    assert {p.device.type for p in model.parameters()} == {"meta"} and helpers.tensor_bytes(model) == whole


def test_the_constants_of_nf4_are_counted():
    """For 256 * 256 weights: a float32 for each block of 64; or a byte, a float32 for 256, a table and an offset."""
    import bitsandbytes as bnb

    for double, constants in [(False, 4 * 1024), (True, 1024 + 4 * 4 + 4 * 256 + 4)]:
        layer = bnb.nn.Linear4bit(256, 256, bias=False, compress_statistics=double, quant_type="nf4").to("cpu")
        assert helpers.tensor_bytes(layer) == 256 * 256 // 2 + constants + 4 * 16  # and the sixteen levels


def test_clear_cache_names_each_holder(capsys):
    one, two, three, four, five, six = (small() for _ in range(6))
    lazy = types.ModuleType("lazy")
    lazy._modules = {"a", "b"}  # as 'import transformers' binds a module: a set of names
    held = {"lazy": lazy, "_7": one, "model": one, "models": [0, two], "runs": {"nf4": {"tiny": three}}}
    held |= {"one": types.SimpleNamespace(pipe=types.SimpleNamespace(model=four)), "forward": six.forward}
    held["ask"] = (lambda model: lambda: model)(five)
    names = ["ask (closure over model)", "forward.__self__", "model", "models[1]", "one.pipe.model"]
    names.append("runs['nf4']['tiny']")
    assert helpers.clear_cache(held).held_by == names
    assert f"still holding a model: {', '.join(names)}" in capsys.readouterr().out
    assert helpers.clear_cache({}).held_by == [], "a namespace that is given is all that is looked at"


def test_clear_cache_looks_into_partials_generators_slots_and_deep_nests():
    class Slots:
        __slots__ = ("model", "never")

    one, two, three, four = (small() for _ in range(4))
    slots = Slots()
    slots.model = three
    held = {"part": functools.partial(one.generate, max_new_tokens=3), "slots": slots}
    held["lazy"] = (kept.config for kept in [two])
    next(held["lazy"])
    held["deep"] = {"a": {"b": {"c": {"d": [four]}}}}
    found = helpers.clear_cache(held).held_by
    assert found == ["deep['a']['b']['c']['d'][0]", "lazy (its variable kept)", "part.func.__self__", "slots.model"]


def test_clear_cache_frees_what_a_notebook_remembers():
    """In a real kernel: a model in a cycle, shown by one cell, in the frames of a cell that raised, and caught."""
    import nbformat
    from nbclient import NotebookClient

    cells = [
        "import sys, weakref, json; from helpers import clear_cache; from series.models import TINY\n"
        "from transformers import AutoModelForCausalLM; model = AutoModelForCausalLM.from_pretrained(TINY)\n"
        "model.itself, alive = [model], weakref.ref(model)\ndef fail(held): raise ValueError('on purpose')",
        "model",
        "fail(model)",
        "try: fail(model)\nexcept ValueError as error: sys.last_value, sys.last_traceback = error, error.__traceback__",
        "json.kept = model; del model; print(clear_cache().held_by)",
        "del json.kept; print(clear_cache().held_by, alive() is None)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": ROOT}}).execute()
    said = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in notebook.cells]
    assert said[4].endswith("['a MistralForCausalLM that no variable leads to']\n") and said[5].endswith("[] True\n")


def test_what_vllm_remembers_of_a_tokenizer_does_not_keep_it_alive():
    """Three copies of the tokenizer would stay for every engine; vLLM's own record of their methods holds them."""
    from vllm.utils.func_utils import supports_kw

    def begin():
        tokenizer = type("Tokenizer", (), {})()
        assert supports_kw(lambda text, return_dict=False: tokenizer, "return_dict")
        return weakref.ref(tokenizer)

    alive = begin()
    assert alive() is not None, "vLLM has mended it: clear_cache need not do it any more"
    helpers.clear_cache({})
    assert alive() is None


def test_quiet_holds_back_chatter_and_shows_errors(capfd):
    with quiet():
        print("chatter")
        os.write(1, b"chatter from C\n")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError), quiet():
        print("the last words")
        raise ValueError
    assert "the last words" in capfd.readouterr().err


@pytest.mark.parametrize(("vocabulary", "length"), [(2048, 256), (128_000, 128), (256_000, 64)])
def test_windows_of_the_held_out_text_are_shorter_for_a_large_vocabulary(tokenizer, vocabulary, length, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: vocabulary)
    windows, questions = texts.held_out_windows(tokenizer), texts.exam_questions()
    assert len(windows) == 16 and {(len(ids), ids[0]) for ids in windows} == {(length, tokenizer.bos_token_id)}
    text = tokenizer.decode([token for ids in windows for token in ids[1:]])
    assert text.startswith("<|user|>\n" + questions[0]["question"]) and questions[15]["answer"] in text
    with pytest.raises(ValueError, match="held-out text has"):
        texts.held_out_windows(tokenizer, count=1000)


def test_perplexity_is_torchs():
    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(2, 9, 50), torch.randint(50, (2, 9))
    scores = [quality.log_probabilities(rows) for rows in logits]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for rows in (scores, [part[:-1] for part in scores]):  # with or without the row after the last token
        # float16 keeps three to four digits of a log-probability
        assert quality.perplexity(ids.tolist(), rows) == pytest.approx(loss.exp().item(), rel=1e-3)
    with pytest.raises(ValueError, match="rows of log-probabilities"):
        quality.perplexity(ids.tolist(), [rows[:-2] for rows in scores])


def test_distance_is_the_kl_divergence_computed_by_hand():
    p, q = np.log([[[0.5, 0.5]], [[0.5, 0.5]]]), np.log([[[0.25, 0.75]], [[0.5, 0.5]]])
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)  # of the first window; the second is 0
    # the standard deviation of 'first' and 0 is first / sqrt(2), over sqrt(2 windows); computed in float32
    wanted = {"kl_divergence": first / 2, "standard_error": first / 2, "same_top_token": 0.5}
    assert quality.distance(q, p) == pytest.approx(wanted, rel=1e-5)
    assert quality.distance(p, p) == {"kl_divergence": 0, "standard_error": 0, "same_top_token": 1}


def test_the_exam_of_tiny_is_asked(tokenizer):
    questions = texts.exam_questions("tiny")
    assert len(questions) == 200
    asked = [helpers.MESSAGES[0], {"role": "user", "content": questions[0]["question"]}]
    ids = tokenizer.encode(helpers.render_prompt(tokenizer, asked), add_special_tokens=False)
    assert texts.exam_prompts(tokenizer, questions[:1]) == [ids]
    answers = [f" {q['answer']}\n" for q in questions]
    assert [quality.right_answers(questions, given) for given in (answers, ["", *answers[1:]])] == [1, 0.995]


def test_the_exam_of_others_is_chosen_by_log_probability_per_token(tokenizer):
    """A runtime that likes the letter 'z' chooses what has most of it for its length; and no item is there twice."""
    questions = texts.exam_questions("some/model")
    assert len({q["question"] for q in questions}) == 200
    assert all(len(set(q["choices"])) == 4 and q["answer"] in q["choices"] for q in questions)

    class LikesZ:
        def token_scores(self, sequences):
            return [[0.0 if "z" in tokenizer.decode([t]) else -1.0 for t in ids[1:]] for ids in sequences]

    asked = [{"question": "The zebra zzz", "choices": ["ab cd ef", "zz", "zz and a long way to go"]}]
    assert quality.choose(LikesZ(), tokenizer, asked) == ["zz"]


@pytest.mark.parametrize("padded", [False, True])
def test_the_scores_of_tokens_are_the_models_own(padded):
    """Whatever stands to the right in a batch: as torch's cross entropy, one sequence at a time."""
    from series.runtimes import Transformers

    torch.manual_seed(0)
    model, sequences = small().eval(), [[1, 5, 6, 7, 8, 9], [1, 9, 2]] if padded else [[1, 9, 2]]
    for ids, found in zip(sequences, Transformers(model, None, []).token_scores(sequences), strict=True):
        logits = model(torch.tensor([ids])).logits[0, :-1]
        wanted = -torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        assert found == pytest.approx(wanted.tolist(), abs=1e-5)


def test_wikitext_is_cut_as_the_field_does_and_missed_in_a_sentence(tokenizer, tmp_path, monkeypatch):
    """From the hub's cache, where a file of that name and revision lies; without it, a sentence."""
    import pandas as pd
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="WikiText-2 is not on this machine.*Use TEXT = 'own'"):
        texts.wikitext()
    repository, revision, name = texts.WIKITEXT
    file = tmp_path / f"datasets--{repository.replace('/', '--')}" / "snapshots" / revision / name
    file.parent.mkdir(parents=True)
    pd.DataFrame({"text": ["", " = A title = \n", "Once upon a time. " * 400]}).to_parquet(file)
    text = texts.wikitext()
    assert text.startswith("\n\n = A title = \n\n\nOnce upon")
    windows = texts.windows_of(tokenizer, text, 512, begin=False)
    ids = tokenizer(text)["input_ids"]
    assert [token for window in windows for token in window] == ids[: len(ids) // 512 * 512]


def test_bytes_are_the_published_ones_and_those_that_were_counted():
    from transformers import AutoConfig, GPT2Config, MistralConfig

    zephyr, tiny = MistralConfig(), AutoConfig.from_pretrained(TINY)  # whose defaults are Mistral-7B's, and so Zephyr's
    linear = [w for w in model_weights(zephyr) if w.linear]
    assert sum(w.count for w in model_weights(zephyr)) == 7_241_732_096 == helpers.weight_bytes(zephyr) / 2
    assert sum(w.count for w in linear) == 6_979_321_856
    assert helpers.cache_bytes(zephyr, context=4096, batch=2, runtime="llama.cpp") == 4096 * 2 * 128 * 1024
    assert helpers.cache_bytes(zephyr, context=9999) == 4095 * 128 * 1024, "Zephyr has a window in transformers"
    # TheBloke/zephyr-7B-beta-GGUF's Q4_K_M has 4.37 GB: three digits, and a header with the vocabulary
    assert helpers.weight_bytes(zephyr, "Q4_K_M") == pytest.approx(4.37e9, rel=0.01)
    exact = {"16-bit": 16, "Q6_K": 6.5625, "Q8_0": 8.5, "AWQ": 4 + 20 / 128}
    assert {kind: helpers.bits_per_weight(zephyr, kind) for kind in exact} == exact
    assert helpers.bits_per_weight(zephyr, "AWQ", group_size=32) == 4 + 20 / 32
    # 8 bits for 64 weights and 32 for 64 * 256; the tables of each layer add less than a thousandth
    assert helpers.bits_per_weight(zephyr, "NF4") == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, rel=1e-3)
    others = 2 * (2 * 32000 * 4096 + 65 * 4096)  # embedding, head and norms stay in 16 bits
    assert helpers.weight_bytes(zephyr, "NF4") == sum(linear_bytes(w, "NF4") for w in linear) + others
    # as counted once in memory (16-bit, NF4) and over the tensors of the checkpoints (GPTQ, AWQ)
    sizes = {"16-bit": 17_834_496, "NF4": 6_223_968, "GPTQ": 6_273_536, "AWQ": 6_191_616}
    assert {kind: helpers.weight_bytes(tiny, kind) for kind in sizes} == sizes
    assert len(helpers.block_linears(tiny)) == 7 * tiny.num_hidden_layers
    with pytest.raises(ValueError, match="no format 'Q9'"):
        helpers.weight_bytes(zephyr, "Q9")
    with pytest.raises(ValueError, match="those of 'gpt2' are not"):
        helpers.block_linears(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))


SHAPES = {  # layers, width, feed-forward, heads, key-value heads, vocabulary, a tied head
    "8b": (32, 4096, 14336, 32, 8, 128256, False),
    "70b": (80, 8192, 28672, 64, 8, 128256, False),
    "all heads": (32, 4096, 11008, 32, 32, 32000, False),
    "tied": (28, 3072, 8192, 24, 8, 128256, True),
    "odd": (30, 576, 1536, 9, 3, 49152, True),
    "tiny": (8, 256, 1024, 4, 4, 2048, False),
}


def hollow(config, file, architecture="llama") -> dict:
    """A GGUF file with the table of tensors of a model and a hole behind it; its tensors' names -> weights."""
    import gguf

    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    writer, found = gguf.GGUFWriter(file, architecture), {}
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    facts = {
        "block_count": config.num_hidden_layers,
        "context_length": 4096,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "layer_norm_rms_eps": 1e-5,
        "vocab_size": config.vocab_size,
    }
    for fact, value in facts.items():
        getattr(writer, f"add_{fact}")(value)
    if architecture == "phi3":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    for weight in model_weights(config):
        name, kind = names.get_name(weight.name, (".weight",)), np.float16 if len(weight.shape) > 1 else np.float32
        found[name] = weight
        writer.add_tensor_info(name, weight.shape, np.dtype(kind), weight.count * np.dtype(kind).itemsize)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_ti_data_to_file(), writer.close()
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size + sum(4 * w.count + 64 for w in found.values()))
    return found


def dry_run(file, kind: str, imatrix: bool) -> dict[str, str]:
    """What llama.cpp says that it would make of each tensor: name -> type."""
    import llama_cpp

    said: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text.decode()))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.dry_run = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True
    if imatrix:
        table, values = (llama_cpp.llama_model_imatrix_data * 2)(), np.ones(32, np.float32)
        table[0].name, table[0].size = b"some tensor", 32
        table[0].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        settings.imatrix = table
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        assert llama_cpp.llama_model_quantize(bytes(file), b"/nowhere", ctypes.byref(settings)) == 0
    finally:
        llama_cpp._logger.set_verbose(False)
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, ctypes.c_void_p(0))
    return dict(re.findall(r"\] +(\S+) +- \[.*?-> .*?\((\w+)\)", "".join(said)))


@pytest.mark.parametrize("shape", SHAPES)
def test_gguf_types_are_those_that_llama_cpp_would_give(tmp_path, shape):
    """Every type of file, with and without an importance matrix: llama.cpp's own dry run, for each tensor."""
    from transformers import LlamaConfig

    layers, width, inner, heads, kv, vocabulary, tied = SHAPES[shape]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
    )
    weights = hollow(config, tmp_path / "model.gguf")
    for kind in GGUF_TYPES:
        for imatrix in (False, True):
            found = dry_run(tmp_path / "model.gguf", kind, imatrix)
            ours = {name: ggml_type(weight, kind, config, tied, imatrix) for name, weight in weights.items()}
            kept = {name: "f32" if len(weight.shape) < 2 else "f16" for name, weight in weights.items()}
            assert {name: each.lower() for name, each in ours.items()} == kept | {
                name: each.lower() for name, each in found.items()
            }, (kind, imatrix)


def test_joined_queries_keys_and_values_count_as_values_do(tmp_path):
    """Phi-3's one matrix for all three."""
    from transformers import Phi3Config

    config = Phi3Config(
        num_hidden_layers=16,
        hidden_size=512,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=512,
        pad_token_id=0,
    )
    weights = hollow(config, tmp_path / "model.gguf", "phi3")
    for kind in GGUF_TYPES[1:]:
        found = dry_run(tmp_path / "model.gguf", kind, False)
        for name in found:
            assert ggml_type(weights[name], kind, config, False).lower() == found[name].lower(), (kind, name)


# Sizes that pages on the hub show: bytes, or GB with two digits. bartowski/Meta-Llama-3.1-8B-Instruct-GGUF,
# bartowski/Llama-3.2-3B-Instruct-GGUF, Qwen/Qwen2.5-Coder-7B-Instruct-GGUF, and bartowski's files of Llama-3.1-70B.
LISTED = {
    "8b": {"Q8_0": 8540775840, "Q5_K_M": 5732992416, "Q4_K_M": 4920739232, "IQ4_XS": 4447667616},
    "tied": {"Q8_0": 3421899296, "Q4_K_M": 2019377696},
    "qwen": {"Q6_K": 6254198784, "Q5_K_M": 5444831232, "Q4_K_M": 4683073536},
    "70b": {
        "Q8_0": 74.98e9,
        "Q6_K": 57.89e9,
        "Q5_K_L": 50.60e9,
        "Q5_K_M": 49.95e9,
        "Q5_K_S": 48.66e9,
        "Q4_K_L": 43.30e9,
        "Q4_K_M": 42.52e9,
        "Q4_K_S": 40.35e9,
        "Q4_0": 40.12e9,
        "Q3_K_XL": 38.06e9,
        "IQ4_XS": 37.90e9,
        "Q3_K_L": 37.14e9,
        "Q3_K_M": 34.27e9,
        "IQ3_M": 31.94e9,
        "Q3_K_S": 30.91e9,
    },
}


@pytest.mark.parametrize("shape", LISTED)
def test_computed_sizes_are_those_that_pages_show(shape):
    from transformers import LlamaConfig, Qwen2Config

    kind = Qwen2Config if shape == "qwen" else LlamaConfig
    layers, width, inner, heads, kv, vocabulary, tied = (SHAPES | {"qwen": (28, 3584, 18944, 28, 4, 152064, False)})[
        shape
    ]
    config = kind(
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=inner,
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
    )
    for name, size in LISTED[shape].items():
        assert helpers.weight_bytes(config, name, imatrix=True) == pytest.approx(size, rel=0.005), name


def models_of_8_billion():
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def test_which_file_reads_a_page_as_it_is():
    config = small(hidden_size=256, intermediate_size=512, num_hidden_layers=2).config
    page = {
        "Some-Model.i1-Q4_K_M.gguf": 400,
        "some-model-q6_k.gguf": 600,
        "Some-Model-UD-Q4_K_XL.gguf": 450,
        "Some-Model-F16-00001-of-00002.gguf": 700,
        "Some-Model-F16-00002-of-00002.gguf": 700,
        "README.md": 9,
        "mmproj-Some-Model-F16.gguf": 50,
        "Some-Model.imatrix.gguf": 5,
        "Q8-Model-IQ4_XS.gguf": 380,
    }
    rest = helpers.cache_bytes(config, 100, runtime="llama.cpp") + 1e9
    rows = helpers.which_file(page, config, rest + 500, context=100)
    assert [row["format"] for row in rows] == ["Q4_K_M", "IQ4_XS", "?", "Q6_K", "F16"]
    assert [row["bytes"] for row in rows] == [400, 380, 450, 600, 1400]
    assert [row["fits"] for row in rows] == [True, True, True, False, False]
    assert "importance" in rows[0]["note"] and "UD" in rows[2]["note"]
    rows = helpers.which_file(["M-W4A16", "M-Q5_K_M.gguf", "M-Q4_0.gguf"], models_of_8_billion(), 9e9, context=8_192)
    assert [row["format"] for row in rows] == ["Q5_K_M", "Q4_0", "GPTQ"], "by the bits in the blocks"
    assert rows[2]["bits"] > rows[0]["bits"] > 5 and rows[2]["blocks"] < 4.2
    (row,) = helpers.which_file(["Model-FP8-dynamic"], config, 1e12)
    assert row["bytes"] == helpers.weight_bytes(config, "FP8") and row["fits"]
    (row,) = helpers.which_file(["Model-imatrix.gguf", "Model-Q4_K_M-imatrix.gguf"], config, 1e12)
    assert row["name"] == "Model-Q4_K_M-imatrix.gguf", "the file that 10 makes, and not the matrix itself"
    (row,) = helpers.which_file(["Model-UD-Q2_K_XL.gguf"], config, 1e12)
    assert row["bytes"] is None and not row["fits"], "no size, no promise"
    for wrong in (dict(memory=0), dict(memory=-1.0), dict(memory=1e9, context=0)):
        with pytest.raises(ValueError, match="must be positive"):
            helpers.which_file(["Model-Q8_0.gguf"], config, **wrong)
    from transformers import MixtralConfig

    files = ["Mixtral-Q8_0.gguf", "Mixtral-mxfp4.gguf", "Mixtral-bnb-4bit"]
    rows = {row["format"]: row["bytes"] / 1e9 for row in helpers.which_file(files, MixtralConfig(), 1e11)}
    assert rows == pytest.approx({"Q8_0": 49.6, "MXFP4_MOE": 25.7, "NF4": 91.4}, abs=0.1)
    with pytest.raises(ValueError, match="None of these names"):
        helpers.which_file(["README.md", "mmproj-F16.gguf"], config, 1e9)


def test_what_a_card_can_run_is_what_vllm_asks_for():
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.layers.quantization.compressed_tensors import schemes

    least = {kind: round(10 * lowest) for kind, ((lowest, _), _) in CAPABILITY.items()}
    assert least["AWQ"] == get_quantization_config("awq").get_min_capability()
    assert least["GPTQ"] == schemes.CompressedTensorsWNA16.get_min_capability()
    assert least["INT8"] == schemes.CompressedTensorsW8A8Int8.get_min_capability()
    assert least["FP8"] == schemes.CompressedTensorsW8A16Fp8.get_min_capability()
    assert least["NVFP4"] == schemes.CompressedTensorsW4A4Fp4.get_min_capability()
    assert least["MXFP4"] == get_quantization_config("mxfp4").get_min_capability()
    assert round(10 * CAPABILITY["FP8"][1][0]) == schemes.CompressedTensorsW8A8Fp8.get_min_capability()
    # what the documentation says of INT8 on Blackwell, which vLLM's code does not ask for
    assert [arithmetic("INT8", card) for card in (7.5, 9.0, 10.0, 12.0)] == ["its own", "its own", "-", "-"]
    assert [arithmetic("FP8", card) for card in (7.0, 8.6, 8.9)] == ["-", "16 bits", "its own"]


@pytest.mark.parametrize("kind", ["INT8", "FP8", "NVFP4", "MXFP4"])
def test_bytes_of_the_newer_formats_are_torchaos(kind):
    import torch
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(256, 192, bias=False, dtype=torch.bfloat16)
    if kind == "MXFP4":
        layer.weight = torch.nn.Parameter(MXTensor.to_mx(layer.weight.data, torch.float4_e2m1fn_x2), False)
    else:
        config = {"INT8": Int8WeightOnlyConfig, "FP8": Float8WeightOnlyConfig, "NVFP4": NVFP4WeightOnlyConfig}[kind]
        quantize_(layer, config())
    weight = sizes.Weight("a.weight", (192, 256), "linear")
    assert helpers.tensor_bytes(layer) == linear_bytes(weight, kind)


def test_a_record_is_read_as_it_was_written():
    written, other = write(), write(name="GPTQ 4-bit", model="some/model")
    assert record.record_path("GPTQ 4-bit", "some/model").name == "gptq-4-bit-some-model.json"
    assert record.read_records("tiny") == [written] == [record.read_record("NF4")]
    assert record.read_records("some/model") == [other] and other["right_answers"] == 0
    assert written["right_answers"] == 0 and written["tokens_scored"] == 4


def test_figures_hold_a_run_against_the_16_bit_model():
    reference, run = write(3 * np.eye(3, 8), name="16-bit", technique="baseline"), write(np.eye(3, 8))
    q, p = (quality.log_probabilities(logits * np.eye(3, 8))[:2].astype(float) for logits in (1, 3))
    found, alone = record.figures(run, reference), record.figures(run, None)
    assert found["kl_divergence"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-5)  # in float32
    assert record.figures(reference, reference)["kl_divergence"] == 0 and alone["kl_divergence"] is None
    with pytest.raises(ValueError, match="scored on other tokens"):
        record.figures(write(windows=[(1, 2, 4), (1, 3, 2)]), reference)
    shown = record.table({"NF4": found | {"right_answers": 0.5}, "alone": alone})
    assert shown.loc["NF4", "right answers"] == "50.0% ± 3.5", "sqrt(0.5 * 0.5 / 200) = 0.035"
    assert shown.loc["alone", "KL divergence"] == "-" and shown.loc["NF4", "run by"] == "bitsandbytes"
    assert "tokens/s" not in shown, "of so small a model it is noise"
    large = record.table({"NF4": found | {"right_answers": 0.5, "predicted_bytes": 4 * 10**9}})
    assert large.loc["NF4", "tokens/s"] == "1.0"


@pytest.mark.parametrize(
    ("changes", "asked", "reason"),
    [
        ({"asked": {"MAX_NEW_TOKENS": 32}}, {"MAX_NEW_TOKENS": 32}, "None"),
        ({"asked": {"MAX_NEW_TOKENS": 32}}, {}, "made with MAX_NEW_TOKENS = 32"),
        ({"versions": {"torch": "1.0"}}, {}, "made with torch 1.0"),
        ({"versions": {"device": "an abacus"}}, {}, "made on an abacus"),
        ({"identity": "another"}, {}, "the model's files have changed"),
    ],
)
def test_a_record_of_another_setting_version_or_model_is_stale(changes, asked, reason):
    assert reason in str(made.why_stale(write(**changes), asked, identity="abc"))


@pytest.mark.parametrize(
    ("where", "change", "stale"),
    [
        ("copy", lambda source: source.replace("\n", "  # a remark\n\n", 1), False),
        ("markdown", lambda source: source + " More prose.", False),
        ("measure", lambda source: source + "\nprint('no part of the recipe')", False),
        ("copy", lambda source: source + "\nmodel.half()", True),
    ],
)
def test_a_record_is_stale_when_the_notebooks_recipe_does_something_else(where, change, stale, tmp_path, monkeypatch):
    written = write()
    content = json.loads((ROOT / "notebooks" / "03_nf4.ipynb").read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if where in (cell["id"], cell["cell_type"], *cell["metadata"].get("tags", ())):
            cell["source"] = change("".join(cell["source"]))
    (tmp_path / "03_nf4.ipynb").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    assert (made.why_stale(written) is not None) == stale


def test_measure_speed_refuses_sampling_and_silence():
    with pytest.raises(RuntimeError, match="decode greedily"):
        measure_speed(mock.Mock(side_effect=[[1], [2]]))
    with pytest.raises(ValueError, match="no token"):
        measure_speed(list)
    assert measure_speed(lambda: [5, 6])[0] == [5, 6] and measure_speed(lambda: [5, 6])[1] > 0


FOUR, UNDONE = torch.arange(4), "not yet: replace None in the cell above with your answer"


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (5, 5.0, "right"),
        (4.127, 4 + 8 / 64 + 32 / 64 / 256, "right"),
        (
            4.125,
            4 + 8 / 64 + 32 / 64 / 256,
            "wrong: your answer is 4.125. Think.",
        ),  # one of the two constants is missing
        (14.5, 14.483464192, "right"),  # rounded, as the notebooks round it
        (14.0, 14.483464192, "wrong: your answer is 14.0. Think."),
        (0x12345679, 0x12345678, f"wrong: your answer is {0x12345679}. Think."),
        (lambda: [FOUR, "x"], lambda: (FOUR.clone(), "x"), "right"),
        (np.eye(2), np.eye(2), "right"),
        (FOUR.int(), FOUR, "right values, other dtype: torch.int32 instead of torch.int64"),
        (FOUR.reshape(2, 2), FOUR, "right values, other shape: (2, 2) instead of (4,)"),
        (None, 5, UNDONE),
        (lambda: [1, ...], 5, UNDONE),
        (lambda: 1 / 0, 5, "not yet: your code stopped with ZeroDivisionError: division by zero"),
        (5.1, 5, "wrong: your answer is 5.1. Think."),
        (7, [7], "the right idea, in another form: write a list, in square brackets"),
        ([7], 7, "the right idea, in another form: write it without the brackets"),
        ("AWQ", "AWQ 4-bit", "the right idea, in another form: write 'AWQ 4-bit'"),
        ("awq", "AWQ", "the right idea, in another form: write 'AWQ'"),
        ("4", 4, "the right idea, in another form: write a number, without quotes"),
        (13.488, 14.483464192, "the right idea, in GiB: the question asks for GB, 10^9 bytes"),
        (14_483_464_192, 14.483464192, "the right idea, in bytes: the question asks for GB"),
        ("GGUF", "AWQ 4-bit", "wrong: your answer is 'GGUF'. Think."),
        (8, [7], "wrong: your answer is 8. Think."),
        ([1], [1, 2], "wrong: your answer is [1]. Think."),
        (FOUR[:3], FOUR, "wrong: your answer is of shape (3,), and differs. Think."),
        (float("nan"), float("nan"), "wrong: your answer is nan. Think."),
        ("x" * 100, 5, f"wrong: your answer is '{'x' * 76}.... Think."),
    ],
)
def test_an_exercise_is_answered_in_one_line(capsys, answer, expected, said):
    assert helpers.check(answer, expected, "Think.") is None
    assert capsys.readouterr().out == said + "\n"


@pytest.mark.parametrize("rank, kind", [(4, "NF4"), (4, "16-bit"), (None, "16-bit"), (None, "32-bit")])
def test_what_training_holds_is_what_torch_holds(rank, kind, tmp_path):
    """A shape in which no two of the terms are equal by chance; but for a few numbers for each token."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

    from helpers.memory import tensor_bytes
    from helpers.training import training_bytes

    shape = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4, vocab_size=700)
    dtype = torch.float32 if kind == "32-bit" else torch.bfloat16
    AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=dtype).save_pretrained(tmp_path)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    settings = {"quantization_config": four} if kind == "NF4" else {}
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, **settings)
    config, whole = model.config, {"use_reentrant": False}
    if kind == "NF4":
        model = prepare_model_for_kbit_training(model, True, whole)
    model.gradient_checkpointing_enable(whole)
    if rank:
        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))
    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    kept = {}

    def keep(tensor):
        if (place := tensor.untyped_storage()).data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    ids = torch.randint(3, 700, (2, 24))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
    predicted = training_bytes(config, ids.numel(), rank, kind)
    assert 0 <= sum(kept.values()) - predicted["kept"] <= 40 * ids.numel() and loss.requires_grad
    frequencies = 128  # of the rotary embedding
    assert tensor_bytes(model) - frequencies == predicted["weights"] + predicted["adapter"]


def test_the_bytes_of_a_training():
    """Zephyr: of rank 16 a layer has 16 (inputs + outputs), for four matrices of attention and three of 14,336."""
    from helpers.sizes import weight_bytes
    from helpers.training import adapter_weights, training_bytes

    mistral = {"model_type": "mistral", "num_key_value_heads": 8, "intermediate_size": 14336}
    layer = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert adapter_weights(mistral, 16) == 32 * layer == 41_943_040
    small, full = training_bytes(mistral, 1, 16, "NF4"), training_bytes(mistral, 1, kind="32-bit")
    assert small["gradients"] == small["adapter"] == 4 * 32 * layer and small["optimizer"] == 8 * 32 * layer
    assert full["optimizer"] == 2 * full["gradients"] == 2 * full["weights"] == 8 * 7_241_732_096
    assert small["weights"] == weight_bytes(mistral, "NF4") + 2 * (2 * 32_000 + 65) * 4096, "what is not NF4: 32 bits"
    assert small["kept"] == 4 * 33 * 4096 + 4 * 32_000 and full["kept"] == 4 * 35 * 4096 + 4 * 32_000
    with pytest.raises(ValueError, match="Experts are stacked"):
        adapter_weights({"model_type": "mixtral"}, 8)
    with pytest.raises(ValueError, match="this one has experts"):
        training_bytes({"model_type": "mixtral"}, 1)
    for rank, kind in ((8, "GPTQ"), (None, "NF4"), (0, "16-bit"), (-1, "NF4")):
        with pytest.raises(ValueError, match=f"not for '{kind}' with rank {rank}"):
            training_bytes(mistral, 1, rank, kind)

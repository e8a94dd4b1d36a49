"""The helpers on their own: what they return, and the sentence that bad input gets."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import types
import weakref
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import helpers
from helpers import artifacts as artifacts_module
from helpers import fit
from helpers.machine import Gpu, Machine
from helpers.models import TINY
from helpers.quality import right_answers
from helpers.record import read_record, read_scores, record_path, why_stale

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


# --- prompt ------------------------------------------------------------------------------


def test_prompt_is_zephyrs_template(tokenizer):
    assert helpers.render_prompt(tokenizer) == (
        "<|system|>\nYou are a friendly chatbot.</s>\n"
        "<|user|>\nTell me a funny joke about Large Language Models.</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "There are no messages"),
        ([{"role": "robot", "content": "Hi"}], "unknown role 'robot'"),
        ([{"role": "user"}], "needs the keys"),
        (["Hi"], "needs the keys"),
        ([{"role": "user", "content": 7}], "must be text"),
    ],
)
def test_bad_messages(tokenizer, messages, sentence):
    with pytest.raises(ValueError, match=sentence):
        helpers.render_prompt(tokenizer, messages)


def test_a_tokenizer_without_template_is_named():
    with pytest.raises(ValueError, match="some/base-model has no chat template"):
        helpers.render_prompt(SimpleNamespace(chat_template=None, name_or_path="some/base-model"))


@pytest.fixture
def tokenizer_with(tokenizer):
    """A copy of ours with another template."""
    import copy

    def get(template):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return get


def test_a_prompt_begins_once(tokenizer_with):
    """A template may write the beginning-of-sequence token that the tokenizer adds as well: one is enough."""
    plain, with_bos = tokenizer_with(CHAT), tokenizer_with("{{ bos_token }}" + CHAT)
    assert helpers.render_prompt(with_bos) == helpers.render_prompt(plain)
    ids = with_bos(helpers.render_prompt(with_bos))["input_ids"]
    assert ids.count(with_bos.bos_token_id) == 1 and ids[0] == with_bos.bos_token_id
    assert all(w.count(with_bos.bos_token_id) == 1 for w in helpers.held_out_windows(with_bos))


def test_a_template_without_a_system_role_gets_the_instruction_from_the_user(tokenizer_with):
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT
    text = helpers.render_prompt(tokenizer_with(strict))
    assert text.startswith("<user>You are a friendly chatbot.\n\nTell me") and "<system>" not in text


def test_a_base_model_can_have_plain_text():
    bare = SimpleNamespace(chat_template=None, name_or_path="some/base-model")
    text = helpers.render_prompt(bare, chat=False)
    assert text == "".join(message["content"] + "\n\n" for message in helpers.MESSAGES)


# --- models ------------------------------------------------------------------------------


def test_known_models(monkeypatch):
    assert helpers.resolve_model("tiny").is_local
    assert helpers.resolve_model("tiny", "gptq") is None


def test_a_local_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(TINY.parent)
    assert helpers.resolve_model("./tiny-zephyr").source == str(TINY)


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("tinny", ValueError, "Did you mean 'tiny'"),
        ("zepyhr", ValueError, "Did you mean 'zephyr'"),
        ("", ValueError, "MODEL must be"),
        (None, ValueError, "MODEL must be"),
        ("./nowhere", ValueError, "There is no folder"),
        ("some/model", ConnectionError, "HF_HUB_OFFLINE is set"),
        ("zephyr", ConnectionError, "Use MODEL = 'tiny'"),
    ],
)
def test_wrong_models(name, error, sentence):
    with pytest.raises(error, match=sentence):
        helpers.resolve_model(name)


def test_an_unreachable_hub_answers_soon():
    """Without HF_HUB_OFFLINE, and the hub's address closed: a sentence, in a few seconds."""
    code = "from helpers import resolve_model\ntry: resolve_model('zephyr')\nexcept ConnectionError as e: print(e)"
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert "the hub cannot be reached" in done.stdout, done.stderr


@pytest.fixture
def hub(monkeypatch):
    """The hub's answer is made up here, because no test may reach it; what is done with it is real."""
    import huggingface_hub

    def answers(**sizes):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        files = [SimpleNamespace(rfilename=name.replace("__", "."), size=size) for name, size in sizes.items()]
        info = SimpleNamespace(siblings=files, sha="0123456789abcdef")
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)

    return answers


def test_a_hub_model_comes_with_its_commit_and_its_bytes(hub):
    hub(model__safetensors=5 * 10**9, README__md=1000)
    found = helpers.resolve_model("some/model")
    assert found.download == 5 * 10**9 and found.revision == "0123456789abcdef" and not found.is_local


def test_a_hub_model_of_pickled_weights_is_refused(hub):
    hub(model__bin=10**9)
    with pytest.raises(ValueError, match="no pickled weights"):
        helpers.resolve_model("some/model")


def test_folders_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="config.json is missing"):
        helpers.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        helpers.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="safetensors only"):
        helpers.resolve_model(str(tmp_path))


def test_calibration_texts():
    assert len(helpers.calibration_texts(128)) == 128
    for count in (0, 129):
        with pytest.raises(ValueError, match="128 calibration texts"):
            helpers.calibration_texts(count)


def test_other_calibration_texts_are_as_long(tokenizer):
    def lengths(kind):
        texts = helpers.calibration_texts(16, kind, tokenizer)
        return texts, [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    own, wanted = lengths("own")
    for kind in ("unrelated", "random"):
        texts, found = lengths(kind)
        assert len(texts) == 16 and not set(texts) & set(own)
        # text that was cut anywhere is tokenized a little differently again
        assert sum(found) == pytest.approx(sum(wanted), rel=0.3)
    with pytest.raises(ValueError, match="no calibration text of the kind 'poems'"):
        helpers.calibration_texts(4, "poems", tokenizer)


# --- artifacts ---------------------------------------------------------------------------


def test_an_artifact_is_known_by_what_made_it(folder):
    first = helpers.artifact("gptq", TINY, bits=4)
    assert first == helpers.artifact("gptq", TINY, bits=4)
    assert first != helpers.artifact("gptq", TINY, bits=3)
    assert first.parent == folder


def test_a_changed_model_is_another_artifact(folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"one")
    first = helpers.artifact("gptq", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"another")
    assert first != helpers.artifact("gptq", tmp_path / "model")


def test_a_build_that_fails_leaves_nothing(folder):
    target = folder / "thing"
    with pytest.raises(RuntimeError):
        with helpers.building(target) as scratch:
            (scratch / "half").write_text("half")
            raise RuntimeError
    assert not target.exists() and list(folder.iterdir()) == []


def test_a_build_that_writes_nothing_is_no_artifact(folder):
    with pytest.raises(RuntimeError, match="Nothing was written"), helpers.building(folder / "thing"):
        pass
    assert not (folder / "thing").exists()


def test_two_builders_of_one_artifact_both_succeed(folder):
    target = folder / "thing"
    with helpers.building(target) as one, helpers.building(target) as two:
        (one / "file").write_text("whole")
        (two / "file").write_text("whole")
    assert (target / "file").read_text() == "whole"
    assert [p.name for p in folder.iterdir()] == ["thing"]


def test_too_little_disk(folder, monkeypatch):
    monkeypatch.setattr(artifacts_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    helpers.require_disk(10**9)
    with pytest.raises(OSError, match=r"needs 2\.00 GB on disk"):
        helpers.require_disk(2 * 10**9)


# --- memory ------------------------------------------------------------------------------


def small_model():
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY), dtype="bfloat16")


def test_tensor_bytes_counts_shared_storage_once():

    module = torch.nn.ModuleList([torch.nn.Linear(16, 16, bias=False)])
    assert helpers.tensor_bytes(module) == 16 * 16 * 4
    module.append(module[0])
    assert helpers.tensor_bytes(module) == 16 * 16 * 4


def test_tensor_bytes_counts_layers_that_wait_for_the_gpu():
    """Accelerate's offloading, with the processor in the GPU's place: the weights lie in the hooks."""
    from accelerate import cpu_offload
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    model = MistralForCausalLM(config)
    whole = helpers.tensor_bytes(model)
    cpu_offload(model, execution_device="cpu")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert helpers.tensor_bytes(model) == whole


def test_tensor_bytes_counts_nf4_constants():
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(256, 256, bias=False, compress_statistics=False, quant_type="nf4").to("cpu")
    layer(torch.zeros(1, 256))
    assert layer.weight.quant_state is not None
    constants = 256 * 256 // 64 * 4 + 16 * 4
    assert helpers.tensor_bytes(layer) == 256 * 256 // 2 + constants


@pytest.mark.parametrize(
    ("hold", "name"),
    [
        (lambda m: {"forgotten": m}, "forgotten"),
        (lambda m: {"pipe": SimpleNamespace(model=m)}, "pipe.model"),
        (lambda m: {"models": [m]}, "models[...]"),
        (lambda m: {"by_name": {"a": m}}, "by_name[...]"),
    ],
)
def test_clear_cache_names_the_holder(hold, name, capsys):
    report = helpers.clear_cache(hold(small_model()))
    assert report.held_by == [name]
    assert name in capsys.readouterr().out
    assert helpers.clear_cache({}).held_by == []


def test_a_module_of_any_kind_holds_no_model(capsys):
    """``import transformers`` binds a lazy module, whose ``_modules`` is a set of names."""

    class Lazy(types.ModuleType):
        _modules = {"a", "b"}

    module = Lazy("lazy")
    module._modules = {"a", "b"}
    assert helpers.clear_cache({"lazy": module, "model": small_model()}).held_by == ["model"]


def test_clear_cache_frees_a_model_in_a_cycle():
    model = small_model()
    model.itself = [model]
    alive = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert alive() is not None
        helpers.clear_cache({})
        assert alive() is None
    finally:
        gc.enable()


def test_clear_cache_frees_what_a_notebook_remembers(tmp_path):
    """A cell that ends in the model's name, and a cell that raised with the model in a frame."""
    import nbformat

    from execute import execute

    cells = [
        "MODEL = 'tiny'  # parameters",
        f"import sys, weakref; sys.path.insert(0, {str(ROOT)!r})\n"
        "from helpers import clear_cache\nfrom helpers.models import TINY\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(TINY)\nalive = weakref.ref(model)",
        "model",
        "model.eval()",
        # what IPython keeps after an exception: the last one, with its frames
        "def fail(held):\n    raise ValueError('on purpose')\n"
        "try:\n    fail(model)\nexcept ValueError as error:\n"
        "    sys.last_value, sys.last_traceback = error, error.__traceback__",
        "del model\nassert alive() is not None\nreport = clear_cache()\n"
        "assert report.held_by == [] and alive() is None",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "made.ipynb")
    execute(tmp_path / "made.ipynb", tmp_path / "out.ipynb")


def test_clear_cache_frees_what_a_shown_exception_holds():
    """A cell that really raises: IPython shows the traceback and keeps its frames in several places."""
    code = """if True:
        import weakref
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_cell("from transformers import AutoConfig, AutoModelForCausalLM")
        shell.run_cell("from helpers.models import TINY; from helpers import clear_cache")
        shell.run_cell("model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))")
        alive = weakref.ref(shell.user_ns["model"])
        shell.run_cell("def fail(held): raise ValueError('on purpose')")
        shell.run_cell("fail(model)")
        shell.run_cell("del model")
        import gc; gc.collect()
        print("held before", alive() is not None)
        shell.run_cell("report = clear_cache()")
        print("held after", alive() is not None)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "held before True" in done.stdout, "the trap must be there, or this test shows nothing"
    assert "held after False" in done.stdout, done.stdout


def test_quiet_shows_errors_also_outside_jupyter():
    code = "from helpers import quiet\nwith quiet():\n    print('the last words')\n    1 / 0"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "the last words" in done.stderr and "ZeroDivisionError" in done.stderr and not done.stdout


def test_peak_memory_sees_an_allocation():
    with helpers.PeakMemory() as peak:
        block = bytearray(b"x") * 60_000_000
        time.sleep(0.05)  # the sampler looks every 2 ms
        del block
    assert 50e6 < peak.bytes < 90e6


# --- console -----------------------------------------------------------------------------


def test_quiet_holds_back_python_and_c_output(capfd):
    with helpers.quiet():
        print("chatter")
        os.write(1, b"chatter from C\n")
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_quiet_shows_all_on_an_error_and_keeps_warnings(capfd):
    import warnings

    with pytest.raises(ValueError), helpers.quiet():
        print("the last words")
        raise ValueError
    assert "the last words" in capfd.readouterr().err
    with pytest.warns(UserWarning, match="real"), helpers.quiet():
        warnings.warn("a real one", stacklevel=1)


# --- quality -----------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "length"), [(32000, 256), (128_000, 128), (152_000, 64), (256_000, 64)])
def test_a_large_vocabulary_gets_shorter_windows(tokenizer, vocabulary, length, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: vocabulary)
    windows = helpers.held_out_windows(tokenizer)
    assert len(windows) == 16 and {len(ids) for ids in windows} == {length}


def test_held_out_windows(tokenizer):
    windows = helpers.held_out_windows(tokenizer)
    assert {len(ids) for ids in windows} == {256} and len(windows) == 16
    assert all(ids[0] == tokenizer.bos_token_id for ids in windows)
    text = tokenizer.decode([token for ids in windows for token in ids[1:]])
    first, last = helpers.exam_questions()[0], helpers.exam_questions()[80]
    assert text.startswith("<|user|>\n" + first["question"]) and last["answer"] in text
    with pytest.raises(ValueError, match="held-out text has"):
        helpers.held_out_windows(tokenizer, count=1000)


def test_perplexity_against_torch():

    torch.manual_seed(0)
    logits, ids = 3 * torch.randn(2, 9, 50), torch.randint(50, (2, 9))
    scores = [helpers.log_probabilities(rows) for rows in logits]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for rows in (scores, [part[:-1] for part in scores]):  # with or without the row after the last token
        assert helpers.perplexity(ids.tolist(), rows) == pytest.approx(loss.exp().item(), rel=1e-3)
    with pytest.raises(ValueError, match="rows of log-probabilities"):
        helpers.perplexity(ids.tolist(), [rows[:-2] for rows in scores])


def test_a_model_without_a_guess_has_the_vocabulary_as_perplexity():
    import numpy as np

    scores = [helpers.log_probabilities(np.zeros((4, 32)))]
    assert helpers.perplexity([[1, 2, 3, 4]], scores) == pytest.approx(32, rel=1e-3)


def test_the_exam_is_for_tiny_only(tokenizer):
    questions = helpers.exam_questions("tiny")
    assert len(questions) == 200 and helpers.exam_questions("zephyr") == []
    assert helpers.exam_prompts(tokenizer, questions[:1])[0].endswith("</s>\n<|assistant|>\n")
    answers = [q["answer"] for q in questions]
    assert right_answers(questions, answers) == 1
    assert right_answers(questions, ["", *answers[1:]]) == 0.995
    with pytest.raises(ValueError, match="200 questions and 1 answers"):
        right_answers(questions, answers[:1])


# --- will it fit? ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zephyr():
    from transformers import MistralConfig

    return MistralConfig()  # whose defaults are Mistral-7B's, and so Zephyr's


def test_zephyrs_figures(zephyr):
    """Against published ones: parameters, bits a weight, bytes of the cache for a token."""
    weights = fit.model_weights(zephyr)
    assert sum(w.count for w in weights) == 7_241_732_096
    linear = [w for w in weights if w.role == "linear"]
    assert sum(w.count for w in linear) == 6_979_321_856
    assert fit.cache_bytes(zephyr, context=1) == 128 * 1024
    assert fit.cache_bytes(zephyr, context=4096, batch=2) == 2**30

    def bits(kind):
        return 8 * sum(fit.linear_bytes(w, kind) for w in linear) / 6_979_321_856

    assert bits("NF4") == pytest.approx(4.127, rel=1e-3)
    assert bits("AWQ") == pytest.approx(4.156, rel=1e-3)
    # TheBloke/zephyr-7B-beta-GGUF's Q4_K_M has 4.37 GB
    assert fit.weight_bytes(zephyr, "Q4_K_M") == pytest.approx(4.37e9, rel=0.01)
    assert helpers.weight_bytes(zephyr) == 2 * 7_241_732_096
    with pytest.raises(ValueError, match="no format 'Q9'"):
        helpers.weight_bytes(zephyr, "Q9")


@pytest.mark.parametrize(
    ("kind", "size"), [("16-bit", 17_834_496), ("NF4", 6_223_968), ("GPTQ", 6_273_536), ("AWQ", 6_191_616)]
)
def test_tinys_bytes_to_the_byte(kind, size):
    """As counted once in memory (16-bit, NF4) and over the tensors of the checkpoints (GPTQ, AWQ)."""
    from transformers import AutoConfig

    assert fit.weight_bytes(AutoConfig.from_pretrained(TINY), kind) == size


def test_bits_in_the_blocks(zephyr):
    bits = {kind: fit.linear_bits(zephyr, kind) for kind in fit.FORMATS}
    assert bits["16-bit"] == 16 and bits["Q6_K"] == 6.5625 and bits["Q8_0"] == 8.5
    assert 4.5 < bits["Q4_K_M"] < 4.9 and bits["NF4"] == pytest.approx(4.127, rel=1e-3)
    # without embedding and head, which GGUF quantizes too, the whole is as large as its parts
    tokens = 2 * 32000 * 4096
    whole = 6_979_321_856 * bits["NF4"] / 8 + 2 * (tokens + 65 * 4096)
    assert fit.weight_bytes(zephyr, "NF4") == pytest.approx(whole, rel=1e-6)


def test_users_that_fit(zephyr):
    assert fit.users_that_fit(zephyr, "16-bit", fit.CARDS["T4"], 4096) == 0
    few, many = (fit.users_that_fit(zephyr, "NF4", fit.CARDS[card], 4096) for card in ("T4", "L4"))
    assert 0 < few < many
    room = 0.95 * fit.CARDS["T4"] - fit.weight_bytes(zephyr, "NF4") - fit.OVERHEAD
    assert few == int(room / (4096 * 128 * 1024))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("layers", "heads"), [(8, 2), (3, 8)])
def test_gguf_bytes_are_llama_cpps_own(tmp_path_factory, layers, heads, tied):
    """Every type, on shapes that take other branches of llama.cpp's rules: few layers, shared heads, a tied head."""
    import ctypes

    import llama_cpp
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path_factory.mktemp("gguf")
    config = MistralConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8 // heads, head_dim=64, tie_word_embeddings=tied, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((TINY / name).read_bytes())
    full = folder / "full.gguf"
    command = [sys.executable, str(helpers.llama_cpp_converter()), str(folder), "--outfile", str(full)]
    subprocess.run([*command, "--outtype", "bf16"], check=True, capture_output=True)
    for kind in fit.GGUF_TYPES:
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        target = folder / f"{kind}.gguf"
        with helpers.quiet():
            assert llama_cpp.llama_model_quantize(bytes(full), bytes(target), ctypes.byref(settings)) == 0
        found = sum(int(tensor.n_bytes) for tensor in gguf_tensors(target))
        assert fit.weight_bytes(config, kind) == found, kind


def gguf_tensors(path):
    from gguf import GGUFReader

    return GGUFReader(path).tensors


def test_a_model_that_does_not_fit_is_told_what_would(zephyr, capsys):
    card = Gpu("NVIDIA GeForce RTX 3060", (8, 6), fit.CARDS["RTX 3060"], fit.CARDS["RTX 3060"])
    this = Machine(4, "AVX2", 5 * 10**9, 3 * 10**9, 10**12, (card,))
    with pytest.raises(MemoryError, match="In 16-bit this model needs 15.6 GB, and 12.9 GB are free.*NF4") as caught:
        fit.preflight(this, zephyr, "16-bit")
    assert "03_nf4" in str(caught.value) and "Q2_K" not in str(caught.value), "llama.cpp would run in 3 GB of memory"
    assert "does NOT fit" in capsys.readouterr().out
    assert fit.preflight(this, zephyr, "NF4").fits
    assert "it fits" in capsys.readouterr().out
    bare = Machine(4, "AVX2", 5 * 10**9, 2 * 10**9, 10**12)
    with pytest.raises(MemoryError, match="No format of this series would fit"):
        fit.preflight(bare, zephyr, "Q4_K_M")


def test_group_sizes_follow_the_widths(capsys):
    from transformers import MistralConfig

    def config(width, inner):
        return MistralConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=4,
                             num_key_value_heads=4, vocab_size=64)  # fmt: skip

    assert fit.fitting_group(config(256, 512), 128) == 128 and not capsys.readouterr().out
    assert fit.fitting_group(config(192, 512), 128) == 64
    assert "taking groups of 64" in capsys.readouterr().out
    assert fit.fitting_group(config(256, 480), 64) == 32
    with pytest.raises(ValueError, match=r"Groups of 32 weights do not divide .*\[104, 200\]"):
        fit.fitting_group(config(104, 200), 128)
    with pytest.raises(ValueError, match="it is 48"):
        fit.fitting_group(config(256, 512), 48)


def test_blocks_that_are_built_otherwise_are_refused():
    from transformers import GPT2Config

    with pytest.raises(ValueError, match="those of 'gpt2' are not"):
        fit.block_linears(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64))


# --- record ------------------------------------------------------------------------------


def record(**changes):
    fields = dict(
        name="GPTQ 4-bit", technique="gptq", library="gptqmodel", model="tiny", revision="local", notebook="04_gptq",
        settings={"BITS": 4}, versions={}, layer="Linear", layers={}, disk_bytes=1, predicted_bytes=1, memory_bytes=1,
        running_bytes=1, peak_bytes=1, seconds={}, tokens_per_second=1.0, prompt_ids=[1], answer_ids=[2], answer="Ha.",
        exam_answers=["?"] * 200,
    )  # fmt: skip
    return {**fields, **changes}


def write(**changes):
    import numpy as np

    windows, scores = [[1, 2, 3], [1, 3, 2]], [helpers.log_probabilities(np.eye(3, 8)) for _ in range(2)]
    return helpers.write_record(windows, scores, **record(**changes))


def test_a_record_is_written_and_read(folder):
    written = write()
    assert record_path("GPTQ 4-bit").name == "gptq-4-bit-tiny.json"
    assert helpers.read_records("tiny") == [written] == [read_record("GPTQ 4-bit")]
    assert helpers.read_records("zephyr") == []
    assert written["right_answers"] == 0 and written["tokens_scored"] == 4
    ids, scores = read_scores(written)
    assert ids.tolist() == [[1, 2, 3], [1, 3, 2]] and scores.shape == (2, 2, 8)
    assert helpers.records_table([written]).loc["GPTQ 4-bit", "right answers"] == "0.0%"
    with pytest.raises(FileNotFoundError, match="no record of NF4"):
        read_record("NF4")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"answer": " "}, "answer is empty"),
        ({"answer_ids": []}, "answer is empty"),
        ({"disk_bytes": "1"}, "disk_bytes must be int"),
        ({"colour": "red"}, "unknown: \\['colour'\\]"),
        ({"exam_answers": ["?"]}, "The exam has 200 questions; there are 1 answers"),
    ],
)
def test_bad_records(folder, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        write(**changes)
    assert helpers.read_records() == []


def test_a_fresh_record_is_not_stale(folder):
    assert why_stale(write()) is None
    assert why_stale(write(settings={"BITS": 3}), {"BITS": 3}) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(settings={"BITS": 3}), "made with BITS = 3"),
        (dict(versions={"torch": "1.0"}), "made with torch 1.0"),
        (dict(versions={"device": "an abacus"}), "made on an abacus"),
    ],
)
def test_a_record_of_other_settings_or_versions_is_stale(folder, changes, reason):
    assert reason in why_stale(write(**changes))


def test_a_record_is_stale_when_what_made_it_has_changed(folder, monkeypatch, tmp_path):
    import shutil

    written = write()
    for name in ("notebooks", "helpers"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    monkeypatch.setattr("helpers.record.ROOT", tmp_path / "copy")
    assert why_stale(written) is None
    notebook = tmp_path / "copy" / "notebooks" / "04_gptq.ipynb"
    text = notebook.read_text(encoding="utf-8")
    notebook.write_text(text.replace("the model is gone", "gone"), encoding="utf-8")
    assert "have changed since" in why_stale(written)
    notebook.write_text(text, encoding="utf-8")
    assert why_stale(written) is None
    with (tmp_path / "copy" / "helpers" / "quality.py").open("a") as file:
        file.write("# changed\n")
    assert "have changed since" in why_stale(written)
    assert "another version" in why_stale({**written, "colour": "red"})


def test_measure_speed_refuses_sampling_and_silence():
    runs = iter([[1], [2]])
    with pytest.raises(RuntimeError, match="decode greedily"):
        helpers.measure_speed(lambda: next(runs))
    with pytest.raises(ValueError, match="no token"):
        helpers.measure_speed(list)
    ids, speed = helpers.measure_speed(lambda: [5, 6])
    assert ids == [5, 6] and speed > 0


# --- exercises -----------------------------------------------------------------------------


def said(capsys, answer, expected, hint="") -> str:
    from helpers import check

    assert check(answer, expected, hint) is None
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (5, 5.0),
        (4.127, 4 + 8 / 64 + 32 / 64 / 256),
        ("NF4", "NF4"),
        ({"a", "b"}, {"b", "a"}),
        (lambda: [1, "x"], (1, "x")),
        (lambda: torch.arange(4), torch.arange(4)),
    ],
)
def test_a_right_answer_is_told_so(capsys, answer, expected):
    assert said(capsys, answer, expected) == "right\n"


@pytest.mark.parametrize("answer", [None, ..., lambda: None, lambda: [1, None]])
def test_an_exercise_not_done_is_told_so(capsys, answer):
    assert said(capsys, answer, 5).startswith("not yet: replace None")


def test_an_error_in_the_answer_is_one_line(capsys):
    assert said(capsys, lambda: 1 / 0, 5) == "not yet: your code stopped with ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (5.1, 5),
        ("five", 5),
        ([1], [1, 2]),
        (5, "5"),
        (True, "right"),
        (torch.arange(4), torch.arange(4) + 1),
        (torch.arange(3), torch.arange(4)),
        (3, torch.arange(4)),
        (float("nan"), 5),
        (float("nan"), float("nan")),
    ],
)
def test_a_wrong_answer_is_told_so_with_the_hint(capsys, answer, expected):
    text = said(capsys, answer, expected, "Think.")
    assert text.startswith("wrong: your answer is ") and text.endswith(" Think.\n") and text.count("\n") == 1


# --- the first block -------------------------------------------------------------------------


def save_in_shards(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4MB")
    return model


@pytest.mark.parametrize("sharded", [False, True])
def test_the_first_block_is_the_models_own(tmp_path, sharded):
    """Its weights and what flows through it, from one file and from shards, of which the others are not read."""
    from helpers import Checkpoint, first_block

    model = save_in_shards(tmp_path)
    if sharded:  # the last shard holds later blocks and the last norm: it may be missing
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        (tmp_path / index["model.norm.weight"]).unlink()
    part = first_block(Checkpoint(str(tmp_path if sharded else TINY)), torch.bfloat16)
    assert len(part.layers) == 1 and not part.training
    ids, seen = torch.arange(3, 40)[None], []
    for layers in (model.model.layers, part.layers):
        layers[0].register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        model(ids), part(ids)
    assert torch.equal(seen[0], seen[1])


def test_a_shard_that_the_index_names_and_is_missing_is_told(tmp_path):
    from helpers import Checkpoint, first_block

    save_in_shards(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    (tmp_path / index["model.layers.0.mlp.up_proj.weight"]).unlink()
    with pytest.raises(ValueError, match="lacks a file that its index names"):
        first_block(Checkpoint(str(tmp_path)), torch.bfloat16)


def test_the_published_address_makes_no_record_stale(tmp_path, monkeypatch):
    import shutil

    import stamp
    from helpers import record

    for name in ("notebooks", "helpers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    monkeypatch.setattr(record, "ROOT", tmp_path)
    before = record.made_from("03_nf4", "tiny")
    assert "03_nf4.ipynb" in stamp.stamp("some-body/series", "v9.1", tmp_path)
    assert record.made_from("03_nf4", "tiny") == before
    path = tmp_path / "notebooks" / "03_nf4.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("blocksize=64", "blocksize=128"), encoding="utf-8")
    assert record.made_from("03_nf4", "tiny") != before


def test_what_vllm_remembers_of_a_tokenizer_does_not_keep_it_alive():
    """Three copies of the tokenizer would stay for every engine; vLLM's own record of their methods holds them."""
    from vllm.utils.func_utils import supports_kw

    def start():
        tokenizer = type("Tokenizer", (), {})()

        def encode(text, return_dict=False):
            return tokenizer

        assert supports_kw(encode, "return_dict")
        return weakref.ref(tokenizer)

    alive = start()
    gc.collect()
    assert alive() is not None, "vLLM has mended it: clear_cache need not do it any more"
    helpers.clear_cache({})
    assert alive() is None

"""helpers, and what of series stands on its own: what they return, print and write."""

import ctypes
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
from helpers.sizes import GGUF_TYPES, linear_bytes, model_weights
from series import models, notebooks, quality, record, texts
from series.artifacts import content_of
from series.console import quiet
from series.lesson import measure_speed
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


@pytest.mark.parametrize(("template", "files", "said", "prompt"), [
    (CHAT, {}, None, TWO),
    (CHAT, {"generation_config.json": '{"do_sample": true, "num_beams": 4, "top_k": null, "eos_token_id": [2, 5]}'},
     "settings are left out: do_sample, num_beams", TWO),
    (None, {}, "has no chat template", PLAIN),
    (STRICT, {}, "takes no system message", ONE),
    (None, {"chat_template.jinja": STRICT}, "takes no system message", ONE),
    ([{"name": "rag", "template": "no"}, {"name": "default", "template": CHAT}], {}, "'default' is used", TWO),
    (None, {"chat_template.jinja": ""}, "has no chat template", PLAIN),
])
def test_a_prepared_model_takes_the_conversation_and_its_own_files_stay(tmp_path, template, files, said, prompt):
    from transformers import AutoTokenizer

    source, target = pathlib.Path(shutil.copytree(TINY, tmp_path / "model")), tmp_path / "prepared"
    settings = json.loads((TINY / "tokenizer_config.json").read_text()) | {"chat_template": template}
    files = {"tokenizer_config.json": json.dumps({k: v for k, v in settings.items() if v is not None})} | files
    for name, text in files.items():
        (source / name).write_text(text)
    before = content_of(source)
    for _ in range(2):  # a second time over the first
        assert [said in sentence for sentence in models.prepare(source, target)] == ([True] if said else [])
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
    part, ids, seen = models.first_block(tmp_path if sharded else TINY, torch.bfloat16), torch.arange(3, 40)[None], []
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


def test_clear_cache_frees_what_a_notebook_remembers():
    """In a real kernel: a model in a cycle, shown by one cell, in the frames of a cell that raised, and caught."""
    import nbformat
    from nbclient import NotebookClient

    cells = [
        "import sys, weakref, json; from helpers import clear_cache; from series.models import TINY\n"
        "from transformers import AutoModelForCausalLM; model = AutoModelForCausalLM.from_pretrained(TINY)\n"
        "model.itself, alive = [model], weakref.ref(model)\ndef fail(held): raise ValueError('on purpose')",
        "model", "fail(model)",
        "try: fail(model)\nexcept ValueError as error: sys.last_value, sys.last_traceback = error, error.__traceback__",
        "json.kept = model; del model; print(clear_cache().held_by)",
        "del json.kept; print(clear_cache().held_by, alive() is None)",
    ]  # fmt: skip
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
    linear = [w for w in model_weights(zephyr) if w.role == "linear"]
    assert sum(w.count for w in model_weights(zephyr)) == 7_241_732_096 == helpers.weight_bytes(zephyr) / 2
    assert sum(w.count for w in linear) == 6_979_321_856
    assert helpers.cache_bytes(zephyr, context=4096, batch=2) == 4096 * 2 * 128 * 1024
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


@pytest.mark.parametrize(("layers", "heads", "inner", "tied"), [(16, 2, 512, False), (3, 8, 704, True)])
def test_gguf_bytes_are_llama_cpps_own(tmp_path, layers, heads, inner, tied):
    """Every type, on other branches of llama.cpp's rules: few layers, shared heads, a tied head, an odd width."""
    import gguf
    import llama_cpp

    model = small(vocab_size=512, hidden_size=256, intermediate_size=inner, num_hidden_layers=layers, head_dim=32,
                  num_attention_heads=8, num_key_value_heads=heads, tie_word_embeddings=tied)  # fmt: skip
    full, names = tmp_path / "full.gguf", gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    facts = {"block_count": layers, "context_length": 512, "head_count": 8, "head_count_kv": heads}
    facts |= {"embedding_length": 256, "feed_forward_length": inner, "layer_norm_rms_eps": 1e-5}
    writer = gguf.GGUFWriter(full, "llama")
    for fact, value in facts.items():
        getattr(writer, f"add_{fact}")(value)
    for name, tensor in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.detach().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    for kind in GGUF_TYPES:
        settings, target = llama_cpp.llama_model_quantize_default_params(), tmp_path / f"{kind}.gguf"
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        with quiet():
            assert llama_cpp.llama_model_quantize(bytes(full), bytes(target), ctypes.byref(settings)) == 0
        found = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(target).tensors)
        assert helpers.weight_bytes(model.config, kind) == found, kind


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


@pytest.mark.parametrize(("changes", "asked", "reason"), [
    ({"asked": {"MAX_NEW_TOKENS": 32}}, {"MAX_NEW_TOKENS": 32}, "None"),
    ({"asked": {"MAX_NEW_TOKENS": 32}}, {}, "made with MAX_NEW_TOKENS = 32"),
    ({"versions": {"torch": "1.0"}}, {}, "made with torch 1.0"),
    ({"versions": {"device": "an abacus"}}, {}, "made on an abacus"),
    ({"identity": "another"}, {}, "the model's files have changed"),
])
def test_a_record_of_another_setting_version_or_model_is_stale(changes, asked, reason):
    assert reason in str(record.why_stale(write(**changes), asked, identity="abc"))


@pytest.mark.parametrize(("where", "change", "stale"), [
    ("lesson", lambda source: "# a remark\n\n" + source, False),
    ("lesson", lambda source: source.replace('"""', '"""Other prose: ', 1), False),
    ("copy", lambda source: source.replace("\n", "  # a remark\n\n", 1), False),
    ("markdown", lambda source: source + " More prose.", False),
    ("measure", lambda source: source + "\nprint('no part of the recipe')", False),
    ("copy", lambda source: source + "\nmodel.half()", True),
    *[(file, lambda source: source + "\nBATCH = 1\n", not some) for file, some in notebooks.MEASURES.items()],
    ("series/lesson.py", lambda source: source.replace("answers(prompts, 48)", "answers(prompts, 47)"), True),
])
def test_a_record_is_stale_when_what_made_it_does_something_else(where, change, stale, tmp_path, monkeypatch):
    written = write()
    for name in ("notebooks/03_nf4.ipynb", *notebooks.MEASURES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".ipynb"):
            content = json.loads(text)
            for cell in content["cells"]:
                if where in (cell["id"], cell["cell_type"], *cell["metadata"].get("tags", ())):
                    cell["source"] = change("".join(cell["source"]))
            text = json.dumps(content)
        (tmp_path / name).write_text(change(text) if where in name else text, encoding="utf-8")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    assert (record.why_stale(written) is not None) == stale


def test_measure_speed_refuses_sampling_and_silence():
    with pytest.raises(RuntimeError, match="decode greedily"):
        measure_speed(mock.Mock(side_effect=[[1], [2]]))
    with pytest.raises(ValueError, match="no token"):
        measure_speed(list)
    assert measure_speed(lambda: [5, 6])[0] == [5, 6] and measure_speed(lambda: [5, 6])[1] > 0


FOUR, UNDONE = torch.arange(4), "not yet: replace None in the cell above with your answer"


@pytest.mark.parametrize(("answer", "expected", "said"), [
    (5, 5.0, "right"),
    (4.127, 4 + 8 / 64 + 32 / 64 / 256, "right"),
    (lambda: [FOUR, "x"], lambda: (FOUR.clone(), "x"), "right"),
    (np.eye(2), np.eye(2), "right"),
    (FOUR.int(), FOUR, "right values, other dtype: torch.int32 instead of torch.int64"),
    (FOUR.reshape(2, 2), FOUR, "right values, other shape: (2, 2) instead of (4,)"),
    (None, 5, UNDONE),
    (lambda: [1, ...], 5, UNDONE),
    (lambda: 1 / 0, 5, "not yet: your code stopped with ZeroDivisionError: division by zero"),
    (5.1, 5, "wrong: your answer is 5.1. Think."),
    ([1], [1, 2], "wrong: your answer is [1]. Think."),
    (FOUR[:3], FOUR, "wrong: your answer is of shape (3,), and differs. Think."),
    (float("nan"), float("nan"), "wrong: your answer is nan. Think."),
    ("x" * 100, 5, f"wrong: your answer is '{'x' * 76}.... Think."),
])
def test_an_exercise_is_answered_in_one_line(capsys, answer, expected, said):
    assert helpers.check(answer, expected, "Think.") is None
    assert capsys.readouterr().out == said + "\n"

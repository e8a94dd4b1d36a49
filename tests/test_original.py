"""08_original_stack: the libraries of 2023 do the work, and the lines that took their place run."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import nbformat
import pytest

from execution import BY_STEM, ROOT, cell, printed
from series.run import NotebookFailed, execute

ORIGINAL = BY_STEM["08_original_stack"]


@pytest.fixture(scope="module")
def original(executed):
    return executed(ORIGINAL.stem)


def test_the_articles_libraries_do_the_work(original):
    table = printed(cell(original, "table"))
    assert "QuantLinear" in table and "CTransformersModel" in table and "nf4" in table
    versions = dict(re.findall(r"\b(transformers|auto-gptq|optimum) ([\d.]+)", printed(cell(original, "start"))))
    assert versions["transformers"].startswith("4.") and set(versions) == {"transformers", "auto-gptq", "optimum"}


def test_its_answers_are_todays(original, record):
    for stem, place in {"01_baseline": "ask", "04_gptq": "shift", "05_gguf": "gguf"}.items():
        assert record(stem)["answer"] in printed(cell(original, place))
    rows = {
        line.split()[0]: line.split()
        for line in printed(cell(original, "table")).splitlines()
        if line.startswith(("GPTQ  ", "GGUF  "))
    }
    for kind in ("GPTQ", "GGUF"):  # the same ids; of six answers nearly all, since a near-tie may fall otherwise
        assert rows[kind][-2] == "True" and int(rows[kind][-1]) >= 5, rows[kind]
    said = printed(cell(original, "divergence"))
    assert float(re.search(r"KL divergence between the two libraries: ([\d.]+)", said)[1]) < 0.002


def test_the_new_format_is_misread_without_a_word(original, record):
    """What the notebook warns of: the checkpoint as it is gives nonsense, and no error."""
    said = printed(cell(original, "gptq-as-it-is")).strip()
    assert said and not said.startswith(record("04_gptq")["answer"][:20])
    assert "0x88888888" in printed(cell(original, "zero"))


def test_the_table_has_every_row_of_the_issue_and_its_outcome(original):
    said = printed(cell(original, "outcomes"))
    outcomes = re.findall(r"^2023   (.+)\n       (.+)\ntoday  (.+)\n       (.+)$", said, re.M)
    assert len(outcomes) == 8 and all(new.startswith("runs: ") for _, _, _, new in outcomes)
    wanted = {
        "git+https": "fails: Can't verify hashes",
        "xformers": "fails: ModuleNotFoundError",
        "torch_dtype": "warns: `torch_dtype` is deprecated",
        "zephyr-7b-alpha": "fails: ValueError",
        "temperature": "warns: The following generation flags are not valid",
        "auto_gptq": "fails: ImportError",
        "hf=True": "fails: AttributeError",
        "empty_cache()": r"fails: afterwards alive\(\) is None does not hold",
    }
    for word, pattern in wanted.items():
        (found,) = [outcome for old, outcome, _, _ in outcomes if word in old]
        assert re.match(pattern, found), (word, found)


def test_a_row_that_does_not_hold_is_seen():
    """The runner itself: a new line that warns or fails, an old one that simply runs."""
    rows = [
        {"old": "x = 1", "new": "import warnings; warnings.warn('old hat', FutureWarning)"},
        {"old": "1 / 0", "new": "x = 2", "check": "x == 2"},
        {"old": "open('/no/such/file')", "new": "y = 3", "before": ["y = 2"], "check": "y == 2"},
    ]
    command = [sys.executable, str(ROOT / "scripts" / "migration.py")]
    given = json.dumps({"names": {}, "rows": rows})
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        {"new": "warns: old hat", "old": "runs"},
        {"new": "runs", "old": "fails: ZeroDivisionError: division by zero"},
        {
            "new": "fails: afterwards y == 2 does not hold",
            "old": "fails: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'",
        },
    ]


def test_another_kernel_is_told_what_to_do(tmp_path):
    notebook = nbformat.read(ORIGINAL, as_version=4)
    last = next(i for i, c in enumerate(notebook.cells) if c.id == "start")
    notebook.cells = notebook.cells[: last + 1]
    notebook.metadata["kernelspec"]["name"] = "python3"
    with pytest.raises(NotebookFailed, match="the libraries of 2023 want 4.45. Type 'make original'"):
        execute(notebook, tmp_path / "out.ipynb")


def test_a_kernel_that_is_not_there_is_named(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    notebook.metadata["kernelspec"] = {"name": "series-1999", "display_name": "x", "language": "python"}
    with pytest.raises(NotebookFailed, match="needs the kernel 'series-1999': type 'make original'"):
        execute(notebook, tmp_path / "out.ipynb")


def test_the_two_environments_are_apart():
    """transformers 4 and what needs it must not come near the others' environment."""
    import importlib.metadata
    import importlib.util

    assert importlib.util.find_spec("auto_gptq") is None
    pins = (ROOT / "requirements-2023.txt").read_text(encoding="utf-8")
    packages = dict(re.findall(r"^([\w-]+)==([\d.]+)", pins, re.M))
    assert importlib.metadata.version("peft") != packages["peft"]
    assert len(packages) <= 15 and packages["transformers"].startswith("4.45.") and "auto-gptq" in packages

"""The harness must fail on what papermill lets through. Each notebook here is made on the spot."""

from __future__ import annotations

import nbformat
import pytest

from series.run import NotebookFailed, execute


def make(folder, *cells: str):
    """A notebook with a parameters cell and ``cells``."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("N = 1", metadata={"tags": ["parameters"]})]
        + [nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    path = folder / "made.ipynb"
    nbformat.write(notebook, path)
    return path


def test_a_sound_notebook_passes_and_gets_its_parameter(tmp_path):
    done = execute(make(tmp_path, "print(N + 1)"), tmp_path / "out.ipynb", {"N": 41})
    assert "42" in done.cells[-1].outputs[0].text


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["import sys; sys.exit(0)", "print('never')"], "not every cell ran"),
        (["raise ValueError('broken')"], "broken"),
        (["import os; os._exit(0)", "print('never')"], "DeadKernel"),
        (["!false"], "shell line"),
        (["said = !false"], "shell line"),
        (["import os", "os.system('false')"], "shell line"),
        (["%pip install nothing-of-the-kind"], "shell line"),
        (["%%bash\nfalse"], "shell line"),
        (
            ["import subprocess; p = subprocess.Popen(['sleep', '300'], start_new_session=True)"],
            "left processes behind",
        ),
        (["import tempfile; folder = tempfile.mkdtemp(prefix='lost-')"], "left temporary files behind: .*lost-"),
    ],
    ids=[
        "sys.exit",
        "error",
        "dead kernel",
        "shell",
        "shell, kept",
        "os.system",
        "pip",
        "bash cell",
        "child process",
        "temporary folder",
    ],
)
def test_what_must_fail_fails(tmp_path, monkeypatch, cells, message):
    monkeypatch.setattr("series.run.PATIENCE", 2)
    with pytest.raises(NotebookFailed, match=message):
        execute(make(tmp_path, *cells), tmp_path / "out.ipynb")


def test_a_mistyped_parameter_fails_before_anything_runs(tmp_path):
    with pytest.raises(NotebookFailed, match="no parameter"):
        execute(make(tmp_path, "print(N)"), tmp_path / "out.ipynb", {"n": 2})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_cell_that_hangs_is_ended(tmp_path):
    with pytest.raises(NotebookFailed, match="Timeout"):
        execute(make(tmp_path, "import time; time.sleep(600)"), tmp_path / "out.ipynb", timeout=3)

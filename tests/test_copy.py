"""The copy test: the cells tagged 'copy' are a program that runs in a project without anything of ours."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from execution import ROOT
from series import notebooks
from series.models import TINY, calibration_texts, prepare
from series.techniques import MEASURED

STEMS = [row.notebook for row in MEASURED]
FORBID = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("helpers", "series"):
            raise ImportError(f"{name} is not there in another project")

sys.meta_path.insert(0, Forbidden())
"""


def program(stem: str, path: str, converter: str, **parameters: object) -> str:
    """Parameters, ``path``, and where a method needs them ``texts`` and ``converter``; then the recipe as it stands."""
    given = notebooks.default_parameters(stem) | parameters
    row = next(row for row in MEASURED if row.notebook == stem)
    lines = [FORBID, *(f"{name} = {value!r}" for name, value in given.items() if name != "MODEL"), f"path = {path!r}"]
    if row.calibrates:
        lines.append(f"texts = {calibration_texts(4)!r}")
    if row.name == "gguf":
        lines.append(f"converter = {converter!r}")
        lines.append("GPU_LAYERS = 0")
    recipe = textwrap.indent(notebooks.recipe(stem), "    ")
    if row.name == "awq":  # as 06 says of a script: Python would wait for the engine
        recipe += "\n    llm.llm_engine.engine_core.shutdown()"
    return "\n".join(lines) + f"\nif __name__ == '__main__':\n{recipe}\n"  # vLLM starts its engine by a new import


def run(code: str, folder, stem: str) -> subprocess.CompletedProcess:
    import os

    row = next(row for row in MEASURED if row.notebook == stem)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    env |= {name: value for name, (value, _) in row.environment.items()}  # what start says for this machine
    if row.name == "awq":  # the kernel for processors without AVX-512
        env["PYTHONPATH"] = str(ROOT / "series" / "plugin")
    file = folder / "program.py"
    file.write_text(code, encoding="utf-8")
    return subprocess.run([sys.executable, str(file)], cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("stem", STEMS)
def test_the_recipe_runs_in_a_project_without_ours(stem, tmp_path):
    from series.converter import llama_cpp_converter

    prepare(TINY, tmp_path / "model")  # a folder of links, so that what is made lies beside it
    done = run(program(stem, str(tmp_path / "model"), str(llama_cpp_converter())), tmp_path, stem)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Large Language Model" in done.stdout.strip().splitlines()[-1] or "Large Language Model" in done.stdout


def test_a_recipe_that_uses_ours_is_seen(tmp_path):
    done = run(FORBID + "\nfrom helpers import MESSAGES\nprint(MESSAGES)\n", tmp_path, "01_baseline")
    assert done.returncode and "is not there in another project" in done.stderr
    code = program("01_baseline", "x", "")
    ours = code.replace("from transformers import", "import series\n    from transformers import")
    done = run(ours, tmp_path, "01_baseline")
    assert done.returncode and "series is not there in another project" in done.stderr


@pytest.mark.parametrize("stem", STEMS)
def test_the_recipe_is_short_and_the_librarys(stem):
    """The aims of the series' form: within 8 code cells and 40 lines, at most 8 names of ours, 25 to 40 cells."""
    from run import shape

    found = shape([ROOT / "notebooks" / f"{stem}.ipynb"])[stem]
    assert found["lines to the first answer"] <= 40 and found["code cells to it"] <= 8
    assert found["names of ours"] <= 8 and 25 <= found["cells"] <= 40
    assert found["median code cell"] <= 8 and found["longest"] <= 20
    recipe = notebooks.recipe(stem)
    assert not any(word in recipe for word in ("assert", "quiet", "perf_counter", "lesson", "helpers", "series"))

"""The copy test: the cells tagged 'copy' are a program that runs in a project without anything of ours."""

from __future__ import annotations

import pytest

from execution import FORBID, ROOT, program, run_program
from series import notebooks
from series.techniques import MEASURED

STEMS = [row.notebook for row in MEASURED]
SHORT = [*STEMS, "09_serving"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_recipe_runs_in_a_project_without_ours(stem, copied):
    status, said, errors = copied(stem)
    assert status == 0, errors[-3000:]
    assert "Large Language Model" in said


def test_a_recipe_that_uses_ours_is_seen(tmp_path):
    done = run_program(FORBID + "\nfrom helpers import MESSAGES\nprint(MESSAGES)\n", tmp_path, "01_baseline")
    assert done.returncode and "is not there in another project" in done.stderr
    code = program("01_baseline", "x", "")
    ours = code.replace("from transformers import", "import series\n    from transformers import")
    done = run_program(ours, tmp_path, "01_baseline")
    assert done.returncode and "series is not there in another project" in done.stderr


@pytest.mark.parametrize("stem", SHORT)
def test_the_recipe_is_short_and_the_librarys(stem):
    """The aims of the series' form: within 8 code cells and 40 lines, at most 8 names of ours, 25 to 40 cells.

    09 starts two servers, and has two lines more.
    """
    from run import shape

    found = shape([ROOT / "notebooks" / f"{stem}.ipynb"])[stem]
    assert (
        found["lines to the first answer"] <= (41 if stem in ("06_awq", "09_serving") else 40)
        and found["code cells to it"] <= 8
    )
    assert found["names of ours"] <= 8 and 25 <= found["cells"] <= 40
    assert found["median code cell"] <= 10 and found["longest"] <= 24
    recipe = notebooks.recipe(stem)
    assert not any(word in recipe for word in ("assert", "quiet", "perf_counter", "lesson", "helpers", "series"))

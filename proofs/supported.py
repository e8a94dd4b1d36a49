"""The table of architectures: which notebook takes which, and why not.

    python proofs/supported.py [--out proofs/supported.md]

The same runs are tests: tests/test_architectures.py, which holds them against the committed table.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile

import report

sys.path.insert(0, str(report.ROOT / "tests"))
from execution import run_all, workers  # noqa: E402
from supported import STEMS, table, task_of, tasks  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.environ |= {"QUANT_ARTIFACTS": str(folder / "artifacts"), "HF_HUB_OFFLINE": "1"}
        with workers() as pool:
            ended = run_all(tasks(folder), pool)
        if errors := [error for error, _ in ended.values() if error]:
            raise SystemExit(errors[0])
        found = {stem: ended[task_of(stem)][1] for stem in STEMS}
    report.write("Which notebook takes which architecture?", "python proofs/supported.py", table(found), given.out)


if __name__ == "__main__":
    main()

"""Run old and new lines in this environment, and say what becomes of each: 'runs', 'warns: ...' or 'fails: ...'.

    python scripts/migration.py < rows.json

08_original_stack holds the rows and shows the outcome. On standard input: ``names``, the names that the lines know,
and ``rows``, each with ``old`` and ``new`` (a line of Python, or of pip), ``before`` (cells that run first) and
``check`` (what must hold afterwards). On standard output: for each row, the outcomes of ``old`` and ``new``.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

OF_THE_LINE = re.compile("deprecated|ignored|not valid|removed|renamed")  # other remarks are a library's own affairs


class Heard(logging.Handler):
    """What a library's logger says of the line that it was given."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if OF_THE_LINE.search(record.getMessage()):
            self.texts.append(record.getMessage())


def pip(line: str) -> str:
    """The outcome of a pip line: nothing is installed, and nothing is taken that has no hash to be checked by."""
    words = line.split()[1:]
    words += ["--dry-run", "--no-deps", "-q", "--no-color"] + (["--require-hashes"] if "git+" in line else [])
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return f"fails: {errors[0]}" if done.returncode else "runs"


def outcome(line: str, row: dict[str, Any], shell: InteractiveShell, heard: Heard) -> str:
    """What becomes of ``line``, run as a cell of a notebook."""
    if line.startswith("pip "):
        return pip(line)
    for cell in row.get("before", []):
        shell.run_cell(cell, store_history=True).raise_error()
    heard.texts.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = shell.run_cell(line, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    if error:
        said = re.sub(r" \(/.*?\)", "", (str(error).splitlines() or [""])[0])  # no path of this machine
        return f"fails: {type(error).__name__}: {said}"
    if row.get("check") and not eval(row["check"], shell.user_ns):  # the row's own line
        return f"fails: afterwards {row['check']} does not hold"
    texts = heard.texts + [str(w.message) for w in caught if issubclass(w.category, FutureWarning)]
    return f"warns: {texts[0].strip().splitlines()[0]}" if texts else "runs"


def main() -> None:
    given = json.load(sys.stdin)
    os.environ |= {"HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2", "TQDM_DISABLE": "1"}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import transformers

        heard = Heard()
        logging.getLogger("transformers").addHandler(heard)
        transformers.utils.logging.disable_progress_bar()
        shell = InteractiveShell.instance()
        shell.push(given["names"])
        found: list[dict[str, str]] = [{} for _ in given["rows"]]
        for which in ("new", "old"):  # the old ones may spoil what comes after them
            for row, said in zip(given["rows"], found, strict=True):
                said[which] = outcome(row[which], row, shell, heard)
                shell.user_ns.pop("model", None)
                gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

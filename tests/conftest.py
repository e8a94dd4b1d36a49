"""Paths for the tests, and one execution of the series that many tests look at."""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "training")]
# No test may reach a model hub. libgomp's threads sleep when they wait: no test measures speed.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hub-")  # what this machine has cached must not matter
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ALL = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NOTEBOOKS, ORIGINAL = ALL[:7], ALL[7]  # the last one has an environment and a kernel of its own
RECORDS = {  # the notebook and the record that it leaves
    "01_baseline": "16-bit",
    "02_sharding": "16-bit, sharded",
    "03_nf4": "NF4",
    "04_gptq": "GPTQ 4-bit",
    "05_gguf": "GGUF Q4_K_M",
    "06_awq": "AWQ 4-bit",
}
TECHNIQUES = NOTEBOOKS[:6]
PREPARED = os.environ.get("SERIES_ARTIFACTS")  # a folder with all records, for proofs/mutate.py
COMPARISON = NOTEBOOKS[6]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> pathlib.Path:
    """A fresh folder for all that is made, so that nothing is found ready; kernels inherit it."""
    folder = pathlib.Path(PREPARED) if PREPARED else tmp_path_factory.mktemp("artifacts")
    os.environ["QUANT_ARTIFACTS"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def executed(artifacts, tmp_path_factory):
    """``executed(path)`` runs a notebook once a session and returns (notebook, record or None)."""
    from execute import execute
    from helpers.record import read_record

    folder, done = tmp_path_factory.mktemp("executed"), {}

    def run(path: pathlib.Path):
        if path == ORIGINAL:
            require_original()
            for needed in NOTEBOOKS[3:5] if not PREPARED else ():
                run(needed)
        if path not in done:
            notebook = execute(path, folder / path.name, timeout=1800)
            done[path] = notebook, read_record(RECORDS[path.stem]) if path.stem in RECORDS else None
        return done[path]

    return run


def require_original() -> None:
    """The kernel with the libraries of 2023: where tests must not be skipped, its absence is a failure."""
    from jupyter_client.kernelspec import KernelSpecManager

    if "series-2023" not in KernelSpecManager().find_kernel_specs():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("the environment of 08_original_stack is missing: type 'make original'")


@pytest.fixture(scope="session")
def six(executed) -> None:
    """The techniques, executed: the comparison takes their records."""
    for path in TECHNIQUES if not PREPARED else ():
        executed(path)


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-zephyr")


def shown(notebook) -> str:
    """All that the notebook's cells printed and displayed as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")))
    return "\n".join(parts)

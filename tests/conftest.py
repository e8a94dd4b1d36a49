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

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
TECHNIQUES = {
    "01_baseline": "baseline",
    "02_sharding": "sharding",
    "03_nf4": "nf4",
    "04_gptq": "gptq",
    "05_gguf": "gguf",
    "06_awq": "awq",
}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> pathlib.Path:
    """A fresh folder for all that is made, so that nothing is found ready; kernels inherit it."""
    folder = tmp_path_factory.mktemp("artifacts")
    os.environ["QUANT_ARTIFACTS"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def executed(artifacts, tmp_path_factory):
    """``executed(path)`` runs a notebook once a session and returns (notebook, record)."""
    import json

    from execute import execute

    folder, done = tmp_path_factory.mktemp("executed"), {}

    def run(path: pathlib.Path):
        if path not in done:
            notebook = execute(path, folder / path.name, timeout=600)
            record = artifacts / "records" / f"{TECHNIQUES[path.stem]}-tiny.json"
            done[path] = notebook, json.loads(record.read_text(encoding="utf-8"))
        return done[path]

    return run

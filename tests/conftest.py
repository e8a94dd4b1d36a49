"""Paths for the tests, and the one execution of the series that many tests look at."""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import tempfile

import nbformat
import pytest

import execution  # also puts the repository's folders on sys.path
import small
from execution import ALL, ROOT

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hub-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
execution.prepare_environment(pathlib.Path(os.environ["HF_HOME"]) / "artifacts")
ONLY = os.environ.get("SERIES_ONLY")  # for proofs/mutate.py: one notebook, with what the others made beforehand


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: in 'make test-all' alone")


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> pathlib.Path:
    """A fresh folder for all that is made, so that nothing is found ready; kernels inherit it."""
    folder = pathlib.Path(os.environ["SERIES_ARTIFACTS"]) if ONLY else tmp_path_factory.mktemp("artifacts")
    os.environ["QUANT_ARTIFACTS"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def results(request, artifacts, tmp_path_factory) -> tuple[pathlib.Path, dict[str, str], dict[str, tuple]]:
    """The folder with the executed notebooks, what went wrong with each, and how each copied program ended."""
    from series.techniques import MEASURED

    folder = tmp_path_factory.mktemp("executed")
    wanted = {name for item in request.session.items for name in item.fixturenames}
    copies = [row.notebook for row in MEASURED] if "copied" in wanted and not ONLY else []
    stems = [path.stem for path in ALL if not ONLY or path.stem == ONLY] if "executions" in wanted else []
    stems += [execution.SMALL] if "small_gguf" in wanted and not ONLY else []
    if "series-2023" not in kernels() and "08_original_stack" in stems:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        if ONLY == "08_original_stack" or os.environ.get("CI"):
            say("the environment of 08_original_stack is missing: type 'make original'")
        stems.remove("08_original_stack")
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n  {line}", end="", flush=True)

    return folder, *execution.run_all(stems, folder, copies, say)


@pytest.fixture(scope="session")
def executions(results) -> tuple[pathlib.Path, dict[str, str]]:
    return results[:2]


@pytest.fixture(scope="session")
def copied(results):
    """``copied(stem)``: exit status, standard output and error of the recipe, run as a program."""
    return results[2].__getitem__


@pytest.fixture(scope="session")
def small_gguf(executed):
    """05_gguf, executed with the real model of 135 million parameters."""
    if small.weights() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the weights are missing: type 'make test'")
    return executed(execution.SMALL)


def kernels() -> dict[str, str]:
    from jupyter_client.kernelspec import KernelSpecManager

    return KernelSpecManager().find_kernel_specs()


@pytest.fixture(scope="session")
def executed(executions):
    """``executed(stem)`` is the executed notebook; a test that asks for one that failed, fails with its error."""
    folder, errors = executions

    def get(stem: str):
        if stem not in errors:
            pytest.skip(f"{stem} was not executed")
        if errors[stem]:
            pytest.fail(errors[stem][-3000:], pytrace=False)
        return nbformat.read(folder / f"{stem}.ipynb", as_version=4)

    return get


@pytest.fixture(scope="session")
def record(executed):
    """``record(stem)`` is the record that the executed notebook left."""
    from series.notebooks import default_parameters
    from series.record import read_record
    from series.techniques import BY_NOTEBOOK

    def get(stem: str):
        executed(stem)
        return read_record(BY_NOTEBOOK[stem].record_name(default_parameters(stem)))

    return get


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-zephyr")

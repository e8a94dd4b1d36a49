"""Paths for the tests, and the one execution of the series that many tests look at."""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import pathlib
import shutil
import tempfile
import threading

import nbformat
import pytest

import execution  # also puts the repository's folders on sys.path
import small
import stand_in
import supported
from execution import ALL, ROOT

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hub-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
execution.prepare_environment(pathlib.Path(os.environ["HF_HOME"]) / "artifacts")
ONLY = os.environ.get("SERIES_ONLY")  # for proofs/mutate.py: one notebook, with what the others made beforehand


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: in 'make test-all' alone")
    config.screen = os.fdopen(os.dup(1), "w")  # during a test, pytest keeps to itself what is printed


def pytest_collection_modifyitems(items):
    """What waits for the executions comes last: they run beside all other tests."""
    items.sort(key=lambda item: "results" in item.fixturenames)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> pathlib.Path:
    """A fresh folder for all that is made, so that nothing is found ready; kernels inherit it."""
    folder = pathlib.Path(os.environ["SERIES_ARTIFACTS"]) if ONLY else tmp_path_factory.mktemp("artifacts")
    os.environ["QUANT_ARTIFACTS"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def begun(request, artifacts, tmp_path_factory):
    """A folder for executed notebooks, and the results to come of all tasks that the chosen tests need."""
    from series.techniques import MEASURED

    folder, tasks = tmp_path_factory.mktemp("executed"), {}
    wanted = {name for item in request.session.items for name in item.fixturenames}
    stems = [path.stem for path in ALL if not ONLY or path.stem == ONLY] if "executions" in wanted else []
    if "08_original_stack" in stems and "series-2023" not in kernels():
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        if ONLY == "08_original_stack" or os.environ.get("CI"):
            say("the environment of 08_original_stack is missing: type 'make original'")
        stems.remove("08_original_stack")
    tasks |= execution.notebook_tasks(stems, folder)
    tasks |= execution.serving_task() if "served" in wanted else {}
    if not ONLY:
        if {"small_gguf", "real"} & wanted:
            tasks |= execution.real_model_tasks(folder, every="real" in wanted)
        tasks |= execution.ladder_tasks() if "climbed" in wanted else {}
        tasks |= supported.tasks(folder / "models") if "tried" in wanted else {}
        tasks |= stand_in.tasks(folder / "hub") if "in_colab" in wanted else {}
        tasks |= execution.program_tasks([row.notebook for row in MEASURED]) if "copied" in wanted else {}

    def say(line: str) -> None:
        print(f"\n  {line}", end="", flush=True, file=request.config.screen)

    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as thread, execution.workers(len(tasks)) as pool:
        yield folder, thread.submit(execution.run_all, tasks, pool, say, stop)
        stop.set()


@pytest.fixture(scope="session")
def results(begun) -> tuple[pathlib.Path, dict[str, tuple]]:
    """The folder with the executed notebooks; of each task its error, and its result."""
    return begun[0], begun[1].result()


@pytest.fixture(scope="session")
def returned(results):
    """``returned(task)``: what it returned; a test that asks for one that failed, fails with its error."""

    def get(name: str):
        error, found = results[1][name]
        if error:
            pytest.fail(error[-3000:], pytrace=False)
        return found

    return get


@pytest.fixture(scope="session")
def executions(results) -> tuple[pathlib.Path, dict[str, str]]:
    return results[0], {name: error for name, (error, _) in results[1].items()}


@pytest.fixture(scope="session")
def copied(returned):
    """``copied(stem)``: whether the recipe, run as a program, came to its end, and what it said."""
    return lambda stem: (returned("programs") | returned("06_awq, as a program"))[stem]


@pytest.fixture(scope="session")
def served(executions, returned) -> tuple[int, str, str]:
    """Of 09's recipe, run as a program with what the notebooks have made: exit status, standard output and error."""
    return returned("09_serving, as a program")


@pytest.fixture(scope="session")
def small_gguf(executed):
    """05_gguf, executed with the real model of 135 million parameters."""
    if small.weights() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the weights are missing: type 'make test'")
    return executed(execution.GGUF_OF_SMALL)


@pytest.fixture(scope="session")
def real(small_gguf, executed):
    """``real(stem)`` is the executed notebook with that model."""
    return lambda stem: executed(f"{stem}@small")


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

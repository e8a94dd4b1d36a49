"""A stand-in for Colab, made from the list of packages that it publishes, and a notebook in it.

It has Colab's Python, its versions of what this series installs or uses (proofs/colab/), and a kernel that has imported
what Colab's kernel has. It has no GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from uv import find_uv_bin

from execution import ROOT, Task

LISTS = ROOT / "proofs" / "colab"
ADDRESS, TAG = "some-body/series", "v9.1"
NUMBERED = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
STEMS = [stem for stem in NUMBERED if stem[:2] != "08"]  # which says that it cannot run
QUICK = [stem for stem in STEMS if stem[:2] != "09"]  # which runs 05 and 06 first
NEWEST = sorted(path.stem for path in LISTS.glob("*.txt"))[-1]
# google.colab imports these before the first cell (googlecolab/colabtools: autoviz, _reprs, drive, data_table).
STAND_IN = "import IPython, numpy, pandas, psutil\n"
# Colab brings uv, with settings that name files which are not there (googlecolab/colabtools, issue 5237). The cache of
# this machine is left alone.
UV = {
    "UV_SYSTEM_PYTHON": "true",
    "UV_PRERELEASE": "if-necessary-or-explicit",
    "UV_NO_CACHE": "1",
    "UV_CONSTRAINT": "/backend-container/containers/requirements.constraints",
    "UV_BUILD_CONSTRAINT": "/backend-container/containers/build.constraints",
}
START = "import google.colab, runpy; runpy.run_module('ipykernel_launcher', run_name='__main__')"


def python_of(name: str) -> str:
    """The interpreter of a list, such as '3.13'."""
    return re.search(r"Python (3\.\d+)", (LISTS / f"{name}.txt").read_text(encoding="utf-8"))[1]


def find_python(version: str) -> str:
    """The path of that interpreter: on this machine, or fetched by uv."""
    places = pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for found in (shutil.which(f"python{version}"), *map(str, places)):
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        if found and subprocess.run([found, "-c", ask], capture_output=True, text=True).stdout.strip() == version:
            return found
    uv("python", "install", version)
    return uv("python", "find", version).strip()


def uv(*arguments: str) -> str:
    from series.colab import for_uv

    done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True, env=for_uv())
    if done.returncode:
        raise RuntimeError(f"uv {' '.join(arguments)} failed:\n{done.stderr.strip()[-1500:]}")
    return done.stdout


def environment(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Make Colab's environment of the list ``name`` in ``folder``; its Python. The second time, uv has all at hand."""
    from series.colab import install_cpu_torch

    uv("venv", "-q", "--seed", "--python", find_python(python_of(name)), str(folder))
    python, pins = folder / "bin" / "python", LISTS / f"{name}.txt"
    torch = re.search(r"^torch==.*$", pins.read_text(encoding="utf-8"), re.M)[0]
    install_cpu_torch(str(python), torch)  # as on Colab's machines without a GPU; else the one with CUDA
    uv("pip", "install", "-q", "--python", str(python), "-r", str(pins))
    stand_in = next(folder.glob("lib/python*/site-packages")) / "google" / "colab"
    stand_in.mkdir(parents=True, exist_ok=True)
    (stand_in / "__init__.py").write_text(STAND_IN)
    return python


def publish(folder: pathlib.Path) -> None:
    """The working tree in ``folder``, stamped by the command, committed and tagged."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run([sys.executable, "scripts/stamp.py", ADDRESS, "--tag", TAG], cwd=folder, check=True)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "published"], ["tag", TAG]):
        subprocess.run(["git", *command], cwd=folder, check=True)


@contextlib.contextmanager
def colab(python: pathlib.Path, folder: pathlib.Path, hub: pathlib.Path) -> Iterator[None]:
    """Kernels of ``python`` under the name 'colab', for which git finds ``hub``/owner/name under GitHub's address."""
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True, exist_ok=True)
    argv = [str(python), "-c", START, "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "uv").symlink_to(find_uv_bin())
    settings = {f"url.file://{hub}/.insteadOf": "https://github.com/", "safe.directory": "*"}
    theirs = {"JUPYTER_PATH": str(folder / "jupyter"), "CUDA_VISIBLE_DEVICES": "", "GIT_CONFIG_COUNT": "2"}
    for number, (key, value) in enumerate(settings.items()):
        theirs |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    before = dict(os.environ)
    theirs |= UV | {"PATH": f"{programs}{os.pathsep}{before['PATH']}"}
    try:
        os.environ |= theirs
        for name in ("PYTHONPATH", "QUANT_ARTIFACTS", "HF_HUB_OFFLINE", "VIRTUAL_ENV"):
            os.environ.pop(name, None)
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def client(notebook: pathlib.Path, content: pathlib.Path, until: str | None = None) -> NotebookClient:
    """A client that executes ``notebook``, alone in ``content``, to the cell ``until``."""
    source = nbformat.read(notebook, as_version=4)
    if until:
        last = next(i for i, cell in enumerate(source.cells) if cell.id == until)
        source.cells = source.cells[: last + 1]
    for cell in source.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None  # those that are committed
    content.mkdir(exist_ok=True)
    resources = {"metadata": {"path": str(content)}}
    return NotebookClient(source, timeout=1800, kernel_name="colab", resources=resources)


def said(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def packages(python: pathlib.Path) -> dict[str, str]:
    """The packages of an environment and their versions."""
    listed = json.loads(uv("pip", "list", "-q", "--python", str(python), "--format", "json"))
    return {package["name"].lower(): package["version"] for package in listed}


def answer_of(stem: str) -> str:
    """The id of the cell with a notebook's first answer; in 07 its table, in 00 its first numbers."""
    return {"00": "symmetric", "07": "table"}.get(stem[:2], "ask")


def run(stem: str, image: str, hub: pathlib.Path, whole: bool) -> dict:
    """One notebook in an environment of its own. When it asks for a restart, it gets one.

    Returns:
        Seconds to the first answer and in all (restarts included), restarts, what was installed or exchanged, the
        text of the answer, the notebook, the packages afterwards, and the error, '' if there was none.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, notebook = pathlib.Path(name), hub / ADDRESS / "notebooks" / f"{stem}.ipynb"
        python = environment(image, folder / "environment")
        before, restarts, begun, answered, error = packages(python), 0, time.perf_counter(), None, ""

        def note(cell, cell_index, **_) -> None:
            nonlocal answered
            if cell.id == answer_of(stem):
                answered = time.perf_counter() - begun

        with colab(python, folder, hub):
            while True:
                it = client(notebook, folder / "content", None if whole else answer_of(stem))
                it.on_cell_executed = note
                try:
                    it.execute()
                except CellExecutionError as failed:
                    error = str(failed)[-2000:]
                    if "Restart session" in error and restarts < 3:
                        restarts, error = restarts + 1, ""
                        continue
                break
        seconds, after = time.perf_counter() - begun, packages(python)
    changed = {p: (before.get(p), v) for p, v in after.items() if before.get(p) != v}
    cell = next((c for c in it.nb.cells if c.id == answer_of(stem)), None)
    text = said(cell) if cell else ""
    return {
        "seconds": seconds,
        "answered": answered,
        "restarts": restarts,
        "changed": changed,
        "answer": text,
        "notebook": it.nb,
        "error": error,
        "packages": after,
    }


def tasks(hub: pathlib.Path) -> dict[str, Task]:
    """Each notebook to its first answer, with the newest list: for tests/test_colab.py."""
    made = {"Colab": Task(publish, (hub / ADDRESS,))}
    for stem in reversed(QUICK):
        made[f"{stem} in Colab"] = Task(run, (stem, NEWEST, hub, False), ("Colab",))
    return made


def news(published: str, kept: str) -> list[str]:
    """What a published list has in another version than the list that is kept here, by name."""

    def versions(text: str) -> dict[str, str]:
        found = re.findall(r"^([\w.-]+)(?:==| @ .*?/[\w.]+-)([\d.]+(?:\.\w+)?)", text, re.M)
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}

    now, then = versions(published), versions(kept)
    changed = [name for name, version in then.items() if now.get(name) != version]
    return [f"{name}: {then[name]} → {now.get(name, 'gone')}" for name in changed]

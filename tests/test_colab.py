"""The notebooks as Colab runs them, with a stand-in for it.

A folder with one notebook and nothing else; a kernel that has imported ``google.colab``; a fresh environment that
brings what Colab's brings, taken from this one, and nothing more; the stamped repository, cloned at its tag from a
local copy. The notebook's own first cell does the rest, with the real pip, and every cell up to the answer runs.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement

from execution import ALL, ROOT
from series.comparison import ladders

pytestmark = pytest.mark.slow
NOTEBOOKS, TECHNIQUES, COMPARISON = ALL[1:8], ALL[1:7], ALL[7]
BROUGHT = ("torch", "numpy", "pandas", "matplotlib", "psutil", "ipykernel", "packaging", "setuptools")
ADDRESS, TAG = "some-body/series", "v9.1"


def closure(names: tuple[str, ...]) -> set[str]:
    """The packages ``names`` and all that they need."""
    found, waiting = set(), [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        if wanted.name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(wanted.name)
        waiting += map(Requirement, importlib.metadata.requires(wanted.name) or [])
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> pathlib.Path:
    """What Colab's image brings: links to the packages of this environment, and the stand-in."""
    folder = tmp_path_factory.mktemp("image")
    for name in closure(BROUGHT):
        for file in importlib.metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(
                    file.locate().parents[len(file.parts) - 2] if file.parts[1:] else file.locate()
                )
    (folder / "google" / "colab").mkdir(parents=True)
    (folder / "google" / "colab" / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def remote(tmp_path_factory) -> pathlib.Path:
    """The working tree, stamped by the command, committed and tagged, where git finds it in place of GitHub."""
    folder = tmp_path_factory.mktemp("hub") / ADDRESS
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
    return folder


@pytest.fixture
def colab(image, remote, tmp_path, monkeypatch):
    """``colab(name)`` is a client for the notebook alone in a folder, on a fresh environment."""
    environment, content = tmp_path / "environment", tmp_path / "content"
    venv.create(environment, with_pip=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "image.pth").write_text(f"{image}\n")
    start = "import google.colab, runpy; runpy.run_module('ipykernel_launcher', run_name='__main__')"
    kernel = tmp_path / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(environment / "bin" / "python"), "-c", start, "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for variable in ("PYTHONPATH", "QUANT_ARTIFACTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the same way on every machine: that of one without a GPU
    # git finds the local copy under GitHub's address
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{remote.parents[1]}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/")
    monkeypatch.setenv("GIT_CONFIG_KEY_1", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_1", "*")
    content.mkdir()

    def client(name: str, until: str) -> tuple[NotebookClient, pathlib.Path]:
        source = nbformat.read(remote / "notebooks" / name, as_version=4)
        last = next(i for i, cell in enumerate(source.cells) if cell.id == until)
        source.cells = source.cells[: last + 1]
        for cell in source.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None  # those that are committed
        resources = {"metadata": {"path": str(content)}}
        return NotebookClient(source, timeout=1500, kernel_name="colab", resources=resources), packages

    return client


def said(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", TECHNIQUES, ids=lambda path: path.stem)
def test_a_notebook_gets_to_its_answer(path, colab):
    from series.colab import requirements

    client, packages = colab(path.name, until="ask")
    done = client.execute()
    setup, answer = next(cell for cell in done.cells if cell.id == "setup"), done.cells[-1]
    assert f"{path.stem} has what it needs" in said(setup)
    # the answer of the committed notebook may be another processor's: it must be one, and not a message
    assert len(said(answer).split()) > 5 and "Error" not in said(answer), said(answer)
    # what it needs, and no more; Colab's own torch stays
    installed = {re.split(r"-\d", p.name)[0].replace("_", "-").lower() for p in packages.glob("*.dist-info")}
    wanted = {name for name, (_, provided) in requirements(path.stem).items() if not provided}
    assert wanted <= installed and "torch" not in installed
    others = set().union(*(requirements(p.stem) for p in NOTEBOOKS)) - requirements(path.stem).keys()
    # optimum is gptqmodel's companion and nobody's dependency; accelerate comes with others
    assert not (others - {"accelerate", "sentencepiece", "gguf", "numpy"}) & installed


def test_the_comparison_gets_to_its_table(colab):
    """From an empty machine: what was not measured here is taken from the committed figures."""
    client, _ = colab(COMPARISON.name, until="table")
    done = client.execute()
    assert any("07_comparison has what it needs" in said(cell) for cell in done.cells if cell.cell_type == "code")
    taken = f"0 runs measured here, {len(ladders('tiny'))} taken"
    assert any(taken in said(cell) for cell in done.cells if cell.cell_type == "code")


def test_a_failed_installation_stops_the_notebook(colab, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    client, _ = colab("01_baseline.ipynb", until="start")
    with pytest.raises(CellExecutionError, match="This installation failed, so the notebook cannot go on"):
        client.execute()
    assert not client.nb.cells[-1].outputs, "no later cell ran"


def test_a_repository_that_is_not_there_stops_the_notebook(colab, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://nowhere.invalid/")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    monkeypatch.setenv("GIT_CONFIG_KEY_1", "http.proxy")
    monkeypatch.setenv("GIT_CONFIG_VALUE_1", "http://127.0.0.1:9")
    client, _ = colab("01_baseline.ipynb", until="start")
    with pytest.raises(CellExecutionError, match="CalledProcessError"):
        client.execute()


def test_a_package_that_only_shares_a_name_asks_for_no_restart(image, tmp_path):
    """Colab has imported google.colab; protobuf, whose modules are google.protobuf, may be replaced all the same."""
    (tmp_path / "google" / "protobuf").mkdir(parents=True)
    (tmp_path / "google" / "protobuf" / "__init__.py").touch()
    info = tmp_path / "shared_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-name\nVersion: 1.0\n")
    (info / "RECORD").write_text("google/protobuf/__init__.py,,\n")
    code = (
        "import google.colab\nfrom series import colab\nprint('shared-name' in colab._loaded())\n"
        "import google.protobuf\nprint('shared-name' in colab._loaded())"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, image, ROOT)))}
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([python, "-S", "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_an_image_without_torch_gets_the_cpu_build(image, tmp_path):
    """vLLM's CPU build is made for one torch; the same way leads there from an image with another one."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for entry in image.iterdir():
        if not entry.name.startswith("torch") and entry.name != "functorch":
            (bare / entry.name).symlink_to(entry)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    (next(environment.glob("lib/python*/site-packages")) / "image.pth").write_text(f"{bare}\n{ROOT}\n")
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text().partition("transformers==")[0])
    code = (
        "import google.colab, pathlib\nfrom series import colab\n"
        f"colab.ROOT = pathlib.Path({str(tmp_path)!r})\ncolab.install('01_baseline')\nimport torch\n"
        "print(torch.__version__, torch.version.cuda)"
    )
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    python = environment / "bin" / "python"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{importlib.metadata.version('torch')} None"


def test_a_replaced_package_asks_for_a_restart(image, tmp_path):
    """sentencepiece in an older version, imported, and then wanted in the pinned one."""
    from series.colab import requirements

    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    (next(environment.glob("lib/python*/site-packages")) / "image.pth").write_text(f"{image}\n{ROOT}\n")
    python = str(environment / "bin" / "python")
    older = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "sentencepiece==0.2.1"]
    subprocess.run([python, *older], check=True)
    (tmp_path / "requirements.txt").write_text(f"{requirements('05_gguf')['sentencepiece'][0]}  # 05\n")
    code = (
        "import google.colab, pathlib, sentencepiece\nfrom series import colab\n"
        f"colab.ROOT = pathlib.Path({str(tmp_path)!r})\ncolab.install('05_gguf')"
    )
    first = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert first.returncode and "had already imported sentencepiece" in first.stderr and "Restart" in first.stderr
    again = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert again.returncode == 0 and "05_gguf has what it needs" in again.stdout, again.stderr

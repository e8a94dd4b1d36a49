"""The notebooks as Colab runs them, in a stand-in made from the list of packages that Colab publishes.

A folder with one notebook and nothing else; a kernel that has imported what Colab's has; an environment of its own with
Colab's Python and versions; the stamped repository, cloned at its tag from a local copy. The notebook's own first cell
does the rest, with the real uv and pip, and every cell up to the answer runs. proofs/colab.py writes a table of it.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import re
import subprocess
import venv

import pytest
from nbclient.exceptions import CellExecutionError

import stand_in
from execution import ROOT
from series.colab import requirements
from series.comparison import ladders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("hub")
    stand_in.publish(folder / stand_in.ADDRESS)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> pathlib.Path:
    """Colab's environment, for tests that install nothing in it."""
    return stand_in.environment(stand_in.NEWEST, tmp_path_factory.mktemp("colab") / "environment")


@pytest.fixture(scope="session")
def in_colab(returned):
    return lambda stem: returned(f"{stem} in Colab")


@pytest.mark.parametrize("stem", stand_in.QUICK)
def test_a_notebook_gets_to_its_answer(stem, in_colab):
    found = in_colab(stem)
    assert not found["error"] and found["answered"], found["error"]
    assert found["restarts"] == 0, "what Colab's kernel has imported stays"
    if stem[:2] == "00":
        return  # installs nothing
    setup = next(cell for cell in found["notebook"].cells if cell.id == "setup")
    assert f"{stem} has what it needs" in stand_in.said(setup)
    # what it needs, and no more; Colab's own torch stays, but for vLLM's CPU build
    wanted = {name for name, (_, provided) in requirements(stem).items() if not provided}
    others = set().union(*(requirements(other) for other in stand_in.STEMS[1:])) - requirements(stem).keys()
    new = {name for name, (before, _) in found["changed"].items() if before is None}
    assert wanted <= found["packages"].keys() and ("torch" in found["changed"]) == (stem == "06_awq")
    assert not (others - {"sentencepiece", "gguf"}) & new
    if stem[:2] == "07":  # from an empty machine: what was not measured here is taken from the committed figures
        taken = f"0 runs measured here, {len(ladders('tiny'))} taken"
        assert any(taken in stand_in.said(cell) for cell in found["notebook"].cells if cell.cell_type == "code")
    else:  # the answer of the committed notebook may be another processor's: it must be one, and not a message
        assert len(found["answer"].split()) > 4 and "Error" not in found["answer"], found["answer"]


def test_a_failed_installation_stops_the_notebook(python, hub, tmp_path, monkeypatch):
    for name in [name for name in os.environ if re.match("(PIP|UV)_.*(INDEX|LINKS|CONFIG)", name)]:
        monkeypatch.delenv(name)
    nowhere = "http://127.0.0.1:9/simple"
    there = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": nowhere, "PIP_RETRIES": "0"}
    for name, value in (there | {"UV_NO_CONFIG": "1", "UV_DEFAULT_INDEX": nowhere, "UV_HTTP_RETRIES": "0"}).items():
        monkeypatch.setenv(name, value)
    with stand_in.colab(python, tmp_path, hub):
        client = stand_in.client(hub / stand_in.ADDRESS / "notebooks/01_baseline.ipynb", tmp_path / "content", "start")
        with pytest.raises(CellExecutionError, match="This installation failed, so the notebook cannot go on"):
            client.execute()
    assert not client.nb.cells[-1].outputs, "no later cell ran"


def test_a_repository_that_is_not_there_stops_the_notebook(python, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "0")
    with stand_in.colab(python, tmp_path, tmp_path / "nowhere"):
        client = stand_in.client(hub / stand_in.ADDRESS / "notebooks/01_baseline.ipynb", tmp_path / "content", "start")
        with pytest.raises(CellExecutionError, match="CalledProcessError"):
            client.execute()


def test_a_notebook_that_was_not_published_runs_in_the_readers_own_clone(python, hub, tmp_path):
    """The address is not stamped; the repository lies beside the notebook, as an upload or 'git clone' leaves it."""
    notebook, content = ROOT / "notebooks/01_baseline.ipynb", tmp_path / "content"
    assert "OWNER" in notebook.read_text(encoding="utf-8")
    with stand_in.colab(python, tmp_path, hub):
        with pytest.raises(CellExecutionError, match="Not published"):
            stand_in.client(notebook, content, "setup").execute()
        (content / "my-clone").symlink_to(hub / stand_in.ADDRESS)
        alone = stand_in.client(notebook, content, "setup")
        alone.nb.cells[-1].source = alone.nb.cells[-1].source.replace('install("01_baseline")', "print(install)")
        assert "function install" in stand_in.said(alone.execute().cells[-1])


def test_news_of_colab_are_told_by_name():
    kept = "# Colab\nnumpy==2.1.3\ntorch==2.11.0\nold==1\n"
    published = "numpy==2.2.0\ntorch @ https://host/whl/torch-2.11.0%2Bcpu-cp313-cp313-linux_x86_64.whl\nnew==1\n"
    assert stand_in.news(published, kept) == ["numpy: 2.1.3 → 2.2.0", "old: 1 → gone"]


@pytest.fixture
def bare(tmp_path) -> str:
    """The Python of an environment with pip, ``colab`` of this series, and a ``google.colab`` that imports nothing."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "google" / "colab").mkdir(parents=True)
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "series").symlink_to(ROOT / "series")
    return str(environment / "bin" / "python")


def test_a_package_that_only_shares_a_name_asks_for_no_restart(bare, tmp_path):
    """Colab has imported google.colab; protobuf, whose modules are google.protobuf, may be replaced all the same."""
    other = tmp_path / "other"
    (other / "google" / "protobuf").mkdir(parents=True)
    (other / "google" / "protobuf" / "__init__.py").touch()
    info = other / "shared_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shared-name\nVersion: 1.0\n")
    (info / "RECORD").write_text("google/protobuf/__init__.py,,\n")
    code = (
        "import google.colab\nfrom series import colab\nprint('shared-name' in colab._loaded())\n"
        "import google.protobuf\nprint('shared-name' in colab._loaded())"
    )
    env = os.environ | {"PYTHONPATH": str(other)}
    done = subprocess.run([bare, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_an_image_without_torch_gets_the_cpu_build(bare, tmp_path):
    """vLLM's CPU build is made for one torch; the same way leads there from an image with another one."""
    (tmp_path / "requirements.txt").write_text((ROOT / "requirements.txt").read_text().partition("transformers==")[0])
    code = (
        "import google.colab, pathlib\nfrom series import colab\n"
        f"colab.ROOT = pathlib.Path({str(tmp_path)!r})\ncolab.install('01_baseline')\nimport torch\n"
        "print(torch.__version__, torch.version.cuda)"
    )
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([bare, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{importlib.metadata.version('torch')} None"


@pytest.mark.parametrize("works", [True, False], ids=["with uv", "uv fails"])
def test_a_replaced_package_asks_for_a_restart(bare, tmp_path, works):
    """sentencepiece in an older version, imported, and then wanted in the pinned one."""
    from uv import find_uv_bin

    (tmp_path / "uv").symlink_to(find_uv_bin() if works else "/bin/false")
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    older = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "sentencepiece==0.2.1"]
    subprocess.run([bare, *older], check=True)
    (tmp_path / "requirements.txt").write_text(f"{requirements('05_gguf')['sentencepiece'][0]}  # 05\n")
    code = (
        "import google.colab, pathlib, sentencepiece\nfrom series import colab\n"
        f"colab.ROOT = pathlib.Path({str(tmp_path)!r})\ncolab.install('05_gguf')"
    )
    first = subprocess.run([bare, "-c", code], capture_output=True, text=True, env=env)
    assert first.returncode and "had already imported sentencepiece" in first.stderr and "Restart" in first.stderr
    again = subprocess.run([bare, "-c", code], capture_output=True, text=True, env=env)
    assert again.returncode == 0 and "05_gguf has what it needs" in again.stdout, again.stderr

"""The scripts around the series: stages of the set-up, the choice of notebooks, the converter's archive."""

from __future__ import annotations

import importlib.metadata
import io
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile

import pytest
from packaging.requirements import Requirement

import setup
from execution import ALL, ROOT
from run import chosen
from series import colab
from series.converter import unpack


def test_a_stage_runs_once_and_again_after_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "VENV", tmp_path)
    ran = []
    setup.stage("core", lambda: ran.append(1), "requirements.txt")
    setup.stage("core", lambda: ran.append(2), "requirements.txt")
    assert ran == [1] and "is installed" in capsys.readouterr().out

    def fails():
        raise SystemExit("no network")

    with pytest.raises(SystemExit):
        setup.stage("core", fails, "requirements.txt", "environment.yml")
    # what was there before may be half replaced: the old stamp must not vouch for it
    setup.stage("core", lambda: ran.append(3), "requirements.txt")
    assert ran == [1, 3]


def test_another_python_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", "core"])
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    with pytest.raises(SystemExit, match="Python 3.11, 3.12 and 3.13, and this is .* make run PYTHON=python3.13"):
        setup.main()


@pytest.mark.parametrize(
    ("driver", "gpu", "said"),
    [
        (None, False, "no NVIDIA GPU"),
        ((12, 4), False, "supports CUDA 12.4, .* need 13.0: the processor computes"),
        ((13, 0), True, "with CUDA 13.0"),
        ((13, 1), True, "supports CUDA 13.1"),
    ],
)
def test_what_the_set_up_installs_follows_the_driver(monkeypatch, driver, gpu, said):
    taken = []
    monkeypatch.setattr(setup.colab, "cuda_of_driver", lambda: driver)
    monkeypatch.setattr(setup, "install", lambda *arguments, **more: taken.append(arguments[0]))
    monkeypatch.setattr(setup.colab, "install_cpu_torch", lambda python, pin, *more: taken.append("CPU") or True)
    setup.vllm()
    setup.install_torch()
    assert (taken[0] == setup.colab.VLLM) == gpu == ("CPU" not in taken)
    assert re.search(said, setup.which_build())


def test_notebooks_are_chosen_by_number():
    *others, comparison = chosen([])
    assert others == [path for path in ALL if path != comparison] and comparison.stem == "07_comparison", "it is last"
    assert [path.stem for path in chosen(["03", "01"])] == ["01_baseline", "03_nf4"]
    with pytest.raises(SystemExit, match="There is no notebook 99"):
        chosen(["99"])


def test_the_makefile_runs_every_notebook():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(path.name[:2] in text for path in ALL)
    done = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "setup.py" in done.stdout and "run.py" in done.stdout


def _archive(folder: pathlib.Path, *names: str) -> pathlib.Path:
    path = folder / "sources.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            tar.addfile(member, io.BytesIO(b""))
    return path


def test_the_converter_is_unpacked_without_the_rest(tmp_path):
    both = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py")
    archive = _archive(tmp_path, *both, "conversion/base.py", "src/llama.cpp")
    unpack(archive, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*both, "conversion/base.py"}


def test_an_archive_that_climbs_out_is_refused(tmp_path):
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(_archive(tmp_path, "conversion/../../../evil.py"), tmp_path / "out")
    assert not (tmp_path / "evil.py").exists()


def test_an_archive_without_the_converter_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="holds no convert_hf_to_gguf.py"):
        unpack(_archive(tmp_path, "conversion/base.py"), tmp_path / "out")


def test_the_lock_file_has_hashes_and_the_pins_of_requirements():
    text = (ROOT / "requirements-lock.txt").read_text(encoding="utf-8")
    lines = [Requirement(line) for line in re.findall(r"^([\w.-]+==.*?) \\$", text, re.M)]
    locked = {line.name: str(line.specifier)[2:] for line in lines if not line.marker or line.marker.evaluate()}
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[\w.-]+==)", text)[1:])
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert dict(pins).items() - locked.items() == {("torch", "2.13.0")} and len(locked) > 100
    for name, version in locked.items():
        assert importlib.metadata.version(name) == version, f"{name} is not installed as locked"


def test_only_what_is_wanted_is_taken_from_the_lock_file():
    with setup.locked(lambda name: name in ("pytest", "gguf")) as arguments:
        assert arguments[:2] == ["--no-deps", "--require-hashes"]
        text = pathlib.Path(arguments[-1]).read_text()
    assert re.findall(r"^[\w-]+", text, re.M) == ["gguf", "pytest"] and text.count("--hash=") >= 2


@pytest.mark.parametrize(("words", "flags"), [("exit 0", True), ("exit 1", False)], ids=["knows AMX", "does not"])
def test_amx_is_left_out_where_the_compiler_knows_it(tmp_path, monkeypatch, words, flags):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{words}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CMAKE_ARGS", "-DMINE=1")
    found = colab.without_amx(str(compiler))
    assert (found == {}) != flags
    if flags:
        assert shlex.split(found["CMAKE_ARGS"])[0] == "-DMINE=1" and "-mno-amx-tile" in found["CMAKE_ARGS"]
    assert colab.without_amx(str(tmp_path / "missing")) == {}


def test_llama_cpp_was_compiled_without_amx():
    """With it, llama.cpp ends the kernel on some processors; see series/colab.py."""
    import llama_cpp

    assert b"AMX" not in llama_cpp.llama_print_system_info()

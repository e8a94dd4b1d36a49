"""The scripts around the series: stages of the set-up, the choice of notebooks, the converter's archive."""

from __future__ import annotations

import io
import pathlib
import subprocess
import sys
import tarfile

import pytest
from conftest import NOTEBOOKS, ROOT

import setup
from helpers.converter import _unpack
from series import chosen


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
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    with pytest.raises(SystemExit, match="Install Python 3.11"):
        setup.main()


def test_notebooks_are_chosen_by_number():
    assert chosen([]) == NOTEBOOKS
    assert [path.stem for path in chosen(["03", "01"])] == ["01_baseline", "03_nf4"]
    with pytest.raises(SystemExit, match="There is no notebook 99"):
        chosen(["99"])


def test_the_makefile_runs_every_notebook():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(path.name[:2] in text for path in NOTEBOOKS)
    done = subprocess.run(["make", "-n", "run"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "setup.py" in done.stdout and "series.py" in done.stdout


def _archive(folder: pathlib.Path, *names: str) -> pathlib.Path:
    path = folder / "sources.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            tar.addfile(member, io.BytesIO(b""))
    return path


def test_the_converter_is_unpacked_without_the_rest(tmp_path):
    archive = _archive(tmp_path, "convert_hf_to_gguf.py", "conversion/base.py", "src/llama.cpp")
    _unpack(archive, tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"convert_hf_to_gguf.py", "conversion/base.py"}


def test_an_archive_that_climbs_out_is_refused(tmp_path):
    with pytest.raises(tarfile.OutsideDestinationError):
        _unpack(_archive(tmp_path, "conversion/../../../evil.py"), tmp_path / "out")
    assert not (tmp_path / "evil.py").exists()


def test_an_archive_without_the_converter_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="holds no convert_hf_to_gguf.py"):
        _unpack(_archive(tmp_path, "conversion/base.py"), tmp_path / "out")

"""What is made, under attack: a kernel that is killed beside another, files that change, a disk that is full."""

import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

from series import artifacts
from series.artifacts import digest_of, hold, replace_file
from series.lesson import folder_name
from series.models import TINY, Checkpoint
from series.techniques import TECHNIQUES
from test_bad_input import change, flip

HOLDER = """
import sys
from series import artifacts
folder, lock = artifacts.hold("thing")
(folder / "model.gguf.part").write_bytes(bytes(1000))
(folder / "shards.part").mkdir()
artifacts.os.replace = lambda *names: (print(folder.name, flush=True), sys.stdin.readline())
artifacts.replace_file(folder / "whole", b"new")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts"


def test_after_a_kill_nothing_half_written_is_left_and_the_folder_is_free(folder, capsys):
    replace_file(folder / "thing" / "whole", b"old")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=artifacts.ROOT, **pipes) as holder:
        try:
            assert holder.stdout.readline() == "thing\n"
            other, lock = hold("thing")
            assert other.name == "thing-2"
            assert capsys.readouterr().out == "another notebook is using thing; this one works in thing-2\n"
            assert len([*(folder / "thing").glob("*.part")]) == 3, "what another process is making is left alone"
        finally:
            holder.kill()  # SIGKILL
    again, second_lock = hold("thing")
    assert again.name == "thing" and not capsys.readouterr().out
    assert {path.name for path in again.iterdir()} == {".lock", "whole"} and (again / "whole").read_bytes() == b"old"


def test_a_cell_that_runs_again_in_one_kernel_gets_its_folder_again():
    kept = [hold("thing") for _ in range(2)]
    assert [folder.name for folder, _ in kept] == ["thing", "thing"]


def test_a_file_that_is_touched_or_copied_keeps_its_digest_and_is_read_once(tmp_path, monkeypatch):
    one, other, read, real = tmp_path / "one", tmp_path / "other", [], artifacts.hashlib.file_digest
    monkeypatch.setattr(artifacts.hashlib, "file_digest", lambda *given: (read.append(1), real(*given))[1])
    one.write_bytes(bytes(200_000))  # a small file is read as quickly again
    first = digest_of(one)
    assert digest_of(one) == first and len(read) == 1
    os.utime(one, (1, 1))
    assert digest_of(one) == first == digest_of(pathlib.Path(shutil.copy(one, other)))
    change("one", flip)(tmp_path)
    assert digest_of(one) != first


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_a_model_and_what_is_made_of_it_are_known_by_its_content(tmp_path, changed):
    def known(place, shards=4):
        base = Checkpoint(str(place))
        name = folder_name(TECHNIQUES["sharding"], base, {"torch": "2.13"}, {"SHARDS": shards}, "bfloat16")
        return base.identity, name

    model = pathlib.Path(shutil.copytree(TINY, tmp_path / "tiny-zephyr"))
    first = known(model)
    for path in model.iterdir():
        os.utime(path, (1, 1))
    (model / "README.md").write_text("prose")
    assert known(model) == first == known(TINY), "neither a file's time nor a copy matters"
    assert known(model, shards=3)[0] == first[0] and known(model, shards=3)[1] != first[1]
    change(changed, flip)(model)
    assert all(now != then for now, then in zip(known(model), first, strict=True))


def test_a_file_is_replaced_whole_or_not_at_all(folder):
    replace_file(folder / "record.json", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system takes 1,000 bytes of a file, and no more
    try:
        with pytest.raises(OSError, match="record.json could not be written to .*: File too large"):
            replace_file(folder / "record.json", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("record.json", b"old")]

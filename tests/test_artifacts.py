"""What is made, under attack: a kernel that is killed beside another, files that change, a disk that is full."""

import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import pytest

from series import artifacts
from series.artifacts import digest_of, hold, replace_file
from series.made import folder_name
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


def test_a_path_that_the_libraries_would_not_find_is_told(tmp_path, monkeypatch):
    """In a locale whose file names are not in UTF-8."""
    monkeypatch.setenv("QUANT_ARTIFACTS", str(tmp_path / "\u00fcmlaut"))
    assert artifacts.artifacts_folder().is_dir()
    monkeypatch.setattr(artifacts.sys, "getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(ValueError, match="do not find .*xfcmlaut' in this locale.*PYTHONUTF8=1"):
        artifacts.artifacts_folder()


MAKER = """
import sys
from series import start
from series.notebooks import default_parameters, makes, steps
technique, notebook = sys.argv[1:]
names = default_parameters(notebook)
lesson = start(technique, names)
names |= {"path": lesson.path, "texts": lesson.texts, "converter": lesson.converter}
print("begun", flush=True)
for source in steps(notebook):
    exec(source, names)
    if lesson.made.exists():
        break
print(lesson.made, flush=True)
"""


def content(file: pathlib.Path) -> bytes:
    """A file's bytes; of safetensors with the header in order, since torchao's remarks in it have another each time."""
    data = file.read_bytes()
    if file.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("technique", "notebook"),
    [
        ("gptq", "04_gptq"),
        ("gguf", "05_gguf"),
        ("awq", "06_awq"),
        ("imatrix", "10_which_file"),
        ("formats", "11_newer_formats"),
    ],
)
def test_a_kernel_that_is_killed_while_it_makes_something_leaves_nothing_that_is_taken_for_whole(
    technique, notebook, tmp_path
):
    """Killed three times in its work, it makes what an undisturbed one makes, to the byte."""

    def begin(folder):
        env = os.environ | {"QUANT_ARTIFACTS": str(tmp_path / folder), "PYTHONPATH": str(artifacts.ROOT)}
        command = [sys.executable, "-c", MAKER, technique, notebook]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def whole(folder):
        said = begin(folder).communicate()[0].splitlines()
        made = pathlib.Path(said[-1])
        assert not list(made.parent.glob("*.part"))
        files = [made] if made.is_file() else sorted(made.glob("*.safetensors"))
        return [hashlib.sha256(content(file)).hexdigest() for file in files]

    for seconds in (0.3, 1.5, 4):
        with begin("killed") as maker:
            while maker.stdout.readline() != "begun\n":
                assert maker.poll() is None
            time.sleep(seconds)
            print(f"killed after {seconds} s of work, and had not ended: {maker.poll() is None}")
            maker.kill()
    assert whole("killed") == whole("undisturbed") != []

"""Artifacts under attack: a maker that is killed at a chosen moment, two at once, a folder that is being read only."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import helpers
from helpers.artifacts import damage

MAKER = """
import os, pathlib, subprocess, sys, time
from helpers import building, is_made
target, moment = pathlib.Path(sys.argv[1]), sys.argv[2]
def pause(here):
    if here == moment:
        print("here", flush=True)
        time.sleep(600)
with building(target) as scratch:
    pause("before the first file")
    (scratch / "one").write_bytes(bytes(1000))
    if moment == "child":
        code = "import time, pathlib, sys\\nwhile True: pathlib.Path(sys.argv[1]).write_text('x'); time.sleep(.05)"
        subprocess.Popen([sys.executable, "-c", code, str(scratch / "by the child")])
        pause("child")
    pause("between two files")
    (scratch / "two").write_bytes(bytes(2000))
    if moment == "all at once":  # they look before the first one has moved its folder, unless one waits for another
        real = pathlib.Path.rename
        pathlib.Path.rename = lambda path, to: (time.sleep(1), real(path, to))[1]
        print("ready", flush=True)
        sys.stdin.readline()
    if moment == "after the move":  # its scratch folder is still there
        import shutil
        real, shutil.rmtree = shutil.rmtree, lambda *a, **k: pause(moment)
print("made", flush=True)
"""


def start(target: pathlib.Path, moment: str) -> subprocess.Popen:
    command = [sys.executable, "-c", MAKER, str(target), moment]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes)


@pytest.mark.parametrize("moment", ["before the first file", "between two files", "child", "after the move"])
def test_after_a_kill_the_next_run_makes_it_whole_and_leaves_nothing(tmp_path, moment):
    target = tmp_path / "made"
    killed = start(target, moment)
    assert killed.stdout.readline() == "here\n"
    assert any(tmp_path.glob(".*.part")), "something half-written is there"
    assert target.exists() == (moment == "after the move")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    if not helpers.is_made(target):
        assert start(target, "never").wait(60) == 0
    assert damage(target) is None and sorted(p.name for p in target.iterdir()) == ["contents.json", "one", "two"]
    time.sleep(0.3)  # a child that went on would write again
    assert not any(tmp_path.glob(".*.part"))


def test_what_another_process_is_making_is_left_alone(tmp_path):
    busy = start(tmp_path / "busy", "between two files")
    try:
        assert busy.stdout.readline() == "here\n"
        with helpers.building(tmp_path / "mine") as scratch:
            (scratch / "file").write_text("x")
        assert helpers.is_made(tmp_path / "mine") and len(list(tmp_path.glob(".busy.*.part"))) == 1
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        busy.wait()


def test_two_makers_at_once_both_succeed(tmp_path):
    makers = [start(tmp_path / "made", "all at once") for _ in range(4)]
    assert [maker.stdout.readline() for maker in makers] == ["ready\n"] * 4
    for maker in makers:
        maker.stdin.write("go\n")
        maker.stdin.flush()
    assert [maker.wait(60) for maker in makers] == [0] * 4
    assert helpers.is_made(tmp_path / "made") and not any(tmp_path.glob(".*.part"))


def test_temporary_files_of_a_process_and_its_children_go_together(tmp_path):
    code = """
import os, pathlib, subprocess, sys, tempfile
from helpers import temporary_files
before = tempfile.gettempdir()
forgotten = temporary_files()
folder = pathlib.Path(tempfile.gettempdir())
tempfile.mkdtemp()
subprocess.run([sys.executable, "-c", "import tempfile; tempfile.mkstemp()"], check=True)
assert len(list(folder.iterdir())) == 2 and folder != pathlib.Path(before)
forgotten.close()
assert not folder.exists() and tempfile.gettempdir() == before
temporary_files()  # never closed
"""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert not any(tmp_path.iterdir())

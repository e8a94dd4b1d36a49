"""A stand-in for the model hub on this machine: a folder under the name some/model, served as the hub serves files."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

from execution import ROOT


@contextlib.contextmanager
def serve(folder: pathlib.Path, gated: bool = False) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """The hub's address, and a list that grows by each file's name and the bytes of it that were sent.

    Args:
        gated: the listing is public, and the files answer 401, as before a model's terms are accepted.
    """
    sent: list[tuple[str, int]] = []
    names = sorted(file.name for file in folder.iterdir())
    commit = hashlib.sha1(repr(sorted((n, (folder / n).read_bytes()) for n in names)).encode()).hexdigest()
    listing = {"id": "some/model", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
    tree = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": "0" * 40} for n in names]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, headers, status = self.path.partition("?")[0], {"X-Repo-Commit": commit}, 200
            name = path.rpartition("/")[2]
            if "/resolve/" not in path:
                body = json.dumps(tree if "/tree/" in path else listing).encode()
            elif gated or not (folder / name).is_file():
                headers["X-Error-Code"], status = ("GatedRepo", 401) if gated else ("EntryNotFound", 404)
                body = b""
            else:
                body = (folder / name).read_bytes()
                headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
                if wanted := self.headers.get("Range"):
                    first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
                    headers["Content-Range"], status = f"bytes {first}-{min(last, len(body) - 1)}/{len(body)}", 206
                    body = body[first : last + 1]
                if self.command == "GET":
                    sent.append((name, len(body)))
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

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


def ask(address: str, cache: pathlib.Path, code: str) -> str:
    """Run ``code`` in a process that takes ``address`` for the hub; what it printed, or its error's last line."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}  # no cache of others
    env |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    return (done.stderr.strip() if done.returncode else done.stdout.strip()).splitlines()[-1]

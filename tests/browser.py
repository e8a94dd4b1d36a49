"""A page in headless Chromium, through its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import websocket

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
    "--window-size=900,700",
]


class Page:
    """One tab."""

    def __init__(self, address: str) -> None:
        self.socket, self.number = websocket.create_connection(address, timeout=60), 0

    def send(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command; its result. What the browser tells unasked is passed over."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": given}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Wait for an expression that is true; its value."""
        end = time.time() + seconds
        while not (found := self.run(script)):
            if time.time() > end:
                raise TimeoutError(f"It did not become true within {seconds} seconds: {script}")
            time.sleep(0.2)
        return found

    def type(self, text: str, enter: bool = True) -> None:
        self.send("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp") if enter else ():
            key = dict(key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
            self.send("Input.dispatchKeyEvent", type=kind, **key)

    def picture(self, target: pathlib.Path) -> None:
        target.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(url: str, before: str = "") -> Iterator[Page]:
    """A page at ``url``; ``before`` is JavaScript that runs before the page's own.

    Raises:
        FileNotFoundError: this machine has no Chromium and no Chrome.
    """
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if not found:
        raise FileNotFoundError("This test needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [found, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            file, end = pathlib.Path(folder) / "DevToolsActivePort", time.time() + 60
            while not (file.is_file() and file.read_text().strip()) and time.time() < end:
                time.sleep(0.2)
            port = file.read_text().split()[0]
            tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10))
            page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
            page.send("Page.enable")
            if before:
                page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
            page.send("Page.navigate", url=url)
            yield page
        finally:
            browser.terminate()
            browser.wait(20)

"""A real Chromium without a window, driven over its debugging protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.load import under_load

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
KEY_CODES = {"Tab": 9}


def chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page. `problems` has the errors of its console, with refusals by its policy."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.problems: list[str] = []
        self._numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self.socket.recv(timeout=under_load(30)))
            self._note(told)
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]

    def run(self, script: str) -> Any:
        """The value of a script's expression."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, script: str, limit_s: float = 20) -> Any:
        """Poll an expression until it is true. While one page replaces another, it may fail: that is not yet true."""
        until = time.monotonic() + under_load(limit_s)
        while True:
            found = None
            with contextlib.suppress(AssertionError):
                found = self.run(script)
            if found:
                break
            assert time.monotonic() < until, f"not true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEY_CODES[key])

    def look_like(self, width: int, *, dark: bool) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        told = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def _note(self, told: dict[str, Any]) -> None:
        if told.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["params"]["exceptionDetails"]))
        elif told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            self.problems.append(told["params"]["entry"]["text"])
        elif told.get("method") == "Runtime.consoleAPICalled" and told["params"]["type"] == "error":
            self.problems.append(json.dumps(told["params"]["args"]))


@contextlib.contextmanager
def browser(program: str, profile: Path) -> Iterator[Tab]:
    """Start Chromium with a profile of its own, and end it."""
    profile.mkdir(parents=True, exist_ok=True)
    command = [program, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_address(profile), max_size=None, open_timeout=under_load(30)) as socket:
                yield Tab(socket)
        finally:
            process.kill()


def _address(profile: Path) -> str:
    """The address of the first tab's debugging socket."""
    import urllib.request

    told = profile / "DevToolsActivePort"
    until = time.monotonic() + under_load(30)
    while True:
        with contextlib.suppress(OSError, IndexError):
            port = told.read_text(encoding="ascii").splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = [each for each in json.loads(answer.read()) if each["type"] == "page"]
                return str(pages[0]["webSocketDebuggerUrl"])
        assert time.monotonic() < until, "Chromium did not start"
        time.sleep(0.05)

"""A headless Chromium under a test's control, over its debugging port."""

import base64
import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

from kdnb.report import pages


class Page:
    """One tab: ``ask`` sends a command of the DevTools protocol, ``run`` JavaScript."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, timeout=240, suppress_origin=True)
        self.sent = 0

    def ask(self, method: str, **parameters) -> dict:
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while True:
            reply = json.loads(self.socket.recv())
            if reply.get("id") == self.sent:
                assert "error" not in reply, reply
                return reply["result"]

    def run(self, script: str):
        """The value of a script; a promise is awaited."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        found = self.ask("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 240):
        """The first value of a script that is true."""
        last = time.monotonic() + seconds
        while time.monotonic() < last:
            if value := self.run(script):
                return value
            time.sleep(0.3)
        pytest.fail(f"not true within {seconds} s: {script}\n{self.run('document.body.innerText')}")

    def open(self, address: str) -> None:
        self.ask("Page.navigate", url=address)
        time.sleep(0.3)  # before that, the old page may still say that it is complete
        self.wait("document.readyState == 'complete'")

    def look(self, width: int = 1280, height: int = 900, dark: bool = False, media: str = ""):
        """Set the size of the screen, the colour scheme and the medium (``print``)."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def key(self, name: str, code: int) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            options = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.ask("Input.dispatchKeyEvent", type=kind, **options)

    def shot(self, path: Path, whole: bool = False) -> Path:
        """A screenshot as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path


@contextmanager
def page() -> Iterator[Page]:
    """A tab of a browser of its own, which ends with the block; skips without Chromium."""
    browser = pages.chromium()
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
        own = f"--user-data-dir={profile}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([browser, *options, own, "about:blank"], **quiet)
        try:
            yield Page(_address(Path(profile, "DevToolsActivePort"), process))
        finally:
            process.terminate()
            process.wait(30)


def _address(port: Path, process: subprocess.Popen) -> str:
    """The address of the first tab; Chromium writes its port into a file of its profile."""
    for _ in range(400):
        assert process.poll() is None, "Chromium ended"
        if port.exists() and (lines := port.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json") as reply:
                tabs = [tab for tab in json.load(reply) if tab["type"] == "page"]
            if tabs:
                return tabs[0]["webSocketDebuggerUrl"]
        time.sleep(0.2)
    raise AssertionError("Chromium opened no debugging port")

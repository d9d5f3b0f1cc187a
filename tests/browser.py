"""A headless Chromium that tests drive as a person does: mouse, wheel and keys, by DevTools."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

PATIENCE = 60
"""Seconds until a page must have done what is waited for."""


def chromium() -> str:
    """The browser's program; without one the test is skipped, in CI it fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    reason = "no Chromium to open pages with (apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def arguments(profile: str, width: int, height: int) -> list[str]:
    """How every test starts it: fresh, silent, in a window of that size."""
    return [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={profile}", "--hide-scrollbars",
        "--force-device-scale-factor=1", f"--window-size={width},{height}",
    ]  # fmt: skip


class Page:
    """A page, by Chromium's DevTools protocol.

    Attributes:
        requests: Addresses that it asked for.
        errors: What went wrong in it: exceptions, errors on its console, what its policy forbade.
    """

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self._number = 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(about["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(str([value.get("value") for value in about["args"]]))

    def open(self, address: str) -> None:
        """Goes there and waits until all of it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise when it is kept."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Waits until an expression is true; returns its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.run(expression)):
            assert time.monotonic() < end, (expression, self.errors)
            time.sleep(0.05)
        return value

    def middle(self, selector: str) -> tuple[float, float]:
        """Where the middle of an element is in the window, after scrolling to it."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        # What comes into view may be drawn anew: two frames later it has been.
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.run(f"{frames}.then(() => new Promise(done => setTimeout(done, 50)))")
        left, top, width, height = self.run(
            f"(({{x, y, width, height}}) => [x, y, width, height])({found}.getBoundingClientRect())"
        )
        return left + width / 2, top + height / 2

    def click(self, selector: str) -> None:
        """A click with the mouse into the middle of an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, selector: str, by: int) -> None:
        """Turns the wheel over an element; positive is down."""
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as if typed."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        if text:
            self.call("Input.insertText", text=text)
        else:
            self.key("Delete", 46)

    def key(self, name: str, code: int) -> None:
        """Presses a key that has the focus' attention.

        Args:
            name: DOM's name of the key.
            code: Windows' virtual key code, by which Chromium knows it.
        """
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    def choose(self, selector: str, text: str) -> None:
        """Chooses the option with that text in a select."""
        self.run(
            f"(() => {{ const s = document.querySelector({json.dumps(selector)});"
            f"s.value = [...s.options].find(o => o.text === {json.dumps(text)}).value;"
            "s.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )

    def screenshot(self, path: Path) -> None:
        """The window as it is, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Browser:
    """A running Chromium.

    Attributes:
        page: Its page.
    """

    def __init__(self, profile: Path, process: subprocess.Popen[bytes]) -> None:
        self._profile, self._process = profile, process
        self.page = self.target("page")

    def target(self, kind: str) -> Page:
        """Its first ``page``, or ``iframe`` without an origin, which has a process of its own."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self._process.poll() is None, "Chromium has ended"
            for target in self._targets():
                if target["type"] == kind:
                    return Page(target["webSocketDebuggerUrl"])
            time.sleep(0.1)
        raise AssertionError(f"Chromium did not open a {kind}")

    def _targets(self) -> list[dict[str, str]]:
        port = self._profile / "DevToolsActivePort"
        lines = port.read_text().splitlines() if port.is_file() else []
        if not lines:
            return []
        with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json", timeout=10) as answer:
            return list(json.load(answer))


@contextmanager
def running(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A fresh browser with an empty page, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [*arguments(profile, width, height), "--remote-debugging-port=0", "about:blank"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        try:
            yield Browser(Path(profile), process)
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


@contextmanager
def browsing(width: int = 1200, height: int = 900) -> Iterator[Page]:
    """The page of a fresh browser."""
    with running(width, height) as browser:
        yield browser.page

"""A headless Chromium, driven through its DevTools protocol over two pipes.

Neither a driver that has to fit the browser's version nor a socket is needed: messages are JSON, ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 30.0
"""Seconds to wait for an answer; a shared machine may be slow."""

# Chromium reads from descriptor 3 and writes to 4, which may be taken in the process that starts it.
_LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def executable() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def running(path: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended at the end."""
    to_read, to_send = os.pipe()
    from_browser, from_write = os.pipe()
    command = [
        path,
        "--headless=new",
        "--remote-debugging-pipe",
        "--no-sandbox",  # pages are our own, and a container's root has no other way
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-extensions",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _LAUNCH, str(to_read), str(from_write), *command],
        pass_fds=(to_read, from_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    browser = Browser(to_send, from_browser)
    try:
        yield browser
    finally:
        # Asked to end, it takes its helpers along; killed, it would leave them writing into the profile.
        with suppress(RuntimeError, TimeoutError, OSError):
            browser.send("Browser.close")
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_send)
        os.close(from_browser)


class Browser:
    """Sends commands and keeps the events that come between answers."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to = to_browser
        self._from = from_browser
        self._rest = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            RuntimeError: the browser refuses it.
        """
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        ends = time.monotonic() + PATIENCE
        while True:
            answer = self._receive(ends)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The first event of a kind since the last one that was waited for."""
        ends = time.monotonic() + PATIENCE
        while True:
            for place, event in enumerate(self.events):
                if event.get("method") == method and event.get("sessionId") == session:
                    return self.events.pop(place)
            self.events.append(self._receive(ends))

    def _receive(self, ends: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"no answer from the browser in {PATIENCE:.0f} s")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise RuntimeError("the browser has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def tab(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> Tab:
        """A new page of this size."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session, width, height, dark)


class Tab:
    """A page: what it asked for over the network, and what went wrong in it."""

    def __init__(self, browser: Browser, session: str, width: int, height: int, dark: bool):
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.size(width, height)
        self.scheme(dark=dark)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def scheme(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, *, allowed: bool) -> None:
        """Whether pages that are opened from now on may run any."""
        self.send("Emulation.setScriptExecutionDisabled", value=not allowed)

    def open(self, path: Path) -> None:
        self._browser.events = [event for event in self._browser.events if event.get("sessionId") != self._session]
        self.send("Page.navigate", url=path.resolve().as_uri())
        self._browser.wait("Page.loadEventFired", self._session)

    def run(self, script: str) -> Any:
        """The value of an expression.

        Raises:
            RuntimeError: it raises.
        """
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"].get("exception", {}).get("description")))
        return answer["result"].get("value")

    def until(self, script: str) -> bool:
        """Whether an expression becomes true: what an event sets off comes a little later."""
        ends = time.monotonic() + PATIENCE
        while not self.run(script):
            if time.monotonic() > ends:
                return False
            time.sleep(0.02)
        return True

    def press(self, key: str) -> None:
        code = {"Enter": 13, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}[key]
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **known, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def point(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF")["data"])

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of all of the page."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def requests(self) -> list[str]:
        """Addresses that the page asked for, its own and data in the page left out."""
        self.send("Runtime.evaluate", expression="0")  # what is under way has arrived with the answer
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return [url for url in asked[1:] if not url.startswith("data:")]

    def problems(self) -> list[str]:
        """Errors, warnings and dialogues."""
        self.send("Runtime.evaluate", expression="0")
        kinds = (
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return [json.dumps(event["params"]) for kind in kinds for event in self._of(kind)]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [
            event
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]

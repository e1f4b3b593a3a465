"""A real browser without a window, told what to do over a pipe."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
"""The browser of this machine; None where it has none. Package indexes of Python have no browsers."""
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run")
TRIES = 400
"""Looks at a page, a twentieth of a second apart."""


class Page:
    """A page of a browser, by its DevTools protocol."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._rest = reading, writing, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._loaded: set[str] = set()
        self._ask("Page.enable")
        self._ask("Page.setLifecycleEventsEnabled", enabled=True)

    def open(self, url: str) -> None:
        """Go to a page, and wait until it has loaded: the browser answers before it has left the page it was on."""
        told = self._ask("Page.navigate", url=url)
        assert "errorText" not in told, f"{url}: {told}"
        while told["loaderId"] not in self._loaded:
            self._next()

    def resize(self, width: int, height: int) -> None:
        """Be a screen of another size: that of a phone."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def run(self, script: str) -> Any:
        """Return what an expression comes to in the page."""
        told = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self._ask(
                "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
            )

    def wait(self, script: str) -> Any:
        """Return what an expression comes to as soon as it is something."""
        waiting = f"(async () => {{ for (let n = 0; n < {TRIES}; n++) {{ const got = {script}; if (got) return got; "
        waiting += "await new Promise(done => setTimeout(done, 50)); } })()"
        found = self.run(waiting)
        assert found, f"it never came: {script}"
        return found

    def picture(self, path: Path) -> None:
        """Save what the page looks like."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        session = {} if self._session is None else {"sessionId": self._session}
        os.write(
            self._writing, json.dumps({"id": number, "method": method, "params": params, **session}).encode() + b"\0"
        )
        while True:
            said = self._next()
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            some = os.read(self._reading, 2**16)
            assert some, "the browser has gone"
            self._rest += some
        line, _, self._rest = self._rest.partition(b"\0")
        said = json.loads(line)
        if said.get("method") == "Page.lifecycleEvent" and said["params"]["name"] == "load":
            self._loaded.add(said["params"]["loaderId"])
        return said


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser that keeps what it remembers in a folder of its own, and yield a page of it."""
    assert CHROMIUM is not None
    ours, writing = os.pipe()
    reading, told = os.pipe()
    theirs, said = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours, told))  # out of the way of 3 and 4
    os.close(ours)
    os.close(told)

    def place() -> None:  # where the protocol has its pipes
        os.dup2(theirs, 3)
        os.dup2(said, 4)

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Page(reading, writing)
    finally:
        process.terminate()
        process.wait()
        for end in (theirs, said, reading, writing):
            os.close(end)

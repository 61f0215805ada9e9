"""A headless Chromium that tests drive over a pipe with the DevTools protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_LEAST_DESCRIPTOR = 10  # 3 and 4 are those of the protocol
_KEYS = {" ": ("Space", 32), "ArrowLeft": ("ArrowLeft", 37), "ArrowRight": ("ArrowRight", 39)}
_KEYS |= {"ArrowUp": ("ArrowUp", 38), "ArrowDown": ("ArrowDown", 40)}


def find_chromium() -> str | None:
    """Path of the program."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page of a browser; a context manager.

    Attributes:
        problems: errors and warnings of the console, and exceptions that nobody caught.
        requests: URLs that the page asked for.
    """

    def __init__(self, program: str, profile: Path):
        """Starts the browser with an empty profile."""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number, self._waiting, self._session = 0, b"", None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        theirs = theirs_in, theirs_out
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, _LEAST_DESCRIPTOR) for end in theirs]
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--mute-audio", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        flags += ["--autoplay-policy=no-user-gesture-required", "about:blank"]
        redirected = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", program, *flags],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (*ends, *theirs):
            os.close(end)

    def __enter__(self) -> "Chromium":
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session = self.send("Target.attachToTarget", **attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.bringToFront")  # a page in the background loads no sound
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        size = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **params: object) -> dict:
        """Result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive()
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]

    def open(self, file: Path) -> None:
        """Loads a page of the file system."""
        self.requests.clear()
        self.send("Page.navigate", url=file.as_uri())
        self.until("location.protocol === 'file:' && document.readyState === 'complete'")

    def run(self, expression: str) -> object:
        """Value of JavaScript, a promise's when it is kept."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        done = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str, limit_s: float = 20.0) -> None:
        """Waits until JavaScript is true."""
        end = time.monotonic() + limit_s
        while not self.run(expression):
            assert time.monotonic() < end, f"not true in {limit_s} s: {expression}"
            time.sleep(0.05)

    def key(self, key: str) -> None:
        """Presses a key, as a user does."""
        code, number = _KEYS.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        known = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **known, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def click(self, selector: str) -> None:
        """Clicks the middle of an element with the mouse."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        place = self.run(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **where)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **where)

    def screenshot(self, scheme: str) -> bytes:
        """PNG of what is seen, in `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def _receive(self) -> dict:
        """The next message; events are taken note of."""
        while b"\0" not in self._waiting:
            assert select.select([self._in], [], [], 60)[0], "the browser says nothing"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\0")
        message = json.loads(line)
        params, method = message.get("params", {}), message.get("method")
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["exception"].get("description", "?"))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

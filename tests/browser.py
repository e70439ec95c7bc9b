"""A headless Chromium that a test drives over a pipe: no driver, no library, no port.

Speaks the DevTools protocol as https://chromedevtools.github.io/devtools-protocol describes it:
JSON messages that end in a zero byte, in at file descriptor 3 and out at 4.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--disable-sync", "--no-first-run", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
DEADLINE_S = 120  # for what must come, however busy the machine is
# Becomes Chromium with the pipes where it looks for them; each may stand in the other's place.
BECOME = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for place, pipe in enumerate(pipes, 3):
    os.dup2(pipe, place)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""
# Resolves when the page has changed so that the condition holds, or to false at the deadline.
WAIT = """
new Promise((resolve) => {
  const holds = () => { try { return Boolean(%s) } catch { return false } };
  const done = (answer) => { clearTimeout(timer); observer.disconnect(); resolve(answer) };
  const look = () => holds() && done(true);
  const observer = new MutationObserver(look);
  const timer = setTimeout(() => done(false), %d);
  const everything = { subtree: true, childList: true, attributes: true, characterData: true };
  observer.observe(document, everything);
  look();
})
"""


class Browser:
    """Owns a Chromium process with one page, and what its console complained of."""

    def __init__(self, folder: Path) -> None:
        """Start it with its profile and log in `folder`; where there is none, skip the test."""
        executable = next(filter(None, map(shutil.which, NAMES)), None)
        if executable is None:
            pytest.skip("there is no Chromium here; scripts/browser installs it on Debian")
        self.complaints: list[str] = []
        self._answers: dict[int, Queue[dict[str, Any] | None]] = {}
        self._lock = threading.Lock()
        self._n_asked = 0
        self._session: str | None = None
        with ExitStack() as opened:
            to_browser, self._to_browser = os.pipe()
            self._from_browser, from_browser = os.pipe()
            opened.callback(os.close, to_browser)
            opened.callback(os.close, from_browser)
            log = opened.enter_context((folder / "chromium.log").open("wb"))
            self._process = subprocess.Popen(
                [sys.executable, "-c", BECOME, str(to_browser), str(from_browser),
                 executable, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
                pass_fds=(to_browser, from_browser),
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol on the page."""
        answer: Queue[dict[str, Any] | None] = Queue()
        with self._lock:
            self._n_asked += 1
            number = self._n_asked
            self._answers[number] = answer
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        found = answer.get(timeout=DEADLINE_S)
        assert found is not None, "Chromium has ended"
        assert "error" not in found, f"{method}: {found.get('error')}"
        result: dict[str, Any] = found["result"]
        return result

    def open(self, url: str) -> None:
        """Go to a page, by a link of the browser's own."""
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page, awaited where it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, condition: str, deadline_s: float = DEADLINE_S * 0.8) -> None:
        """Let the page go on until a condition holds in it."""
        if not self.evaluate(WAIT % (condition, int(1000 * deadline_s))):
            page = self.evaluate("document.body?.innerText")
            raise AssertionError(f"{condition} never came true; the page said:\n{page}")

    def text(self, selector: str) -> str:
        """What the first element there says, as a reader sees it."""
        found = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return " ".join(found.split())

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, such as ("Tab", 9) or ("Enter", 13, "\\r")."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def look_like(self, *, scheme: str, width: int, height: int = 900, scale: float = 1) -> None:
        """Have a window of so many pixels, and a user who wants `scheme` (light, dark)."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the process."""
        self._session = None
        with suppress(AssertionError, OSError):
            self.call("Browser.close")
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()  # one that has ended is not harmed
        self._reader.join()
        os.close(self._to_browser)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _attach(self) -> None:
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> None:
        rest = b""
        with open(self._from_browser, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            while chunk := pipe.read(1 << 16):
                *whole, rest = (rest + chunk).split(b"\0")
                for message in whole:
                    self._take(json.loads(message))
        for answer in self._answers.values():
            answer.put(None)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
            return
        said = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled" and said["type"] != "log":
            self.complaints.append(f"{said['type']}: {said['args']}")
        elif message["method"] == "Log.entryAdded" and said["entry"]["level"] != "info":
            entry = said["entry"]
            self.complaints.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")

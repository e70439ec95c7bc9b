"""A real server in a process of its own, and the environment that such processes get."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

ROOT = Path(__file__).parents[1]
SERVE = (sys.executable, "-m", "plimsoll", "serve", "--port", "0")
DEADLINE_S = 120  # for a machine that has much else to do; nothing is measured


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without its Plimsoll settings, able to import the project."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PLIMSOLL_") and name not in ("WEB_CONCURRENCY", "XDG_CACHE_HOME")
    }
    return inherited | {"PYTHONPATH": str(ROOT)} | variables


class RunningServer:
    """`plimsoll serve` on a free port. Owns the process and its log."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        prefix: Sequence[str] = (),
        command: Sequence[str] = SERVE,
        **variables: str,
    ) -> None:
        """Start in `folder` and wait for the address in the log.

        prefix: a command that becomes the server, such as one that enters a control group first.
        command: the server, or another one that prints its address as uvicorn does.
        """
        self.lines: list[str] = []
        self._address: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*prefix, *command, *options],
            cwd=folder,
            env=environment(**({"PLIMSOLL_DATA_DIR": str(folder / "data")} | variables)),
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        address = self._address.get(timeout=DEADLINE_S)
        if address is None:
            self.wait()
            self.process.stderr.close()
            raise RuntimeError(f"the server did not start:\n{self.log}")
        self.url = address

    @property
    def log(self) -> str:
        """Everything that the server has written so far; all of it once it has stopped."""
        return "".join(self.lines)

    def wait_for_line(self, part: str) -> None:
        """Wait until a line of the log holds `part`."""
        deadline_s = monotonic() + DEADLINE_S
        while part not in self.log:
            if monotonic() > deadline_s:
                raise TimeoutError(f"{part!r} did not come:\n{self.log}")
            sleep(0.01)

    def terminate(self) -> None:
        """Ask it to end, as an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end, and for the last line of its log; returns the exit code."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join()
        return code

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.process.poll() is None:
                self.terminate()
            self.wait()
        finally:
            self.process.kill()  # one that has ended is not harmed
            self.process.stderr.close()

    def _read_log(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"Uvicorn running on (http://[\w.:\[\]]+)", line):
                self._address.put(found[1])
        self._address.put(None)

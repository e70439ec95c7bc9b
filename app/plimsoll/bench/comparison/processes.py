"""Start measured processes, end them in any case, and watch their memory from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from plimsoll.bench.comparison.worker import WorkerSpec

SAMPLE_S = 0.01
# Plimsoll's idle watch gives memory back after a second; every process is given as long as this.
SETTLE_S = 3.0
PATIENCE_S = 10.0  # with a process that was told to end
# ONNX Runtime, NNCF, infinity and the Hugging Face libraries, each by its own switch.
NO_REPORTS = {
    "ORT_DISABLE_TELEMETRY": "1",
    "NNCF_CI": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class MeasurementError(Exception):
    """A measured process did not do what was to be measured."""


class WorkerDiedError(MeasurementError):
    """A worker ended before it answered."""

    def __init__(self, kind: str, code: int, last_words: str) -> None:
        super().__init__(f"the {kind} process ended with code {code}: {last_words}")
        self.code = code


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without Plimsoll's settings.

    No peer reports its usage over the network: that would be measured too.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PLIMSOLL_")}
    return kept | NO_REPORTS | variables


class Worker:
    """A worker process and the pipes to it."""

    def __init__(self, spec: WorkerSpec, *, prefix: Sequence[str] = ()) -> None:
        """Start it; prefix: a command that becomes this one, such as one in a control group."""
        self.kind = spec.kind
        module = "plimsoll.bench.comparison.worker"
        command = [*prefix, sys.executable, "-m", module, json.dumps(asdict(spec))]
        self._process = subprocess.Popen(
            command,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stderr: list[str] = []
        # Read all along: a full pipe would stop the process.
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Return when the peer is open. Raises WorkerDiedError."""
        self._answer()

    def ask(self, **request: object) -> dict[str, Any]:
        """Send one request and wait for its answer. Raises WorkerDiedError."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its end is told by what is read
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def seconds(self, lengths: Sequence[int], repeats: int = 1) -> float:
        """Seconds of one pass over texts of these lengths, the mean of `repeats`."""
        return float(self.ask(lengths=list(lengths), repeats=repeats)["seconds"]) / repeats

    def close(self) -> None:
        """End the process in the midst of its work: it has nothing to save."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._reader.join()
            raise WorkerDiedError(self.kind, code, "".join(self._stderr[-1:]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._stderr.append(line.strip())


@contextmanager
def running(spec: WorkerSpec, *, prefix: Sequence[str] = ()) -> Iterator[Worker]:
    """A worker with its peer open, for the length of a `with` block. Raises WorkerDiedError."""
    worker = Worker(spec, prefix=prefix)
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.close()


@dataclass(frozen=True)
class ProcessMemory:
    """A process's memory at one moment, bytes."""

    anonymous_bytes: int
    resident_bytes: int


def process_memory(pid: int) -> ProcessMemory | None:
    """None once the process has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, flags=re.MULTILINE))
    if "RssAnon" not in fields:
        return None
    return ProcessMemory(1024 * int(fields["RssAnon"]), 1024 * int(fields["VmRSS"]))


class MemoryWatch:
    """Samples a process's memory in a thread until stopped; owns the peaks."""

    def __init__(self, pid: int, every_s: float = SAMPLE_S) -> None:
        """Start to sample."""
        self._every_s = every_s
        self.peak = ProcessMemory(0, 0)
        self.pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> ProcessMemory:
        """Peak of each number, not necessarily at the same moment."""
        self._stopped.set()
        self._thread.join()
        return self.peak

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            now = process_memory(self.pid)
            if now is not None:
                self.peak = ProcessMemory(
                    max(self.peak.anonymous_bytes, now.anonymous_bytes),
                    max(self.peak.resident_bytes, now.resident_bytes),
                )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the `with` block as Ctrl-C does: what it has started ends too."""

    def end(number: int, frame: FrameType | None) -> None:
        for one in usual:  # a second signal must not keep the first from ending everything
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    usual = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    for one, handler in usual.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(one, end)
    try:
        yield
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)


@contextmanager
def group_of(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with all that it has started.

    Ctrl-C on a terminal is then for this process alone. options: as Popen takes them.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def run_group(*command: str | Path) -> None:
    """Run a command to its end, or with all that it has started to ours.

    Raises CalledProcessError where it fails.
    """
    with group_of(command) as process:
        if code := process.wait():
            raise subprocess.CalledProcessError(code, command)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, number)


@contextmanager
def on_processors(most: int) -> Iterator[list[int]]:
    """Hold this thread, and what it starts, to the first so many of the processors it may use."""
    usable = os.sched_getaffinity(0)
    held = sorted(usable)[:most]
    os.sched_setaffinity(0, held)
    try:
        yield held
    finally:
        os.sched_setaffinity(0, usable)

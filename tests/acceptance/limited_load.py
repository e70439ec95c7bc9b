"""A server under a hard memory limit, and the load that is sent to it.

The mixture has everything that kills embedding servers: texts of any length, lists of hundreds,
texts of 8192 tokens, bodies of 20 MB, clients that hang up, bodies that are no JSON.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from plimsoll.bench.comparison.limits import LimitedGroup, NoLimitError, evict, limited_group
from plimsoll.bench.load.plan import LoadPlan
from plimsoll.bench.load.report import LoadReport
from plimsoll.bench.load.runner import run_load
from tests.running_server import RunningServer

MIB = 1 << 20
N_CLIENTS = 32
POLL_S = 0.25
PATIENCE_S = 600.0  # with a reply, however little of the processors others leave
# Weights of the kinds of requests; the last three are no well-formed requests, or none that a
# server of any size could answer in time.
WELL_FORMED = {"short": 60.0, "long": 10.0, "list": 6.0, "list500": 1.0, "huge": 1.0, "body20": 0.3}
EVERYTHING = {**WELL_FORMED, "body20list": 0.3, "hangup": 6.0, "malformed": 12.0}
# Without what only memory keeps out: given enough of it, a list of millions of tokens is let in,
# and takes a quarter of an hour.
BOUNDED = {kind: weight for kind, weight in EVERYTHING.items() if kind != "body20list"}
# So few clients keep every core busy and fill no queue: what they get done is the capacity.
FEW_CLIENTS = 4


@dataclass(frozen=True)
class ServedFile:
    """A model as a server is told of it, and what has pages that must be evicted first."""

    name: str  # as PLIMSOLL_MODEL takes it
    limit_mib: int
    cache: Path
    sidecar: Path
    source: Path | None = None

    def options(self) -> tuple[str, ...]:
        """Of `plimsoll serve`."""
        return ("--model", self.name, "--cache-dir", str(self.cache), "--log-format", "text")


class UtilizationWatch:
    """Asks a server's /health how much of its budget it uses; owns the thread and the peak."""

    def __init__(self, url: str) -> None:
        self.peak_ratio = 0.0
        self.last_used_bytes = 0
        self.states: set[str] = set()
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Go on asking for a while."""
        self._stopped.wait(seconds)

    def fallen_to(self, most_bytes: float, deadline_s: float) -> int:
        """Used memory once it is no more than this, or at the deadline."""
        until_s = time.monotonic() + deadline_s
        while self.last_used_bytes > most_bytes and time.monotonic() < until_s:
            self.wait(POLL_S)
        return self.last_used_bytes

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._stopped.wait(POLL_S):
                try:
                    health = client.get("/health").json()
                except httpx.HTTPError:
                    continue  # one that has been killed is told by its group
                self.peak_ratio = max(self.peak_ratio, health["memory"]["utilization_ratio"])
                self.last_used_bytes = health["memory"]["used_bytes"]
                self.states.add(health["breaker"]["state"])


@contextmanager
def limited_server(
    folder: Path, served: ServedFile, limit_mib: int | None = None, **variables: str
) -> Iterator[tuple[RunningServer, LimitedGroup]]:
    """A server in a group of its own, its model's pages evicted from the file cache before."""
    for path in filter(None, (served.source, served.sidecar)):
        evict(path)
    with (
        limited_group((limit_mib or served.limit_mib) * MIB) as group,
        RunningServer(folder, *served.options(), prefix=group.prefix, **variables) as server,
    ):
        yield server, group


def load(
    url: str, seconds: float, mix: Mapping[str, float] = EVERYTHING, **more: object
) -> LoadReport:
    """Send the mixture and wait for the last answer."""
    return run(LoadPlan(url, mix=mix, seconds=seconds, timeout_s=PATIENCE_S, **more))


def run(plan: LoadPlan) -> LoadReport:
    """Send what a plan says."""
    return asyncio.run(run_load(plan))


def load_until(came: Callable[[], bool], plan: LoadPlan) -> LoadReport:
    """Send what a plan says, but no longer than until this has come."""
    stop = asyncio.Event()

    def look(*_: object) -> None:
        if came():
            stop.set()

    return asyncio.run(run_load(plan, stop=stop, watch=look))


def can_limit() -> str | None:
    """Why no limited group can be made here; None where it can."""
    try:
        with limited_group(64 * MIB):
            return None
    except NoLimitError as reason:
        return str(reason)

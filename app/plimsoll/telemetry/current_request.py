"""The request that is being served: its names for log lines, and where its time goes.

A context variable: tasks and asyncio.to_thread carry it on. A thread that works for several
requests at once is given their records instead, and says `serving` itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

# A list of thousands runs in hundreds of parts: of a longer request, the first so many are kept.
MOST_STAGES = 200


class Stage(NamedTuple):
    """One stretch of a request's time, by perf_counter."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Where a request's time has gone so far.

    kept: the first MOST_STAGES stages, in the order in which they ended; n_left_out: how many more
        there were.
    total_s: seconds of each stage by its name, of those that were left out too. Stages of one name
        may overlap, so their sum may be more than the time that passed.
    """

    kept: tuple[Stage, ...]
    n_left_out: int
    total_s: Mapping[str, float]


class CurrentRequest:
    """A request as log lines and metrics name it. Owns the times of its stages.

    Safe to share between threads: the engine's thread notes stages of many requests.
    """

    def __init__(self, id: str, trace_id: str | None = None) -> None:
        """trace_id: what finds its trace, 32 hexadecimal digits; None where it is not traced."""
        self.id = id
        self.trace_id = trace_id
        self.model: str | None = None  # own name of the served model that it asks for
        self._lock = Lock()
        self._kept: list[Stage] = []
        self._n_left_out = 0
        self._total_s: dict[str, float] = {}

    def add_stage(self, name: str, start_s: float, end_s: float) -> None:
        """Note a stage, by perf_counter; from any thread."""
        with self._lock:
            self._total_s[name] = self._total_s.get(name, 0.0) + (end_s - start_s)
            if len(self._kept) < MOST_STAGES:
                self._kept.append(Stage(name, start_s, end_s))
            else:
                self._n_left_out += 1

    def stage_times(self) -> StageTimes:
        """The stages that have ended so far."""
        with self._lock:
            return StageTimes(tuple(self._kept), self._n_left_out, dict(self._total_s))


_current: ContextVar[CurrentRequest | None] = ContextVar("current_request", default=None)


def current_request() -> CurrentRequest | None:
    """The request that the calling code works for, if it works for one."""
    return _current.get()


@contextmanager
def serving(request: CurrentRequest | None) -> Iterator[None]:
    """Work for `request` for the length of a `with` block."""
    before = _current.set(request)
    try:
        yield
    finally:
        _current.reset(before)


def together(requests: Iterable[CurrentRequest | None]) -> CurrentRequest | None:
    """What stands in a log line for all of these: their ids with commas between them."""
    ids = dict.fromkeys(request.id for request in requests if request is not None)
    return CurrentRequest(",".join(ids)) if ids else None

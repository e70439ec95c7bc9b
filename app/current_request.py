"""The request that is being served, for whoever writes a log line or times a stage.

A context variable: tasks and asyncio.to_thread carry it on. A thread that works for several
requests at once is given their records instead, and says `serving` itself.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class Trace(Protocol):
    """Where one request's stages are noted, from any thread."""

    @property
    def trace_id(self) -> str | None:
        """What finds the trace again: 32 hexadecimal digits; None where there is none."""

    def add_stage(self, name: str, start_s: float, end_s: float) -> None:
        """Note a stage, by perf_counter."""

    def end(self, status: int, route: str | None, **about: str | int | None) -> None:
        """The request has ended. `status`: 0 where it was broken off; `about`: what it was."""


@dataclass(frozen=True, slots=True)
class CurrentRequest:
    """A request as its log lines name it. trace: None where nobody asked for traces."""

    id: str
    trace: Trace | None = None


_current: ContextVar[CurrentRequest | None] = ContextVar("current_request", default=None)


def current_request() -> CurrentRequest | None:
    """The request that the code that asks works for, if it works for one."""
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

"""How long loads take, and which of their stages the time goes to.

The pipeline tells it; the search for what limits throughput reads it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

EXPANDING = ("expand", "validate")
STORING = ("read", "write")


@dataclass(frozen=True, slots=True)
class LoadTotals:
    """Loads since the start; seconds and bytes only ever grow.

    n_under_way: loads at this moment. loading_s: time in which at least one was under way.
    stage_s: work of each stage; stages work side by side, so together they may be more.
    n_bytes: float32 bytes that weights were expanded to.
    """

    n_under_way: int = 0
    loading_s: float = 0.0
    stage_s: Mapping[str, float] = field(default_factory=dict)
    n_bytes: int = 0


class LoadTimes:
    """Owns the totals. Safe to share between threads.

    on_tensor: told the seconds that a tensor took from its first byte read to its last written.
    """

    def __init__(
        self,
        on_tensor: Callable[[float], None] = lambda seconds: None,
        *,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.note_tensor = on_tensor
        self._clock = clock
        self._lock = threading.Lock()
        self._n_under_way = 0
        self._since_s = 0.0
        self._ended_s = 0.0
        self._stage_s = dict.fromkeys((*EXPANDING, *STORING), 0.0)
        self._n_bytes = 0

    @property
    def totals(self) -> LoadTotals:
        """As they are now, with the loads under way."""
        with self._lock:
            under_way_s = self._clock() - self._since_s if self._n_under_way else 0.0
            loading_s = self._ended_s + under_way_s
            return LoadTotals(self._n_under_way, loading_s, dict(self._stage_s), self._n_bytes)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A load is under way for the length of a `with` block."""
        with self._lock:
            if not self._n_under_way:
                self._since_s = self._clock()
            self._n_under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_under_way -= 1
                if not self._n_under_way:
                    self._ended_s += self._clock() - self._since_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time work of one of EXPANDING or STORING."""
        start_s = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._stage_s[name] += self._clock() - start_s

    def note_expanded(self, n_bytes: int) -> None:
        """So many more bytes of float32 are there."""
        with self._lock:
            self._n_bytes += n_bytes

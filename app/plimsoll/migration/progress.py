"""How fast a migration goes and how long it still takes, from what was stored lately.

Owns the last minute's batches. Plain arithmetic; the clock is passed in.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0


@dataclass(frozen=True)
class Rate:
    """What is stored a second; None where nothing was stored lately."""

    rows_per_s: float
    tokens_per_s: float


class ProgressMonitor:
    """Watches one run. yielded: told each time that it begins to stand back.

    yielding: why nothing is embedded now; None: it goes on.
    """

    def __init__(self, clock: Callable[[], float], yielded: Callable[[], None]) -> None:
        self._clock = clock
        self._yielded = yielded
        self._began_s = clock()
        self._stored = deque[tuple[float, int, int]]()  # moment, rows, tokens
        self.yielding: str | None = None
        self.n_yields = 0

    def stored(self, n_rows: int, n_tokens: int) -> None:
        """A batch has been stored."""
        self._stored.append((self._clock(), n_rows, n_tokens))

    def set_yielding(self, why: str | None) -> None:
        """Nothing is embedded now, or it goes on."""
        if why is not None and self.yielding is None:
            self.n_yields += 1
            self._yielded()
        self.yielding = why

    def rate(self) -> Rate | None:
        """Of the last WINDOW_S seconds."""
        now_s = self._clock()
        while self._stored and self._stored[0][0] < now_s - WINDOW_S:
            self._stored.popleft()
        seconds = min(WINDOW_S, now_s - self._began_s)
        if not self._stored or seconds <= 0:
            return None
        return Rate(
            sum(n_rows for _, n_rows, _ in self._stored) / seconds,
            sum(n_tokens for _, _, n_tokens in self._stored) / seconds,
        )


def eta_s(n_left: int, rate: Rate | None) -> float | None:
    """Seconds until so many rows are stored; None where that is not known."""
    if n_left <= 0:
        return 0.0
    return n_left / rate.rows_per_s if rate is not None and rate.rows_per_s > 0 else None

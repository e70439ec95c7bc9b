"""When all points are read once more: Qdrant tells no client what has changed.

Reading everything costs time, so a pass comes no sooner than a multiple of the last one's length
after it; where the number of points is another than at its beginning, after less. Pure but for the
clock.
"""

from collections.abc import Callable

LENGTHS_BETWEEN = 10.0
"""Of the last pass, before the next: reading takes up to a tenth of the time."""

LENGTHS_AFTER_A_CHANGE = 2.0
AFTER_A_CHANGE_S = 2.0


class Looks:
    """Owns when the last pass was, and of how many points. every_s: from its end to the next."""

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._began_s: float | None = None
        self._ended_s: float | None = None  # None: none came from its beginning to its end yet
        self._length_s = 0.0
        self._n_points = 0

    def begin(self, n_points: int) -> None:
        """A pass begins at the first point."""
        self._began_s = self._clock()
        self._n_points = n_points

    def end(self) -> None:
        """It has come to its end. One that began in another process has not seen all of it."""
        if self._began_s is not None:
            self._ended_s = self._clock()
            self._length_s = self._ended_s - self._began_s
            self._began_s = None

    def is_due(self, n_points: int) -> bool:
        """Whether to read all of it again. n_points: as the server counts them now."""
        if self._ended_s is None:
            return True
        waited_s = self._clock() - self._ended_s
        if n_points != self._n_points:
            return waited_s >= max(AFTER_A_CHANGE_S, LENGTHS_AFTER_A_CHANGE * self._length_s)
        return waited_s >= max(self._every_s, LENGTHS_BETWEEN * self._length_s)

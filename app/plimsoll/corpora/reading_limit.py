"""Until when one may read the file of collections: its time, and whether it is still wanted.

SQLite asks between two of its steps, in the thread that reads; the others tell it to end.
"""

from collections.abc import Callable
from threading import Event
from time import monotonic

from plimsoll.errors import SearchStoppedError

# SQLite's instructions between two looks, a few milliseconds: each look waits for the interpreter.
INSTRUCTIONS = 20_000
RETRY_AFTER_S = 1.0


class ReadingLimit:
    """One reading's limit. closing: set when the server ends."""

    def __init__(
        self, most_s: float, closing: Event, clock: Callable[[], float] = monotonic
    ) -> None:
        self._most_s = most_s
        self._closing = closing
        self._clock = clock
        self._deadline_s: float | None = None
        self._is_dropped = False

    def begin(self) -> None:
        """Count from now on."""
        self._deadline_s = self._clock() + self._most_s

    def drop(self) -> None:
        """Nothing that is read is wanted any more."""
        self._is_dropped = True

    def is_over(self) -> bool:
        """Whether the reading is to end."""
        is_late = self._deadline_s is not None and self._clock() >= self._deadline_s
        return is_late or self._is_dropped or self._closing.is_set()

    def error(self) -> SearchStoppedError:
        """What the reading ends in."""
        if self._closing.is_set():
            return SearchStoppedError("the server ends", retry_after_s=RETRY_AFTER_S)
        return SearchStoppedError(
            f"the search read the collection for {self._most_s:g} s, which is the most; try again "
            "with fewer comparisons or words, or when the vectors have been read",
            retry_after_s=RETRY_AFTER_S,
        )

"""How many lines the log gets of requests that were turned away before they were read.

Anyone can send a hundred wrong keys a second, and the log's disk is not theirs. The first lines say
all there is to say; the rest are counted, in the log and in the metrics.
"""

from collections.abc import Callable
from time import monotonic

from plimsoll.policy.client_limits import Rate

LINES_PER_S = 10


class RefusedLines:
    """Owns how many have been written of late, and how many left out since."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._rate = Rate()
        self._n_left_out = 0

    def take(self) -> int | None:
        """Ask for a line: how many were left out before it, or None where it is left out itself."""
        now_s = self._clock()
        if self._rate.room_at_s(1, LINES_PER_S) > now_s:
            self._n_left_out += 1
            return None
        self._rate.take(1, LINES_PER_S, now_s)
        n_left_out, self._n_left_out = self._n_left_out, 0
        return n_left_out

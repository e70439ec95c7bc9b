"""What stands in memory beside requests: the server at rest, and what nothing accounts for.

Pure: measurements and the seconds of a clock come in.
"""

from collections import deque
from math import inf

# How long evidence of memory that nothing accounts for is believed.
FLOOR_WINDOW_S = 10.0
# Memory at rest is the least of so long; likewise in a server that never rests.
REST_WINDOW_S = 300.0
# After the last request: by then what runs used has been given back, and the floor can be read.
SETTLED_AFTER_S = 2.0


class MemoryFloor:
    """Owns what was measured of it.

    idle_bytes: memory at rest, as it was when nothing was admitted. settled_bytes: the same as it
    was last measured in a server that had settled.
    """

    def __init__(self) -> None:
        self.idle_bytes = 0
        self.settled_bytes = 0
        self._at_rest: deque[tuple[float, int]] = deque()  # (seconds, bytes), rising
        self._unaccounted: deque[tuple[float, int]] = deque()  # (seconds, bytes), falling
        # Without a rest: since when, the least that requests did not account for, and the least of
        # the whole window before that, which is believed.
        self._restless_since_s = self._restless_least = inf
        self._restless_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Memory at rest, and what nothing accounts for."""
        newest = max((n_bytes for _, n_bytes in self._unaccounted), default=0)
        return max(self.idle_bytes, newest)

    @property
    def certain_bytes(self) -> int:
        """What the server will not rest below, for all that is known.

        Until it has settled, what stands for rest may be memory of others that goes again.
        """
        return min(self.idle_bytes, self.settled_bytes) if self.settled_bytes else self.idle_bytes

    @property
    def lasting_bytes(self) -> int:
        """What lines are drawn by: memory at rest, as it was in a server that had settled.

        One that is asked without a pause never rests, and what it has come to take meanwhile would
        keep its lines out of reach: so what it takes all the time beside its requests counts too.
        """
        return max(self.settled_bytes, self._restless_bytes)

    @property
    def has_settled(self) -> bool:
        """Whether memory at rest has been measured since a model opened or closed last."""
        return self.settled_bytes == self.idle_bytes

    def note_idle(self, now_s: float, used_bytes: int, *, idle_s: float, open_bytes: float) -> None:
        """So much is in use, and nothing has been admitted for `idle_s`.

        open_bytes: the breaker's line.
        """
        self._forget_before(now_s - FLOOR_WINDOW_S)
        if idle_s < SETTLED_AFTER_S:
            self._note_restless(now_s, used_bytes, used_bytes, open_bytes)
            return
        self._note_rest(now_s, used_bytes, idle_s, open_bytes)
        self._unaccounted.clear()
        self._forget_restless()

    def note_busy(
        self, now_s: float, used_bytes: int, *, accounted_bytes: int, open_bytes: float
    ) -> None:
        """So much is in use, of which admitted requests account for so much.

        open_bytes: the breaker's line.
        """
        self._forget_before(now_s - FLOOR_WINDOW_S)
        # A server that is busy without a pause since it loaded its model has not rested yet.
        self.idle_bytes = min(self.idle_bytes, used_bytes)
        self.settled_bytes = min(self.settled_bytes, used_bytes)
        unaccounted = used_bytes - accounted_bytes
        while self._unaccounted and self._unaccounted[-1][1] <= unaccounted:
            self._unaccounted.pop()
        self._unaccounted.append((now_s, unaccounted))
        self._note_restless(now_s, used_bytes, unaccounted, open_bytes)

    def begin_anew(self, used_bytes: int, *, accounted_bytes: int) -> None:
        """What the server took at rest before tells nothing now.

        What requests do not account for stands for rest until the server has rested; not all that
        they reserve need be in use yet.
        """
        self._at_rest.clear()
        self._unaccounted.clear()
        self._forget_restless()
        before_bytes = min(self.idle_bytes, used_bytes)
        self.idle_bytes = max(before_bytes, used_bytes - accounted_bytes)

    def _forget_before(self, seconds: float) -> None:
        while self._unaccounted and self._unaccounted[0][0] < seconds:
            self._unaccounted.popleft()

    def _note_restless(
        self, now_s: float, used_bytes: int, unaccounted: int, open_bytes: float
    ) -> None:
        """Take what requests do not account for; above the breaker's line it is trouble."""
        self._restless_bytes = min(self._restless_bytes, used_bytes)
        self._restless_since_s = min(self._restless_since_s, now_s)
        self._restless_least = min(self._restless_least, unaccounted)
        if now_s - self._restless_since_s >= REST_WINDOW_S:
            least = max(0, round(self._restless_least))
            self._forget_restless()
            self._restless_bytes = least if least <= open_bytes else 0

    def _forget_restless(self) -> None:
        self._restless_since_s = self._restless_least = inf
        self._restless_bytes = 0

    def _note_rest(self, now_s: float, used_bytes: int, idle_s: float, open_bytes: float) -> None:
        """Take memory at rest: the least of some minutes, as an open breaker rests high too.

        A server that has rested below the breaker's line is believed to rest above it only after
        all those minutes: others fill the group also while a model that just opened settles.
        """
        if 0 < self.settled_bytes <= open_bytes < used_bytes and idle_s < REST_WINDOW_S:
            return
        while self._at_rest and self._at_rest[-1][1] >= used_bytes:
            self._at_rest.pop()
        self._at_rest.append((now_s, used_bytes))
        while self._at_rest[0][0] < now_s - REST_WINDOW_S:
            self._at_rest.popleft()
        self.idle_bytes = self.settled_bytes = self._at_rest[0][1]

"""Remember the replies of the last minute and the last errors, for whoever looks at the server.

Bounded, and never holds a text: an error that may quote its request is kept without its message.
Nothing here is meant for alerts; those read /metrics.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic, time
from typing import Literal, TypeAlias, get_args

WINDOW_S = 60.0
# Of a busier minute, the newest so many replies are looked at.
MOST_REPLIES = 2000
MOST_ERRORS = 20

ReplyKind: TypeAlias = Literal["dense", "sparse", "error"]
"""Vectors of the model or an order made with them; words instead; refused or failed."""


@dataclass(frozen=True, slots=True)
class RecentError:
    """An error, or several in a row that differ in nothing a reader can act on.

    at_s: Unix time of the last of them. n_times: how many they are.
    """

    at_s: float
    status: int
    code: str
    message: str
    n_times: int = 1


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a request's arrival to the end of its reply; None where nobody was answered."""

    window_s: float
    n_replies: int
    p50_s: float | None
    p99_s: float | None


class RecentRequests:
    """Owns what is remembered. Lives on the event loop.

    clock: seconds that never go back. wall_clock: Unix time.
    """

    def __init__(
        self, clock: Callable[[], float] = monotonic, wall_clock: Callable[[], float] = time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._replies: deque[tuple[float, float]] = deque(maxlen=MOST_REPLIES)  # (at, took) seconds
        self._errors: deque[RecentError] = deque(maxlen=MOST_ERRORS)
        self._counts: Counter[str] = Counter()

    @property
    def errors(self) -> list[RecentError]:
        """The last errors, the newest first."""
        return list(reversed(self._errors))

    @property
    def counts(self) -> dict[ReplyKind, int]:
        """Replies since the start, by kind."""
        return {kind: self._counts[kind] for kind in get_args(ReplyKind)}

    def note_reply(self, kind: str, status: int, seconds: float) -> None:
        """Take the end of a request into account.

        One that only looked, kind "none", does not count. An error's speed says nothing of the
        engine's, so it counts but is not timed.
        """
        if status >= 400:
            self._counts["error"] += 1
        elif kind != "none":
            self._counts[kind] += 1
            self._replies.append((self._clock(), seconds))

    def note_error(self, status: int, code: str, message: str) -> None:
        """Remember an error; a flood of equal ones takes the place of one."""
        error = RecentError(self._wall_clock(), status, code, message)
        last = self._errors[-1] if self._errors else None
        if last is not None and (last.status, last.code) == (status, code):
            self._errors[-1] = replace(error, n_times=last.n_times + 1)
        else:
            self._errors.append(error)

    def latency(self) -> Latency:
        """How long the answers of the last minute took."""
        since_s = self._clock() - WINDOW_S
        took_s = sorted(took_s for at_s, took_s in self._replies if at_s >= since_s)
        return Latency(WINDOW_S, len(took_s), _quantile(took_s, 0.50), _quantile(took_s, 0.99))


def _quantile(ascending: list[float], share: float) -> float | None:
    """The least value that at least this share of all values does not exceed."""
    return ascending[math.ceil(share * len(ascending)) - 1] if ascending else None

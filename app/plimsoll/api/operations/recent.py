"""Remember the replies of the last minutes and the last errors, for the status page.

Bounded, and never holds a text: an error that may quote its request is kept without its message.
Nothing here is meant for alerts; those read /metrics.

Replies are counted in periods of a few seconds, their times in a histogram whose bins are 5 % wide:
so a busy minute takes no more memory than a quiet one, and a quantile is right to that.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Literal, NamedTuple, TypeAlias, get_args

from plimsoll.telemetry.current_request import current_request

PERIOD_S = 5.0
N_PERIODS = 60
# Latency and the figures of now are of so many periods: a minute.
WINDOW_PERIODS = 12
MOST_ERRORS = 20
# Routes and models that are told apart; further ones are one.
MOST_SOURCES = 30
BIN_RATIO = 1.05
LEAST_S = 1e-4  # what is faster counts as this

# Too many requests, or not now: the same request may be served later.
REFUSALS = (429, 503)

ReplyKind: TypeAlias = Literal["dense", "sparse", "error"]
"""Vectors of the model or an order made with them; words instead; refused or failed."""


class Source(NamedTuple):
    """What was asked: a route, and the model that answered, None where none did."""

    route: str
    model: str | None


OTHERS = Source("other", None)


@dataclass(frozen=True, slots=True)
class RecentError:
    """Errors that differ in nothing a reader can act on.

    at_s: Unix time of the last of them. n_times: how many they are. request_id: of the last.
    """

    at_s: float
    status: int
    code: str
    message: str
    request_id: str | None
    n_times: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a request's arrival to the end of its reply; None without a reply."""

    window_s: float
    n_replies: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(slots=True)
class _Tally:
    """Replies of one source in one period, or the sum of several."""

    n_errors: int = 0
    n_refused: int = 0  # of the errors
    n_failed: int = 0  # of the errors, those of the server
    bins: Counter[int] = field(default_factory=Counter)  # of those that are no errors

    @property
    def n_replies(self) -> int:
        return self.n_errors + self.bins.total()

    def quantile_s(self, share: float) -> float | None:
        """The middle of the bin of the least value that this share does not exceed."""
        wanted = math.ceil(share * self.bins.total())
        for bin_, n in sorted(self.bins.items()):
            wanted -= n
            if wanted <= 0:
                return float(LEAST_S * BIN_RATIO ** (bin_ + 0.5))
        return None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Replies of one source by period, the newest last: how many, errors among them, refusals (429
    and 503) and failures (5xx, as the alert counts) among those, and the time that 95 of 100 did
    not exceed (None without a reply that is no error).
    """

    route: str
    model: str | None
    requests: list[int]
    errors: list[int]
    refused: list[int]
    failed: list[int]
    p95_s: list[float | None]


class RecentRequests:
    """Owns what is remembered. Lives on the event loop.

    clock: seconds that never go back. wall_clock: Unix time.
    """

    def __init__(
        self, clock: Callable[[], float] = monotonic, wall_clock: Callable[[], float] = time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._periods: deque[tuple[int, dict[Source, _Tally]]] = deque()  # (number, tallies)
        self._errors: dict[tuple[int, str], RecentError] = {}  # the newest last
        self._counts: Counter[str] = Counter()

    @property
    def errors(self) -> list[RecentError]:
        """The last errors: failures of the server first, then refusals, each the newest first."""
        newest_first = reversed(self._errors.values())
        return sorted(newest_first, key=lambda error: error.status < 500)

    @property
    def counts(self) -> dict[ReplyKind, int]:
        """Replies since the start, by kind."""
        return {kind: self._counts[kind] for kind in get_args(ReplyKind)}

    def note_reply(self, source: Source, kind: str, status: int, seconds: float) -> None:
        """Take the end of a request into account.

        One that only looked, kind "none", does not count. An error's speed says nothing of the
        engine's, so it counts but is not timed.
        """
        if status >= 400:
            self._counts["error"] += 1
            tally = self._tally(source)
            tally.n_errors += 1
            tally.n_refused += status in REFUSALS
            tally.n_failed += status >= 500
        elif kind != "none":
            self._counts[kind] += 1
            bin_ = math.floor(math.log(max(seconds, LEAST_S) / LEAST_S, BIN_RATIO))
            self._tally(source).bins[bin_] += 1

    def note_error(self, status: int, code: str, message: str) -> None:
        """Remember an error; equal ones are one."""
        request = current_request()
        earlier = self._errors.pop((status, code), None)
        self._errors[status, code] = RecentError(
            self._wall_clock(), status, code, message,
            request.id if request is not None else None,
            1 + (earlier.n_times if earlier else 0),
        )  # fmt: skip
        if len(self._errors) > MOST_ERRORS:
            del self._errors[next(iter(self._errors))]

    def latency(self) -> Latency:
        """How long the answers of the last minute took."""
        self._forget()
        first = self._number() - WINDOW_PERIODS
        tallies = (t for at, sources in self._periods if at > first for t in sources.values())
        total = _sum(tallies)
        return Latency(
            WINDOW_PERIODS * PERIOD_S,
            total.bins.total(),
            *(total.quantile_s(share) for share in (0.50, 0.95, 0.99)),
        )

    def traffic(self) -> list[Traffic]:
        """Replies of the last minutes: of all sources together, then of each, the busiest first."""
        self._forget()
        by_number = dict(self._periods)
        last = self._number()
        periods = [by_number.get(last - ago, {}) for ago in reversed(range(N_PERIODS))]
        sources = {source for tallies in periods for source in tallies}
        every = [_sum(tallies.values()) for tallies in periods]
        each = [
            _column(source, [tallies.get(source, _Tally()) for tallies in periods])
            for source in sorted(sources, key=lambda source: (source.route, source.model or ""))
        ]
        each.sort(key=lambda traffic: -sum(traffic.requests))
        return [_column(Source("all", None), every), *each]

    def _number(self) -> int:
        return int(self._clock() // PERIOD_S)

    def _tally(self, source: Source) -> _Tally:
        number = self._number()
        if not self._periods or self._periods[-1][0] != number:
            self._forget()
            self._periods.append((number, {}))
        tallies = self._periods[-1][1]
        if source not in tallies and len(tallies) >= MOST_SOURCES:
            source = OTHERS
        return tallies.setdefault(source, _Tally())

    def _forget(self) -> None:
        first = self._number() - N_PERIODS
        while self._periods and self._periods[0][0] <= first:
            self._periods.popleft()


def _sum(tallies: Iterable[_Tally]) -> _Tally:
    total = _Tally()
    for tally in tallies:
        total.n_errors += tally.n_errors
        total.n_refused += tally.n_refused
        total.n_failed += tally.n_failed
        total.bins.update(tally.bins)
    return total


def _column(source: Source, tallies: list[_Tally]) -> Traffic:
    return Traffic(
        source.route,
        source.model,
        [tally.n_replies for tally in tallies],
        [tally.n_errors for tally in tallies],
        [tally.n_refused for tally in tallies],
        [tally.n_failed for tally in tallies],
        [tally.quantile_s(0.95) for tally in tallies],
    )

"""Metrics of links: what waits to be brought out, when something came in, and where each stands."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

LinkCondition: TypeAlias = Literal["at_rest", "following", "pulling", "waiting"]
"""at_rest: nothing is done for it. waiting: it is followed, and something is in the way."""

Space: TypeAlias = Literal["read", "other"]
"""Of the vectors that others read outside, or of those beside them."""


class LinkMetrics:
    """Owns the metrics that links record in. Names are those of the operator's file, so few.

    clock: seconds since 1970.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = Gauge(
            "plimsoll_link_state",
            "1 for what a link does (at_rest, following, pulling: reads every row, waiting: "
            "something is in the way), else 0",
            ["link", "state"],
            registry=registry,
        )
        self._vectors_waiting = Gauge(
            "plimsoll_link_vectors_waiting",
            "Vectors of a link that are still to be brought out, of the space that others read "
            "there (read) and of the one beside it (other)",
            ["link", "space"],
            registry=registry,
        )
        self._changed = Gauge(
            "plimsoll_link_last_change_timestamp_seconds",
            "When rows of a link were last taken in, in seconds since 1970; 0: not since the start",
            ["link"],
            registry=registry,
        )
        self._faults = Counter(
            "plimsoll_link_faults",
            "Times that a link could not go on: it does not answer, or is not as it should be",
            ["link"],
            registry=registry,
        )

    def expect(self, link: str) -> None:
        """Begin the series of a link."""
        self.at_rest(link)
        self._changed.labels(link).set(0)
        self._faults.labels(link)

    def at_rest(self, link: str) -> None:
        """Nothing is done for it, and nothing waits."""
        self.show(link, "at_rest")
        for space in get_args(Space):
            self.waiting(link, space, 0)

    def show(self, link: str, condition: LinkCondition) -> None:
        """Set what a link does."""
        for known in get_args(LinkCondition):
            self._state.labels(link, known).set(known == condition)

    def waiting(self, link: str, space: Space, n: int) -> None:
        """So many vectors are to be brought out."""
        self._vectors_waiting.labels(link, space).set(n)

    def took_in(self, link: str) -> None:
        """Rows were taken in."""
        self._changed.labels(link).set(self._clock())

    def failed(self, link: str) -> None:
        """A step could not be done."""
        self._faults.labels(link).inc()

"""Metrics of memory pressure: how far it has come, and what was done about it."""

from collections.abc import Iterable
from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge

# There from the start: a rate does not see the first event of a series that begins with it.
# Alerts and the dashboard count on these.
BREAKER_STATES = ("closed", "open", "half_open")
DEGRADED_REASONS = ("memory_pressure", "breaker_open", "model_loading", "out_of_memory")


class Recovery(Enum):
    """A way around a failure for want of memory: its level and its outcome."""

    RUN_RETRIED = ("1", "retried")
    RUN_RECOVERED = ("1", "recovered")
    RUN_FAILED = ("1", "failed")
    PAGES_DROPPED = ("2", "applied")
    FALLBACK_ANSWERED = ("3", "answered")


RECOVERIES_FROM_START = (
    Recovery.RUN_RETRIED,
    Recovery.RUN_RECOVERED,
    Recovery.RUN_FAILED,
    Recovery.FALLBACK_ANSWERED,
)


class PressureMetrics:
    """Owns the metrics of ladder, breaker, recoveries and fallback."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ladder_step = Gauge(
            "plimsoll_ladder_step",
            "Step of the memory ladder: 0 all is well, 1 saving, 2 dropping pages, "
            "3 requests wait or get the fallback, 4 breaker open",
            registry=registry,
        )
        self._breaker_state = Gauge(
            "plimsoll_breaker_state",
            "1 for the state that the memory breaker is in (closed, open, half_open), else 0",
            ["state"],
            registry=registry,
        )
        self._breaker_transitions = Counter(
            "plimsoll_breaker_transitions",
            "Changes of the memory breaker's state, by the state that followed",
            ["state"],
            registry=registry,
        )
        self.show_breaker("closed")
        for state in BREAKER_STATES:
            self._breaker_transitions.labels(state)
        self._degraded = Counter(
            "plimsoll_degraded",
            "Requests whose client takes another answer than the primary one, and was to get it, "
            "by reason; where it takes none, the refusal counts in plimsoll_errors_total alone",
            ["reason"],
            registry=registry,
        )
        self.expect_degraded(DEGRADED_REASONS)
        self._recoveries = Counter(
            "plimsoll_recoveries",
            "Failures for want of memory that were worked around, by level (1 smaller runs, "
            "2 pages dropped, 3 fallback) and outcome",
            ["level", "outcome"],
            registry=registry,
        )
        for recovery in RECOVERIES_FROM_START:
            self._recoveries.labels(*recovery.value)

    def show_step(self, step: int) -> None:
        """Set where on the memory ladder the server stands."""
        self._ladder_step.set(step)

    def show_breaker(self, state: str) -> None:
        """Set which of BREAKER_STATES the breaker is in."""
        for known in BREAKER_STATES:
            self._breaker_state.labels(known).set(known == state)

    def breaker_changed(self, state: str) -> None:
        """Count a change to one of BREAKER_STATES, and show it."""
        self._breaker_transitions.labels(state).inc()
        self.show_breaker(state)

    def expect_degraded(self, reasons: Iterable[str]) -> None:
        """Begin the series of reasons at 0, of searches too, which have further ones."""
        for reason in reasons:
            self._degraded.labels(reason)

    def degraded(self, reason: str) -> None:
        """Count a request that is to get another answer than its primary one."""
        self._degraded.labels(reason).inc()

    def recovered(self, recovery: Recovery) -> None:
        """Count a failure that was, or was not, worked around."""
        self._recoveries.labels(*recovery.value).inc()

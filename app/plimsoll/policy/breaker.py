"""Keep requests away while memory fails, and find out with one request when it is well again.

A pure state machine: no I/O, no thread, no waiting. Time comes from the clock it is given, memory
from its caller. Only failures for want of memory count; other errors are not its matter.

    closed     3 memory failures in 30 s, or used above 0.90 for 2 s    → open
    open       15 s have passed and used is not above 0.90              → half-open, one probe
    half-open  a memory failure, or used above 0.90 for 2 s             → open
    half-open  a good probe, and used below 0.65                        → closed

A good probe while used is not below 0.65 leaves it half-open: the measurement may still hold the
probe's own memory. It closes at the first measurement below 0.65, or another probe runs after
another recovery timeout.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from weakref import WeakSet

from plimsoll.policy import lines

# Where the idle floor is above a line, that line moves to this much of the budget above it.
FLOOR_MARGIN_RATIO = 0.02
# How long a probe runs, or memory takes to fall, is not known: ask again soon.
LEAST_RETRY_S = 1.0


class BreakerState(Enum):
    """What `/health` says of the breaker."""

    CLOSED = "closed"  # requests run
    OPEN = "open"  # none runs
    HALF_OPEN = "half_open"  # one at a time runs, as a probe


class Verdict(Enum):
    """What may become of a request."""

    RUN = "run"
    PROBE = "probe"  # it runs alone, and decides for the others
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, eq=False)
class Admittance:
    """A verdict on one request; the request's outcome is recorded with this very object.

    So a request that was let in before the breaker opened is never taken for the probe.
    retry_after_s: when a refused request may come again, at least LEAST_RETRY_S; else 0.
    """

    verdict: Verdict
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state; `at_s` is in the clock's seconds."""

    earlier: BreakerState
    later: BreakerState
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """The breaker at one moment.

    n_failures: memory failures within the window, counted up to the threshold.
    open_for_s: since it last left closed; None while closed.
    retry_after_s: when a request may come again; None while closed.
    last_reason: of the last change of state; None before the first.
    """

    state: BreakerState
    n_failures: int
    open_for_s: float | None
    retry_after_s: float | None
    last_reason: str | None


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When it opens and closes; ratios are used memory over budget.

    Raises ValueError when the limits contradict each other.
    """

    failure_threshold: int = lines.FAILURES  # memory failures
    window_s: float = lines.FAILURES_WINDOW_S  # within which they count
    open_ratio: float = lines.OPEN_RATIO
    high_for_s: float = lines.OPEN_AFTER_S  # above open_ratio
    recovery_timeout_s: float = 15.0
    warn_ratio: float = lines.HIGH_RATIO  # below it a success clears the failures
    close_ratio: float = lines.CLOSE_RATIO

    def __post_init__(self) -> None:
        if not 0 < self.close_ratio <= self.warn_ratio < self.open_ratio:
            raise ValueError(
                f"close_ratio {self.close_ratio}, warn_ratio {self.warn_ratio} and open_ratio "
                f"{self.open_ratio} must be positive and rise in this order"
            )
        if self.failure_threshold < 1:
            raise ValueError(f"failure_threshold {self.failure_threshold} must be at least 1")
        if min(self.window_s, self.high_for_s, self.recovery_timeout_s) <= 0:
            raise ValueError("window_s, high_for_s and recovery_timeout_s must be above 0")

    def above_floor(self, floor_ratio: float) -> "BreakerLimits":
        """Move the lines that memory at rest would never get below.

        A breaker whose closing line lies under the idle floor would never close again.
        """
        close_ratio = max(self.close_ratio, floor_ratio + FLOOR_MARGIN_RATIO)
        return replace(
            self,
            close_ratio=close_ratio,
            warn_ratio=max(self.warn_ratio, close_ratio),
            open_ratio=max(self.open_ratio, close_ratio + FLOOR_MARGIN_RATIO),
        )


DEFAULT_LIMITS = BreakerLimits()


class MemoryCircuitBreaker:
    """Owns the breaker's state, the recent failures and the one probe. Lives on the event loop.

    Every admitted request ends in record_success, record_failure or probe_dropped; the last may
    follow the others, so it can stand in a `finally`.

    clock: monotonic seconds; time that it jumps back is left out.
    on_transition: told every change of state, after it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_transition: Callable[[Transition], None],
        *,
        limits: BreakerLimits = DEFAULT_LIMITS,
    ) -> None:
        self._clock = clock
        self._on_transition = on_transition
        self._given_limits = limits
        self._limits = limits  # with the floor that was measured last
        self._reading_s = self._now_s = clock()
        self._state = BreakerState.CLOSED
        self._last_reason: str | None = None
        self._causes: WeakSet[Exception] = WeakSet()  # of failures that were recorded
        self._failures_s: deque[float] = deque(maxlen=limits.failure_threshold)
        self._utilization_ratio = math.nan  # not measured yet: neither low nor high
        self._high_since_s: float | None = None
        self._left_closed_s: float | None = None
        self._next_probe_s = 0.0
        self._probe: Admittance | None = None
        self._is_proven = False  # a probe succeeded since it opened

    @property
    def state(self) -> BreakerState:
        """The state after the last call."""
        return self._state

    @property
    def verdict(self) -> Verdict:
        """What a request would be told now; changes nothing.

        Open and half-open differ only in what has been noticed: whether a probe is due.
        """
        if self._state is BreakerState.CLOSED:
            return Verdict.RUN
        is_due = self._advance() >= self._next_probe_s
        can_probe = is_due and self._probe is None and not self._is_high()
        return Verdict.PROBE if can_probe else Verdict.REFUSED

    def observe(self, utilization_ratio: float, *, floor_ratio: float = 0.0) -> None:
        """Take a measurement of used memory; once a second or oftener.

        floor_ratio: used memory at rest over budget. Lines below it move above it.
        """
        now_s = self._advance()
        self._utilization_ratio = utilization_ratio
        self._limits = self._given_limits.above_floor(floor_ratio)
        if not self._is_high():
            self._high_since_s = None
        elif self._high_since_s is None:
            self._high_since_s = now_s
        self._close_if_low(now_s)
        self._open_if_high(now_s)
        self._half_open_if_due(now_s)

    def admit(self) -> Admittance:
        """Decide on one request."""
        now_s = self._advance()
        self._half_open_if_due(now_s)
        verdict = self.verdict
        if verdict is Verdict.REFUSED:
            return Admittance(verdict, self._retry_after_s(now_s))
        admittance = Admittance(verdict)
        if verdict is Verdict.PROBE:
            self._probe = admittance
        return admittance

    def record_success(self, admittance: Admittance) -> None:
        """Note that a request was answered.

        Clears the failures only while memory is below the line: small requests that still fit
        say nothing of the ones that failed.
        """
        now_s = self._advance()
        if self._utilization_ratio < self._limits.warn_ratio:
            self._failures_s.clear()
        if self._end_probe(admittance) and self._state is BreakerState.HALF_OPEN:
            self._is_proven = True
            self._next_probe_s = now_s + self._limits.recovery_timeout_s
            self._close_if_low(now_s)

    def record_failure(
        self, admittance: Admittance | None = None, cause: Exception | None = None
    ) -> None:
        """Note that memory ran out, in a request or (None) elsewhere.

        cause: requests that waited for one text share it, and are one failure.
        """
        now_s = self._advance()
        was_probe = self._end_probe(admittance)
        if cause is not None:
            if cause in self._causes:
                return
            self._causes.add(cause)
        self._failures_s.append(now_s)
        if self._state is BreakerState.HALF_OPEN:
            who = "the probe" if was_probe else "another request"
            self._open(now_s, f"{who} ran out of memory while half-open")
        elif self._state is BreakerState.CLOSED:
            n_failures, limits = self._count_failures(now_s), self._limits
            if n_failures >= limits.failure_threshold:
                self._open(now_s, f"{n_failures} memory failures within {limits.window_s:g} s")

    def probe_dropped(self, admittance: Admittance) -> None:
        """Note that a request ended without telling anything, so that another may probe.

        Does nothing for requests that are no probe, or whose outcome is recorded already.
        """
        self._end_probe(admittance)

    def snapshot(self) -> BreakerSnapshot:
        """Look at it without changing its state."""
        now_s = self._advance()
        is_closed = self._left_closed_s is None
        return BreakerSnapshot(
            state=self._state,
            n_failures=self._count_failures(now_s),
            open_for_s=None if self._left_closed_s is None else now_s - self._left_closed_s,
            retry_after_s=None if is_closed else self._retry_after_s(now_s),
            last_reason=self._last_reason,
        )

    def _advance(self) -> float:
        """Add the time since the last call. A jump back adds none, or timers would wait for it."""
        reading_s = self._clock()
        self._now_s += max(0.0, reading_s - self._reading_s)
        self._reading_s = reading_s
        return self._now_s

    def _count_failures(self, now_s: float) -> int:
        while self._failures_s and now_s - self._failures_s[0] > self._limits.window_s:
            self._failures_s.popleft()
        return len(self._failures_s)

    def _end_probe(self, admittance: Admittance | None) -> bool:
        """Tell whether this was the running probe, which it then no longer is.

        The probe is kept across changes of state: while it runs there is no second one.
        """
        was_probe = admittance is not None and admittance is self._probe
        if was_probe:
            self._probe = None
        return was_probe

    def _retry_after_s(self, now_s: float) -> float:
        return max(self._next_probe_s - now_s, LEAST_RETRY_S)

    def _is_high(self) -> bool:
        return self._utilization_ratio > self._limits.open_ratio

    def _open_if_high(self, now_s: float) -> None:
        since_s, limits = self._high_since_s, self._limits
        if self._state is BreakerState.OPEN or since_s is None:
            return
        if now_s - since_s >= limits.high_for_s:
            self._open(
                now_s, f"used memory above {limits.open_ratio:.2f} for {limits.high_for_s:g} s"
            )

    def _half_open_if_due(self, now_s: float) -> None:
        """A probe while memory stands above the opening line could be what kills the process."""
        is_due = self._state is BreakerState.OPEN and now_s >= self._next_probe_s
        if is_due and not self._is_high():
            waited_s = self._limits.recovery_timeout_s
            self._change(BreakerState.HALF_OPEN, now_s, f"{waited_s:g} s without requests")

    def _close_if_low(self, now_s: float) -> None:
        close_ratio = self._limits.close_ratio
        is_provable = self._state is BreakerState.HALF_OPEN and self._is_proven
        if is_provable and self._utilization_ratio < close_ratio:
            self._failures_s.clear()
            self._left_closed_s = None
            reason = f"a probe succeeded and used memory is below {close_ratio:.2f}"
            self._change(BreakerState.CLOSED, now_s, reason)

    def _open(self, now_s: float, reason: str) -> None:
        self._is_proven = False
        self._next_probe_s = now_s + self._limits.recovery_timeout_s
        if self._left_closed_s is None:
            self._left_closed_s = now_s
        self._change(BreakerState.OPEN, now_s, reason)

    def _change(self, later: BreakerState, now_s: float, reason: str) -> None:
        earlier, self._state, self._last_reason = self._state, later, reason
        self._on_transition(Transition(earlier, later, reason, now_s))

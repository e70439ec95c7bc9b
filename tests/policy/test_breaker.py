"""The memory breaker, simulated with a clock that a test sets.

The random walk at the end holds it to a model of its own and to what must never happen.
"""

import math
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plimsoll.policy.breaker import (
    Admittance,
    BreakerLimits,
    BreakerState,
    MemoryCircuitBreaker,
    Transition,
    Verdict,
)
from tests.fakes import FakeClock

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
LOW, BETWEEN, WARN, HIGH = 0.30, 0.68, 0.80, 0.95


class Bench:
    """A breaker, its clock and every transition it told."""

    def __init__(self, limits: BreakerLimits | None = None) -> None:
        self.clock = FakeClock()
        self.transitions: list[Transition] = []
        self.breaker = MemoryCircuitBreaker(
            self.clock, self.transitions.append, limits=limits or BreakerLimits()
        )

    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.record_failure(self.breaker.admit())

    def serve(self) -> Verdict:
        """One request, answered at once if it may run."""
        admittance = self.breaker.admit()
        if admittance.verdict is not Verdict.REFUSED:
            self.breaker.record_success(admittance)
        return admittance.verdict

    def opened(self) -> "Bench":
        self.breaker.observe(LOW)
        self.fail(3)
        assert self.breaker.state is OPEN
        return self

    def half_opened(self, utilization_ratio: float = LOW) -> "Bench":
        self.opened().wait(15)
        self.breaker.observe(utilization_ratio)
        assert self.breaker.state is HALF_OPEN
        return self


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_new_breaker_lets_requests_run(bench: Bench):
    """Before the first measurement too: it must not stand in the way of a start."""
    admittance = bench.breaker.admit()

    assert admittance.verdict is Verdict.RUN
    assert admittance.retry_after_s == 0


def test_three_memory_failures_within_the_window_open_it(bench: Bench):
    """The window's ends count: 30 s from the first to the third."""
    bench.breaker.observe(LOW)
    bench.fail(1)
    bench.wait(15)
    bench.fail(1)
    assert bench.breaker.state is CLOSED
    bench.wait(15)
    bench.fail(1)

    refused = bench.breaker.admit()
    assert bench.breaker.state is OPEN
    assert refused.verdict is Verdict.REFUSED
    assert refused.retry_after_s == 15


def test_failures_older_than_the_window_do_not_count(bench: Bench):
    """A failure an hour is no storm."""
    for _ in range(10):
        bench.fail(1)
        bench.wait(15.5)

    assert bench.breaker.state is CLOSED
    assert bench.breaker.snapshot().n_failures == 1


def test_a_failure_outside_any_request_counts(bench: Bench):
    """Loading a model takes memory as well."""
    for _ in range(3):
        bench.breaker.record_failure()

    assert bench.breaker.state is OPEN


def test_a_success_while_memory_is_low_clears_the_failures(bench: Bench):
    """Then the failures are over and done with."""
    bench.breaker.observe(LOW)
    bench.fail(2)
    bench.breaker.record_success(bench.breaker.admit())
    bench.fail(2)

    assert bench.breaker.state is CLOSED


@pytest.mark.parametrize("utilization_ratio", [None, 0.70, WARN])
def test_a_success_above_the_line_clears_nothing(bench: Bench, utilization_ratio: float | None):
    """Under pressure short texts succeed between the long ones that fail; not measured is not low.

    The original breaker was reset by them and never opened.
    """
    if utilization_ratio is not None:
        bench.breaker.observe(utilization_ratio)
    for _ in range(3):
        bench.breaker.record_success(bench.breaker.admit())
        bench.fail(1)

    assert bench.breaker.state is OPEN


def test_high_memory_opens_it_only_when_it_lasts(bench: Bench):
    """A run's peak passes by itself within a second."""
    for utilization_ratio in (HIGH, HIGH, WARN, HIGH, HIGH):
        bench.breaker.observe(utilization_ratio)
        bench.wait(1)
    assert bench.breaker.state is CLOSED

    bench.breaker.observe(HIGH)
    assert bench.breaker.state is OPEN
    assert "0.90 for 2 s" in bench.transitions[-1].reason


def test_it_stays_open_while_memory_is_above_the_opening_line(bench: Bench):
    """A probe up there could be the allocation that gets the process killed."""
    bench.opened().wait(15)
    bench.breaker.observe(HIGH)

    refused = bench.breaker.admit()
    assert bench.breaker.state is OPEN
    assert refused.verdict is Verdict.REFUSED
    assert refused.retry_after_s == 1

    bench.breaker.observe(WARN)
    assert bench.breaker.state is HALF_OPEN


def test_the_first_request_after_the_recovery_timeout_is_the_only_probe(bench: Bench):
    """Even when no measurement comes between."""
    bench.opened().wait(14.5)
    assert bench.breaker.admit().retry_after_s == 1
    bench.wait(0.5)

    verdicts = [bench.breaker.admit().verdict for _ in range(3)]
    assert verdicts == [Verdict.PROBE, Verdict.REFUSED, Verdict.REFUSED]


def test_a_good_probe_with_low_memory_closes_it(bench: Bench):
    """And the old failures are gone with it."""
    bench.half_opened().breaker.record_success(bench.breaker.admit())

    snapshot = bench.breaker.snapshot()
    assert snapshot.state is CLOSED
    assert (snapshot.n_failures, snapshot.open_for_s, snapshot.retry_after_s) == (0, None, None)
    assert bench.breaker.admit().verdict is Verdict.RUN


def test_a_good_probe_closes_it_once_memory_has_come_down(bench: Bench):
    """The last measurement may hold the probe's own activations."""
    bench.half_opened(BETWEEN).breaker.record_success(bench.breaker.admit())
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.admit().verdict is Verdict.REFUSED

    bench.wait(1)
    bench.breaker.observe(0.65)
    assert bench.breaker.state is HALF_OPEN
    bench.wait(1)
    bench.breaker.observe(0.64)
    assert bench.breaker.state is CLOSED


def test_the_failures_that_opened_it_do_not_count_once_it_has_closed(bench: Bench):
    """They are still within the window; one more must not open it again."""
    bench.half_opened(WARN).breaker.record_success(bench.breaker.admit())
    bench.breaker.observe(LOW)
    assert bench.breaker.state is CLOSED
    bench.fail(1)

    assert bench.breaker.state is CLOSED
    assert bench.breaker.snapshot().n_failures == 1


def test_while_memory_stays_between_the_lines_a_probe_runs_each_recovery_timeout(bench: Bench):
    """One request after another would keep memory where it is."""
    bench.half_opened(BETWEEN)
    verdicts = []
    for _ in range(31):
        bench.breaker.observe(BETWEEN)
        verdicts.append(bench.serve())
        bench.wait(1)

    assert [at_s for at_s, verdict in enumerate(verdicts) if verdict is Verdict.PROBE] == [
        0,
        15,
        30,
    ]
    assert bench.breaker.state is HALF_OPEN


def test_a_failed_probe_opens_it_for_another_recovery_timeout(bench: Bench):
    """However low memory looks."""
    bench.half_opened().breaker.record_failure(bench.breaker.admit())

    assert bench.breaker.state is OPEN
    assert bench.breaker.admit().retry_after_s == 15


def test_an_earlier_good_probe_is_worth_nothing_after_a_failure(bench: Bench):
    """Low memory alone must not close it."""
    bench.half_opened(BETWEEN).breaker.record_success(bench.breaker.admit())
    bench.breaker.record_failure()
    bench.wait(15)
    for _ in range(2):
        bench.breaker.observe(LOW)

    assert bench.breaker.state is HALF_OPEN


def test_a_probe_whose_client_hung_up_makes_room_for_the_next(bench: Bench):
    """Or the breaker would wait for it for ever."""
    bench.half_opened().breaker.probe_dropped(bench.breaker.admit())

    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.admit().verdict is Verdict.PROBE


def test_looking_at_the_verdict_takes_no_probe_and_changes_nothing(bench: Bench):
    """A client that asks what would become of a request must not use up the only probe."""
    assert bench.breaker.verdict is Verdict.RUN
    bench.opened()
    assert bench.breaker.verdict is Verdict.REFUSED
    bench.wait(15)
    assert [bench.breaker.verdict for _ in range(2)] == [Verdict.PROBE] * 2
    assert bench.breaker.state is OPEN

    assert bench.breaker.admit().verdict is Verdict.PROBE
    assert bench.breaker.verdict is Verdict.REFUSED


def test_no_probe_is_foreseen_above_the_opening_line(bench: Bench):
    """None would start."""
    bench.opened().wait(15)
    bench.breaker.observe(HIGH)

    assert bench.breaker.verdict is Verdict.REFUSED


def test_dropping_after_the_outcome_changes_nothing(bench: Bench):
    """So that it can stand in a `finally`."""
    first = bench.half_opened(BETWEEN).breaker.admit()
    bench.breaker.record_success(first)
    bench.wait(15)
    second = bench.breaker.admit()
    bench.breaker.probe_dropped(first)

    assert second.verdict is Verdict.PROBE
    assert bench.breaker.admit().verdict is Verdict.REFUSED


def test_a_request_from_before_is_not_taken_for_the_probe(bench: Bench):
    """It ran with memory that it had taken while there was some."""
    earlier = bench.breaker.admit()
    probe = bench.half_opened().breaker.admit()
    bench.breaker.record_success(earlier)
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.admit().verdict is Verdict.REFUSED

    bench.breaker.record_success(probe)
    assert bench.breaker.state is CLOSED


def test_any_memory_failure_while_half_open_opens_it(bench: Bench):
    """A late one of an older request says the same of memory as the probe's own."""
    earlier = bench.breaker.admit()
    bench.half_opened().breaker.record_failure(earlier)

    assert bench.breaker.state is OPEN
    assert "another request" in bench.transitions[-1].reason


def test_a_probe_that_still_runs_after_another_opening_stays_the_only_one(bench: Bench):
    """A slow probe and a second one would be two requests at once."""
    probe = bench.half_opened().breaker.admit()
    bench.breaker.record_failure()
    bench.wait(15)
    assert bench.breaker.admit().verdict is Verdict.REFUSED
    assert bench.breaker.state is HALF_OPEN

    bench.breaker.record_success(probe)
    assert bench.breaker.state is CLOSED


def test_high_memory_opens_it_again_while_half_open(bench: Bench):
    """With the probe still running: its failure may be the kernel's kill."""
    bench.half_opened().breaker.admit()
    for _ in range(3):
        bench.breaker.observe(HIGH)
        bench.wait(1)

    assert bench.breaker.state is OPEN


def test_no_probe_starts_above_the_opening_line(bench: Bench):
    """Also in the two seconds in which that does not yet open it."""
    bench.half_opened().breaker.observe(HIGH)

    assert bench.breaker.admit().verdict is Verdict.REFUSED
    assert bench.breaker.state is HALF_OPEN


@pytest.mark.parametrize("floor_ratio", [0.60, 0.65, 0.72, 0.92, 1.5])
def test_it_closes_above_an_idle_floor_that_is_above_its_lines(bench: Bench, floor_ratio: float):
    """In a small container the libraries alone pass 0.65; it must not stay open for ever."""
    bench.breaker.observe(floor_ratio, floor_ratio=floor_ratio)
    bench.fail(3)
    for _ in range(17):
        bench.wait(1)
        bench.breaker.observe(floor_ratio + 0.01, floor_ratio=floor_ratio)
        bench.serve()

    assert bench.breaker.state is CLOSED


def test_memory_above_the_floor_still_opens_it():
    """The lines move above the floor; they do not go away."""
    bench = Bench()
    for _ in range(3):
        bench.breaker.observe(0.97, floor_ratio=0.92)
        bench.wait(1)

    assert bench.breaker.state is OPEN


def test_a_clock_that_jumps_back_does_not_hold_it_open(bench: Bench):
    """The recovery timeout goes on from where it was, not from an hour later."""
    bench.opened().wait(10)
    assert bench.breaker.admit().retry_after_s == 5
    bench.wait(-3600)
    assert bench.breaker.admit().retry_after_s == 5
    bench.wait(5)

    assert bench.breaker.admit().verdict is Verdict.PROBE


def test_every_transition_is_told_once_and_in_order(bench: Bench):
    """The log and the counters live on them."""
    bench.half_opened().breaker.record_failure(bench.breaker.admit())
    bench.wait(15)
    bench.breaker.record_success(bench.breaker.admit())

    assert [(told.earlier, told.later, told.at_s) for told in bench.transitions] == [
        (CLOSED, OPEN, 1000),
        (OPEN, HALF_OPEN, 1015),
        (HALF_OPEN, OPEN, 1015),
        (OPEN, HALF_OPEN, 1030),
        (HALF_OPEN, CLOSED, 1030),
    ]
    assert all(told.reason for told in bench.transitions)


def test_a_snapshot_says_how_long_requests_have_been_refused(bench: Bench):
    """From the first opening on, through failed probes."""
    bench.half_opened().breaker.record_failure(bench.breaker.admit())
    bench.wait(2)

    snapshot = bench.breaker.snapshot()
    assert snapshot.state is OPEN
    assert snapshot.n_failures == 3  # the fourth is past the threshold
    assert (snapshot.open_for_s, snapshot.retry_after_s) == (17, 13)
    assert snapshot.last_reason == bench.transitions[-1].reason
    with pytest.raises(FrozenInstanceError):
        snapshot.n_failures = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"close_ratio": 0.75},
        {"warn_ratio": 0.90},
        {"close_ratio": 0.0},
        {"failure_threshold": 0},
        {"window_s": 0.0},
        {"high_for_s": -1.0},
        {"recovery_timeout_s": 0.0},
    ],
)
def test_limits_that_contradict_each_other_are_refused(wrong: dict[str, float]):
    """A breaker that closes above where it opens would do so for ever."""
    with pytest.raises(ValueError, match=r"must be"):
        BreakerLimits(**wrong)  # type: ignore[arg-type]


class RandomWalk(RuleBasedStateMachine):
    """Any order of calls; failures and their window are counted here a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.breaker = self.bench.breaker
        self.running: list[Admittance] = []
        self.utilization_ratio = math.nan
        self.floor_ratio = 0.0
        self.passed_s = 0.0
        self.failures_s: list[float] = []
        self.n_closings = 0
        self.n_seen = 0
        self.n_good_probes = 0  # since it opened

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0, 14.0, 15.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.bench.wait(seconds)
        self.passed_s += seconds

    @rule(seconds=st.sampled_from([-0.5, -20.0, -1e6]))
    def jump_back(self, seconds: float) -> None:
        self.breaker.snapshot()  # else the jump hides time that has passed before it
        self.bench.wait(seconds)
        self.breaker.snapshot()

    @rule(
        utilization_ratio=st.sampled_from([0.2, 0.5, 0.64, 0.68, 0.72, 0.8, 0.91, 1.0]),
        floor_ratio=st.sampled_from([0.0, 0.3, 0.7, 0.93]),
    )
    def observe(self, utilization_ratio: float, floor_ratio: float) -> None:
        self.utilization_ratio, self.floor_ratio = utilization_ratio, floor_ratio
        self.breaker.observe(utilization_ratio, floor_ratio=floor_ratio)

    @rule()
    def admit(self) -> None:
        foreseen = self.breaker.verdict
        admittance = self.breaker.admit()
        expected = {
            CLOSED: {Verdict.RUN},
            HALF_OPEN: {Verdict.PROBE, Verdict.REFUSED},
            OPEN: {Verdict.REFUSED},
        }
        assert admittance.verdict is foreseen
        assert admittance.verdict in expected[self.breaker.state]
        assert (admittance.retry_after_s >= 1) == (admittance.verdict is Verdict.REFUSED)
        assert admittance.retry_after_s <= 15
        if admittance.verdict is not Verdict.REFUSED:
            self.running.append(admittance)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        if self.utilization_ratio < max(0.70, self.floor_ratio + 0.02):
            self.failures_s.clear()
        admittance = self._ended(data)
        if admittance.verdict is Verdict.PROBE and self.breaker.state is HALF_OPEN:
            self.n_good_probes += 1
        self.breaker.record_success(admittance)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.failures_s.append(self.passed_s)
        self.breaker.record_failure(self._ended(data))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        self.breaker.probe_dropped(self._ended(data))

    @rule()
    def fail_elsewhere(self) -> None:
        self.failures_s.append(self.passed_s)
        self.breaker.record_failure()

    @rule()
    def recover(self) -> None:
        """From wherever it is: requests end, memory is low, probes succeed."""
        for admittance in self.running:
            self.breaker.probe_dropped(admittance)
        self.running.clear()
        for _ in range(17):
            self.observe(0.2, 0.0)
            self.n_good_probes += self.bench.serve() is Verdict.PROBE
            self.wait(1.0)
        self.failures_s.clear()
        assert self.breaker.state is CLOSED

    @invariant()
    def one_probe_at_most(self) -> None:
        assert sum(admittance.verdict is Verdict.PROBE for admittance in self.running) <= 1

    @invariant()
    def only_the_drawn_transitions(self) -> None:
        told = self.bench.transitions
        drawn = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
        assert {(change.earlier, change.later) for change in told} <= drawn
        states = [CLOSED, *(change.later for change in told)]
        assert [change.earlier for change in told] == states[:-1]
        assert states[-1] is self.breaker.state

    @invariant()
    def it_closes_only_after_a_good_probe(self) -> None:
        told = self.bench.transitions[self.n_seen :]
        self.n_seen += len(told)
        for change in told:
            if change.later is CLOSED:
                assert self.n_good_probes > 0
            if change.later is OPEN:
                self.n_good_probes = 0

    @invariant()
    def failures_are_counted_right(self) -> None:
        n_closings = sum(change.later is CLOSED for change in self.bench.transitions)
        if n_closings > self.n_closings:
            self.n_closings = n_closings
            self.failures_s.clear()
        recent = [at_s for at_s in self.failures_s if self.passed_s - at_s <= 30]
        assert self.breaker.snapshot().n_failures == min(3, len(recent))
        assert len(recent) < 3 or self.breaker.state is not CLOSED

    def _ended(self, data: st.DataObject) -> Admittance:
        index = data.draw(st.integers(0, len(self.running) - 1))
        return self.running.pop(index)


TestRandomWalk = RandomWalk.TestCase
TestRandomWalk.settings = settings(max_examples=100, stateful_step_count=50)

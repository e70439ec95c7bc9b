"""Keeping what helps and reverting what does not, second by second on a made-up clock."""

from collections import deque

import pytest

from plimsoll.machine.cpu import CPUSample
from plimsoll.machine.disk import DiskSample
from plimsoll.machine.memory import MemorySample
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.runs import EngineTotals
from plimsoll.sidecar.load_times import LoadTotals
from plimsoll.tuning.bottleneck import Kind
from plimsoll.tuning.evidence import GIB, Evidence, Look
from plimsoll.tuning.trials import (
    MOST_MEASURE_S,
    REST_S,
    TRUSTED_S,
    Record,
    Trials,
)
from plimsoll.tuning.verdict import Outcome

CPUS = frozenset({0, 1})
GONE_S = 20.0


class FakeRemedy:
    """Notes when it is applied; changes nothing where a test says so."""

    outlives_cause_s = GONE_S

    def __init__(self, name: str = "remedy", kind: Kind = Kind.CPU) -> None:
        self.name = name
        self.kind = kind
        self.asked = NOTHING_ASKED
        self.n_applied = 0
        self.is_possible = True

    def apply(self, evidence: Evidence) -> str | None:
        if not self.is_possible:
            return None
        self.n_applied += 1
        self.asked = Asked(most_threads=1)
        return "something else"

    def revert(self) -> None:
        self.asked = NOTHING_ASKED


class Bench:
    """A server that is looked at every second; `speed` is of its runs, one a second."""

    def __init__(self, *remedies: FakeRemedy) -> None:
        self.trials = Trials(remedies)
        self.kind = Kind.CPU
        self.since_s = 0.0
        self.speed = 100.0
        self.others = 0.6
        self.read_bytes_per_s = 0
        self.used_bytes = 10
        self.is_busy = True
        self.is_held_back = False
        self.queue_tokens = 0
        self.is_loading = False
        self.loading_s_per_gib = 4.0
        self.looks: deque[Look] = deque(maxlen=round(MOST_MEASURE_S) + 2)
        self._look = Look(
            at_s=0.0,
            memory=MemorySample(10, 10, 10, 100, "group"),
            cpu=CPUSample(0.0, 0.0, 0.0, 2, CPUS),
            disk=DiskSample(0, 0, 0.0),
        )

    @property
    def now_s(self) -> float:
        return self._look.at_s

    def pass_s(self, seconds: float) -> list[Record]:
        """So many looks; returns what ended."""
        ended = []
        for _ in range(round(seconds)):
            self._next_look()
            record = self.trials.advance(self.kind, self.since_s, list(self.looks))
            if record is not None:
                ended.append(record)
        return ended

    def until_tried(self, remedy: FakeRemedy, most_s: int = 2000) -> float:
        """Seconds until the remedy is applied once more."""
        n_applied = remedy.n_applied
        start_s = self.now_s
        while remedy.n_applied == n_applied:
            assert self.now_s - start_s < most_s, "it was never tried"
            self.pass_s(1)
        return self.now_s - start_s

    def _next_look(self) -> None:
        look = self._look
        n_runs = int(self.is_busy)
        self._look = Look(
            at_s=look.at_s + 1,
            memory=MemorySample(self.used_bytes, 10, 10, 100, "group"),
            cpu=CPUSample(
                look.cpu.busy_s + 2.0, look.cpu.own_s + 2 * (1 - self.others), 0.0, 2, CPUS
            ),
            disk=DiskSample(
                look.disk.read_bytes + self.read_bytes_per_s, 0, look.disk.system_s + 1
            ),
            engine=EngineTotals(
                look.engine.busy_s + n_runs,
                look.engine.n_runs + n_runs,
                look.engine.n_tokens + round(self.speed) * n_runs,
                look.engine.run_s + n_runs,
            ),
            is_held_back=self.is_held_back,
            queue_tokens=self.queue_tokens,
            drain_tokens_per_s=100,
            loads=LoadTotals(
                n_under_way=int(self.is_loading),
                loading_s=look.loads.loading_s + self.is_loading,
                stage_s={"expand": look.loads.stage_s.get("expand", 0.0) + self.is_loading},
                n_bytes=look.loads.n_bytes + self.is_loading * round(GIB / self.loading_s_per_gib),
            ),
        )
        self.looks.append(self._look)


def test_what_makes_runs_faster_is_kept():
    """The point of it all."""
    remedy = FakeRemedy()
    bench = Bench(remedy)

    bench.until_tried(remedy)
    bench.speed = 120.0
    (record,) = bench.pass_s(15)

    assert (record.outcome, record.action, record.kind) == (Outcome.KEPT, "remedy", Kind.CPU)
    assert record.before.run_tokens_per_s == pytest.approx(100)
    assert record.after.run_tokens_per_s == pytest.approx(120)
    assert bench.trials.asked == remedy.asked != NOTHING_ASKED


@pytest.mark.parametrize("speed", [100.0, 60.0, 104.0])
def test_what_does_not_help_is_reverted(speed: float):
    """A change that only might help makes the server harder to understand."""
    remedy = FakeRemedy()
    bench = Bench(remedy)

    bench.until_tried(remedy)
    bench.speed = speed
    (record,) = bench.pass_s(15)

    assert record.outcome is Outcome.REVERTED
    assert f"× {speed / 100:.2f}" in record.reason
    assert remedy.asked == bench.trials.asked == NOTHING_ASKED


def test_nothing_is_tried_before_there_is_something_to_compare_with():
    """And looks from before the bottleneck came are not it."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.kind = Kind.NONE
    bench.pass_s(30)
    bench.kind, bench.since_s = Kind.CPU, bench.now_s

    bench.pass_s(7)
    assert not remedy.n_applied
    assert bench.until_tried(remedy) < 5


def test_what_is_named_but_gone_is_not_acted_on():
    """The name outlives its cause by the length of its window."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.pass_s(5)
    bench.others = 0.0

    bench.pass_s(20)

    assert not remedy.n_applied


def test_one_thing_is_tried_at_a_time():
    """Of two changes at once it would not be known which one helped."""
    first, second = FakeRemedy("first"), FakeRemedy("second")
    bench = Bench(first, second)

    bench.until_tried(first)
    bench.pass_s(5)
    assert not second.n_applied
    bench.until_tried(second)
    assert (first.n_applied, first.asked) == (1, NOTHING_ASKED)


def test_a_remedy_that_finds_nothing_to_do_lets_the_next_one_try():
    """On a machine with one processor there is none to avoid."""
    first, second = FakeRemedy("first"), FakeRemedy("second")
    first.is_possible = False
    bench = Bench(first, second)

    bench.until_tried(second)

    assert [record.action for record in bench.trials.records] == ["second"]


def test_other_kinds_remedies_are_left_alone():
    """Fewer threads do not make a disk faster."""
    remedy = FakeRemedy(kind=Kind.DISK)
    bench = Bench(remedy)

    bench.pass_s(60)

    assert not remedy.n_applied


def test_what_did_not_help_rests_longer_each_time():
    """Each try costs some seconds of worse service."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.until_tried(remedy)

    rests_s = [bench.until_tried(remedy) for _ in range(3)]

    assert rests_s[0] >= REST_S
    assert rests_s[1] >= 2 * REST_S
    assert rests_s[2] >= 4 * REST_S


def test_what_was_kept_is_let_go_when_its_cause_has_been_gone_for_long():
    """A cap for a neighbour who has left holds back for nothing."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.until_tried(remedy)
    bench.speed = 120.0
    bench.pass_s(15)
    bench.kind = Kind.NONE

    assert not bench.pass_s(GONE_S - 5)
    assert remedy.asked != NOTHING_ASKED
    (record,) = bench.pass_s(10)

    assert (record.outcome, remedy.asked) == (Outcome.LET_GO, NOTHING_ASKED)


def test_what_was_kept_has_to_prove_itself_again():
    """It may have been chance."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.until_tried(remedy)
    bench.speed = 120.0
    bench.pass_s(15)

    (record,) = bench.pass_s(TRUSTED_S)

    assert record.reason == "to be tried anew"
    bench.until_tried(remedy)
    assert bench.pass_s(15)[0].outcome is Outcome.REVERTED  # as fast without it by now


def test_layers_that_were_kept_make_room_when_memory_runs_short():
    """They were kept for speed alone."""
    remedy = FakeRemedy(kind=Kind.DISK)
    bench = Bench(remedy)
    bench.kind, bench.read_bytes_per_s = Kind.DISK, 100 << 20
    bench.until_tried(remedy)
    bench.speed = 120.0
    assert bench.pass_s(15)[0].outcome is Outcome.KEPT
    bench.kind = Kind.MEMORY

    (record,) = bench.pass_s(1)

    assert (record.outcome, record.reason) == (Outcome.LET_GO, "memory is short")


def test_without_load_nothing_is_concluded():
    """Clients that went home make every number better."""
    remedy = FakeRemedy()
    bench = Bench(remedy)
    bench.until_tried(remedy)
    bench.is_busy = False

    (record,) = bench.pass_s(60)

    assert (record.outcome, remedy.asked) == (Outcome.UNCLEAR, NOTHING_ASKED)


def test_memory_that_runs_short_ends_every_other_trial():
    """Pages that are kept for speed must not be why requests are refused."""
    remedy = FakeRemedy(kind=Kind.DISK)
    bench = Bench(remedy)
    bench.kind = Kind.DISK
    bench.read_bytes_per_s = 100 << 20
    bench.until_tried(remedy)
    bench.kind = Kind.MEMORY

    (record,) = bench.pass_s(1)

    assert (record.outcome, remedy.asked) == (Outcome.UNCLEAR, NOTHING_ASKED)


def test_memory_is_acted_on_while_nothing_runs_at_all():
    """When every request is held back there are no runs to wait for."""
    remedy = FakeRemedy(kind=Kind.MEMORY)
    bench = Bench(remedy)
    bench.kind, bench.is_busy, bench.is_held_back, bench.used_bytes = Kind.MEMORY, False, True, 90

    assert bench.until_tried(remedy) < 12
    bench.is_busy, bench.is_held_back, bench.used_bytes = True, False, 60
    (record,) = bench.pass_s(15)

    assert record.outcome is Outcome.KEPT


class Conversion(Bench):
    """A server that runs one model while the weights of another are converted."""

    def __init__(self, remedy: FakeRemedy) -> None:
        super().__init__(remedy)
        self.kind, self.is_loading, self.others = Kind.DEQUANTIZATION, True, 0.1


def test_a_faster_conversion_is_kept_and_the_record_says_what_it_costs_runs():
    """It is over in seconds, and requests for its model wait for it."""
    remedy = FakeRemedy(kind=Kind.DEQUANTIZATION)
    bench = Conversion(remedy)
    bench.until_tried(remedy)
    bench.loading_s_per_gib, bench.speed = 3.0, 60.0

    (record,) = bench.pass_s(4)

    assert record.outcome is Outcome.KEPT
    assert record.before.pressure == pytest.approx(4.0, rel=1e-6)
    assert "speed × 0.60, pressure × 0.75" in record.reason


@pytest.mark.parametrize("seconds_per_gib", [4.0, 3.9, 5.0])
def test_a_conversion_that_gets_no_faster_gives_the_processors_back(seconds_per_gib: float):
    """Where disk or memory limits it, runs would be slower for nothing."""
    remedy = FakeRemedy(kind=Kind.DEQUANTIZATION)
    bench = Conversion(remedy)
    bench.until_tried(remedy)
    bench.loading_s_per_gib, bench.speed = seconds_per_gib, 150.0

    (record,) = bench.pass_s(4)

    assert (record.outcome, remedy.asked) == (Outcome.REVERTED, NOTHING_ASKED)


def test_a_conversion_is_judged_within_seconds():
    """It lasts no longer."""
    remedy = FakeRemedy(kind=Kind.DEQUANTIZATION)
    bench = Conversion(remedy)

    assert bench.until_tried(remedy) <= 3
    assert len(bench.pass_s(4)) == 1


def test_what_was_done_for_a_conversion_ends_with_it():
    """Its name stays for some seconds more, in which runs would be slower for nothing."""
    remedy = FakeRemedy(kind=Kind.DEQUANTIZATION)
    remedy.outlives_cause_s = 0.0
    bench = Conversion(remedy)
    bench.until_tried(remedy)
    bench.loading_s_per_gib = 2.0
    bench.pass_s(8)
    assert remedy.asked != NOTHING_ASKED
    bench.is_loading = False

    (record,) = bench.pass_s(1)

    assert (record.outcome, remedy.asked) == (Outcome.LET_GO, NOTHING_ASKED)


def test_a_conversion_that_ends_during_the_trial_leaves_nothing_applied():
    """There is nothing to compare, and nothing left to help."""
    remedy = FakeRemedy(kind=Kind.DEQUANTIZATION)
    bench = Conversion(remedy)
    bench.until_tried(remedy)
    bench.is_loading = False

    (record,) = bench.pass_s(2)

    assert (record.outcome, remedy.asked) == (Outcome.UNCLEAR, NOTHING_ASKED)
    assert "ended" in record.reason


def test_what_is_done_about_requests_is_judged_once_those_before_it_have_been_served():
    """They still hold what they were given."""
    remedy = FakeRemedy(kind=Kind.MEMORY)
    bench = Bench(remedy)
    bench.kind, bench.is_held_back, bench.queue_tokens = Kind.MEMORY, True, 1000  # 10 s of work
    bench.until_tried(remedy)
    bench.pass_s(11)
    bench.speed = 300.0

    (record,) = bench.pass_s(12)

    assert record.outcome is Outcome.KEPT
    assert record.after.run_tokens_per_s == pytest.approx(300)

"""Keeping what helps and reverting what does not, second by second on a made-up clock."""

import asyncio
from collections import deque
from dataclasses import replace

import pytest

from app.memory.cpu import CPUSample
from app.memory.disk import DiskSample
from app.memory.monitor import MemorySample
from app.serving.bottleneck import Kind
from app.serving.evidence import EngineTotals, Evidence, Look
from app.serving.scheduler import Cap
from app.serving.trials import (
    MOST_MEASURE_S,
    REST_S,
    TRUSTED_S,
    Measure,
    Outcome,
    Record,
    Trials,
    judge,
)

CPUS = frozenset({0, 1})
GONE_S = 20.0


class FakeRemedy:
    """Notes when it is applied; changes nothing where a test says so."""

    outlives_cause_s = GONE_S

    def __init__(self, name: str = "remedy", kind: Kind = Kind.CPU, limit: int = 2) -> None:
        self.name = name
        self.kind = kind
        self.cap: Cap | None = None
        self.n_applied = 0
        self.is_possible = True
        self._limit = limit

    async def apply(self, evidence: Evidence) -> str | None:
        if not self.is_possible:
            return None
        self.n_applied += 1
        self.cap = Cap("bottleneck", self._limit, self.name)
        return "something else"

    def revert(self) -> None:
        self.cap = None


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
            record = asyncio.run(self.trials.advance(self.kind, self.since_s, list(self.looks)))
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
    assert bench.trials.caps == [remedy.cap]


@pytest.mark.parametrize("speed", [100.0, 60.0, 104.0])
def test_what_does_not_help_is_reverted(speed: float):
    """A change that only might help costs whoever has to understand the server."""
    remedy = FakeRemedy()
    bench = Bench(remedy)

    bench.until_tried(remedy)
    bench.speed = speed
    (record,) = bench.pass_s(15)

    assert record.outcome is Outcome.REVERTED
    assert f"× {speed / 100:.2f}" in record.reason
    assert (remedy.cap, bench.trials.caps) == (None, [])


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
    """Of two changes at once nobody knows which one helped."""
    first, second = FakeRemedy("first"), FakeRemedy("second")
    bench = Bench(first, second)

    bench.until_tried(first)
    bench.pass_s(5)
    assert not second.n_applied
    bench.until_tried(second)
    assert (first.n_applied, first.cap) == (1, None)


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
    assert remedy.cap is not None
    (record,) = bench.pass_s(10)

    assert (record.outcome, remedy.cap) == (Outcome.LET_GO, None)


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

    assert (record.outcome, remedy.cap) == (Outcome.UNCLEAR, None)


def test_memory_that_runs_short_ends_every_other_trial():
    """Pages that are kept for speed must not be why requests are refused."""
    remedy = FakeRemedy(kind=Kind.DISK)
    bench = Bench(remedy)
    bench.kind = Kind.DISK
    bench.read_bytes_per_s = 100 << 20
    bench.until_tried(remedy)
    bench.kind = Kind.MEMORY

    (record,) = bench.pass_s(1)

    assert (record.outcome, remedy.cap) == (Outcome.UNCLEAR, None)


def test_memory_is_acted_on_while_nothing_runs_at_all():
    """When every request is held back there are no runs to wait for."""
    remedy = FakeRemedy(kind=Kind.MEMORY)
    bench = Bench(remedy)
    bench.kind, bench.is_busy, bench.is_held_back, bench.used_bytes = Kind.MEMORY, False, True, 90

    assert bench.until_tried(remedy) < 12
    bench.is_busy, bench.is_held_back, bench.used_bytes = True, False, 60
    (record,) = bench.pass_s(15)

    assert record.outcome is Outcome.KEPT


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (Measure(100, 10), Measure(100, 8), Outcome.KEPT),
        (Measure(100, 10), Measure(96, 8.5), Outcome.KEPT),
        (Measure(100, 10), Measure(90, 8), Outcome.REVERTED),
        (Measure(100, 10), Measure(100, 9.5), Outcome.REVERTED),
        (Measure(100, 10), Measure(110, 10.5), Outcome.KEPT),
        (Measure(100, 10), Measure(110, 15), Outcome.REVERTED),
        (Measure(100, 10), Measure(100, 0), Outcome.KEPT),
        (Measure(None, 10), Measure(100, 8), Outcome.KEPT),
        (Measure(None, 0), Measure(100, 0), Outcome.UNCLEAR),
        (Measure(100, 0), Measure(None, 0), Outcome.UNCLEAR),
    ],
)
def test_helping_is_more_speed_or_less_pressure_and_neither_at_the_others_cost(
    before: Measure, after: Measure, outcome: Outcome
):
    """Runs that are smaller save memory in any case; the question is at which price."""
    assert judge(Kind.DISK, before, after)[0] is outcome


def test_speed_says_nothing_where_others_load_has_changed():
    """A neighbour who leaves must not be taken for a remedy that works."""
    before, after = Measure(100, 0, 0.7), Measure(200, 0, 0.2)

    assert judge(Kind.MEMORY, before, after)[0] is Outcome.UNCLEAR
    assert (
        judge(Kind.MEMORY, replace(before, pressure=1), replace(after, pressure=1))[0]
        is Outcome.REVERTED
    )
    assert judge(Kind.CPU, before, after)[0] is Outcome.KEPT  # there it may be the effect

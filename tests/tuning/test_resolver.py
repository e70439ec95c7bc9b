"""The name over time, and what is shown of it."""

from dataclasses import replace

import pytest

from plimsoll.machine.cpu import CPUSample
from plimsoll.machine.disk import DiskSample
from plimsoll.machine.memory import MemorySample
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.runs import EngineTotals
from plimsoll.policy.scheduler import Cap
from plimsoll.sidecar.load_times import LoadTotals
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.tuning.bottleneck import Kind
from plimsoll.tuning.evidence import Evidence, Look
from plimsoll.tuning.resolver import DWELL_S, BottleneckResolver
from tests.fakes import FakeClock, metric


class FakeRemedy:
    """Caps the parallelism."""

    name = "remedy"
    kind = Kind.CPU
    outlives_cause_s = 20.0
    asked = NOTHING_ASKED

    def apply(self, evidence: Evidence) -> str | None:
        self.asked = Asked((Cap("bottleneck", 3, "a test says so"),))
        return "parallelism 8 -> 3"

    def revert(self) -> None:
        self.asked = NOTHING_ASKED


class Bench:
    """A busy server whose processors others share, as a test says."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.telemetry = Telemetry("test")
        self.resolver = BottleneckResolver(
            self.clock,
            self.telemetry.bottleneck,
            [FakeRemedy()],
        )
        self.others = 0.0
        self.queue_tokens = 0
        self.loads = LoadTotals()
        self._look = Look(
            at_s=self.clock(),
            memory=MemorySample(10, 10, 10, 100, "group"),
            cpu=CPUSample(0.0, 0.0, 0.0, 2, frozenset({0, 1})),
            disk=DiskSample(0, 0, 0.0),
            others_s={0: 0.0, 1: 0.0},
            drain_tokens_per_s=100,
        )

    @property
    def kind(self) -> Kind:
        return self.resolver.bottleneck.kind

    def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now_s += 1
            look, engine = self._look, self._look.engine
            cpu = look.cpu
            self._look = replace(
                look,
                at_s=self.clock(),
                cpu=replace(cpu, busy_s=cpu.busy_s + 2, own_s=cpu.own_s + 2 * (1 - self.others)),
                engine=EngineTotals(
                    engine.busy_s + 1, engine.n_runs + 1, engine.n_tokens + 100, engine.run_s + 1
                ),
                queue_tokens=self.queue_tokens,
                loads=self.loads,
            )
            self.resolver.look(self._look)

    def metric(self, series: str) -> float:
        return metric(self.telemetry.render().decode(), series)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_before_the_first_look_nothing_is_named(bench: Bench):
    """A page that is asked for at once has to answer too."""
    report = bench.resolver.report()
    assert (report["kind"], report["evidence"], report["actions"]) == ("none", None, [])


def test_a_cause_is_named_within_seconds_and_shown_everywhere(bench: Bench):
    """`/bottleneck`, the metric and the log must not tell different stories."""
    bench.others = 0.6
    bench.pass_s(4)

    report = bench.resolver.report()
    assert report["kind"] == "cpu"
    assert "60 %" in report["reasons"][0]
    assert report["what_you_could_do"]
    assert report["evidence"]["others_ratio"] == pytest.approx(0.6)
    assert report["scores"]["cpu"] >= 1
    for kind in Kind:
        series = f'plimsoll_bottleneck{{kind="{kind.value}"}}'
        assert bench.metric(series) == (kind is Kind.CPU)


def test_one_second_of_trouble_is_not_named(bench: Bench):
    """A name that comes and goes with every gust helps no reader."""
    bench.pass_s(20)
    bench.others = 0.9
    bench.pass_s(1)
    bench.others = 0.0
    bench.pass_s(5)
    assert bench.kind is Kind.NONE


def test_a_name_goes_once_its_cause_has_gone(bench: Bench):
    """In the end, and not at once."""
    bench.others = 0.6
    bench.pass_s(10)
    bench.others = 0.0
    bench.pass_s(1)
    assert bench.kind is Kind.CPU
    bench.pass_s(9)
    assert bench.kind is Kind.NONE


def test_a_name_stays_for_a_while_before_another_takes_its_place(bench: Bench):
    """Two causes at once must not take turns every second."""
    bench.queue_tokens = 1000
    bench.pass_s(4)
    assert bench.kind is Kind.QUEUE
    bench.others = 0.95
    bench.pass_s(2)
    assert bench.kind is Kind.QUEUE
    bench.pass_s(round(DWELL_S))
    assert bench.kind is Kind.CPU


def test_a_conversion_is_named_at_the_first_look(bench: Bench):
    """It may be over in two seconds."""
    bench.pass_s(1)
    bench.loads = LoadTotals(1, 0.5, {"expand": 1.0})
    bench.pass_s(1)
    assert bench.kind is Kind.DEQUANTIZATION


def test_what_is_tried_is_capped_counted_and_told_with_its_figures(bench: Bench):
    """A server that changes by itself has to say what it did and whether it was right."""
    bench.others = 0.6
    bench.pass_s(14)

    assert [cap.limit for cap in bench.resolver.asked.caps] == [3]
    (action,) = bench.resolver.report()["actions"]
    assert (action["action"], action["change"]) == ("remedy", "parallelism 8 -> 3")
    assert action["outcome"] is None

    bench.pass_s(14)
    (action,) = bench.resolver.report()["actions"]
    assert (action["outcome"], action["kind"]) == ("reverted", "cpu")
    assert action["before"]["run_tokens_per_s"] == action["after"]["run_tokens_per_s"] == 100
    assert action["ago_s"] >= 10
    assert bench.resolver.asked == NOTHING_ASKED
    series = 'plimsoll_bottleneck_actions_total{action="remedy",outcome="reverted"}'
    assert bench.metric(series) == 1


def test_looks_are_kept_for_as_long_as_they_are_compared_and_no_longer(bench: Bench):
    """A server runs for months."""
    bench.pass_s(500)
    assert len(bench.resolver._looks) < 60

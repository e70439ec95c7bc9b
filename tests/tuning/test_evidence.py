"""Rates and shares over a row of looks."""

from dataclasses import replace

import pytest

from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.machine.cpu import CPUSample
from plimsoll.machine.disk import DiskSample
from plimsoll.machine.memory import MemorySample
from plimsoll.policy.runs import EngineTotals
from plimsoll.policy.scheduler import Plan
from plimsoll.sidecar.load_times import LoadTotals
from plimsoll.tuning.evidence import GIB, Look, evidence_of

FIRST = Look(
    at_s=100.0,
    memory=MemorySample(40, 40, 40, 100, "group", 0.1, n_refaults=7),
    cpu=CPUSample(busy_s=50.0, own_s=20.0, throttled_s=3.0, cores=2, cpus=frozenset({0, 1})),
    disk=DiskSample(read_bytes=1000, n_major_faults=5, system_s=4.0, pressure_ratio=0.2),
    engine=EngineTotals(busy_s=10.0, n_runs=3, n_tokens=900, run_s=9.0),
    loads=LoadTotals(0, 5.0, {"expand": 4.0, "validate": 1.0, "read": 2.0, "write": 3.0}, 100),
    others_s={0: 10.0, 1: 20.0},
    queue_tokens=100,
    drain_tokens_per_s=50.0,
)
# Ten seconds later.
LAST = Look(
    at_s=110.0,
    memory=MemorySample(80, 80, 80, 100, "group", 0.3, n_refaults=107),
    cpu=CPUSample(busy_s=68.0, own_s=30.0, throttled_s=4.0, cores=2, cpus=frozenset({0, 1})),
    disk=DiskSample(read_bytes=51000, n_major_faults=25, system_s=6.0, pressure_ratio=0.4),
    engine=EngineTotals(busy_s=15.0, n_runs=5, n_tokens=1300, run_s=13.0),
    loads=LoadTotals(
        1, 9.0, {"expand": 6.0, "validate": 2.0, "read": 2.0, "write": 4.0}, 100 + GIB // 2
    ),
    others_s={0: 17.0, 1: 21.0},
    queue_tokens=300,
    drain_tokens_per_s=50.0,
    is_held_back=True,
)


def test_counters_become_rates_and_shares():
    """Every number by hand."""
    evidence = evidence_of([FIRST, LAST])

    assert evidence.refaults_per_s == 10
    assert evidence.read_bytes_per_s == 5000
    assert evidence.major_faults_per_s == 2
    assert evidence.system_ratio == pytest.approx(0.2)  # 2 of our 10 s
    assert evidence.others_ratio == pytest.approx(0.4)  # 8 of two processors' 20 s
    assert evidence.own_ratio == pytest.approx(0.5)
    assert evidence.throttled_ratio == pytest.approx(0.1)
    assert evidence.others_by_core == pytest.approx({0: 0.7, 1: 0.1})
    assert evidence.busy_ratio == pytest.approx(0.5)
    assert (evidence.n_runs, evidence.tokens_per_s) == (2, 40)
    assert evidence.run_tokens_per_s == pytest.approx(100)  # 400 tokens in 4 s of runs
    assert evidence.arrived_tokens_per_s == pytest.approx(60)  # 400 ran, the queue grew by 200
    assert (evidence.queue_tokens, evidence.queue_s) == (300, 6)
    assert (evidence.is_loading, evidence.loading_ratio) == (True, pytest.approx(0.4))
    assert evidence.expand_ratio == pytest.approx(0.75)  # 3 of 4 s of work
    assert evidence.loading_s_per_gib == pytest.approx(8)  # 4 s for half a GiB


def test_levels_are_means_of_all_looks_but_the_first():
    """The first look only says where the counters stood."""
    evidence = evidence_of([FIRST, replace(FIRST, at_s=105.0), LAST])

    assert evidence.utilization_ratio == pytest.approx(0.6)
    assert evidence.held_back_ratio == 0.5
    assert evidence.pressure_ratio == pytest.approx(0.2)
    assert evidence.io_pressure_ratio == pytest.approx(0.3)


def test_where_nothing_has_happened_there_is_no_speed():
    """Zero would look like an engine that stands still."""
    evidence = evidence_of([FIRST, replace(FIRST, at_s=101.0)])

    assert evidence.run_tokens_per_s is None
    assert evidence.busy_ratio == evidence.system_ratio == evidence.expand_ratio == 0
    assert evidence.loading_s_per_gib == 0


def test_the_plan_and_the_model_are_those_of_the_last_look():
    """A remedy starts from what holds now."""
    plan, weights = Plan(2, 2, 1, (), ()), WeightSizes(500, 30, 12)

    evidence = evidence_of([FIRST, replace(LAST, plan=plan, weights=weights)])

    assert (evidence.plan, evidence.weights) == (plan, weights)

"""Each remedy alone: what it changes, when there is nothing to do, and that it can be undone."""

import os
from dataclasses import replace

import pytest

from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.machine.threads import ThreadPlacement
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.scheduler import Plan
from plimsoll.tuning.bottleneck import MIB
from plimsoll.tuning.evidence import Evidence
from plimsoll.tuning.remedies import (
    AvoidTakenCores,
    FewerThreads,
    KeepLayers,
    RoomForRuns,
    YieldToConversion,
)

EVIDENCE = Evidence(seconds=8.0, cores=4, budget_bytes=400 * MIB, used_bytes=80 * MIB)
# As Nomic's: 12 layers of 36 MiB and a table that takes no part.
SIZES = WeightSizes(520 * MIB, 36 * MIB, 12)


def plan(parallelism: int, engine_threads: int) -> Plan:
    return Plan(parallelism, engine_threads, 0, (), ())


@pytest.mark.parametrize(
    ("others", "throttled", "limit"), [(0.5, 0.0, 2), (0.2, 0.3, 2), (0.9, 0.0, 1), (1.0, 1.0, 1)]
)
def test_threads_are_as_many_as_there_are_processors_left(
    others: float, throttled: float, limit: int
):
    """One thread that shares its processor holds up those that do not."""
    remedy = FewerThreads()
    remedy.apply(replace(EVIDENCE, others_ratio=others, throttled_ratio=throttled, plan=plan(8, 4)))
    assert remedy.asked == Asked(most_threads=limit)
    remedy.revert()
    assert remedy.asked == NOTHING_ASKED


def test_threads_that_are_few_enough_stay():
    """Otherwise runs would be slower for nothing."""
    remedy = FewerThreads()
    assert remedy.apply(replace(EVIDENCE, others_ratio=0.4, plan=plan(8, 2))) is None
    assert remedy.asked == NOTHING_ASKED


class FakePlacement(ThreadPlacement):
    """Notes where threads were moved to."""

    def __init__(self) -> None:
        super().__init__(lambda name: True)
        self.cores: list[int] | None = None

    def move(self, cores: list[int]) -> bool:
        self.cores = cores
        return True

    def restore(self) -> None:
        self.cores = None


def test_taken_processors_are_avoided_with_a_thread_for_each_of_the_others():
    """Two threads on one processor would be no better than a neighbour."""
    placement = FakePlacement()
    remedy = AvoidTakenCores(placement)
    taken = {0: 0.0, 1: 0.9, 2: 0.1, 3: 0.3}

    assert remedy.apply(replace(EVIDENCE, others_by_core=taken)) is not None
    assert placement.cores == [0, 2, 3]
    assert [cap.limit for cap in remedy.asked.caps] == [3]
    remedy.revert()
    assert (placement.cores, remedy.asked) == (None, NOTHING_ASKED)


@pytest.mark.parametrize("shares", [{}, {0: 0.9, 1: 0.8}, {0: 0.1, 1: 0.2}, {0: 0.5, 1: 0.3}])
def test_where_all_processors_are_alike_there_is_none_to_avoid(shares: dict[int, float]):
    """The kernel spreads threads well enough by itself."""
    placement = FakePlacement()
    assert AvoidTakenCores(placement).apply(replace(EVIDENCE, others_by_core=shares)) is None
    assert placement.cores is None


def test_as_many_layers_are_kept_as_fit_beside_used_memory():
    """And the rule decides again afterwards."""
    remedy = KeepLayers()
    evidence = replace(EVIDENCE, weights=SIZES)

    assert remedy.apply(evidence) == "6 of 12 layers stay in memory, the others are read ahead"
    assert remedy.asked.kept_bytes == 300 * MIB  # of 95 % of the budget
    remedy.revert()
    assert remedy.asked == NOTHING_ASKED


@pytest.mark.parametrize(
    "evidence",
    [
        EVIDENCE,
        replace(EVIDENCE, weights=SIZES, used_bytes=360 * MIB),
        replace(EVIDENCE, weights=SIZES, is_loading=True),
    ],
)
def test_no_layers_are_kept_before_a_model_has_run_or_where_none_fits(evidence: Evidence):
    """There is nothing to change; and a conversion's pages would push them out."""
    remedy = KeepLayers()
    assert remedy.apply(evidence) is None
    assert remedy.asked == NOTHING_ASKED


def test_requests_leave_room_to_runs_where_some_wait_for_it():
    """Without any that waits, the room is not what is short."""
    remedy = RoomForRuns()
    assert remedy.apply(EVIDENCE) is None
    assert remedy.asked == NOTHING_ASKED

    assert remedy.apply(replace(EVIDENCE, held_back_ratio=0.5))
    assert remedy.asked.run_ratio == 0.5
    remedy.revert()
    assert remedy.asked == NOTHING_ASKED


CONVERSION = replace(EVIDENCE, is_loading=True, busy_ratio=1.0, own_ratio=0.95, plan=plan(8, 4))


def test_the_engine_yields_half_of_its_threads_to_a_conversion():
    """Its requests are served all the same."""
    remedy = YieldToConversion()

    assert remedy.apply(CONVERSION) == "4 -> 2 engine threads while weights are converted"
    assert remedy.asked == Asked(most_threads=2)
    remedy.revert()
    assert remedy.asked == NOTHING_ASKED


@pytest.mark.parametrize(
    "evidence",
    [
        replace(CONVERSION, is_loading=False),
        replace(CONVERSION, busy_ratio=0.2),
        replace(CONVERSION, own_ratio=0.6),
        replace(CONVERSION, plan=plan(1, 1)),
    ],
)
def test_where_engine_and_conversion_do_not_compete_nothing_is_yielded(evidence: Evidence):
    """A first start has no runs; and many processors have room for both."""
    remedy = YieldToConversion()
    assert remedy.apply(evidence) is None
    assert remedy.asked == NOTHING_ASKED


def test_remedies_leave_the_process_as_it_was():
    """Moving the event loop's thread would change what the CPU monitor sees."""
    before = os.sched_getaffinity(0)
    remedy = AvoidTakenCores()
    remedy.apply(replace(EVIDENCE, others_by_core={min(before): 0.9, max(before): 0.0}))
    assert os.sched_getaffinity(0) == before
    remedy.revert()
    assert os.sched_getaffinity(0) == before

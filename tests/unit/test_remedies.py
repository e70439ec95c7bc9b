"""Each remedy alone: what it changes, when there is nothing to do, and that it can be undone."""

import asyncio
import os
from dataclasses import replace

import pytest

from app.memory.affinity import ThreadPlacement
from app.serving.bottleneck import MIB
from app.serving.evidence import Evidence
from app.serving.remedies import (
    AvoidTakenCores,
    KeepLayers,
    PageKeeping,
    ReleaseMemory,
    Remedy,
    WeightSizes,
    fewer_threads,
    smaller_runs,
)
from app.serving.scheduler import Plan
from tests.fakes import FakeModel

EVIDENCE = Evidence(seconds=8.0, cores=4, budget_bytes=400 * MIB, used_bytes=80 * MIB)
# As Nomic's: 12 layers of 36 MiB and a table that takes no part.
SIZES = WeightSizes(520 * MIB, 36 * MIB, 12)


def plan(parallelism: int, engine_threads: int) -> Plan:
    return Plan(parallelism, engine_threads, 0, (), ())


def apply(remedy: Remedy, evidence: Evidence = EVIDENCE) -> str | None:
    return asyncio.run(remedy.apply(evidence))


@pytest.mark.parametrize(("parallelism", "limit"), [(8, 4), (2, 1), (3, 1)])
def test_smaller_runs_are_half_as_large(parallelism: int, limit: int):
    """The scheduler sets the parallelism; this is a cap among others."""
    remedy = smaller_runs(lambda: plan(parallelism, 2))

    assert apply(remedy) == f"parallelism {parallelism} -> {limit}"
    assert remedy.cap.limit == limit
    remedy.revert()
    assert remedy.cap is None


def test_runs_that_cannot_be_smaller_stay():
    """One sequence is the least."""
    remedy = smaller_runs(lambda: plan(1, 1))
    assert apply(remedy) is None
    assert remedy.cap is None


@pytest.mark.parametrize(
    ("others", "throttled", "limit"), [(0.5, 0.0, 2), (0.2, 0.3, 2), (0.9, 0.0, 1), (1.0, 1.0, 1)]
)
def test_threads_are_as_many_as_there_are_processors_left(
    others: float, throttled: float, limit: int
):
    """One thread that shares its processor holds up those that do not."""
    remedy = fewer_threads(lambda: plan(8, 4))
    apply(remedy, replace(EVIDENCE, others_ratio=others, throttled_ratio=throttled))
    assert remedy.cap.limit == limit


def test_threads_that_are_few_enough_stay():
    """Otherwise runs would shrink for nothing."""
    remedy = fewer_threads(lambda: plan(8, 2))
    assert apply(remedy, replace(EVIDENCE, others_ratio=0.4)) is None


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

    assert apply(remedy, replace(EVIDENCE, others_by_core=taken)) is not None
    assert (placement.cores, remedy.cap.limit) == ([0, 2, 3], 3)
    remedy.revert()
    assert (placement.cores, remedy.cap) == (None, None)


@pytest.mark.parametrize("shares", [{}, {0: 0.9, 1: 0.8}, {0: 0.1, 1: 0.2}, {0: 0.5, 1: 0.3}])
def test_where_all_processors_are_alike_there_is_none_to_avoid(shares: dict[int, float]):
    """The kernel spreads threads well enough by itself."""
    placement = FakePlacement()
    assert apply(AvoidTakenCores(placement), replace(EVIDENCE, others_by_core=shares)) is None
    assert placement.cores is None


@pytest.mark.parametrize(
    ("room_mib", "n_layers"), [(0, 0), (-50, 0), (100, 0), (144, 2), (280, 5), (431, 9), (432, 12)]
)
def test_as_many_layers_are_kept_as_fit_beside_those_under_way(room_mib: int, n_layers: int):
    """The one that computes and the one that is read next need room too, unless all stay."""
    assert SIZES.fitting_layers(room_mib * MIB) == n_layers


def test_layers_are_kept_where_the_rule_would_keep_all_or_none():
    """And the rule decides again afterwards."""
    model = FakeModel()
    model.weights_bytes = 300 * MIB
    pages = PageKeeping(lambda weights_bytes: weights_bytes <= 200 * MIB)
    remedy = KeepLayers(pages)

    assert not pages.weights_stay(model)
    assert pages.kept_layers(model) == 0
    assert apply(remedy, replace(EVIDENCE, budget_bytes=1024 * MIB))
    assert not pages.weights_stay(model)  # read ahead, all the same
    assert pages.kept_layers(model) == 1  # all that the fake has
    model.weights_bytes = 100 * MIB
    assert not pages.weights_stay(model)
    remedy.revert()
    assert pages.weights_stay(model)
    assert pages.kept_layers(model) == 0


def test_no_layers_are_kept_before_a_model_has_run_or_where_none_fits():
    """There is nothing to change."""
    pages = PageKeeping(lambda weights_bytes: False)
    assert apply(KeepLayers(pages)) is None
    pages.weights_stay(FakeModel())
    assert apply(KeepLayers(pages), replace(EVIDENCE, used_bytes=390 * MIB)) is None
    assert pages.follows_rule


def test_free_memory_is_given_back_by_the_model_that_ran_last_too():
    """Requests that wait for memory keep it from being idle, and so from doing it by itself."""
    pages = PageKeeping(lambda weights_bytes: True)
    remedy = ReleaseMemory(pages.release_model)
    assert apply(remedy)  # nothing has run yet
    model = FakeModel()
    pages.weights_stay(model)

    assert apply(remedy)
    assert model.n_releases == 1
    remedy.revert()
    assert remedy.cap is None


def test_a_model_that_was_closed_is_not_kept_alive():
    """Its memory is what was to be given back."""
    pages = PageKeeping(lambda weights_bytes: True)
    pages.weights_stay(FakeModel())
    assert pages.sizes is None
    pages.release_model()


def test_remedies_leave_the_process_as_it_was():
    """Placement above all: who moves the event loop's thread changes what the CPU monitor sees."""
    before = os.sched_getaffinity(0)
    remedy = AvoidTakenCores()
    apply(remedy, replace(EVIDENCE, others_by_core={min(before): 0.9, max(before): 0.0}))
    assert os.sched_getaffinity(0) == before
    remedy.revert()
    assert os.sched_getaffinity(0) == before

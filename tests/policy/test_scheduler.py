"""The scheduler, simulated with a clock that a test sets.

At the end histories by the hundred are held to a plain restatement of the rule.
"""

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.scheduler import AdaptiveScheduler, Cap, Observation, Plan
from tests.fakes import FakeClock

CALM = Observation(utilization_ratio=0.55, cores=16)


class Bench:
    """A scheduler that observes once a second."""

    def __init__(self, cores: float = 16) -> None:
        self.clock = FakeClock()
        self.scheduler = AdaptiveScheduler(self.clock, cores=cores)
        self.calm = replace(CALM, cores=cores)

    def see(
        self, observation: Observation, *caps: Cap, times: int = 1, after_s: float = 1
    ) -> list[Plan]:
        plans = []
        for _ in range(times):
            self.clock.now_s += after_s
            plans.append(self.scheduler.next(observation, caps))
        return plans

    def used(self, ratio: float, *, times: int = 1) -> list[int]:
        """Parallelism at each of so many seconds with so much memory in use."""
        plans = self.see(replace(self.calm, utilization_ratio=ratio), times=times)
        return [plan.parallelism for plan in plans]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(("cores", "threads"), [(16, 8), (2, 2), (1.5, 2), (0.25, 1)])
def test_at_rest_eight_sequences_run_on_the_cores_that_there_are(cores: float, threads: int):
    """Before the first observation as after it; half a core is worth a thread."""
    bench = Bench(cores)
    first = bench.scheduler.plan

    assert (first.parallelism, first.engine_threads, first.step) == (8, threads, 0)
    assert (first.reasons, first.step_reasons) == ((), ())
    assert bench.see(bench.calm) == [first]


def test_the_plan_is_kept_until_the_next_one(bench: Bench):
    """Others read it at any time, and cannot change it."""
    [plan] = bench.see(replace(CALM, utilization_ratio=0.71))

    assert bench.scheduler.plan is plan
    with pytest.raises(FrozenInstanceError):
        plan.parallelism = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("utilization_ratio", "others_ratio", "throttled_ratio", "parallelism"),
    [
        (0.70, 0.80, 0.0, 8),
        (0.71, 0.0, 0.0, 2),
        (0.71, 0.9, 0.0, 2),
        (0.55, 0.81, 0.0, 4),
        (0.55, 0.5, 0.31, 4),
        (0.55, 0.0, 1.0, 4),
        (0.76, 0.0, 0.0, 1),
    ],
)
def test_memory_gives_two_cpu_gives_four(
    utilization_ratio: float, others_ratio: float, throttled_ratio: float, parallelism: int
):
    """The specified rule, and half of it above 0.75, at the first observation."""
    [plan] = Bench().see(
        Observation(
            utilization_ratio=utilization_ratio,
            others_ratio=others_ratio,
            throttled_ratio=throttled_ratio,
            cores=16,
        )
    )

    assert plan.parallelism == parallelism
    assert plan.engine_threads == parallelism
    assert bool(plan.reasons) == (parallelism < 8)


def test_a_neighbour_on_one_of_two_cores_changes_nothing():
    """Half of the CPU is still here; only above 0.80 it pays to stand back."""
    bench = Bench(cores=2)
    [beside] = bench.see(replace(bench.calm, others_ratio=0.5))
    [crowded] = bench.see(replace(bench.calm, others_ratio=0.9))

    assert (beside.parallelism, beside.engine_threads) == (8, 2)
    assert (crowded.parallelism, crowded.engine_threads) == (4, 2)
    assert crowded.reasons == ("cpu: others and throttling above 0.80",)


def test_engine_threads_follow_a_quota_that_changes_while_it_runs(bench: Bench):
    """Up and down within a second: an orchestrator may resize a container in place."""
    plans = [bench.see(replace(CALM, cores=cores))[0] for cores in (16, 2, 0.5, 3.2, 16)]

    assert [plan.engine_threads for plan in plans] == [8, 2, 1, 4, 8]
    assert {plan.parallelism for plan in plans} == {8}


def test_raising_waits_until_memory_has_been_low_for_the_dwell_time(bench: Bench):
    """Ten seconds from the last second above the line."""
    assert bench.used(0.72, times=3) == [2, 2, 2]
    assert bench.used(0.60, times=11) == [2] * 9 + [8, 8]


def test_memory_that_swings_around_the_line_does_not_flap(bench: Bench):
    """Each change of parallelism costs sessions and caches their shape."""
    plans = [bench.used(ratio)[0] for ratio in [0.71, 0.69, 0.66, 0.69] * 20]

    assert set(plans) == {2}


def test_between_line_and_hysteresis_an_unpassed_line_stays_unpassed(bench: Bench):
    """Hysteresis keeps a state; it does not bring one about."""
    assert bench.used(0.69, times=30) == [8] * 30


def test_a_cap_of_others_binds_at_once_and_says_so(bench: Bench):
    """The reason is of the one who asked."""
    cap = Cap("breaker", 3, "half open")
    [plan] = bench.see(CALM, cap, Cap("cost model", 6, "long texts"))

    assert (plan.parallelism, plan.engine_threads) == (3, 3)
    assert plan.reasons == ("breaker: half open",)


def test_every_cap_that_binds_is_named(bench: Bench):
    """Lifting only one of two would change nothing."""
    [plan] = bench.see(replace(CALM, utilization_ratio=0.72), Cap("bottleneck", 2, "disk reads"))

    assert plan.reasons == ("bottleneck: disk reads", "memory: used memory above 0.70")


def test_a_cap_stays_for_the_dwell_time_after_it_was_last_asked_for(bench: Bench):
    """Also while its source asks for less already."""
    low, middle = Cap("bottleneck", 2, "disk reads"), Cap("bottleneck", 5, "disk reads")
    bench.see(CALM, low, times=3)
    plans = bench.see(CALM, middle, times=12) + bench.see(CALM, times=12)

    assert [plan.parallelism for plan in plans] == [2] * 9 + [5] * 12 + [8] * 3


@pytest.mark.parametrize("limit", [0, -3])
def test_no_cap_stops_everything(bench: Bench, limit: int):
    """One sequence always runs: refusing is admission's and the breaker's matter."""
    [plan] = bench.see(CALM, Cap("breaker", limit, "open"))

    assert (plan.parallelism, plan.engine_threads) == (1, 1)
    assert plan.reasons == ("breaker: open",)


def test_a_cap_above_the_rule_lifts_nothing(bench: Bench):
    """A cap may only ask for less."""
    [plan] = bench.see(CALM, Cap("cost model", 64, "short texts"))

    assert (plan.parallelism, plan.reasons) == (8, ())


def test_doubling_lifts_a_halving_step_by_step(bench: Bench):
    """1, 2, 4, 8: each step is given time to show in memory before the next one."""
    busy = replace(CALM, utilization_ratio=0.40, tokens_per_s=10, target_tokens_per_s=100)
    assert bench.used(0.80, times=3) == [1, 1, 1]
    plans = bench.see(busy, times=31)

    assert [plan.parallelism for plan in plans] == [1] * 9 + [2] * 10 + [4] * 10 + [8] * 2
    assert plans[0].reasons == ("scale: halved when used memory was above 0.75",)
    assert plans[-1].reasons == ()


def test_a_halving_does_not_outlive_its_cause_for_ever(bench: Bench):
    """With memory at rest above 0.50, or throughput on target, no doubling is ever decided."""
    bench.used(0.80)

    assert bench.used(0.60, times=91) == [1] * 29 + [2] * 30 + [4] * 30 + [8] * 2


def test_a_halving_stays_while_memory_is_just_below_its_line(bench: Bench):
    """There raising would bring it straight back."""
    bench.used(0.80)

    assert set(bench.used(0.72, times=100)) == {1}


def test_doubling_never_goes_above_the_other_caps(bench: Bench):
    """It takes a halving back, no more."""
    bench.used(0.80)
    busy = replace(CALM, utilization_ratio=0.40, target_tokens_per_s=100, others_ratio=0.9)

    assert bench.see(busy, times=100)[-1].parallelism == 4


def test_a_halving_halves_what_others_allow(bench: Bench):
    """With one cap and the other, it is the least of all that is halved."""
    [plan] = bench.see(replace(CALM, utilization_ratio=0.76), Cap("cost model", 1, "long texts"))

    assert plan.parallelism == 1
    assert plan.reasons == (
        "cost model: long texts",
        "scale: halved when used memory was above 0.75",
    )


@pytest.mark.parametrize(
    ("changed", "step", "words"),
    [
        ({}, 0, ""),
        ({"utilization_ratio": 0.70}, 0, ""),
        ({"utilization_ratio": 0.71}, 1, "used memory above 0.70"),
        ({"utilization_ratio": 0.76}, 2, "used memory above 0.75"),
        ({"working_set_ratio": 0.95}, 0, ""),
        ({"working_set_ratio": 0.96}, 2, "working set above 0.95"),
        ({"pressure_ratio": 0.10}, 0, ""),
        ({"pressure_ratio": 0.11}, 2, "memory stalls above 0.10"),
        ({"utilization_ratio": 0.71, "pressure_ratio": 0.11}, 2, "memory stalls above 0.10"),
    ],
)
def test_the_step_is_the_memory_tables(
    bench: Bench, changed: dict[str, float], step: int, words: str
):
    """At once, with the reason of the step that was reached."""
    [plan] = bench.see(replace(CALM, **changed))  # type: ignore[arg-type]

    assert plan.step == step
    assert plan.step_reasons == ((words,) if words else ())


def test_refaults_count_only_when_they_last(bench: Bench):
    """A model that is opened reads its file once; a shortage reads it again and again."""
    reading = replace(CALM, refaults_per_s=600)
    burst = bench.see(reading, times=5) + bench.see(CALM) + bench.see(reading, times=5)
    shortage = bench.see(reading, times=2)

    assert {plan.step for plan in burst} == {0}
    assert [plan.step for plan in shortage] == [2, 2]
    assert shortage[-1].step_reasons == ("refaults above 500 pages a second",)


@pytest.mark.parametrize(
    "changed",
    [
        {"refaults_per_s": 5000.0},
        {"working_set_ratio": 0.99},
        {"pressure_ratio": 0.5},
        {"refaults_per_s": 20.0, "io_pressure_ratio": 0.3},
    ],
    ids=["refaults", "working set", "stalls", "a slow disk"],
)
def test_only_used_memory_lowers_parallelism(bench: Bench, changed: dict[str, float]):
    """Where the file cache is short, larger runs serve more texts with one pass over the weights:
    fewer sequences would read them more often."""
    plan = bench.see(replace(CALM, **changed), times=10)[-1]  # type: ignore[arg-type]

    assert (plan.step, plan.parallelism, plan.reasons) == (2, 8, ())


def test_a_disk_that_is_busy_with_other_things_changes_nothing(bench: Bench):
    """A neighbour's copy, or a model that is read for the first time: no page is read again."""
    plans = bench.see(replace(CALM, io_pressure_ratio=0.9), times=20)

    assert {(plan.parallelism, plan.step) for plan in plans} == {(8, 0)}


def test_waits_for_the_disk_count_only_when_they_last(bench: Bench):
    reading = replace(CALM, refaults_per_s=20, io_pressure_ratio=0.3)
    burst = bench.see(reading, times=5) + bench.see(replace(reading, io_pressure_ratio=0.05))
    lasting = bench.see(reading, times=6)

    assert {plan.step for plan in burst + lasting[:5]} == {0}
    assert lasting[-1].step == 2
    assert lasting[-1].step_reasons == ("disk stalls above 0.15 while pages are read again",)


@pytest.mark.parametrize(
    "reading",
    [{"refaults_per_s": 600.0}, {"refaults_per_s": 20.0, "io_pressure_ratio": 0.3}],
    ids=["refaults", "a slow disk"],
)
def test_while_runs_wait_for_the_disk_others_load_takes_threads_and_no_sequences(
    bench: Bench, reading: dict[str, float]
):
    """More sequences share one pass over the weights; more threads wait for the same pages."""
    seen = replace(CALM, others_ratio=0.9, **reading)  # type: ignore[arg-type]
    before, *_, after = bench.see(seen, times=7)
    spared = "disk: runs wait for it, so load by others takes threads and no sequences"

    assert (before.parallelism, before.engine_threads) == (4, 4)
    assert (after.parallelism, after.engine_threads, after.reasons) == (8, 4, (spared,))
    # Used memory lowers it all the same: what is short then is not time.
    [tight] = bench.see(replace(seen, utilization_ratio=0.71))
    assert (tight.parallelism, tight.engine_threads) == (2, 2)


def test_the_step_goes_down_after_its_dwell_time(bench: Bench):
    """Keeping and dropping pages by turns would read the file for nothing."""
    bench.see(replace(CALM, pressure_ratio=0.2))
    plans = bench.see(replace(CALM, utilization_ratio=0.71, pressure_ratio=0.0), times=11)
    plans += bench.see(CALM, times=11)

    assert [plan.step for plan in plans] == [2] * 9 + [1] * 11 + [0] * 2


def test_the_step_does_not_flap_around_its_lines(bench: Bench):
    """Nor within the hysteresis, once passed."""
    swinging = [0.76, 0.74, 0.71, 0.74] * 20
    plans = [bench.see(replace(CALM, utilization_ratio=ratio))[0] for ratio in swinging]

    assert {plan.step for plan in plans} == {2}


def test_an_unchanged_situation_gives_an_equal_plan(bench: Bench):
    """So that only changes are logged: reasons hold no live figures."""
    plans = [bench.see(replace(CALM, utilization_ratio=ratio))[0] for ratio in (0.72, 0.73, 0.74)]

    assert plans[0] == plans[1] == plans[2]


Moment = tuple[float, Observation, tuple[Cap, ...]]

ratios = st.sampled_from([0.0, 0.3, 0.49, 0.6, 0.66, 0.69, 0.71, 0.74])
caps = st.builds(
    Cap, st.sampled_from(["breaker", "cost model"]), st.integers(-1, 12), st.just("asked")
)


def moments(utilization: st.SearchStrategy[float]) -> st.SearchStrategy[list[Moment]]:
    """Histories: (seconds since the last moment, what is seen, what is asked for)."""
    observation = st.builds(
        Observation,
        utilization_ratio=utilization,
        cores=st.sampled_from([0.1, 1, 1.5, 2, 16]),
        others_ratio=st.sampled_from([0.0, 0.5, 0.78, 0.9]),
        throttled_ratio=st.sampled_from([0.0, 0.1]),
        target_tokens_per_s=st.sampled_from([0.0, 100.0]),
        working_set_ratio=st.sampled_from([0.5, 0.92, 0.99]),
        pressure_ratio=st.sampled_from([0.0, 0.07, 0.5]),
    )
    asked = st.lists(caps, max_size=2).map(tuple)
    seconds = st.sampled_from([0.5, 1.0, 4.0, 10.0])
    return st.lists(st.tuples(seconds, observation, asked), min_size=1, max_size=30)


def run(history: Sequence[Moment]) -> list[Plan]:
    bench = Bench()
    return [
        bench.see(observation, *asked, after_s=after_s)[0]
        for after_s, observation, asked in history
    ]


def asked_now(moment: Moment) -> int:
    """The least that this moment alone asks for."""
    _, seen, asked = moment
    limits = [8, *(cap.limit for cap in asked)]
    limits += [2] if seen.utilization_ratio > 0.70 else []
    limits += [4] if seen.others_ratio + seen.throttled_ratio > 0.80 else []
    limit = max(1, min(limits))
    return max(1, limit // 2) if seen.utilization_ratio > 0.75 else limit


def is_passed(values: Sequence[float], line: float) -> bool:
    """Whether the last value above the line came after the last one well below it."""
    for value in reversed(values):
        if value > line:
            return True
        if value <= line - 0.05:
            return False
    return False


def last_seconds(history: Sequence[Moment], index: int) -> range:
    """Indices of the moments less than ten seconds before this one, and of itself."""
    first, age_s = index, 0.0
    while first > 0 and age_s + history[first][0] < 10:
        age_s += history[first][0]
        first -= 1
    return range(first, index + 1)


@given(moments(ratios | st.sampled_from([0.76, 0.95, 1.1])))
def test_parallelism_is_never_above_a_cap_and_never_rises_too_early(history: list[Moment]):
    """Lowering is immediate after any history; what rose was not asked for for ten seconds."""
    plans = run(history)

    for index, (plan, moment) in enumerate(zip(plans, history, strict=True)):
        assert 1 <= plan.parallelism <= asked_now(moment)
        assert plan.engine_threads == max(1, min(plan.parallelism, math.ceil(moment[1].cores)))
        assert bool(plan.reasons) == (plan.parallelism < 8)
        assert bool(plan.step_reasons) == (plan.step > 0)
        if index and plan.parallelism > plans[index - 1].parallelism:
            recent = [asked_now(history[earlier]) for earlier in last_seconds(history, index)]
            assert plan.parallelism <= min(recent)


@given(moments(ratios))
def test_without_a_halving_parallelism_is_the_least_of_the_last_ten_seconds(
    history: list[Moment],
):
    """The whole rule said a second time, from the history instead of from kept state."""
    active, steps = [], []
    for index, (_, _, asked) in enumerate(history):
        seen = [observation for _, observation, _ in history[: index + 1]]
        memory = is_passed([each.utilization_ratio for each in seen], 0.70)
        cpu = is_passed([each.others_ratio + each.throttled_ratio for each in seen], 0.80)
        saving = is_passed([each.working_set_ratio for each in seen], 0.95) or is_passed(
            [each.pressure_ratio for each in seen], 0.10
        )
        limits = [8, *(cap.limit for cap in asked), *([2] * memory), *([4] * cpu)]
        active.append(max(1, min(limits)))
        steps.append(2 if saving else int(memory))

    for index, plan in enumerate(run(history)):
        recent = last_seconds(history, index)
        assert plan.parallelism == min(active[earlier] for earlier in recent)
        assert plan.step == max(steps[earlier] for earlier in recent)


@given(moments(ratios | st.sampled_from([0.76, 0.95, 1.1])))
def test_from_anywhere_calm_leads_back_to_full_parallelism(history: list[Moment]):
    """Nothing that happened caps for ever."""
    bench = Bench()
    for after_s, observation, asked in history:
        bench.see(observation, *asked, after_s=after_s)
    plan = bench.see(CALM, times=91)[-1]

    assert plan == Bench().scheduler.plan

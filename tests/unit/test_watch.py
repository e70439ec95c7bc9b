"""The look once a second: what it measures on a fake machine, and who acts on it.

Machines have control groups of both versions; seconds pass when a test says so.
"""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.memory import allocator
from app.memory.breaker import BreakerState, MemoryCircuitBreaker, Transition
from app.memory.cpu import CPUMonitor
from app.memory.monitor import MIB
from app.serving import watch as watch_module
from app.serving.admission import LINE_RATIO, Admission, Demand
from app.serving.gate import AdmissionGate
from app.serving.scheduler import DWELL_S, REFAULTS_SUSTAINED_S, AdaptiveScheduler, Cap
from app.serving.watch import MemoryWatch
from app.telemetry import Telemetry
from tests.fake_machine import Machine, v1_machine, v2_machine
from tests.fakes import DEADLINE_S, FakeClock, metric

BUDGET_MIB = 400
CORES = 4
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# No processor time of this process's own, whatever the tests take.
RESTING = "7 (a) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 9 0 5\n"


class Bench:
    """A watch over a fake machine, and those it tells."""

    def __init__(self, version: str, folder: Path, used_ratio: float = 0.3) -> None:
        self.machine: Machine = {"v1": v1_machine, "v2": v2_machine}[version](folder)
        self.version = version
        self.n_busy_ticks = self.n_unloads = 0
        self.transitions: list[Transition] = []
        self.caps: Sequence[Cap] = ()
        self.limit(BUDGET_MIB)
        self.use(used_ratio)
        self.quota(CORES)
        self.machine.write_proc("self/stat", RESTING)
        self.neighbour_takes(0)
        self.clock, self.telemetry = FakeClock(), Telemetry("test")
        monitor = self.machine.monitor()
        cpu = CPUMonitor(proc_root=self.machine.proc, cgroup_root=self.machine.cgroup)
        self.admission = Admission(self.clock, budget_bytes=BUDGET_MIB * MIB, queue_s=30)
        self.gate = AdmissionGate(self.admission, monitor.sample, queue_timeout_s=DEADLINE_S)
        self.breaker = MemoryCircuitBreaker(self.clock, self.transitions.append)
        self.watch = MemoryWatch(
            monitor,
            cpu,
            self.gate,
            self.breaker,
            AdaptiveScheduler(self.clock, cores=CORES),
            self.telemetry,
            clock=self.clock,
            unload_idle=self.unload_idle,
            caps=lambda: self.caps,
        )

    def limit(self, mib: int) -> None:
        """Of the group above the process's own."""
        if self.version == "v1":
            self.machine.write_group("memory/a", limit_in_bytes=mib * MIB)
        else:
            self.machine.write_group("a", max=mib * MIB)

    def use(self, ratio: float) -> None:
        """Anonymous memory, of the budget at start."""
        n_bytes = round(ratio * BUDGET_MIB * MIB)
        if self.version == "v1":
            self.machine.write_group(
                "memory/a", stat=f"total_rss {n_bytes}", usage_in_bytes=n_bytes
            )
            self.machine.write_file("memory/a/memory.kmem.usage_in_bytes", 0)
        else:
            self.machine.write_group("a", stat=f"anon {n_bytes}", current=n_bytes)

    def refault(self, n_refaults: int) -> None:
        """Pages that the process has read again since it started."""
        if self.version == "v1":
            counters = f"total_rss 1\ntotal_workingset_refault_file {n_refaults}"
            self.machine.write_group("memory/a/b", stat=counters)
        else:
            self.machine.write_group("a/b", stat=f"anon 1\nworkingset_refault_file {n_refaults}")

    def quota(self, cores: float) -> None:
        quota_us = round(cores * 100000)
        if self.version == "v1":
            self.machine.write_file("cpu/a/b/cpu.cfs_quota_us", quota_us)
            self.machine.write_file("cpu/a/b/cpu.cfs_period_us", 100000)
        else:
            self.machine.write_file("a/b/cpu.max", f"{quota_us} 100000")

    def throttled(self, seconds: float) -> None:
        """Since the group was made."""
        if self.version == "v1":
            self.machine.write_file("cpu/a/b/cpu.stat", f"throttled_time {round(seconds * 1e9)}")
        else:
            self.machine.write_file("a/b/cpu.stat", f"throttled_usec {round(seconds * 1e6)}")

    def neighbour_takes(self, ratio: float) -> None:
        """So much of every processor, for a second."""
        self.n_busy_ticks += round(ratio * TICKS_PER_S)
        lines = [f"cpu{number} {self.n_busy_ticks} 0 0 9999 0 0 0 0 0 0" for number in range(CORES)]
        self.machine.write_proc("stat", "\n".join(lines))

    async def unload_idle(self) -> int:
        self.n_unloads += 1
        return 1

    async def look(self, n_seconds: int = 1) -> None:
        """Once for each second that passes."""
        for _ in range(n_seconds):
            self.clock.now_s += 1
            await self.watch.look()

    def look_now(self, n_seconds: int = 1) -> None:
        """For tests in which nothing waits."""
        asyncio.run(self.look(n_seconds))

    @property
    def factor(self) -> tuple[int, int, int]:
        """Step, parallelism and threads of the plan."""
        plan = self.watch.plan
        return plan.step, plan.parallelism, plan.engine_threads

    def gauge(self, name: str) -> float:
        return metric(self.telemetry.render().decode(), f"plimsoll_{name}")


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)), raising=False)


@pytest.fixture(params=["v1", "v2"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or fail where something never comes."""
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used_ratio", "factor"),
    [(0.30, (0, 8, 4)), (0.69, (0, 8, 4)), (0.71, (1, 2, 2)), (0.76, (2, 1, 1))],
)
def test_used_memory_sets_step_parallelism_and_threads(
    bench: Bench, used_ratio: float, factor: tuple[int, int, int]
):
    """The ladder of the design, from what the kernel writes to what the engine runs with."""
    bench.use(used_ratio)
    bench.look_now()

    assert bench.factor == factor
    assert bench.watch.step == factor[0]
    assert bench.watch.sample.utilization_ratio == pytest.approx(used_ratio)


def test_admission_learns_what_is_used(bench: Bench):
    """Memory that somebody else took since is not there to be given away."""
    bench.use(0.60)
    bench.look_now()
    assert bench.admission.idle_floor_bytes == pytest.approx(0.60 * BUDGET_MIB * MIB, abs=1)
    room_bytes = (LINE_RATIO - 0.60) * BUDGET_MIB * MIB
    assert bench.admission.room_for_run_bytes() == pytest.approx(room_bytes, abs=1)


def test_the_breaker_learns_what_is_used(bench: Bench):
    """It opens when memory stays above its line, whatever requests say."""
    bench.look_now()
    bench.use(0.95)
    bench.look_now(2)
    assert bench.breaker.state is BreakerState.CLOSED
    bench.look_now()

    assert bench.breaker.state is BreakerState.OPEN
    assert bench.watch.step == 4
    assert bench.gauge("ladder_step") == 4
    assert [transition.later for transition in bench.transitions] == [BreakerState.OPEN]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_breaker_learns_what_is_used_at_rest(version: str, tmp_path: Path):
    """A server that never falls below a line must not be held against it."""
    bench = Bench(version, tmp_path, used_ratio=0.92)
    bench.look_now(5)
    assert bench.breaker.state is BreakerState.CLOSED


def test_a_limit_that_changes_while_the_server_runs_is_followed(bench: Bench):
    """An orchestrator may resize a container in place."""
    bench.use(0.60)
    bench.look_now()
    assert bench.factor[0] == 0
    bench.limit(BUDGET_MIB * 3 // 4)
    bench.look_now()

    assert bench.watch.sample.utilization_ratio == pytest.approx(0.80)
    assert bench.factor == (2, 1, 1)
    # Memory at rest is above the line now, so that all above it is there to be used.
    assert bench.admission.line_bytes == bench.watch.sample.budget_bytes


def test_memory_is_given_back_once_on_entering_a_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """It takes tens of milliseconds, and a second time it finds nothing."""
    done: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(allocator, "release", lambda: done.append("release"))
    both = ["collect", "release"]

    bench.look_now(2)
    assert done == []
    bench.use(0.71)
    bench.look_now(3)
    assert (done, bench.n_unloads) == (both, 0)
    bench.use(0.76)
    bench.look_now(3)
    assert (done, bench.n_unloads) == (2 * both, 1)  # models that nobody uses go only now
    bench.use(0.30)
    bench.look_now(round(DWELL_S) + 1)
    assert bench.factor[0] == 0
    bench.use(0.76)
    bench.look_now(3)
    assert (done, bench.n_unloads) == (3 * both, 2)


def test_a_waiting_request_is_let_in_when_a_look_finds_room(bench: Bench):
    """Nobody else would tell it: memory that falls wakes nobody. Meanwhile the gauge shows it."""
    bench.use(0.30)

    async def scenario() -> None:
        await bench.look()
        bench.use(0.60)
        request = asyncio.create_task(bench.gate.enter(Demand(10, round(0.2 * BUDGET_MIB * MIB))))
        await asyncio.sleep(0)
        await bench.look()
        assert (bench.gauge("ladder_step"), bench.watch.history[-1].step) == (3, 3)
        assert not request.done()
        bench.use(0.30)
        await bench.look()
        await request
        await bench.look()
        assert bench.gauge("ladder_step") == 0

    run(scenario)


@pytest.mark.parametrize("is_limited", [True, False])
def test_refaults_count_where_they_are_this_groups(bench: Bench, is_limited: bool):
    """Pages that the kernel took from us again and again: dropping them in order is cheaper. On a
    machine without limits they say nothing of us."""
    if not is_limited:
        bench.limit(1 << 40)
    for second in range(round(REFAULTS_SUSTAINED_S) + 2):
        bench.refault(2000 * second)
        bench.look_now()

    assert bench.factor == ((2, 8, 4) if is_limited else (0, 8, 4))
    assert bench.gauge("memory_refaults_per_second") == 2000


def test_time_that_tasks_wait_for_memory_counts(tmp_path: Path):
    """The kernel's own sign that it is nearly over."""
    bench = Bench("v2", tmp_path)
    bench.machine.write_group("a", pressure="some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n")
    bench.look_now()
    assert bench.factor == (2, 8, 4)
    assert bench.gauge("memory_pressure_ratio") == 0.125


# --- processors -----------------------------------------------------------------------------


def test_a_neighbours_load_lowers_parallelism_until_it_is_gone(bench: Bench):
    """Its work is not ours: our own would throttle itself."""
    bench.look_now()
    bench.neighbour_takes(0.90)
    bench.look_now()
    assert bench.factor == (0, 4, 4)
    assert bench.gauge("cpu_others_ratio") == pytest.approx(0.90, abs=0.01)
    bench.look_now(round(DWELL_S))
    assert bench.factor == (0, 8, 4)
    assert bench.gauge("cpu_others_ratio") == 0


def test_time_that_the_quota_withholds_lowers_parallelism_too(bench: Bench):
    """More threads would only use it up sooner."""
    bench.throttled(1.0)
    bench.look_now()
    bench.throttled(1.9)
    bench.look_now()
    assert bench.factor == (0, 4, 4)
    assert bench.gauge("cpu_throttled_ratio") == pytest.approx(0.90)


def test_a_quota_that_changes_while_the_server_runs_is_followed(bench: Bench):
    """Threads without processor time only stand in each other's way."""
    threads = []
    for cores in (4, 1.5, 0.5, 3):
        bench.quota(cores)
        bench.look_now()
        threads.append(bench.watch.plan.engine_threads)
        assert bench.watch.load.cores == cores
    assert threads == [4, 2, 1, 3]
    assert bench.gauge("engine_threads") == 3


# --- what is told ---------------------------------------------------------------------------


def test_the_gauges_show_what_was_found_and_decided(bench: Bench):
    """An operator sees why the server does what it does."""
    bench.look_now()
    bench.admission.note_run(500, 1.0)
    bench.use(0.71)
    bench.look_now()

    used_bytes = round(0.71 * BUDGET_MIB * MIB)
    assert bench.gauge("throughput_tokens_per_second") == 500
    assert bench.gauge("parallelism") == 2
    assert bench.gauge("engine_threads") == 2
    assert bench.gauge("ladder_step") == 1
    assert bench.gauge("memory_predicted_bytes") == used_bytes
    states = [bench.gauge(f'breaker_state{{state="{state.value}"}}') for state in BreakerState]
    assert states == [1, 0, 0]
    bench.look_now()
    assert bench.gauge("throughput_tokens_per_second") == 0


def test_caps_of_others_bind_with_their_reason(bench: Bench):
    """The plan says who wanted it."""
    bench.caps = [Cap("bottleneck", 3, "the disk is behind")]
    bench.look_now()
    assert bench.factor == (0, 3, 3)
    assert bench.watch.plan.reasons == ("bottleneck: the disk is behind",)


def test_a_changed_plan_is_logged_once_with_its_reasons(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    """Not every second."""
    bench.look_now()
    caplog.set_level(logging.INFO)
    bench.use(0.71)
    bench.look_now(3)

    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "parallelism 2, 2 threads, memory step 1; 284 of 400 MiB used; "
        "memory: used above 0.70; used memory above 0.70"
    )


def test_a_look_that_fails_is_not_the_last_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without it the server would run blind from then on."""
    monkeypatch.setattr(watch_module, "PERIOD_S", 0)
    fine = asyncio.Event()
    outcomes = iter([OSError("a file is gone"), ValueError("nonsense in it")])

    def caps() -> Sequence[Cap]:
        if (error := next(outcomes, None)) is not None:
            raise error
        fine.set()
        return ()

    bench.watch._caps = caps

    async def scenario() -> None:
        looking = asyncio.create_task(bench.watch.run())
        await fine.wait()
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking

    run(scenario)
    assert [record.exc_info[0] for record in caplog.records] == [OSError, ValueError]

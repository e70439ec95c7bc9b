"""The tick once a second: what it measures on a fake machine, decides, and tells.

Machines have control groups of both versions; seconds pass when a test says so.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.disk import DiskMonitor
from plimsoll.machine.memory import MIB
from plimsoll.policy import lines
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.breaker import BreakerState, Transition
from plimsoll.policy.costs import Demand
from plimsoll.policy.floor import FLOOR_WINDOW_S
from plimsoll.policy.governor import Governor
from plimsoll.policy.lines import REFAULTS_SUSTAINED_S
from plimsoll.policy.runs import RunLimits
from plimsoll.policy.scheduler import DWELL_S, Cap
from plimsoll.serving import control_loop
from plimsoll.serving.control_loop import ControlLoop, Monitors
from plimsoll.serving.gate import AdmissionGate
from plimsoll.tuning.evidence import Look
from tests.fake_machine import Machine, v1_machine, v2_machine
from tests.fakes import DEADLINE_S, FakeClock
from tests.logged import own_records
from tests.policy.ended_runs import run_of

BUDGET_MIB = 400
CORES = 4
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# No processor time of this process's own, however much the tests take.
RESTING = "7 (a) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 9 0 5\n"


class IdleExecutor:
    """Stands in for the executor, of which the loop only wants the model that ran last."""

    last_model = None


class WatchedReclaim:
    """Keeps what it is told at each tick: step, whether requests wait, seconds of rest."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool, float]] = []

    def look(self, step: int, *, is_short: bool, idle_s: float) -> None:
        self.told.append((step, is_short, idle_s))


class AskingResolver:
    """Asks for what a test says, and keeps the looks."""

    def __init__(self) -> None:
        self.asked = NOTHING_ASKED
        self.looks: list[Look] = []
        self.errors: list[Exception] = []  # raised first, one a look

    def look(self, look: Look) -> None:
        self.looks.append(look)
        if self.errors:
            raise self.errors.pop(0)


class Bench:
    """A control loop over a fake machine, and those it tells."""

    def __init__(self, version: str, folder: Path, used_ratio: float = 0.3) -> None:
        self.machine: Machine = {"v1": v1_machine, "v2": v2_machine}[version](folder)
        self.version = version
        self.n_busy_ticks = 0
        self.transitions: list[Transition] = []
        self.limits: list[RunLimits] = []
        self.limit(BUDGET_MIB)
        self.use(used_ratio)
        self.quota(CORES)
        self.machine.write_proc("self/stat", RESTING)
        self.neighbour_takes(0)
        self.clock = FakeClock()
        monitor = self.machine.monitor()
        cpu = CPUMonitor(proc_root=self.machine.proc, cgroup_root=self.machine.cgroup)
        disk = DiskMonitor(proc_root=self.machine.proc, cgroup_root=self.machine.cgroup)
        self.governor = Governor(
            self.clock,
            budget_bytes=BUDGET_MIB * MIB,
            cores=CORES,
            on_transition=self.transitions.append,
        )
        self.admission = self.governor.admission
        self.gate = AdmissionGate(
            self.governor, monitor.usage, self.limits.append, queue_timeout_s=DEADLINE_S
        )
        self.reclaim, self.resolver = WatchedReclaim(), AskingResolver()
        self.loop = ControlLoop(
            Monitors(monitor, cpu, disk),
            self.gate,
            IdleExecutor(),
            self.reclaim,
            self.resolver,
            clock=self.clock,
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

    def tick(self, n_seconds: int = 1) -> None:
        """Once for each second that passes."""
        for _ in range(n_seconds):
            self.clock.now_s += 1
            self.loop.tick()

    @property
    def factor(self) -> tuple[int, int, int]:
        """Step, parallelism and threads of the plan."""
        plan = self.governor.plan
        return plan.step, plan.parallelism, plan.engine_threads


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
    bench.tick()

    assert bench.factor == factor
    assert bench.governor.step == factor[0]
    assert bench.limits[-1].plan == bench.governor.plan
    assert bench.loop.memory.utilization_ratio == pytest.approx(used_ratio)


def test_admission_learns_what_is_used(bench: Bench):
    """Memory that others took since is not there to be given away."""
    bench.use(0.60)
    bench.tick()
    assert bench.admission.idle_floor_bytes == pytest.approx(0.60 * BUDGET_MIB * MIB, abs=1)
    room_bytes = (lines.HIGH_RATIO - 0.60) * BUDGET_MIB * MIB
    assert bench.limits[-1].room_bytes == pytest.approx(room_bytes, abs=1)


def test_the_breaker_learns_what_is_used(bench: Bench):
    """It opens when memory stays above its line, even where no request fails."""
    bench.tick()
    bench.use(0.95)
    bench.tick(2)
    assert bench.governor.breaker.state is BreakerState.CLOSED
    bench.tick()

    assert bench.governor.breaker.state is BreakerState.OPEN
    assert bench.loop.history[-1].step == lines.BREAKER_STEP
    assert bench.limits[-1].is_paused
    assert [is_short for _, is_short, _ in bench.reclaim.told] == [False, False, False, True]
    assert [transition.later for transition in bench.transitions] == [BreakerState.OPEN]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_breaker_learns_what_is_used_at_rest(version: str, tmp_path: Path):
    """A server that never falls below a line must not be held against it."""
    bench = Bench(version, tmp_path, used_ratio=0.92)
    bench.tick(5)
    assert bench.governor.breaker.state is BreakerState.CLOSED


def test_a_limit_that_changes_while_the_server_runs_is_followed(bench: Bench):
    """An orchestrator may resize a container in place."""
    bench.use(0.60)
    bench.tick()
    assert bench.factor[0] == 0
    bench.limit(BUDGET_MIB * 3 // 4)
    bench.tick()

    assert bench.loop.memory.utilization_ratio == pytest.approx(0.80)
    assert bench.factor == (2, 1, 1)
    # Memory at rest is above 0.70 now, so the line is a third of the way to the breaker's.
    line_bytes = round((0.80 + 0.10 / 3) * bench.loop.memory.budget_bytes)
    assert bench.admission.line_bytes == pytest.approx(line_bytes, abs=1)


def test_what_to_give_back_is_asked_by_step_rest_and_waiting_requests(bench: Bench):
    """Reclaim decides from these three, and no tick waits for it."""

    async def scenario() -> None:
        bench.tick()
        permit = bench.gate.permit()
        permit.renew_now(Demand(10, 100 * MIB))
        bench.use(0.76)
        bench.tick()
        waiting = asyncio.create_task(bench.gate.permit().renew(Demand(10, 100 * MIB)))
        await asyncio.sleep(0)
        bench.tick()
        waiting.cancel()
        await asyncio.wait([waiting])
        permit.leave()
        bench.tick(2)

    run(scenario)
    told = [(step, is_short) for step, is_short, _ in bench.reclaim.told]
    assert told == [(0, False), (2, False), (2, True), (2, False), (2, False)]
    rests = [idle_s for *_, idle_s in bench.reclaim.told]
    assert rests[1:] == [0, 0, 1, 2]


def test_a_waiting_request_is_let_in_when_a_tick_finds_room(bench: Bench):
    """Memory that falls tells no request of it. Until then the history shows that one waits."""
    bench.use(0.30)

    async def scenario() -> None:
        bench.tick()
        bench.use(0.60)
        request = asyncio.create_task(
            bench.gate.permit().renew(Demand(10, round(0.2 * BUDGET_MIB * MIB)))
        )
        await asyncio.sleep(0)
        for _ in range(2):  # while it looks again and finds none, it still counts as waiting
            bench.tick()
            assert bench.governor.step == lines.WAITING_STEP == bench.loop.history[-1].step
            await asyncio.sleep(0)
        assert not request.done()
        bench.use(0.30)
        bench.tick()
        await request
        bench.tick()
        assert bench.governor.step == 0 == bench.loop.history[-1].step

    run(scenario)


@pytest.mark.parametrize("is_limited", [True, False])
def test_refaults_count_where_they_are_this_groups(bench: Bench, is_limited: bool):
    """Pages that the kernel took from us again and again: dropping them in order is cheaper. On a
    machine without limits they say nothing of us."""
    if not is_limited:
        bench.limit(1 << 40)
    for second in range(round(REFAULTS_SUSTAINED_S) + 2):
        bench.refault(2000 * second)
        bench.tick()

    assert bench.factor == ((2, 8, 4) if is_limited else (0, 8, 4))
    assert bench.loop.refaults_per_s == 2000


def test_time_that_tasks_wait_for_the_disk_counts_while_pages_are_read_again(tmp_path: Path):
    """On a slow disk few pages a second hold every run up."""
    bench = Bench("v2", tmp_path)
    stalls = "some avg10=40.00 avg60=0.00 avg300=0.00 total=0\n"
    bench.machine.write_proc("pressure/io", stalls)
    bench.tick(round(REFAULTS_SUSTAINED_S) + 2)
    assert bench.factor == (0, 8, 4), "others may be at the disk"

    for second in range(round(REFAULTS_SUSTAINED_S) + 2):
        bench.refault(20 * second)
        bench.tick()
    assert bench.factor == (2, 8, 4)


def test_time_that_tasks_wait_for_memory_counts(tmp_path: Path):
    """The kernel's own sign that it is nearly over."""
    bench = Bench("v2", tmp_path)
    bench.machine.write_group("a", pressure="some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n")
    bench.tick()
    assert bench.factor == (2, 8, 4)
    assert bench.loop.memory.pressure_ratio == 0.125


# --- processors -----------------------------------------------------------------------------


def test_a_neighbours_load_lowers_parallelism_until_it_is_gone(bench: Bench):
    """Its work is not ours: our own would throttle itself."""
    bench.tick()
    bench.neighbour_takes(0.90)
    bench.tick()
    assert bench.factor == (0, 4, 4)
    assert bench.loop.load.others_ratio == pytest.approx(0.90, abs=0.01)
    bench.tick(round(DWELL_S))
    assert bench.factor == (0, 8, 4)
    assert bench.loop.load.others_ratio == 0


def test_time_that_the_quota_withholds_lowers_parallelism_too(bench: Bench):
    """More threads would only use it up sooner."""
    bench.throttled(1.0)
    bench.tick()
    bench.throttled(1.9)
    bench.tick()
    assert bench.factor == (0, 4, 4)
    assert bench.loop.load.throttled_ratio == pytest.approx(0.90)


def test_a_quota_that_changes_while_the_server_runs_is_followed(bench: Bench):
    """Threads without processor time only stand in each other's way."""
    threads = []
    for cores in (4, 1.5, 0.5, 3):
        bench.quota(cores)
        bench.tick()
        threads.append(bench.governor.plan.engine_threads)
        assert bench.loop.load.cores == cores
    assert threads == [4, 2, 1, 3]
    assert bench.limits[-1].plan.engine_threads == 3


# --- what is told ---------------------------------------------------------------------------


def test_each_tick_is_remembered_as_it_was_found(bench: Bench):
    """The status page draws these minutes, and an operator reads in them what came first."""
    bench.tick()
    bench.governor.run_ended(run_of(500, 1.0))
    bench.use(0.71)
    bench.tick()
    bench.tick()

    used_bytes = round(0.71 * BUDGET_MIB * MIB)
    found = bench.loop.history[1]
    assert (found.at_s, found.used_bytes) == (bench.clock.now_s - 1, used_bytes)
    assert (found.predicted_bytes, found.tokens_per_s, found.step) == (used_bytes, 500, 1)
    assert [moment.tokens_per_s for moment in bench.loop.history] == [0, 500, 0]


def test_the_resolver_sees_the_moment_that_was_decided_from(bench: Bench):
    """The bottleneck is named from the same numbers as everything else."""

    async def scenario() -> None:
        bench.tick()
        permit = bench.gate.permit()
        permit.renew_now(Demand(300, 100 * MIB))
        waiting = asyncio.create_task(bench.gate.permit().renew(Demand(1, 150 * MIB)))
        await asyncio.sleep(0)
        bench.use(0.60)
        bench.tick()
        waiting.cancel()
        await asyncio.wait([waiting])

    run(scenario)
    earlier, look = bench.resolver.looks
    assert look.at_s == earlier.at_s + 1 == bench.clock.now_s
    assert (look.memory, look.plan) == (bench.loop.memory, bench.governor.plan)
    drain_tokens_per_s = bench.admission.backlog.tokens_per_s
    assert (look.queue_tokens, look.drain_tokens_per_s) == (300, drain_tokens_per_s)
    assert (earlier.is_held_back, look.is_held_back) == (False, True)
    assert look.weights is None  # no model has run


def test_what_remedies_ask_for_binds_with_its_reason(bench: Bench):
    """The plan says who wanted it; the engine is told which layers are to stay."""
    cap = Cap("bottleneck", 3, "the disk is behind")
    bench.resolver.asked = Asked((cap,), kept_bytes=7)
    bench.tick()

    assert bench.factor == (0, 3, 3)
    assert bench.governor.plan.reasons == ("bottleneck: the disk is behind",)
    assert bench.limits[-1].kept_bytes == 7


def test_a_changed_plan_is_logged_once_with_its_reasons(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    """Not every second; and it says what is done, in the words of the table."""
    bench.tick()
    caplog.set_level(logging.INFO)
    bench.use(0.71)
    bench.tick(3)

    (message,) = [record.getMessage() for record in own_records(caplog)]
    effects = ", ".join(lines.effects(1, ()))
    assert message == (
        f"parallelism 2, 2 threads, memory step 1 ({effects}); 284 of 400 MiB used; "
        "memory: used memory above 0.70; used memory above 0.70"
    )


def test_the_log_does_not_promise_fewer_sequences_where_there_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Step 2 by stalls drops pages and leaves parallelism alone; the page once said otherwise."""
    bench = Bench("v2", tmp_path)
    bench.tick()
    caplog.set_level(logging.INFO)
    bench.machine.write_group("a", pressure="some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n")
    bench.tick()

    (message,) = [record.getMessage() for record in own_records(caplog)]
    assert message.startswith("parallelism 8, 4 threads, memory step 2 (")
    assert "parallelism stays" in message
    assert "half of that parallelism" not in message
    assert message.endswith("memory stalls above 0.10")


def test_a_tick_that_fails_is_not_the_last_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Without it the server would run blind from then on."""
    monkeypatch.setattr(control_loop, "PERIOD_S", 0)
    bench.resolver.errors = [OSError("a file is gone"), ValueError("nonsense in it")]

    async def scenario() -> None:
        ticking = asyncio.create_task(bench.loop.run())
        while len(bench.resolver.looks) < 3:  # after the two that failed
            await asyncio.sleep(0)
        ticking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ticking

    run(scenario)
    assert [record.exc_info[0] for record in own_records(caplog)] == [OSError, ValueError]


def test_tuning_that_fails_keeps_no_limit_from_the_engine_and_no_request_waiting(bench: Bench):
    """It is the one part of the tick that the server can do without: what was decided has to be
    told before it is asked, or an error in it each second would leave the engine unwatched."""
    bench.resolver.errors = [OSError("a file is gone")]

    async def scenario() -> None:
        bench.gate.permit().renew_now(Demand(10, 0))  # or the memory would pass for that at rest
        bench.use(0.71)
        request = asyncio.create_task(bench.gate.permit().renew(Demand(10, 100 * MIB)))
        await asyncio.sleep(0)
        assert bench.governor.waiting
        bench.use(0.30)
        bench.clock.now_s += 2 * FLOOR_WINDOW_S
        with pytest.raises(OSError, match="gone"):
            bench.tick()
        for _ in range(10):  # more steps than it takes
            await asyncio.sleep(0)
        assert request.done()

    run(scenario)
    assert [step for step, *_ in bench.reclaim.told] == [0]

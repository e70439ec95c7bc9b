"""The serving parts put together: a change in one is felt by those that it concerns.

On a fake machine, whose memory and seconds a test sets, with a fake model.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.encoder.layout import PACK_TOKENS
from app.errors import MemoryPressureError
from app.memory.breaker import BreakerState, Verdict
from app.memory.cpu import CPUMonitor
from app.memory.monitor import MIB
from app.memory.resources import ResourceManager
from app.serving import watch as watch_module
from app.serving.admission import LINE_RATIO, Demand
from app.serving.core import RESIDENT_WEIGHTS_RATIO, ServingCore, ServingOptions
from app.serving.runs import SMALL_PACK_TOKENS
from app.telemetry import Telemetry
from tests.fake_machine import v2_machine
from tests.fakes import DEADLINE_S, FakeClock, FakeModel, FakeOpener, fake_slot, metric

BUDGET_BYTES = 400 * MIB
FLOOR_RATIO = 0.25
ROOM_BYTES = round((LINE_RATIO - FLOOR_RATIO) * BUDGET_BYTES)
RECOVERY_S = 15.0
IDS = np.array([1, 15, 2])


class SizedModel(FakeModel):
    """Keeps threads, size of packs and whether pages are dropped; a token takes a MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int, bool]] = []

    def wave_bytes(self, lengths: Sequence[int], **options: object) -> int:
        return MIB * sum(lengths)

    def encode(self, wave: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        self.told.append((options["n_threads"], options["pack_tokens"], options["drop_pages"]))
        return super().encode(wave)


class Bench:
    """A core over a machine of two processors and 400 MiB, a quarter of them used at rest."""

    def __init__(self, folder: Path) -> None:
        self.machine = v2_machine(folder)
        self.limit(BUDGET_BYTES)
        self.use(FLOOR_RATIO)
        self.machine.write_file("a/b/cpu.max", "200000 100000")
        self.clock, self.telemetry = FakeClock(), Telemetry("test")
        self.opener, self.model = FakeOpener(), SizedModel()
        self.opener.next_model = self.model
        slot = fake_slot(self.opener, clock=self.clock, telemetry=self.telemetry)
        self.models = ResourceManager([slot], max_open=1, load_wait_s=DEADLINE_S)
        self.core = ServingCore(
            self.models,
            self.machine.monitor(),
            CPUMonitor(proc_root=self.machine.proc, cgroup_root=self.machine.cgroup),
            self.telemetry,
            ServingOptions(queue_timeout_s=0, recovery_timeout_s=RECOVERY_S),
            clock=self.clock,
        )

    def limit(self, n_bytes: int) -> None:
        self.machine.write_group("a", max=n_bytes)

    def use(self, ratio: float) -> None:
        n_bytes = round(ratio * BUDGET_BYTES)
        self.machine.write_group("a", stat=f"anon {n_bytes}", current=n_bytes)

    async def look(self, n_seconds: int = 1) -> None:
        for _ in range(n_seconds):
            self.clock.now_s += 1
            await self.core.watch.look()

    async def encode(self, ids: np.ndarray = IDS) -> tuple[int, int, bool]:
        """One text's run; what the engine was told for it."""
        assert len(await self.core.executor.encode(self.model, [ids])) == 1
        while self.core.gate.admission.run_bytes:  # told of the end just after the rows
            await asyncio.sleep(0)
        return self.model.told[-1]

    def series(self, name: str) -> float:
        return metric(self.telemetry.render().decode(), f"plimsoll_{name}")

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run to the end, or fail where something never comes; threads end before the loop."""

        async def whole() -> None:
            self.core.start()
            try:
                await asyncio.wait_for(scenario(), DEADLINE_S)
            finally:
                self.model.released.set()
                await asyncio.to_thread(self.core.stop)
                await self.models.close()

        asyncio.run(whole())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- the executor's limits ------------------------------------------------------------------


def test_texts_run_before_anybody_has_looked(bench: Bench):
    """The first request does not wait for the first second."""

    async def scenario() -> None:
        assert await bench.encode() == (2, PACK_TOKENS, False)

    bench.run(scenario)


def test_a_new_plan_reaches_the_engine(bench: Bench):
    """From the kernel's files to what the engine runs with."""

    async def scenario() -> None:
        bench.use(0.76)
        await bench.look()
        assert await bench.encode() == (1, SMALL_PACK_TOKENS, True)

    bench.run(scenario)


def test_a_run_has_the_room_that_admitted_requests_leave(bench: Bench):
    """What they hold may come at any moment."""

    async def scenario() -> None:
        assert bench.core.gate.admission.room_for_run_bytes() == ROOM_BYTES
        whole = np.full(ROOM_BYTES // MIB, 15)
        await bench.encode(whole)
        ticket = bench.core.gate.enter_now(Demand(0, 10 * MIB))
        with pytest.raises(MemoryPressureError):
            await bench.encode(whole)
        await bench.encode(whole[:-10])
        bench.core.gate.leave(ticket)
        await bench.encode(whole)

    bench.run(scenario)


def test_a_growing_reservation_narrows_the_room(bench: Bench):
    """Bodies on their way in count from the first byte."""

    async def scenario() -> None:
        reservation = bench.core.gate.reserve(1)
        reservation.grow(ROOM_BYTES - 2 * MIB)
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        reservation.release()
        await bench.encode()

    bench.run(scenario)


def test_what_runs_left_behind_is_given_back_to_those_who_wait(bench: Bench):
    """They hold the model while they wait, so it never counts as idle."""

    async def scenario() -> None:
        bench.core.gate._queue_timeout_s = DEADLINE_S
        async with bench.models.lease():
            reservation = bench.core.gate.reserve(ROOM_BYTES - MIB)
            waiting = asyncio.create_task(bench.core.gate.enter(Demand(1, 2 * MIB)))
            await asyncio.sleep(0)
            await bench.look()
            assert bench.model.n_releases == 1
            reservation.release()
            bench.core.gate.leave(await waiting)

    bench.run(scenario)


def test_weights_stay_while_they_are_half_the_budget_at_most(bench: Bench):
    """Of the budget that there is now: it may change while the server runs."""
    bench.model.weights_bytes = round(RESIDENT_WEIGHTS_RATIO * BUDGET_BYTES)

    async def scenario() -> None:
        for change_bytes, drops_pages in ((0, False), (-MIB, True), (0, False)):
            bench.limit(BUDGET_BYTES + change_bytes)
            await bench.look()
            assert (await bench.encode())[2] is drops_pages

    bench.run(scenario)


def test_admission_knows_the_run_under_way_and_what_runs_have_done(bench: Bench):
    """Its memory would pass for the server's own otherwise; its speed is the drain rate."""
    admission = bench.core.gate.admission
    bench.model.released.clear()

    async def scenario() -> None:
        call = asyncio.create_task(bench.core.executor.encode(bench.model, [IDS]))
        await asyncio.to_thread(bench.model.encoding.wait, DEADLINE_S)
        await asyncio.sleep(0)
        assert admission.run_bytes == 3 * MIB
        bench.model.released.set()
        await call
        while admission.n_tokens == 0:  # told of the end just after the rows
            await asyncio.sleep(0)
        assert (admission.run_bytes, admission.n_tokens) == (0, 3)
        await bench.look()
        assert bench.series("throughput_tokens_per_second") == 3

    bench.run(scenario)


# --- the breaker ----------------------------------------------------------------------------


def test_the_breakers_changes_are_logged_counted_and_shown(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    """At once, not at the next look; and the log says why."""
    caplog.set_level(logging.WARNING)
    breaker = bench.core.breaker

    def shown() -> list[float]:
        return [bench.series(f'breaker_state{{state="{state.value}"}}') for state in BreakerState]

    async def scenario() -> None:
        await bench.look()
        assert shown() == [1, 0, 0]
        for _ in range(3):
            breaker.record_failure()
        assert shown() == [0, 1, 0]
        assert bench.core.watch.step == 4
        bench.clock.now_s += RECOVERY_S
        probe = breaker.admit()
        assert probe.verdict is Verdict.PROBE
        assert shown() == [0, 0, 1]
        breaker.record_success(probe)
        assert shown() == [1, 0, 0]
        assert bench.core.watch.step == 0

    bench.run(scenario)
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        "memory breaker closed -> open",
        "memory breaker open -> half_open",
        "memory breaker half_open -> closed",
    ]
    assert "3 memory failures within 30 s" in caplog.text
    for state in BreakerState:
        assert bench.series(f'breaker_transitions_total{{state="{state.value}"}}') == 1


def test_while_the_breaker_is_open_nothing_runs(bench: Bench):
    """What was admitted before waits or is refused; the probe runs."""
    breaker = bench.core.breaker

    async def scenario() -> None:
        await bench.encode()
        for _ in range(3):
            breaker.record_failure()
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        await bench.look()
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        bench.clock.now_s += RECOVERY_S
        assert breaker.admit().verdict is Verdict.PROBE
        await bench.encode()

    bench.run(scenario)
    assert len(bench.model.waves) == 2


def test_a_breaker_that_opens_by_itself_pauses_the_executor_too(bench: Bench):
    """Memory alone opens it, and lets it try again."""

    async def scenario() -> None:
        ticket = bench.core.gate.enter_now(Demand(0, MIB))  # or it would pass for memory at rest
        bench.use(0.95)
        await bench.look(3)
        assert bench.core.breaker.state is BreakerState.OPEN
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        bench.use(FLOOR_RATIO)
        await bench.look(round(RECOVERY_S))
        assert bench.core.breaker.state is BreakerState.HALF_OPEN
        bench.core.gate.leave(ticket)
        await bench.encode()

    bench.run(scenario)


# --- its life -------------------------------------------------------------------------------


def test_idle_models_are_closed_when_memory_is_short_and_those_in_use_are_not(bench: Bench):
    """The next request opens it again, in the same fraction of a second as always."""

    async def scenario() -> None:
        bench.use(0.76)
        async with bench.models.lease() as model:
            await bench.look()
            assert not model.closed.is_set()
        bench.use(0.30)
        await bench.look(60)
        assert bench.core.watch.step == 0
        bench.use(0.76)
        await bench.look()
        assert model.closed.is_set()

    bench.run(scenario)
    assert bench.series('model_evictions_total{reason="pressure"}') == 1


def test_a_running_core_looks_after_memory_and_ends_with_its_block(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """However the block ends: threads that stay would keep the process."""
    monkeypatch.setattr(watch_module, "PERIOD_S", 0)

    async def whole() -> None:
        tasks = asyncio.all_tasks()
        with suppress(ZeroDivisionError):
            async with bench.core.running():
                assert len(asyncio.all_tasks()) == len(tasks) + 1
                while not bench.core.watch.history:
                    await asyncio.sleep(0)
                await bench.encode()
                raise ZeroDivisionError
        assert asyncio.all_tasks() == tasks

    async def bounded() -> None:
        # Cancelled by a timeout, the block would end too.
        done, _ = await asyncio.wait([asyncio.create_task(whole())], timeout=DEADLINE_S)
        assert [task.exception() for task in done] == [None]

    asyncio.run(bounded())
    assert not bench.core.executor._thread.is_alive()
    with pytest.raises(RuntimeError, match="shutdown"):
        bench.core._texts_thread.submit(print)

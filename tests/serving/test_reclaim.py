"""The ladder of giving memory back: what each rung asks for, once, and without waiting."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from plimsoll.machine import allocator
from plimsoll.models.pool import ModelPool
from plimsoll.policy.lines import DROPPING_STEP
from plimsoll.serving.reclaim import REST_S, Reclaim
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, HIDDEN, FakeClock, FakeModel, FakeOpener, fake_slot, metric
from tests.logged import own_records
from tests.serving.test_executor import run_executor, text


class AskedExecutor:
    """Counts how often it is asked for what runs left behind."""

    def __init__(self) -> None:
        self.n_asked = 0

    def release_memory(self) -> None:
        self.n_asked += 1


class Bench:
    """A ladder over two models, and what was asked for on it."""

    def __init__(self, executor: Any = None) -> None:
        self.telemetry = Telemetry("test")
        self.executor = executor or AskedExecutor()
        self.openers = {name: FakeOpener() for name in "ab"}
        slots = [
            fake_slot(opener, name, clock=FakeClock(), telemetry=self.telemetry)
            for name, opener in self.openers.items()
        ]
        self.models = ModelPool(slots, max_open=2, load_wait_s=DEADLINE_S)
        self.reclaim = Reclaim(self.models, self.executor, self.telemetry.pressure)

    def look(self, step: int = 0, *, is_short: bool = False, idle_s: float = 0.0) -> int:
        """How often the executor was asked for that."""
        before = self.executor.n_asked
        self.reclaim.look(step, is_short=is_short, idle_s=idle_s)
        return self.executor.n_asked - before

    async def open_all(self) -> list[FakeModel]:
        for name in self.openers:
            async with self.models.lease(name):
                pass
        return [opener.models[0] for opener in self.openers.values()]

    @property
    def n_dropping(self) -> float:
        """How often level 2 was begun."""
        page = self.telemetry.render().decode()
        return metric(page, 'plimsoll_recoveries_total{level="2",outcome="applied"}')


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the heap was asked for, in order."""
    done: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(allocator, "release", lambda: done.append("release"))
    return done


@contextmanager
def reclaiming(bench: Bench) -> Iterator["asyncio.Task[None]"]:
    """The task at work for the length of a `with` block."""
    task = asyncio.create_task(bench.reclaim.run())
    try:
        yield task
    finally:
        task.cancel()


async def wait_for(happened: Callable[[], bool]) -> None:
    """Let the others run until it has happened."""
    async with asyncio.timeout(DEADLINE_S):
        while not happened():
            await asyncio.sleep(0)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or fail where something never comes."""
    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


# --- what each rung asks for ----------------------------------------------------------------


def test_a_calm_busy_server_asks_for_nothing(bench: Bench):
    """What runs left behind serves the next run."""
    assert [bench.look() for _ in range(5)] == [0] * 5


def test_each_step_up_asks_once(bench: Bench):
    """It takes tens of milliseconds, and a second time it finds nothing; a step down is no reason,
    the next way up is one."""
    steps = [0, 1, 1, 1, 2, 2, 1, 1, 2, 0, 2]

    assert [bench.look(step) for step in steps] == [0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1]


def test_requests_that_wait_for_room_ask_as_long_as_they_wait(bench: Bench):
    """They hold the model while they wait, so it never rests; and runs go on beside them."""
    assert [bench.look(is_short=True) for _ in range(3)] == [1, 1, 1]
    assert bench.look() == 0


def test_a_rest_asks_once_until_there_was_work(bench: Bench):
    """A server that idles for hours would otherwise collect garbage each second."""
    idle = [0.0, REST_S / 2, REST_S, REST_S + 1, 3600.0, 0.0, 0.5, REST_S + 0.5]

    assert [bench.look(idle_s=idle_s) for idle_s in idle] == [0, 0, 1, 0, 0, 0, 0, 1]


def test_work_that_came_and_went_between_two_looks_counts(bench: Bench):
    """A look that is late by a little sees no busy moment, only a rest that is shorter."""
    assert [bench.look(idle_s=idle_s) for idle_s in (9.0, REST_S + 0.05, REST_S + 1)] == [1, 1, 0]


def test_several_reasons_at_once_ask_once(bench: Bench):
    """All of them want the same."""
    assert bench.look(DROPPING_STEP, is_short=True, idle_s=REST_S) == 1


def test_the_second_step_is_counted_as_a_recovery_when_it_is_entered(bench: Bench):
    """From then on weights are dropped after each layer; an operator sees how often it came."""
    counts = []
    for step in (0, 1, 2, 2, 1, 2):
        bench.look(step)
        counts.append(bench.n_dropping)

    assert counts == [0, 0, 1, 1, 1, 2]


# --- what is given back ---------------------------------------------------------------------


def test_free_memory_of_the_heap_goes_back_to_the_kernel(bench: Bench, collected: list[str]):
    """Garbage first, so that what it held goes too; not on the event loop, which would stand."""

    async def scenario() -> None:
        with reclaiming(bench):
            bench.look(1)
            await wait_for(lambda: len(collected) == 2)
            bench.look(1)
            bench.look(idle_s=REST_S)
            await wait_for(lambda: len(collected) == 4)

    run(scenario)
    assert collected == ["collect", "release"] * 2


def test_idle_models_are_closed_at_the_second_step_and_not_before(
    bench: Bench, collected: list[str]
):
    """They are what costs a client time, so they go last; a model in use stays."""

    async def scenario() -> None:
        used, idle = await bench.open_all()
        with reclaiming(bench):
            async with bench.models.lease("a"):
                for n_rounds, (step, idle_s) in enumerate([(0, REST_S), (1, 0.0)], start=1):
                    bench.look(step, idle_s=idle_s)
                    await wait_for(lambda n=n_rounds: len(collected) == 2 * n)
                assert not idle.closed.is_set()
                bench.look(DROPPING_STEP)
                await wait_for(lambda: len(collected) == 6)
                assert idle.closed.is_set()
                assert not used.closed.is_set()

    run(scenario)


def test_idle_models_are_closed_once_for_each_time_the_step_is_entered(
    bench: Bench, collected: list[str]
):
    """A model that a request has opened since is in use: closing it again and again would make
    every request wait for its opening."""

    async def scenario() -> None:
        with reclaiming(bench):
            bench.look(DROPPING_STEP)
            await wait_for(lambda: len(collected) == 2)
            models = await bench.open_all()
            bench.look(DROPPING_STEP, is_short=True)
            await wait_for(lambda: len(collected) == 4)
            assert not any(model.closed.is_set() for model in models)
            bench.look(0)
            bench.look(DROPPING_STEP)
            await wait_for(lambda: len(collected) == 6)
            assert all(model.closed.is_set() for model in models)

    run(scenario)


# --- never waits ----------------------------------------------------------------------------


def test_asking_does_not_wait_for_a_model_that_closes(bench: Bench, collected: list[str]):
    """The control loop asks in its tick: it would see nothing until the model has closed."""

    async def scenario() -> None:
        model, _ = await bench.open_all()
        model.close_gate.clear()
        with reclaiming(bench):
            bench.look(DROPPING_STEP)
            await asyncio.to_thread(model.closing.wait, DEADLINE_S)
            assert bench.look(DROPPING_STEP, is_short=True) == 1  # asked, and back at once
            assert not model.closed.is_set()
            model.close_gate.set()
            await wait_for(lambda: len(collected) == 4)  # what was asked in between is done after

    run(scenario)


def test_asking_does_not_wait_for_the_run_under_way_and_nothing_is_given_back_in_it():
    """With the real executor: its thread gives back between two runs."""
    model = FakeModel()
    model.released.clear()

    async def scenario(runs: Any) -> None:
        bench = Bench(runs)
        call = asyncio.create_task(runs.encode(model, [text(5)], HIDDEN))
        await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
        for _ in range(3):
            bench.reclaim.look(DROPPING_STEP, is_short=True, idle_s=0.0)
        assert model.n_releases == 0
        model.released.set()
        await call
        await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        await runs.encode(FakeModel(), [text(5)], HIDDEN)  # comes after all that was asked
        assert model.n_releases == 1

    run_executor(scenario)


def test_an_error_is_logged_and_not_the_end_of_giving_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """If one error ended the task, no memory would ever come back again."""
    n_collected = 0

    def collect() -> None:
        nonlocal n_collected
        n_collected += 1
        if n_collected == 1:
            raise OSError("something went wrong")

    monkeypatch.setattr(gc, "collect", collect)

    async def scenario() -> None:
        with reclaiming(bench):
            for n_rounds in (1, 2):
                bench.look(is_short=True)
                await wait_for(lambda n=n_rounds: n_collected == n)

    run(scenario)
    assert [record.getMessage() for record in own_records(caplog)] == ["cannot give memory back"]


def test_the_task_ends_when_it_is_cancelled(bench: Bench):
    """A server that stops waits for it."""

    async def scenario() -> None:
        with reclaiming(bench) as task:
            await asyncio.sleep(0)
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(scenario)

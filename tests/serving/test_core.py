"""The serving parts put together: a change in one is felt by those that it concerns.

On a fake machine, whose memory and seconds a test sets, with a fake model.
"""

import asyncio
import logging
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.layout import PACK_TOKENS
from plimsoll.errors import EncodeMemoryError, MemoryPressureError
from plimsoll.machine.memory import MIB
from plimsoll.policy.breaker import BreakerState
from plimsoll.policy.costs import Demand
from plimsoll.policy.lines import FAILURES, RESIDENT_WEIGHTS_RATIO
from plimsoll.serving import control_loop
from plimsoll.serving.executor import THREAD_NAME
from plimsoll.serving.tasks import EmbedTask
from tests.fakes import DEADLINE_S
from tests.logged import own_records
from tests.serving.core_bench import (
    BUDGET_BYTES,
    FLOOR_RATIO,
    IDS,
    RECOVERY_S,
    ROOM_BYTES,
    Bench,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- the executor's limits ------------------------------------------------------------------


def test_texts_run_before_the_first_look(bench: Bench):
    """The first request does not wait for the first second."""

    async def scenario() -> None:
        assert await bench.encode() == (2, PACK_TOKENS, False)

    bench.run(scenario)


def test_a_new_plan_reaches_the_engine(bench: Bench):
    """From the kernel's files to what the engine runs with."""

    async def scenario() -> None:
        bench.use(0.76)
        bench.tick()
        assert await bench.encode() == (1, PACK_TOKENS // 2, True)

    bench.run(scenario)


def test_a_run_has_the_room_that_admitted_requests_leave(bench: Bench):
    """What they hold may come at any moment."""

    async def scenario() -> None:
        assert bench.core.governor.admission.room_for_run_bytes() == ROOM_BYTES
        whole = np.full(ROOM_BYTES // MIB, 15)
        await bench.encode(whole)
        permit = bench.core.gate.permit()
        permit.renew_now(Demand(0, 10 * MIB))
        with pytest.raises(MemoryPressureError):
            await bench.encode(whole)
        await bench.encode(whole[:-10])
        permit.leave()
        await bench.encode(whole)

    bench.run(scenario)


def test_a_growing_body_narrows_the_room(bench: Bench):
    """Bodies on their way in count from the first byte."""

    async def scenario() -> None:
        permit = bench.core.gate.permit()
        permit.keep(1)
        permit.keep(ROOM_BYTES - 2 * MIB)
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        permit.leave()
        await bench.encode()

    bench.run(scenario)


def test_what_runs_left_behind_is_given_back_to_those_who_wait(tmp_path: Path):
    """They hold the model while they wait, so it never counts as idle."""
    bench = Bench(tmp_path, queue_timeout_s=DEADLINE_S)

    async def scenario() -> None:
        async with bench.models.lease():
            await bench.encode()
            holding, waiting = bench.core.gate.permit(), bench.core.gate.permit()
            holding.keep(ROOM_BYTES - MIB)
            request = asyncio.create_task(waiting.renew(Demand(1, 2 * MIB)))
            await asyncio.sleep(0)
            bench.tick()
            await asyncio.to_thread(bench.model.releasing.wait, DEADLINE_S)
            assert bench.model.n_releases == 1
            holding.leave()
            await request
            waiting.leave()

    bench.run(scenario)


def test_what_runs_left_behind_is_given_back_once_no_request_comes(bench: Bench):
    """A second after the last one, and not again until there was work; the weights stay mapped."""

    async def scenario() -> None:
        bench.tick()
        for n_releases in (1, 2):
            permit = bench.core.gate.permit()
            permit.renew_now(Demand(3, MIB))
            await bench.encode()
            bench.tick()  # the request is there
            permit.leave()
            bench.tick()
            await asyncio.to_thread(bench.model.releasing.wait, DEADLINE_S)
            bench.model.releasing.clear()
            bench.tick(5)
            assert bench.model.n_releases == n_releases

    bench.run(scenario)


def test_weights_stay_while_they_are_half_the_budget_at_most(bench: Bench):
    """Of the budget that there is now: it may change while the server runs."""
    bench.model.weights_bytes = round(RESIDENT_WEIGHTS_RATIO * BUDGET_BYTES)

    async def scenario() -> None:
        for change_bytes, drops_pages in ((0, False), (-MIB, True), (0, False)):
            bench.limit(BUDGET_BYTES + change_bytes)
            bench.tick()
            assert (await bench.encode())[2] is drops_pages

    bench.run(scenario)


def test_admission_knows_the_run_under_way_and_what_runs_have_done(bench: Bench):
    """Its memory would pass for the server's own otherwise; its speed is the drain rate."""
    governor = bench.core.governor
    bench.model.released.clear()

    async def scenario() -> None:
        call = asyncio.create_task(bench.encode())
        await asyncio.to_thread(bench.model.encoding.wait, DEADLINE_S)
        await asyncio.sleep(0)
        assert governor.admission.run_bytes == len(IDS) * MIB
        bench.model.released.set()
        await call
        assert (governor.admission.run_bytes, governor.totals.n_tokens) == (0, len(IDS))
        bench.tick()
        assert bench.core.state().tokens_per_s == len(IDS)

    bench.run(scenario)


# --- memory at rest -------------------------------------------------------------------------


def test_rest_is_measured_anew_once_a_model_has_opened_or_closed(bench: Bench):
    """Rest is the least of five minutes: behind the old one a tight budget once refused everything
    on an idle server until those minutes had passed, while /health said that all was well."""
    admission = bench.core.governor.admission

    async def scenario() -> None:
        bench.tick(5)
        assert admission.rest_ratio == FLOOR_RATIO
        bench.use(0.68)
        async with bench.models.lease():
            assert admission.idle_floor_bytes == pytest.approx(0.68 * BUDGET_BYTES, rel=1e-3)
            assert admission.rest_ratio == FLOOR_RATIO  # lines wait until it has settled
        bench.tick(3)
        assert admission.rest_ratio == pytest.approx(0.68)
        bench.use(0.30)
        await bench.models.close()
        bench.tick(1)
        assert admission.idle_floor_bytes == pytest.approx(0.30 * BUDGET_BYTES, rel=1e-3)

    bench.run(scenario)


def test_a_request_that_ends_moves_no_rest(bench: Bench):
    """Its memory is still there at that moment."""
    admission = bench.core.governor.admission

    async def scenario() -> None:
        async with bench.models.lease():
            bench.use(0.50)
        assert admission.rest_ratio == FLOOR_RATIO

    bench.run(scenario)


# --- the breaker ----------------------------------------------------------------------------


def test_the_breakers_changes_are_logged_counted_and_shown(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    """At once, not at the next look; and the log says why."""
    caplog.set_level(logging.WARNING)

    def shown() -> list[float]:
        return [bench.series(f'breaker_state{{state="{state.value}"}}') for state in BreakerState]

    async def scenario() -> None:
        bench.tick()
        assert shown() == [1, 0, 0]
        bench.fail_for_want_of_memory()
        assert shown() == [0, 1, 0]
        assert bench.core.state().step == 4
        bench.clock.now_s += RECOVERY_S
        probe = bench.core.gate.permit()
        probe.enter(asks_breaker=True)
        assert shown() == [0, 0, 1]
        probe.succeeded()
        assert shown() == [1, 0, 0]
        assert bench.core.state().step == 0

    bench.run(scenario)
    assert [record.getMessage().partition(": ")[0] for record in own_records(caplog)] == [
        "memory breaker closed -> open",
        "memory breaker open -> half_open",
        "memory breaker half_open -> closed",
    ]
    assert "3 memory failures within 30 s" in caplog.text
    for state in BreakerState:
        assert bench.series(f'breaker_transitions_total{{state="{state.value}"}}') == 1


def test_a_text_that_finds_no_memory_is_one_failure_however_many_ask_for_it(bench: Bench):
    """A popular query comes many times at once and is computed once: its one failure took vectors
    away from everybody."""
    core = bench.core
    bench.model.error = EncodeMemoryError("no memory")

    async def ask() -> None:
        permit = core.gate.permit()
        try:
            await core.service.embed_dense(EmbedTask(["a ship"]), permit)
        finally:
            permit.leave()

    async def scenario() -> None:
        for n_failures in range(1, FAILURES + 1):
            assert core.governor.breaker.state is BreakerState.CLOSED
            bench.model.released.clear()
            asked = [asyncio.create_task(ask()) for _ in range(5)]
            while bench.series('vectors_total{source="in_flight"}') < 4 * n_failures:
                await asyncio.sleep(0)
            bench.model.released.set()
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(error) for error in ends] == [EncodeMemoryError] * 5
            assert core.governor.breaker.snapshot().n_failures == n_failures
        assert core.governor.breaker.state is BreakerState.OPEN

    bench.run(scenario)


def test_while_the_breaker_is_open_nothing_runs(bench: Bench):
    """What was admitted before waits or is refused; the probe runs."""

    async def scenario() -> None:
        await bench.encode()
        bench.fail_for_want_of_memory()
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        bench.tick()
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        bench.clock.now_s += RECOVERY_S
        bench.core.gate.permit().enter(asks_breaker=True)
        await bench.encode()

    bench.run(scenario)
    assert len(bench.model.runs) == 2


def test_a_breaker_that_opens_by_itself_pauses_the_executor_too(bench: Bench):
    """Memory alone opens it, and lets it try again."""

    async def scenario() -> None:
        permit = bench.core.gate.permit()  # or the memory would pass for that at rest
        permit.renew_now(Demand(0, MIB))
        bench.use(0.95)
        bench.tick(3)
        assert bench.core.governor.breaker.state is BreakerState.OPEN
        with pytest.raises(MemoryPressureError):
            await bench.encode()
        bench.use(FLOOR_RATIO)
        bench.tick(round(RECOVERY_S))
        assert bench.core.governor.breaker.state is BreakerState.HALF_OPEN
        permit.leave()
        await bench.encode()

    bench.run(scenario)


# --- its life -------------------------------------------------------------------------------


def test_idle_models_are_closed_when_memory_is_short_and_those_in_use_are_not(bench: Bench):
    """The next request opens it again, in the same fraction of a second as always."""

    async def scenario() -> None:
        reclaiming = asyncio.create_task(bench.core.reclaim.run())
        bench.use(0.76)
        async with bench.models.lease() as model:
            bench.tick()
            for _ in range(20):  # more steps than it takes to close one
                await asyncio.sleep(0)
            assert not model.closed.is_set()
        bench.use(0.30)
        bench.tick(60)
        assert bench.core.state().step == 0
        bench.use(0.76)
        bench.tick()
        await asyncio.to_thread(model.closed.wait, DEADLINE_S)
        assert model.closed.is_set()
        reclaiming.cancel()
        await asyncio.wait([reclaiming])

    bench.run(scenario)
    assert bench.series('model_evictions_total{reason="pressure"}') == 1


def test_a_running_core_looks_after_memory_and_ends_with_its_block(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    """However the block ends: threads that stay would keep the process."""
    monkeypatch.setattr(control_loop, "PERIOD_S", 0)

    def n_engine_threads() -> int:
        return sum(thread.name == THREAD_NAME for thread in threading.enumerate())

    async def whole() -> None:
        tasks, n_threads = asyncio.all_tasks(), n_engine_threads()
        with suppress(ZeroDivisionError):
            async with bench.core.running():
                assert n_engine_threads() == n_threads + 1
                # The control loop, what gives memory back, and what closes idle models.
                assert len(asyncio.all_tasks()) == len(tasks) + 3
                while not bench.core.control_loop.history:
                    await asyncio.sleep(0)
                await bench.encode()
                raise ZeroDivisionError
        assert asyncio.all_tasks() == tasks
        assert n_engine_threads() == n_threads

    async def bounded() -> None:
        # Cancelled by a timeout, the block would end too.
        done, _ = await asyncio.wait([asyncio.create_task(whole())], timeout=DEADLINE_S)
        assert [task.exception() for task in done] == [None]

    asyncio.run(bounded())
    with pytest.raises(RuntimeError, match="shutdown"):
        bench.core.threads[0].submit(print)

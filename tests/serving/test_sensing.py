"""Sensing never waits for acting: what the server notices while the engine is in a long run."""

import asyncio
import threading

import pytest

from plimsoll.policy.breaker import BreakerState
from plimsoll.serving.tasks import EmbedTask
from tests.fakes import DEADLINE_S, FakeClock, FakeOpener, FakeServer
from tests.pressure import BUDGET, FLOOR, FakeMemory


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> FakeServer:
    """A server whose model holds its first run, and whose memory nothing gives back until then."""
    opener = FakeOpener()
    opener.next_model.released.clear()
    opener.next_model.release_gate.clear()
    return FakeServer(opener, monitor=FakeMemory(), clock=clock)


def end(server: FakeServer) -> None:
    """Let everything go on, and end the threads."""
    server.model.release_gate.set()
    server.model.released.set()
    server.close()


def test_memory_that_runs_short_in_a_long_run_opens_the_breaker_within_it(
    server: FakeServer, clock: FakeClock
):
    """A tick that waited for the run to give memory back saw nothing until the run was over."""
    core, memory, model = server.core, server.core.memory, server.model

    async def scenario() -> None:
        try:
            request = asyncio.create_task(
                core.service.embed_dense(EmbedTask(["a long text"]), core.gate.permit())
            )
            await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
            memory.used_bytes = int(0.95 * BUDGET)
            for _ in range(4):
                clock.now_s += 1
                core.control_loop.tick()
            # Everything that the pressure calls for has been asked for; the run still stands.
            assert core.governor.breaker.state is BreakerState.OPEN
            assert core.state().step == 4
            assert [moment.step for moment in core.control_loop.history] == [2, 2, 4, 4]
            assert not request.done()
            memory.used_bytes = FLOOR
            model.release_gate.set()
            model.released.set()
            await asyncio.wait_for(request, DEADLINE_S)
        finally:
            await asyncio.to_thread(end, server)

    asyncio.run(scenario())


def test_what_a_run_leaves_is_given_back_after_it_and_not_in_it(
    server: FakeServer, clock: FakeClock
):
    """The engine gives it back itself: no other thread may wait for the lock that a run holds."""
    core, model = server.core, server.model
    threads: list[str] = []
    release = model.release_memory

    def note() -> None:
        threads.append(threading.current_thread().name)
        release()

    model.release_memory = note

    async def scenario() -> None:
        try:
            request = asyncio.create_task(
                core.service.embed_dense(EmbedTask(["a text"]), core.gate.permit())
            )
            await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
            core.memory.used_bytes = int(0.80 * BUDGET)
            clock.now_s += 1
            core.control_loop.tick()
            assert threads == []
            model.release_gate.set()
            model.released.set()
            await asyncio.wait_for(request, DEADLINE_S)
            await asyncio.to_thread(model.releasing.wait, DEADLINE_S)
        finally:
            await asyncio.to_thread(end, server)

    asyncio.run(scenario())
    assert set(threads) == {"runs"}

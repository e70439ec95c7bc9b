"""One trace through the real service and through the simulation: the same end for each request."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import NOMIC_V1_5
from plimsoll.errors import (
    BreakerOpenError,
    EncodeMemoryError,
    MemoryPressureError,
    QueueFullError,
    TooLargeError,
)
from plimsoll.policy.return_times import told_s
from plimsoll.serving.control_loop import PERIOD_S
from plimsoll.serving.tasks import EmbedTask, SparseEmbeddings
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate
from plimsoll.simulation.server import CHARACTERS_PER_TOKEN, simulate
from plimsoll.simulation.trace import Arrival, ExtraMemory, MemoryFailure, TraceEvent
from tests.simulation.virtual_time import VirtualLoop, VirtualService

MIB = 1 << 20
NO_ROOM = {
    MemoryPressureError: "memory_pressure",
    BreakerOpenError: "breaker_open",
    EncodeMemoryError: "out_of_memory",
}
# Longer than any trace and its queue.
MOST_S = 20_000.0

End = tuple[Fate, str | None]


def mixed_trace(n_arrivals: int, seed: int, rate_per_s: float) -> list[TraceEvent]:
    """Short texts, lists and long texts, with memory that comes and goes and runs that fail."""
    chance = random.Random(seed)
    trace: list[TraceEvent] = []
    at_s = 0.0
    for _ in range(n_arrivals):
        at_s += chance.expovariate(rate_per_s)
        n_texts = chance.choices([1, 2, 8, 40, 150, 400], [40, 20, 20, 12, 6, 2])[0]
        lengths = chance.choices([6, 25, 120, 500, 3000, 9000], [20, 30, 30, 15, 4, 1], k=n_texts)
        trace.append(Arrival(at_s, tuple(lengths)))
    for _ in range(n_arrivals // 40):
        begin_s = chance.uniform(0, at_s)
        trace.append(ExtraMemory(begin_s, chance.choice([60, 120, 250, 330]) * MIB))
        trace.append(ExtraMemory(begin_s + chance.uniform(0.5, 12), 0))
        trace.append(MemoryFailure(chance.uniform(0, at_s), chance.choice([0.0, 0.3, 2.0, 9.0])))
    return sorted(trace, key=lambda event: event.at_s)


class Replay:
    """A trace on its way through the real service."""

    def __init__(self, trace: Sequence[TraceEvent], machine: SimulatedMachine) -> None:
        self._trace = trace
        self._loop = VirtualLoop()
        self._real = VirtualService(machine, self._loop)
        self._chance = random.Random(0).random  # the simulation's own
        self.ends: list[End | None] = []
        self.seconds: list[tuple[float, int, int]] = []  # time, parallelism, step

    def run(self) -> None:
        """Until the last request has its answer."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._open())
            self._loop.now_s = 0.0
            self._loop.run_until_complete(self._replay())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _open(self) -> None:
        async with self._real.models.lease():
            pass

    async def _replay(self) -> None:
        self._real.gate.measure()
        ticking = asyncio.create_task(self._tick())
        tasks = []
        for event in self._trace:
            await asyncio.sleep(event.at_s - self._loop.now_s)
            match event:
                case Arrival():
                    place = len(self.ends)
                    self.ends.append(None)
                    tasks.append(asyncio.create_task(self._ask(place, event)))
                case ExtraMemory(n_bytes=n_bytes):
                    self._real.memory.extra_bytes = n_bytes
                case MemoryFailure(for_s=for_s):
                    self._real.executor.engine.fail(for_s)
            assert self._loop.now_s < MOST_S
        await asyncio.gather(*tasks)
        ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            self._real.control_loop.tick()
            governor = self._real.governor
            self.seconds.append((self._loop.now_s, governor.plan.parallelism, governor.step))

    async def _ask(self, place: int, arrival: Arrival) -> None:
        """Ask as its client does: again when it is told to, as often as it will."""
        for attempt in range(1 + arrival.n_retries):
            retry_after_s = await self._try(place, arrival)
            if retry_after_s is None or attempt == arrival.n_retries:
                return
            await asyncio.sleep(told_s(retry_after_s, self._chance()))

    async def _try(self, place: int, arrival: Arrival) -> float | None:
        """One attempt; its time to come back where it is refused for now."""
        texts = ["x" * (CHARACTERS_PER_TOKEN * n_tokens) for n_tokens in arrival.tokens]
        permit = self._real.gate.permit()
        try:
            answer = await self._real.service.embed(EmbedTask(texts, fallback="bm25"), permit)
            if isinstance(answer, SparseEmbeddings):
                assert answer.degraded is not None
                self.ends[place] = (Fate.SPARSE, answer.degraded.reason)
            else:
                self.ends[place] = (Fate.DENSE, None)
        except QueueFullError as error:
            self.ends[place] = (Fate.QUEUE_FULL, None)
            return error.retry_after_s
        except TooLargeError:
            self.ends[place] = (Fate.TOO_LARGE, None)
        except tuple(NO_ROOM) as error:
            self.ends[place] = (Fate.NO_ROOM, NO_ROOM[type(error)])
            return error.retry_after_s
        finally:
            permit.leave()
        return None


@pytest.mark.parametrize(
    ("limit_mib", "seed", "rate_per_s", "tokens_per_s"),
    [(400, 1, 2.0, 2500.0), (400, 2, 0.7, 900.0), (160, 3, 2.0, 2500.0), (110, 4, 1.0, 5000.0)],
)
def test_the_simulation_says_what_the_service_does(
    limit_mib: int, seed: int, rate_per_s: float, tokens_per_s: float
):
    """A simulation that asks in another order than the server tells of another server."""
    machine = SimulatedMachine(
        limit_mib * MIB,
        SHAPES[NOMIC_V1_5.name],
        8192,
        tokens_per_s=tokens_per_s,
        queue_s=10.0,
    )
    trace = mixed_trace(2000 if limit_mib == 400 and seed == 1 else 500, seed, rate_per_s)
    foretold = [(found.fate, found.reason) for found in simulate(trace, machine).requests]
    replay = Replay(trace, machine)
    replay.run()

    different = [
        (place, said, came)
        for place, (said, came) in enumerate(zip(foretold, replay.ends, strict=True))
        if said != came
    ]
    assert different == []
    # It would say nothing if every request ended alike.
    assert len(Counter(foretold)) >= 4, Counter(foretold)


def test_crowds_that_come_back_end_as_foretold():
    """Who is known again, and what it is told, is decided by both in the same order."""
    machine = SimulatedMachine(
        400 * MIB, SHAPES[NOMIC_V1_5.name], 8192, tokens_per_s=2500.0, queue_s=5.0
    )
    trace = [
        Arrival(30.0 * number + 0.01 * caller, [20 + caller % 3] * 50, n_retries=2)
        for number in range(2)
        for caller in range(90)
    ]
    foretold = [(found.fate, found.reason) for found in simulate(trace, machine).requests]
    replay = Replay(trace, machine)
    replay.run()

    assert replay.ends == foretold
    assert {fate for fate, _ in foretold} == {Fate.DENSE, Fate.QUEUE_FULL}

"""The one ladder of giving memory back.

    step 1                               half of the vector cache
    step 2, or memory is short           all of it
    nothing is admitted for a while      what runs left behind, and free memory of the heap
    step 1, or memory is short           the same, at once
    step 2                               idle models are closed too

Memory is short while requests wait for room or the breaker is not closed.

The owner of memory gives it back, when asked and never in the midst of a run: the executor's thread
between two runs, the pool when a model is idle. So asking never waits, and the control loop asks in
its tick. Which pages of weights stay is part of what a run may do (policy/runs.py).
"""

import asyncio
import gc
import logging

from plimsoll.machine import allocator
from plimsoll.models.pool import ModelPool
from plimsoll.policy.lines import CACHE_SHARES, DROPPING_STEP
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.vector_cache import VectorCache
from plimsoll.telemetry.pressure import PressureMetrics, Recovery

log = logging.getLogger(__name__)

# After so long without a request, what runs left behind is given back; the weights stay mapped.
REST_S = 1.0


class Reclaim:
    """Owns what is asked to be given back, and the task that sees to it."""

    def __init__(
        self,
        models: ModelPool,
        executor: RunExecutor,
        metrics: PressureMetrics,
        cache: VectorCache | None = None,
    ) -> None:
        self._models = models
        self._executor = executor
        self._metrics = metrics
        self._cache = cache
        self._asked = asyncio.Event()
        self._closes_idle = False
        self._last_step = 0
        self._idle_s = 0.0

    def look(self, step: int, *, is_short: bool, idle_s: float) -> None:
        """Ask for what this moment calls for; once a second, and never waits.

        step: of the memory ladder by what was measured, 0 to 2. is_short: requests wait for room
        or the breaker is not closed. idle_s: for how long nothing has been admitted.
        """
        if self._cache is not None:
            self._cache.limit_to(0.0 if is_short else CACHE_SHARES[step])
        has_risen, self._last_step = step > self._last_step, step
        # A rest that is shorter than at the last look is another one.
        has_rested_already = REST_S <= self._idle_s <= idle_s
        self._idle_s = idle_s
        if has_risen and step >= DROPPING_STEP:
            # From now on weights are dropped after each layer: the same vectors in less memory.
            self._metrics.recovered(Recovery.PAGES_DROPPED)
            self._closes_idle = True
        if has_risen or is_short or (idle_s >= REST_S and not has_rested_already):
            self._executor.release_memory()
            self._asked.set()

    async def run(self) -> None:
        """Give back what is asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            try:
                await self._give_back()
            except Exception:  # one error must not end this task
                log.exception("cannot give memory back")

    async def _give_back(self) -> None:
        if self._closes_idle:
            self._closes_idle = False
            n_closed = await self._models.unload_idle()
            if n_closed:
                log.info("closed %d idle models to free memory", n_closed)
        await asyncio.to_thread(_collect)


def _collect() -> None:
    gc.collect()
    allocator.release()

"""The parts that serve requests: started and stopped together, and seen as one state."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from plimsoll.encoder.layout import run_bytes
from plimsoll.machine.memory import MIB, MemoryMonitor
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import ModelSlot, ModelState
from plimsoll.policy.costs import TextSizes, dense_demand
from plimsoll.policy.governor import Governor
from plimsoll.policy.lines import HIGH_RATIO, OPEN_RATIO, effects
from plimsoll.serving.control_loop import ControlLoop
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.ranking import RankingService
from plimsoll.serving.reclaim import Reclaim
from plimsoll.serving.state import ModelStatus, ServerState, Unready
from plimsoll.serving.tokenizing import TokenService
from plimsoll.tuning.resolver import BottleneckResolver

# A server that cannot take even a text of so many tokens serves nothing.
SMALLEST_TOKENS = 16


@dataclass
class Drain:
    """Whether the server is on its way out; owned by the server's signal handling.

    is_over: also the time that requests under way had to finish.
    """

    started: bool = False
    is_over: bool = False


@dataclass(frozen=True)
class ServingCore:
    """The parts, and how they start and stop. threads: for texts and for words."""

    models: ModelPool
    memory: MemoryMonitor
    governor: Governor
    gate: AdmissionGate
    executor: RunExecutor
    reclaim: Reclaim
    resolver: BottleneckResolver
    control_loop: ControlLoop
    threads: tuple[ThreadPoolExecutor, ...]
    service: EmbeddingService
    ranking: RankingService
    tokens: TokenService
    drain: Drain

    def start(self) -> None:
        """Start the engine's thread."""
        self.gate.measure()
        self.gate.update_limits()
        self.executor.start(self.gate)

    def stop(self) -> None:
        """Finish what is queued, then end every thread; blocks."""
        self.executor.stop()
        for thread in self.threads:
            thread.shutdown()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Threads at work and memory watched for the length of a `with` block."""
        self.start()
        tasks = [
            asyncio.create_task(self.control_loop.run()),
            asyncio.create_task(self.reclaim.run()),
            asyncio.create_task(self.models.watch_idleness()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(self.stop)

    def state(self) -> ServerState:
        """What the server is doing now; memory is measured anew, and nothing is changed."""
        governor, loop = self.governor, self.control_loop
        admission = governor.admission
        return ServerState(
            memory=self.memory.sample(),
            budget_source=self.memory.budget.source,
            limits=self.memory.limits,
            refaults_per_s=loop.refaults_per_s,
            cpu=loop.load,
            tokens_per_s=governor.tokens_per_s,
            predicted_bytes=admission.predicted_bytes,
            line_bytes=admission.line_bytes,
            step=governor.step,
            effects=effects(governor.step, governor.plan.step_reasons),
            plan=governor.plan,
            breaker=governor.breaker.snapshot(),
            queue_tokens=admission.backlog.queue_tokens,
            queue_limit_tokens=admission.backlog.queue_limit_tokens,
            drain_tokens_per_s=admission.backlog.tokens_per_s,
            models=[_status(slot) for slot in self.models.slots],
            unready=self._unready(),
            bottleneck=self.resolver.report(),
            history=loop.history,
        )

    def _unready(self) -> Unready | None:
        default = self.models.slots[0]
        if self.drain.started:
            return Unready("draining", "the server is stopping")
        if default.state is ModelState.FAILED:
            return Unready("unavailable", f"{default.name} would not open: {default.error}")
        if default.damage is not None:
            return Unready("damaged", f"{default.name} is made again: {default.damage}")
        # Before the first open there is nothing to answer from while the model loads.
        if default.state is ModelState.LOADING and default.traits is None:
            return Unready("starting", f"{default.name} is being made ready")
        return self._too_tight(default)

    def _too_tight(self, default: ModelSlot) -> Unready | None:
        """Why not even the shortest text could be served, were it so."""
        admission = self.governor.admission
        if default.traits is None or not admission.has_settled:
            return None
        if default.state is not ModelState.READY:
            return None
        shape = default.traits.architecture
        demand = dense_demand(
            TextSizes.of([SMALLEST_TOKENS]),
            lambda lengths: run_bytes(shape, lengths, n_threads=1),
            hidden=shape.hidden,
            dimensions=shape.hidden,
        )
        peak_bytes = demand.peak_bytes
        if peak_bytes <= admission.largest_bytes(demand):
            return None
        rest_bytes = admission.idle_floor_bytes
        # The smaller of the two budgets at which policy/lines.py would leave room for it.
        needed_bytes = min(
            (rest_bytes + peak_bytes) / HIGH_RATIO, (rest_bytes + 3 * peak_bytes) / OPEN_RATIO
        )
        return Unready(
            "no_memory",
            f"at rest the server takes {rest_bytes / MIB:.0f} MiB, which leaves no room for even a "
            f"text of {SMALLEST_TOKENS} tokens; raise its memory limit, or "
            f"PLIMSOLL_MEMORY_BUDGET, to {needed_bytes / MIB + 1:.0f}M or more",
        )


def _status(slot: ModelSlot) -> ModelStatus:
    return ModelStatus(
        name=slot.name,
        state=slot.state.value,
        traits=slot.traits,
        error=str(slot.error) if slot.error else None,
        notice=slot.damage or slot.source_change,
        loaded_bytes=slot.progress[0],
        total_bytes=slot.progress[1],
    )

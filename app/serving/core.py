"""Put the serving parts together: who tells whom what.

Plain values in, no settings. The server, the command line and tests build the same core.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic

from app.encoder.model import EmbeddingModel
from app.gguf.load_times import LoadTimes
from app.memory.affinity import CoreWatch
from app.memory.breaker import BreakerLimits, BreakerState, MemoryCircuitBreaker, Transition
from app.memory.cpu import CPUMonitor, CPUSample
from app.memory.disk import DiskMonitor
from app.memory.monitor import MemoryMonitor, MemorySample
from app.memory.resources import ResourceManager
from app.serving.admission import Admission
from app.serving.evidence import EngineClock, Look
from app.serving.executor import RunExecutor
from app.serving.gate import AdmissionGate
from app.serving.ranking import RankingService
from app.serving.remedies import (
    AvoidTakenCores,
    KeepLayers,
    PageKeeping,
    ReleaseMemory,
    fewer_threads,
    smaller_runs,
)
from app.serving.resolver import BottleneckResolver
from app.serving.runs import RunLimits
from app.serving.scheduler import AdaptiveScheduler
from app.serving.service import EmbeddingService
from app.serving.watch import MemoryWatch
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

# Above this share of the budget the weights cannot stay resident beside everything else.
RESIDENT_WEIGHTS_RATIO = 0.5
# From this step of the memory ladder on requests wait for memory.
HOLDING_BACK_STEP = 3


@dataclass(frozen=True)
class ServingOptions:
    """What an operator may choose.

    queue_s: work that may wait, in seconds. queue_timeout_s: how long a request waits for memory.
    recovery_timeout_s: how long the breaker stays open.
    """

    queue_s: float = 30.0
    queue_timeout_s: float = 5.0
    recovery_timeout_s: float = 15.0


class ServingCore:
    """Owns admission, breaker, scheduler, executor, the watch over them, and the texts' thread.

    That thread tokenizes, and counts words where the model cannot answer.
    """

    def __init__(
        self,
        models: ResourceManager[EmbeddingModel],
        memory: MemoryMonitor,
        cpu: CPUMonitor,
        telemetry: Telemetry,
        options: ServingOptions,
        *,
        disk: DiskMonitor | None = None,
        times: LoadTimes | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`times`: of the models' loads."""
        self._telemetry = telemetry
        self._clock = clock
        self._disk = disk or DiskMonitor()
        self._times = times or LoadTimes()
        self._cores = CoreWatch()
        self._engine_clock = EngineClock(clock)
        self.breaker = MemoryCircuitBreaker(
            clock,
            self._note_transition,
            limits=BreakerLimits(recovery_timeout_s=options.recovery_timeout_s),
        )
        admission = Admission(
            clock, budget_bytes=memory.budget.budget_bytes, queue_s=options.queue_s
        )
        scheduler = AdaptiveScheduler(clock, cores=cpu.sample().cores)
        self.gate = AdmissionGate(
            admission,
            memory.sample,
            queue_timeout_s=options.queue_timeout_s,
            on_change=self._set_limits,
        )
        pages = PageKeeping(self._weights_stay)
        self.executor = RunExecutor(
            telemetry,
            RunLimits(scheduler.plan, 0),
            weights_stay=pages.weights_stay,
            kept_layers=pages.kept_layers,
            room_timeout_s=options.queue_timeout_s,
            on_begin=self._begin_run,
            on_end=self._end_run,
        )
        self.resolver = BottleneckResolver(
            clock,
            telemetry,
            [
                ReleaseMemory(pages.release_model),
                smaller_runs(lambda: scheduler.plan),
                KeepLayers(pages),
                AvoidTakenCores(),
                fewer_threads(lambda: scheduler.plan),
            ],
            weights_bytes=lambda: pages.sizes.weights_bytes if pages.sizes else 0,
        )
        self.watch = MemoryWatch(
            memory,
            cpu,
            self.gate,
            self.breaker,
            scheduler,
            telemetry,
            clock=clock,
            unload_idle=models.unload_idle,
            release_runs=models.release_memory,
            caps=self.resolver.caps,
            on_look=self._look,
        )
        self._texts_thread = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self.service = EmbeddingService(
            models,
            self.executor,
            self.gate,
            self.breaker,
            telemetry,
            self._texts_thread,
            step=lambda: self.watch.step,
        )
        self.ranking = RankingService(self.service, self.gate, telemetry, self._texts_thread)

    def start(self) -> None:
        """Start the engine thread."""
        self.gate.observe(self.watch.sample)
        self._set_limits()
        self.executor.start()

    def stop(self) -> None:
        """Finish what is queued, then end every thread; blocks."""
        self.executor.stop()
        self._texts_thread.shutdown()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Threads at work and memory watched for the length of a `with` block."""
        self.start()
        watching = asyncio.create_task(self.watch.run())
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await asyncio.to_thread(self.stop)

    def _set_limits(self) -> None:
        """Tell the executor what it may run; called whenever that may have changed."""
        is_open = self.breaker.state is BreakerState.OPEN
        room_bytes = self.gate.admission.room_for_run_bytes()
        self.executor.set_limits(RunLimits(self.watch.plan, room_bytes, is_paused=is_open))

    async def _look(self, memory: MemorySample, cpu: CPUSample, step: int) -> None:
        """Let the resolver see everything that is known of this moment."""
        admission = self.gate.admission
        await self.resolver.look(
            Look(
                at_s=self._clock(),
                memory=memory,
                cpu=cpu,
                disk=self._disk.sample(),
                engine=self._engine_clock.totals,
                loads=self._times.totals,
                others_s=self._cores.others_s(),
                queue_tokens=admission.queue_tokens,
                drain_tokens_per_s=admission.tokens_per_s,
                is_held_back=step >= HOLDING_BACK_STEP,
            )
        )

    def _begin_run(self, n_bytes: int) -> None:
        self.gate.admission.begin_run(n_bytes)
        self._engine_clock.begin()

    def _end_run(self, n_tokens: int, seconds: float) -> None:
        self.gate.admission.note_run(n_tokens, seconds)
        self._engine_clock.end(n_tokens, seconds)
        self.gate.wake()  # whoever waits for the memory that it took

    def _weights_stay(self, weights_bytes: int) -> bool:
        return weights_bytes <= RESIDENT_WEIGHTS_RATIO * self.watch.sample.budget_bytes

    def _note_transition(self, transition: Transition) -> None:
        self._telemetry.breaker_transitions.labels(transition.later.value).inc()
        for state in BreakerState:
            self._telemetry.breaker_state.labels(state.value).set(state is transition.later)
        log.warning(
            "memory breaker %s -> %s: %s",
            transition.earlier.value, transition.later.value, transition.reason,
        )  # fmt: skip
        self._set_limits()

"""Look at memory and CPU once a second, and let everybody act on it.

Owns the task and the latest measurements. Each second: the breaker and admission learn how much is
used, the scheduler plans anew, the executor gets its limits, and a step of the memory ladder that
has just begun gives memory back at once.
"""

import asyncio
import gc
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from app.memory import allocator
from app.memory.breaker import BreakerState, MemoryCircuitBreaker
from app.memory.cpu import CPULoad, CPUMonitor, CPUSample, cpu_load
from app.memory.monitor import MemoryMonitor, MemoryRates, MemorySample, rates_between
from app.serving.gate import AdmissionGate
from app.serving.scheduler import AdaptiveScheduler, Cap, Observation, Plan
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

PERIOD_S = 1.0

OnLook = Callable[[MemorySample, CPUSample, int], Awaitable[None]]
"""Memory, processor time, and the step of the memory ladder."""

# Kept for whoever wants to see how it came to this: five minutes.
HISTORY_LOOKS = 300


@dataclass(frozen=True)
class _Look:
    """What was measured at one moment."""

    at_s: float
    memory: MemorySample
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What a look found, as it is remembered; `at_s` is in the clock's seconds."""

    at_s: float
    used_bytes: int
    predicted_bytes: int
    tokens_per_s: float
    step: int


class MemoryWatch:
    """Owns the periodic look and what it found last."""

    def __init__(
        self,
        memory: MemoryMonitor,
        cpu: CPUMonitor,
        gate: AdmissionGate,
        breaker: MemoryCircuitBreaker,
        scheduler: AdaptiveScheduler,
        telemetry: Telemetry,
        *,
        clock: Callable[[], float],
        unload_idle: Callable[[], Awaitable[int]],
        release_runs: Callable[[], Awaitable[None]] | None = None,
        caps: Callable[[], Sequence[Cap]] = lambda: (),
        on_look: OnLook | None = None,
    ) -> None:
        """`unload_idle` closes models that nobody uses; `on_look` is told of every look.

        release_runs: gives back what the engine keeps from run to run.
        """
        self._memory = memory
        self._cpu = cpu
        self._gate = gate
        self._breaker = breaker
        self._scheduler = scheduler
        self._telemetry = telemetry
        self._clock = clock
        self._unload_idle = unload_idle
        self._release_runs = release_runs
        self._caps = caps
        self._on_look = on_look
        self._last = _Look(clock(), memory.sample(), 0)
        self._last_cpu = cpu.sample()
        self.rates = MemoryRates(0.0, 0)
        self.load = CPULoad(0.0, 0.0, self._last_cpu.cores)
        self.history: deque[Moment] = deque(maxlen=HISTORY_LOOKS)

    @property
    def sample(self) -> MemorySample:
        """The latest measurement of memory."""
        return self._last.memory

    @property
    def plan(self) -> Plan:
        """What the executor holds to at the moment."""
        return self._scheduler.plan

    @property
    def step(self) -> int:
        """Step of the memory ladder, 0 to 4."""
        if self._breaker.state is not BreakerState.CLOSED:
            return 4
        return 3 if self._gate.is_holding_back else self.plan.step

    async def run(self) -> None:
        """Look once a second until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.look()
            except Exception:  # this task must outlive whatever goes wrong once
                log.exception("cannot look after memory")

    async def look(self) -> None:
        """Measure, and let everybody act on it."""
        now = _Look(self._clock(), self._memory.sample(), self._gate.admission.n_tokens)
        elapsed_s = max(1e-3, now.at_s - self._last.at_s)
        cpu = self._cpu.sample()
        self.load = cpu_load(self._last_cpu, cpu, elapsed_s)
        self.rates = rates_between(self._last.memory, now.memory, elapsed_s)
        tokens_per_s = (now.n_tokens - self._last.n_tokens) / elapsed_s
        self._last, self._last_cpu = now, cpu
        sample = now.memory
        self._gate.observe(sample)
        admission = self._gate.admission
        self._breaker.observe(
            sample.utilization_ratio, floor_ratio=admission.idle_floor_bytes / sample.budget_bytes
        )
        earlier = self._scheduler.plan
        plan = self._scheduler.next(
            Observation(
                utilization_ratio=sample.utilization_ratio,
                cores=self.load.cores,
                others_ratio=self.load.others_ratio,
                throttled_ratio=self.load.throttled_ratio,
                tokens_per_s=tokens_per_s,
                target_tokens_per_s=admission.tokens_per_s if admission.queue_tokens else 0.0,
                queue_tokens=admission.queue_tokens,
                working_set_ratio=sample.working_set_bytes / sample.budget_bytes,
                pressure_ratio=sample.pressure_ratio or 0.0,
                # Without a limited group these are the whole machine's.
                refaults_per_s=self.rates.refaults_per_s if sample.scope == "group" else 0.0,
            ),
            self._caps(),
        )
        # Before the waiting look again: while they do, nobody is seen to wait.
        self._remember(tokens_per_s)
        self._show(plan, tokens_per_s)
        if self._gate.is_holding_back and self._release_runs is not None:
            # Those who wait hold the model, so it never counts as idle.
            await self._release_runs()
        self._gate.wake()
        if plan != earlier:
            self._say(plan)
        if plan.step > earlier.step:
            await self._give_back(plan.step)
        if self._on_look is not None:
            await self._on_look(sample, cpu, self.history[-1].step)

    async def _give_back(self, step: int) -> None:
        """Free what can be freed without anybody noticing."""
        if step >= 2:
            # From now on weights are dropped after each layer: the same vectors in less memory.
            self._telemetry.recoveries.labels("2", "applied").inc()
            n_closed = await self._unload_idle()
            if n_closed:
                log.info("closed %d idle models to free memory", n_closed)
        await asyncio.to_thread(_collect)

    def _remember(self, tokens_per_s: float) -> None:
        self.history.append(
            Moment(
                self._last.at_s,
                self.sample.used_bytes,
                self._gate.admission.predicted_bytes,
                tokens_per_s,
                self.step,
            )
        )

    def _show(self, plan: Plan, tokens_per_s: float) -> None:
        telemetry, admission = self._telemetry, self._gate.admission
        telemetry.throughput.set(tokens_per_s)
        telemetry.parallelism.set(plan.parallelism)
        telemetry.engine_threads.set(plan.engine_threads)
        telemetry.ladder_step.set(self.step)
        telemetry.predicted.set(admission.predicted_bytes)
        telemetry.pressure.set(self.sample.pressure_ratio or 0.0)
        telemetry.refaults.set(self.rates.refaults_per_s)
        telemetry.oom_kills.set(self.sample.oom_kills)
        telemetry.cpu_others.set(self.load.others_ratio)
        telemetry.cpu_throttled.set(self.load.throttled_ratio)
        for state in BreakerState:
            telemetry.breaker_state.labels(state.value).set(state is self._breaker.state)

    def _say(self, plan: Plan) -> None:
        sample = self.sample
        log.info(
            "parallelism %d, %d threads, memory step %d; %d of %d MiB used%s",
            plan.parallelism, plan.engine_threads, plan.step,
            sample.used_bytes >> 20, sample.budget_bytes >> 20,
            "".join(f"; {reason}" for reason in (*plan.reasons, *plan.step_reasons)),
        )  # fmt: skip


def _collect() -> None:
    gc.collect()
    allocator.release()

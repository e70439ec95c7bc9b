"""In every tick: read memory and processors, let the governor decide, tell who acts on it.

The loop ticks once a second, twice while memory is above its first line. A tick reads, decides and
sets limits; it waits for nothing. What takes time, such as giving memory back, is asked for and
done elsewhere (reclaim.py). Owns the latest measurements.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from plimsoll.machine.cpu import CoreWatch, CPULoad, CPUMonitor, cpu_load
from plimsoll.machine.disk import DiskMonitor
from plimsoll.machine.memory import MemoryMonitor, rates_between
from plimsoll.policy.lines import HIGH_RATIO, WAITING_STEP, effects
from plimsoll.policy.reading import Reading
from plimsoll.policy.scheduler import Plan
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.reclaim import Reclaim
from plimsoll.serving.state import Moment
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.tuning.evidence import Look
from plimsoll.tuning.resolver import BottleneckResolver

log = logging.getLogger(__name__)

PERIOD_S = 1.0
# While memory is above its first line: what is decided by seconds must not come seconds late.
PRESSED_PERIOD_S = 0.5
# Kept for the status page.
HISTORY_S = 300.0


@dataclass(frozen=True)
class Monitors:
    """What the control loop reads."""

    memory: MemoryMonitor
    cpu: CPUMonitor = field(default_factory=CPUMonitor)
    disk: DiskMonitor = field(default_factory=DiskMonitor)
    cores: CoreWatch = field(default_factory=CoreWatch)
    loads: LoadTimes = field(default_factory=LoadTimes)


class ControlLoop:
    """Owns the periodic tick and what it found last."""

    def __init__(
        self,
        monitors: Monitors,
        gate: AdmissionGate,
        executor: RunExecutor,
        reclaim: Reclaim,
        resolver: BottleneckResolver,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._monitors = monitors
        self._gate = gate
        self._governor = gate.governor
        self._executor = executor
        self._reclaim = reclaim
        self._resolver = resolver
        self._clock = clock
        self._ticked_s = clock()
        self._cpu = monitors.cpu.sample()
        self._disk = monitors.disk.sample()
        self.memory = monitors.memory.sample()
        self.refaults_per_s = 0.0
        self.load = CPULoad(0.0, 0.0, self._cpu.cores)
        self._history: deque[Moment] = deque()

    @property
    def history(self) -> Sequence[Moment]:
        """What the ticks of the last minutes found, the newest last."""
        return tuple(self._history)

    async def run(self) -> None:
        """Tick once a second, twice under pressure, until cancelled."""
        while True:
            is_pressed = self.memory.utilization_ratio > HIGH_RATIO
            await asyncio.sleep(PRESSED_PERIOD_S if is_pressed else PERIOD_S)
            try:
                self.tick()
            except Exception:  # one error must not end this task
                log.exception("a tick of the control loop failed")

    def tick(self) -> None:
        """Read, decide, tell."""
        governor, earlier = self._governor, self._governor.plan
        self._measure()
        plan = governor.observe(self._reading(), self._resolver.asked)
        self._remember()
        is_short = governor.step >= WAITING_STEP
        self._reclaim.look(plan.step, is_short=is_short, idle_s=governor.admission.idle_s)
        self._gate.wake()
        if plan != earlier:
            self._say(plan)
        # Last, so that an error in the tuning keeps no decision from those who act on it.
        self._look()

    def _measure(self) -> None:
        now_s = self._clock()
        elapsed_s = max(1e-3, now_s - self._ticked_s)
        memory, cpu = self._monitors.memory.sample(), self._monitors.cpu.sample()
        self.load = cpu_load(self._cpu, cpu, elapsed_s)
        self.refaults_per_s = rates_between(self.memory, memory, elapsed_s).refaults_per_s
        self.memory, self._cpu, self._ticked_s = memory, cpu, now_s
        self._disk = self._monitors.disk.sample()

    def _reading(self) -> Reading:
        memory = self.memory
        return Reading(
            used_bytes=memory.used_bytes,
            budget_bytes=memory.budget_bytes,
            cores=self.load.cores,
            others_ratio=self.load.others_ratio,
            throttled_ratio=self.load.throttled_ratio,
            working_set_bytes=memory.working_set_bytes,
            pressure_ratio=memory.pressure_ratio or 0.0,
            # Without a limited group these are the whole machine's.
            refaults_per_s=self.refaults_per_s if memory.scope == "group" else 0.0,
            io_pressure_ratio=self._disk.pressure_ratio or 0.0,
            is_hard=memory.is_hard,
        )

    def _look(self) -> None:
        """Let the resolver see everything that is known of this moment."""
        governor, model = self._governor, self._executor.last_model
        self._resolver.look(
            Look(
                at_s=self._ticked_s,
                memory=self.memory,
                cpu=self._cpu,
                disk=self._disk,
                engine=governor.totals,
                loads=self._monitors.loads.totals,
                others_s=self._monitors.cores.others_s(),
                queue_tokens=governor.admission.backlog.queue_tokens,
                drain_tokens_per_s=governor.admission.backlog.tokens_per_s,
                is_held_back=governor.step >= WAITING_STEP,
                plan=governor.plan,
                weights=None if model is None else model.sizes,
            )
        )

    def _remember(self) -> None:
        governor = self._governor
        self._history.append(
            Moment(
                self._ticked_s,
                self.memory.used_bytes,
                self.memory.working_set_bytes,
                governor.admission.predicted_bytes,
                governor.tokens_per_s,
                governor.step,
            )
        )
        # By time: under pressure ticks are closer together.
        while self._history[0].at_s <= self._ticked_s - HISTORY_S:
            self._history.popleft()

    def _say(self, plan: Plan) -> None:
        memory = self.memory
        log.info(
            "parallelism %d, %d threads, memory step %d (%s); %d of %d MiB used%s",
            plan.parallelism, plan.engine_threads, plan.step,
            ", ".join(effects(plan.step, plan.step_reasons)),
            memory.used_bytes >> 20, memory.budget_bytes >> 20,
            "".join(f"; {reason}" for reason in (*plan.reasons, *plan.step_reasons)),
        )  # fmt: skip

"""Decide how many sequences run at once, with how many threads, and how hard memory is saved.

A pure rule: no I/O, no thread; time comes from the clock it is given. Parallelism is the least of
its own rules and of the caps that others ask for, at least 1:

    used memory above 0.70                  2
    load by others + throttling above 0.80  4
    else                                    8
    used memory above 0.75                  half of what the caps allow; doubled again in steps

Where runs wait for the disk, because pages of the weights are read again, load by others takes
threads and no sequences: it is a pass over the weights that costs, and the more share it the
better, while more threads would wait for the same pages.

The step is the first column of the memory table (lines.py). Only used memory lowers parallelism:
while the working set, stalls or refaults are high, what helps is to drop pages in order and to let
many texts share one pass over the weights.

Lowering acts at once. Raising waits: a rule leaves when its value is well below its threshold,
and a cap stays until it has not been asked for during DWELL_S, so that nothing flaps.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from plimsoll.policy import lines
from plimsoll.policy.lines import FULL_PARALLELISM
from plimsoll.policy.scaling import ResourceManager, scale_factor

HYSTERESIS_RATIO = 0.05  # a rule leaves this far below its line
REFAULTS_HYSTERESIS_PER_S = 250.0
DWELL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the scheduler decides from; ratios are 0 to 1, above where something overflows.

    utilization_ratio: used memory over budget.
    others_ratio, throttled_ratio: share of the allowed CPU that others took, and of the time in
        which the quota held this process back. Its own work is not in them.
    cores: what affinity and quota allow now.
    target_tokens_per_s: 0 where there is no target.
    working_set_ratio: working set over budget.
    pressure_ratio: share of time in which some task waited for memory (PSI).
    refaults_per_s: pages read again soon after the kernel took them.
    io_pressure_ratio: share of time in which some task waited for a disk (PSI).
    """

    utilization_ratio: float
    cores: float
    others_ratio: float = 0.0
    throttled_ratio: float = 0.0
    tokens_per_s: float = 0.0
    target_tokens_per_s: float = 0.0
    working_set_ratio: float = 0.0
    pressure_ratio: float = 0.0
    refaults_per_s: float = 0.0
    io_pressure_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `limit` sequences, says `source`.

    reason: without live figures, so that a plan differs only where the decision does.
    """

    source: str
    limit: int
    reason: str


CPU_CAP = Cap("cpu", lines.CPU_PARALLELISM, lines.CPU)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the executor and the engine hold to.

    parallelism: sequences admitted to the executor, running or prefetched; 1 to 8.
    engine_threads: min(parallelism, cores rounded up), or fewer where that is asked for. A
        neighbour's load takes no thread away: it may end within the second, and the kernel shares
        cores better than a count of threads.
    step: 0, 1 or 2 of the memory table.
    reasons: "source: reason" of every cap that binds, and of a disk that keeps one from binding;
        empty at full parallelism otherwise.
    step_reasons: why the step is what it is; empty at 0.
    """

    parallelism: int
    engine_threads: int
    step: int
    reasons: tuple[str, ...]
    step_reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _StepCause:
    step: int
    reason: str


class AdaptiveScheduler:
    """Owns the parallelism: nothing else sets it.

    cores: what affinity and quota allow at start, for the plan before the first observation.
    """

    def __init__(self, clock: Callable[[], float], *, cores: float) -> None:
        self._clock = clock
        self._memory = _Line(lines.HIGH_RATIO)
        self._memory_again = _Line(lines.HALVE_ABOVE_RATIO)
        self._cpu = _Line(lines.CPU_RATIO)
        self._working_set = _Line(lines.WORKING_SET_RATIO)
        self._pressure = _Line(lines.STALLS_RATIO)
        self._refaults = _Line(
            lines.REFAULTS_PER_S,
            REFAULTS_HYSTERESIS_PER_S,
            sustained_s=lines.REFAULTS_SUSTAINED_S,
        )
        self._disk = _Line(lines.DISK_STALLS_RATIO, sustained_s=lines.REFAULTS_SUSTAINED_S)
        self._caps: _Dwell[Cap] = _Dwell()
        self._step_causes: _Dwell[_StepCause] = _Dwell()
        self._resources = ResourceManager()
        self._plan = Plan(FULL_PARALLELISM, _threads(FULL_PARALLELISM, cores), 0, (), ())

    @property
    def plan(self) -> Plan:
        """The latest plan."""
        return self._plan

    def next(
        self,
        observation: Observation,
        caps: Sequence[Cap] = (),
        *,
        most_threads: int | None = None,
    ) -> Plan:
        """Decide anew, about once a second; `caps` are those that others ask for now.

        most_threads: likewise, of the engine alone; no longer than it is asked for.
        """
        now_s = self._clock()
        self._update_lines(observation, now_s)
        causes = self._step_causes.renew(self._causes(), now_s)
        waits_for_disk = any(cause.reason in lines.READING for cause in causes)
        held = self._caps.renew([*self._own_caps(), *caps], now_s)
        spared = [cap for cap in held if waits_for_disk and cap == CPU_CAP]
        held = [cap for cap in held if cap not in spared]
        allowed = min([FULL_PARALLELISM, *(cap.limit for cap in held)])
        held += self._scale_caps(observation, allowed, now_s)
        parallelism = max(1, min([allowed, *(cap.limit for cap in held)]))
        step = max((cause.step for cause in causes), default=0)
        binding = [cap for cap in held if cap.limit <= parallelism < FULL_PARALLELISM]
        self._plan = Plan(
            parallelism=parallelism,
            engine_threads=min(
                _threads(parallelism, observation.cores),
                most_threads or FULL_PARALLELISM,
                *(cap.limit for cap in spared),
            ),
            step=step,
            reasons=_sorted(
                [f"{cap.source}: {cap.reason}" for cap in binding]
                + [f"disk: {lines.SHARED_PASSES}" for _ in spared]
            ),
            step_reasons=_sorted(cause.reason for cause in causes if cause.step == step),
        )
        return self._plan

    def _update_lines(self, observation: Observation, now_s: float) -> None:
        load_ratio = observation.others_ratio + observation.throttled_ratio
        for line, value in (
            (self._memory, observation.utilization_ratio),
            (self._memory_again, observation.utilization_ratio),
            (self._cpu, load_ratio),
            (self._working_set, observation.working_set_ratio),
            (self._pressure, observation.pressure_ratio),
            (self._refaults, observation.refaults_per_s),
            # What others read, or what is read for the first time, is no shortage.
            (self._disk, observation.io_pressure_ratio if observation.refaults_per_s else 0.0),
        ):
            line.update(value, now_s)

    def _own_caps(self) -> list[Cap]:
        memory = Cap("memory", lines.HIGH_PARALLELISM, lines.HIGH)
        own = ((self._memory, memory), (self._cpu, CPU_CAP))
        return [cap for line, cap in own if line.is_passed]

    def _scale_caps(self, observation: Observation, allowed: int, now_s: float) -> list[Cap]:
        used_ratio = observation.utilization_ratio
        factor = scale_factor(used_ratio, observation.tokens_per_s, observation.target_tokens_per_s)
        limit = self._resources.next(factor, used_ratio, allowed=allowed, now_s=now_s)
        if limit == FULL_PARALLELISM:
            return []
        reason = f"halved when used memory was above {lines.HALVE_ABOVE_RATIO:.2f}"
        return [Cap("scale", limit, reason)]

    def _causes(self) -> list[_StepCause]:
        causes = (
            (self._memory, 1, lines.HIGH),
            (self._memory_again, lines.DROPPING_STEP, lines.VERY_HIGH),
            (self._working_set, lines.DROPPING_STEP, lines.WORKING_SET),
            (self._pressure, lines.DROPPING_STEP, lines.STALLS),
            (self._refaults, lines.DROPPING_STEP, lines.REFAULTS),
            (self._disk, lines.DROPPING_STEP, lines.DISK_STALLS),
        )
        return [_StepCause(step, reason) for line, step, reason in causes if line.is_passed]


class _Line:
    """A threshold that is passed above it, and left only well below it."""

    def __init__(
        self, threshold: float, slack: float = HYSTERESIS_RATIO, *, sustained_s: float = 0.0
    ) -> None:
        """`sustained_s`: for how long a value must stay above it to count."""
        self.is_passed = False
        self._threshold = threshold
        self._slack = slack
        self._sustained_s = sustained_s
        self._above_since_s: float | None = None

    def update(self, value: float, now_s: float) -> None:
        """Take the latest value."""
        if value <= self._threshold:
            self._above_since_s = None
            self.is_passed = self.is_passed and value > self._threshold - self._slack
            return
        if self._above_since_s is None:
            self._above_since_s = now_s
        self.is_passed = self.is_passed or now_s - self._above_since_s >= self._sustained_s


Item = TypeVar("Item", Cap, _StepCause)


class _Dwell(Generic[Item]):
    """Keeps each item until it has not been asked for during DWELL_S."""

    def __init__(self) -> None:
        self._asked_s: dict[Item, float] = {}

    def renew(self, asked: Iterable[Item], now_s: float) -> list[Item]:
        """Return what is asked for now or was a short while ago."""
        self._asked_s.update(dict.fromkeys(asked, now_s))
        self._asked_s = {
            item: asked_s for item, asked_s in self._asked_s.items() if now_s - asked_s < DWELL_S
        }
        return list(self._asked_s)


def _threads(parallelism: int, cores: float) -> int:
    return max(1, min(parallelism, math.ceil(cores)))


def _sorted(reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(reasons)))

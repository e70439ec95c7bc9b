"""Hooks that look at memory: before a run, beside it, and one that makes it take less."""

from collections.abc import Callable
from time import monotonic
from typing import Annotated, Literal

from pydantic import Field

from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options
from plimsoll.policy.lines import BREAKER_STEP

# Of the memory ladder: from here on the server itself gives memory back.
PRESSURE_STEP = 1

Ratio = Annotated[float, Field(gt=0, le=1)]


class ValidateMemory(Options):
    """threshold: used memory over the budget."""

    threshold: Ratio = 0.6


class MemoryMonitor(Options):
    """limit: used memory over the budget. patience: seconds above it that end the run."""

    limit: Ratio = 0.7
    patience: Annotated[float, Field(ge=0, le=86_400)] = 60.0


class Adapt(Options):
    """What to do, and when."""

    strategy: Literal["memory-conservative"] = "memory-conservative"
    trigger: Literal["memory-pressure"] = "memory-pressure"


class MemoryValidation:
    """Stops a run that would begin while memory is short already."""

    def __init__(self, options: ValidateMemory) -> None:
        self._most = options.threshold

    async def __call__(self, occasion: Occasion) -> Answer:
        """Look once."""
        ratio = occasion.memory.utilization_ratio
        figures = {"used_ratio": ratio, "threshold": self._most, "step": occasion.step}
        if occasion.is_breaker_open:
            return Answer(True, "the memory breaker is open: nothing can be embedded", figures)
        return Answer(
            ratio > self._most,
            f"{_told(occasion)}, {'above' if ratio > self._most else 'at most'} {self._most:.0%}",
            figures,
        )


class MemoryWatch:
    """Keeps the peak of memory, and stops a run beside which it stays high.

    The run stands back by itself while memory is short, so being above the limit is no fault; not
    coming back is. clock: seconds.
    """

    def __init__(self, options: MemoryMonitor, clock: Callable[[], float] = monotonic) -> None:
        self._options = options
        self._clock = clock
        self._above_since_s: float | None = None
        self._peak_ratio = 0.0
        self._n_looks = 0
        self._n_above = 0

    async def __call__(self, occasion: Occasion) -> Answer:
        """Look once."""
        ratio = occasion.memory.utilization_ratio
        is_above = ratio > self._options.limit
        self._n_looks += 1
        self._n_above += is_above
        self._peak_ratio = max(self._peak_ratio, ratio)
        now_s = self._clock()
        if not is_above:
            self._above_since_s = None
        elif self._above_since_s is None:
            self._above_since_s = now_s
        above_s = 0.0 if self._above_since_s is None else now_s - self._above_since_s
        return Answer(
            is_above and above_s >= self._options.patience,
            f"{_told(occasion)}, above {self._options.limit:.0%} for {above_s:.0f} s"
            if is_above
            else f"{self._peak_ratio:.0%} of the budget at most",
            {
                "peak_ratio": self._peak_ratio,
                "looks": self._n_looks,
                "above_limit": self._n_above,
                "limit": self._options.limit,
            },
        )


class Adaptation:
    """Lets a run hold less in memory at once for as long as the server is short of it."""

    def __init__(self, options: Adapt) -> None:
        self._options = options
        self._n_times = 0

    async def __call__(self, occasion: Occasion) -> Answer:
        """Look once, and set the run's pace."""
        is_short = occasion.step >= PRESSURE_STEP
        if occasion.pace is not None:
            if is_short and not occasion.pace.is_conservative:
                self._n_times += 1
            occasion.pace.save_memory(saves=is_short)
        why = "the breaker" if occasion.step == BREAKER_STEP else f"step {occasion.step}"
        return Answer(
            reason=f"smaller batches, one at a time: {why} of the memory ladder"
            if is_short
            else "batches of the usual size",
            figures={
                "times": self._n_times,
                "strategy": self._options.strategy,
                "step": occasion.step,
            },
        )


def _told(occasion: Occasion) -> str:
    memory = occasion.memory
    return (
        f"{memory.used_bytes >> 20} of {memory.budget_bytes >> 20} MiB in use "
        f"({memory.utilization_ratio:.0%})"
    )

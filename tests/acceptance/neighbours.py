"""What other processes leave of the processors while a test measures seconds.

Others are all but this process and what it has started. What a hypervisor stole counts too.
Sources: proc_stat(5), proc_pid_stat(5).
"""

import functools
import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from plimsoll.machine.cpu import CPUMonitor

# Shares of the processors that others take: a failure may be theirs; nothing can be judged.
DISTURBED_RATIO, STARVED_RATIO = 0.15, 0.50
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Columns of a process's stat after its name: its parent; its own and its ended children's time.
_PARENT, _TIMES = 1, slice(11, 15)

FAILURES = (Exception, pytest.fail.Exception)

Test = TypeVar("Test", bound=Callable[..., None])


class Neighbours:
    """Owns a first look at the processors; says what others have taken since."""

    def __init__(self) -> None:
        self._monitor = CPUMonitor()
        self._n_cores = len(os.sched_getaffinity(0))
        self._began = self._look()

    @property
    def taken_ratio(self) -> float:
        """Share of the processors' time that others had."""
        wall_s, busy_s, own_s = (
            now - then for now, then in zip(self._look(), self._began, strict=True)
        )
        return min(1.0, max(0.0, (busy_s - own_s) / (wall_s * self._n_cores)))

    def _look(self) -> tuple[float, float, float]:
        return time.monotonic(), self._monitor.sample().busy_s, _own_s()


def needs_peace(test: Test) -> Test:
    """For a test of what other processes have a part in, such as seconds.

    Where it fails while they took much of the processors, it is run once more; where they leave
    too little to judge by even then, it is skipped. On a quiet machine it fails as any other.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        neighbours = Neighbours()
        try:
            test(*arguments, **named)
        except FAILURES:
            if neighbours.taken_ratio < DISTURBED_RATIO:
                raise
            print(f"once more: others took {neighbours.taken_ratio:.0%} of the processors")
        else:
            return
        neighbours = Neighbours()
        try:
            test(*arguments, **named)
        except FAILURES as error:
            if neighbours.taken_ratio < STARVED_RATIO:
                raise
            pytest.skip(f"others took {neighbours.taken_ratio:.0%} of the processors: {error}")

    return run  # type: ignore[return-value]


def _own_s() -> float:
    """Processor time of this process and its descendants, those that have ended too."""
    n_ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended just now
            columns = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            n_ticks[pid] = sum(map(int, columns[_TIMES]))
            children[int(columns[_PARENT])].append(pid)
    found, left = 0, [os.getpid()]
    while left:
        pid = left.pop()
        found += n_ticks.get(pid, 0)
        left += children[pid]
    return found / TICKS_PER_S

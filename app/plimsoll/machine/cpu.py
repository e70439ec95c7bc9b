"""Measure which processor time there is, who uses it, and how much a quota withholds.

Reads control groups (groups.py finds them), /proc and the affinity on every call; decides nothing,
and only CoreWatch keeps a history. What has passed is a difference of two samples: cpu_load.
Sources: the kernel's Documentation/scheduler/sched-bwc.rst and admin-guide/cgroup-v2.rst,
proc_stat(5), proc_pid_stat(5).
"""

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plimsoll.machine.groups import (
    USUAL_CGROUP_ROOT,
    ControlGroup,
    Version,
    own_groups,
    read_counters,
    read_text,
)

# Together they hold quota and period.
_QUOTA_FILES: Mapping[Version, tuple[str, ...]] = {
    1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
    2: ("cpu.max",),
}
# Columns of a processor's line in /proc/stat that are work, beside idle and iowait: user, nice,
# system, irq, softirq, steal. Guests' time is in user and nice already.
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)
# Columns of a process's or a thread's stat after its name: fields 14, 15 and 39.
_UTIME, _STIME, _PROCESSOR = 11, 12, 36


@dataclass(frozen=True, slots=True)
class CPUSample:
    """Processor time at one moment; the seconds only ever grow.

    busy_s: all work on the processors that this process may run on, its own and others'; what a
        hypervisor stole is counted, for it is lost as well. 0 without /proc.
    own_s: work of this process, all its threads.
    throttled_s: time for which quotas on the path stopped the group. The kernel adds it up over
        processors: all of four stopped for a second may be up to four seconds.
    cores: processors' worth of time that this process may use now.
    cpus: numbers of the processors that it may run on, empty where the system does not tell.
    """

    busy_s: float
    own_s: float
    throttled_s: float
    cores: float
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class CPULoad:
    """Load between two samples, without our own work.

    others_ratio: share of our processors' time that others used, 0 to 1.
    throttled_ratio: throttled time over elapsed time, 0 to 1.
    cores: as in the later sample.
    """

    others_ratio: float
    throttled_ratio: float
    cores: float


def cpu_load(earlier: CPUSample, later: CPUSample, elapsed_s: float) -> CPULoad:
    """Compare two samples that were taken elapsed_s apart; no load where no time has passed.

    Nothing is known of others where the process was moved to other processors in between.
    """
    others_ratio = throttled_ratio = 0.0
    if elapsed_s > 0:
        throttled_ratio = (later.throttled_s - earlier.throttled_s) / elapsed_s
        if later.cpus and later.cpus == earlier.cpus:
            others_s = (later.busy_s - earlier.busy_s) - (later.own_s - earlier.own_s)
            others_ratio = others_s / (elapsed_s * len(later.cpus))
    return CPULoad(_clip(others_ratio), _clip(throttled_ratio), later.cores)


class CPUMonitor:
    """Reads the processor time of this machine, this process and its control groups.

    Where the process stands is looked up once, quotas and affinity at every call, because an
    orchestrator may change them while the process runs. Safe to share between threads.

    proc_root, cgroup_root: where /proc and /sys/fs/cgroup are.
    """

    def __init__(
        self, *, proc_root: Path = Path("/proc"), cgroup_root: Path = USUAL_CGROUP_ROOT
    ) -> None:
        self._proc_root = proc_root
        self._groups = own_groups(proc_root, cgroup_root, "cpu")

    @property
    def quota_cores(self) -> float | None:
        """The smallest quota from this process's group to the root; None without one."""
        quotas = [quota for group in self._groups if (quota := _group_quota(group)) is not None]
        return min(quotas, default=None)

    def sample(self) -> CPUSample:
        """Measure now. Reads a handful of small files."""
        cpus = _affinity()
        n_cpus, quota = len(cpus) or os.cpu_count() or 1, self.quota_cores
        return CPUSample(
            busy_s=_busy_s(self._proc_root, cpus),
            own_s=_own_s(self._proc_root),
            throttled_s=sum(_throttled_s(group) for group in self._groups),
            cores=n_cpus if quota is None else min(n_cpus, quota),
            cpus=cpus,
        )


class CoreWatch:
    """Owns how long others have worked on each processor since the first look.

    What others use of a processor is its busy time without ours. The kernel tells of each of our
    threads how long it has worked and on which processor it is now, not where it worked: between
    two looks a second apart all of its work is put down to that processor, which averages out over
    some looks. For one thread at a time. `proc_root`: where /proc is.
    """

    def __init__(self, *, proc_root: Path = Path("/proc")) -> None:
        self._proc_root = proc_root
        self._last_s: Mapping[int, float] = {}  # thread → its processor time
        self._own_s: defaultdict[int, float] = defaultdict(float)  # processor → our time on it

    def others_s(self) -> Mapping[int, float]:
        """Look: seconds of others' work on each processor; only differences mean anything."""
        found = _thread_times(self._proc_root)
        for thread, (seconds, processor) in found.items():
            self._own_s[processor] += max(0.0, seconds - self._last_s.get(thread, seconds))
        self._last_s = {thread: seconds for thread, (seconds, _) in found.items()}
        busy_ticks = _busy_ticks(self._proc_root)
        return {
            core: ticks / _ticks_per_s() - self._own_s[core] for core, ticks in busy_ticks.items()
        }


def available_cores(
    *, proc_root: Path = Path("/proc"), cgroup_root: Path = USUAL_CGROUP_ROOT
) -> int:
    """Return the threads that this process can keep busy; a part of a core takes one too."""
    monitor = CPUMonitor(proc_root=proc_root, cgroup_root=cgroup_root)
    return math.ceil(monitor.sample().cores)


def thread_ids(proc_root: Path = Path("/proc")) -> list[int]:
    """The kernel's numbers of this process's threads; empty without /proc."""
    try:
        return [int(path.name) for path in (proc_root / "self/task").iterdir()]
    except OSError:
        return []


def _affinity() -> frozenset[int]:
    """Processors that this process may run on; cpusets narrow them. Empty on macOS."""
    affinity = getattr(os, "sched_getaffinity", None)
    return frozenset(affinity(0)) if affinity else frozenset()


def _group_quota(group: ControlGroup) -> float | None:
    files = _QUOTA_FILES[group.version]
    words = " ".join(read_text(group.folder / name) for name in files).split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None  # "-1 100000" on v1 and "max 100000" on v2
    quota_us, period_us = map(int, words)
    return quota_us / period_us if min(quota_us, period_us) > 0 else None


def _throttled_s(group: ControlGroup) -> float:
    """Time for which the group's own quota stopped it; those above it count for themselves."""
    counters = read_counters(group.folder / "cpu.stat")
    if group.version == 1:
        return counters.get("throttled_time", 0) / 1e9
    return counters.get("throttled_usec", 0) / 1e6


def _busy_s(proc_root: Path, cpus: frozenset[int]) -> float:
    busy_ticks = _busy_ticks(proc_root)
    return sum(busy_ticks.get(cpu, 0) for cpu in cpus) / _ticks_per_s()


def _busy_ticks(proc_root: Path) -> dict[int, int]:
    """Work on each processor, our own and others'."""
    busy_ticks = {}
    for line in read_text(proc_root / "stat").splitlines():
        name, *columns = line.split() or [""]
        number = name.removeprefix("cpu")
        if number.isdecimal() and number != name:
            busy_ticks[int(number)] = _ticks([name, *columns], _BUSY_COLUMNS)
    return busy_ticks


def _thread_times(proc_root: Path) -> dict[int, tuple[float, int]]:
    """Processor time in seconds of each of our threads, and the processor that it is on."""
    times = {}
    for thread in thread_ids(proc_root):
        fields = _stat_fields(proc_root / f"self/task/{thread}/stat")
        if len(fields) > _PROCESSOR:
            seconds = _ticks(fields, (_UTIME, _STIME)) / _ticks_per_s()
            times[thread] = (seconds, int(fields[_PROCESSOR]))
    return times


def _own_s(proc_root: Path) -> float:
    fields = _stat_fields(proc_root / "self/stat")
    if len(fields) > _STIME:
        return _ticks(fields, (_UTIME, _STIME)) / _ticks_per_s()
    times = os.times()
    return times.user + times.system


def _stat_fields(path: Path) -> list[str]:
    """What stands after the name, which is in parentheses and may hold blanks and parentheses."""
    return read_text(path).rpartition(")")[2].split()


def _ticks(columns: Sequence[str], numbers: Sequence[int]) -> int:
    """Sum of columns; those that are missing or no numbers are left out."""
    words = [columns[number] for number in numbers if number < len(columns)]
    return sum(int(word) for word in words if word.isdecimal())


def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK")


def _clip(ratio: float) -> float:
    return min(1.0, max(0.0, ratio))

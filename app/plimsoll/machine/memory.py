"""Measure how much memory there is and how much of it is used.

Reads control groups (groups.py) and /proc on every call; decides nothing, and keeps nothing but
which limit counted last, so that what is in use can be asked for at the price of a file or two.
`used` is what the kernel cannot take back at once; see MemorySample.
Source for the process's own numbers: proc_pid_status(5).

Which numbers count: where a group on the path from this process's own group to the root has a
limit, the numbers of the group whose limit is smallest, because that group's limit kills, and it
pays for more than the process shows (tmpfs, dirty pages, page tables, sockets). A smaller budget
from the settings is then held against the same numbers. Where no group has a limit, the groups
also hold other people's processes, so this process alone is measured.
"""

import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from plimsoll.errors import SettingsError
from plimsoll.machine.groups import (
    USUAL_CGROUP_ROOT,
    Limit,
    Numbers,
    count_events,
    measure_group,
    own_groups,
    path_limits,
    read_pressure_ratio,
    read_text,
    unreadable_limit,
)

MIB = 1 << 20

BudgetSource: TypeAlias = str
"""Who set the budget, for messages: "control group v2 /a/b", "host memory", …"""

Scope = Literal["group", "process"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the process may use, and who says so."""

    budget_bytes: int
    source: BudgetSource


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Memory at one moment.

    used_bytes: what the kernel cannot take back at once.
    resident_bytes: used and mapped file pages; shared pages that are mapped count in both.
    working_set_bytes: usage without inactive file pages (for a process: the same as resident).
    scope: whose numbers these are, the limiting control group's or this process's alone.
    pressure_ratio: share of the last 10 s in which a task waited for memory (PSI "some avg10"):
        of the limiting v2 group; without one, and on v1 hosts, of this process's own v2 group;
        where no group tells, of the whole machine. None where the kernel does not measure it.
    n_refaults: file pages that were read again soon after the kernel took them back.
    oom_kills: processes killed for want of memory.
    is_hard: the budget is a group's limit, against which the pages of files count too.

    Both numbers count from the making of this process's own group (the innermost one with memory
    counters), limited or not: what it re-reads and loses itself, not what its neighbours do.
    """

    used_bytes: int
    resident_bytes: int
    working_set_bytes: int
    budget_bytes: int
    scope: Scope
    pressure_ratio: float | None = None
    n_refaults: int = 0
    oom_kills: int = 0
    is_hard: bool = False

    @property
    def utilization_ratio(self) -> float:
        """Used over budget; above 1 when the budget is already passed."""
        return self.used_bytes / self.budget_bytes


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Of a sample what admission asks for before every request."""

    used_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryRates:
    """What happened between two samples."""

    refaults_per_s: float
    oom_kills: int


def rates_between(earlier: MemorySample, later: MemorySample, elapsed_s: float) -> MemoryRates:
    """Compare two samples that were taken elapsed_s apart; no rate where no time has passed."""
    n_refaults = max(0, later.n_refaults - earlier.n_refaults)
    return MemoryRates(
        refaults_per_s=n_refaults / elapsed_s if elapsed_s > 0 else 0.0,
        oom_kills=max(0, later.oom_kills - earlier.oom_kills),
    )


def own_anonymous_bytes() -> int:
    """Memory of this process that no file backs; 0 where the system does not tell.

    Cheap enough to ask before and after each run. Source: proc_pid_statm(5).
    """
    fields = read_text(Path("/proc/self/statm")).split()
    n_pages = int(fields[1]) - int(fields[2]) if len(fields) > 2 else 0
    return n_pages * resource.getpagesize()


class MemoryMonitor:
    """Reads the memory of this process and of its control groups.

    Where the process stands is looked up once, limits and numbers at every sample, because an
    orchestrator may change a limit while the process runs. Safe to share between threads.

    configured_bytes: PLIMSOLL_MEMORY_BUDGET.
    proc_root, cgroup_root: where /proc and /sys/fs/cgroup are.
    host_bytes: the machine's memory, None where nothing tells it.
    notes: what an operator should know at start about what cannot be measured.
    Raises SettingsError when nothing tells how much memory there is.
    """

    def __init__(
        self,
        configured_bytes: int | None = None,
        *,
        proc_root: Path = Path("/proc"),
        cgroup_root: Path = USUAL_CGROUP_ROOT,
    ) -> None:
        self._configured_bytes = configured_bytes
        self._proc_root = proc_root
        self.host_bytes = _host_memory_bytes(proc_root)
        self._groups = own_groups(proc_root, cgroup_root)
        self._unified_groups = own_groups(proc_root, cgroup_root, controller=None)
        # What counted at the last sample; one attribute, so that threads see both or neither.
        self._counted = self._look_up()
        self.notes = self._notes()

    @property
    def budget(self) -> Budget:
        """The smallest of the groups' limits, the configured budget and the host's memory."""
        return self._look_up()[1]

    @property
    def limits(self) -> tuple[tuple[BudgetSource, int], ...]:
        """Every group's limit on the path as (source, limit_bytes), the outermost first."""
        limits = path_limits(self._groups, self.host_bytes)
        return tuple((limit.source, limit.limit_bytes) for limit in limits)

    def sample(self) -> MemorySample:
        """Measure now. Reads a handful of small files, well under a millisecond."""
        limit, budget = self._counted = self._look_up()
        numbers = None if limit is None else measure_group(limit.group)
        scope: Scope = "process" if numbers is None else "group"
        return MemorySample(
            *(numbers or _measure_process(self._proc_root)),
            budget.budget_bytes,
            scope,
            self._pressure_ratio(limit),
            *count_events(self._groups),
            is_hard=limit is not None and budget.source == limit.source,
        )

    def usage(self) -> MemoryUsage:
        """Measure what is in use now, against the limit and the budget of the last sample.

        Reads one or two small files, a tenth of what a sample reads.
        """
        limit, budget = self._counted
        numbers = None if limit is None else measure_group(limit.group)
        used_bytes = (numbers or _measure_process(self._proc_root)).used_bytes
        return MemoryUsage(used_bytes, budget.budget_bytes)

    def _look_up(self) -> tuple[Limit | None, Budget]:
        """The smallest limit on the path, of equals the outermost; and the budget."""
        limits = path_limits(self._groups, self.host_bytes)
        limit = min(limits, key=lambda limit: limit.limit_bytes, default=None)
        return limit, self._budget(limit)

    def _pressure_ratio(self, limit: Limit | None) -> float | None:
        groups = [limit.group] if limit is not None and limit.group.version == 2 else []
        groups += self._unified_groups[:1]
        paths = [group.folder / "memory.pressure" for group in groups]
        paths.append(self._proc_root / "pressure/memory")
        return next((ratio for ratio in map(read_pressure_ratio, paths) if ratio is not None), None)

    def _budget(self, limit: Limit | None) -> Budget:
        candidates = [] if limit is None else [Budget(limit.limit_bytes, limit.source)]
        if self._configured_bytes is not None:
            candidates.append(Budget(self._configured_bytes, "PLIMSOLL_MEMORY_BUDGET"))
        if self.host_bytes is not None:
            candidates.append(Budget(self.host_bytes, "host memory"))
        if not candidates:
            raise SettingsError("the host's memory is unknown; set PLIMSOLL_MEMORY_BUDGET")
        return min(candidates, key=lambda budget: budget.budget_bytes)  # first of equals

    def _notes(self) -> tuple[str, ...]:
        limit, budget = self._counted
        notes = [
            f"{group}: {name} holds no limit that can be read; it is left out"
            for group in self._groups
            if (name := unreadable_limit(group)) is not None
        ]
        if limit is not None and measure_group(limit.group) is None:
            notes.append(f"{limit.group}: memory.stat cannot be read; this process alone counts")
        if not (self._proc_root / "self/status").exists():
            notes.append("no /proc here: used memory is this process's peak, which never falls")
        if self._configured_bytes is not None and budget.budget_bytes < self._configured_bytes:
            notes.append(
                f"PLIMSOLL_MEMORY_BUDGET ({self._configured_bytes // MIB} MiB) is above "
                f"{budget.source} ({budget.budget_bytes // MIB} MiB), which counts"
            )
        return tuple(notes)


def _host_memory_bytes(proc_root: Path) -> int | None:
    """Return the machine's memory, or None where neither /proc nor sysconf tells it."""
    total_bytes = _read_kib_fields(proc_root / "meminfo", "MemTotal").get("MemTotal")
    if total_bytes is not None:
        return total_bytes
    try:
        n_pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return n_pages * page_bytes if min(n_pages, page_bytes) > 0 else None  # -1 means unknown


def _measure_process(proc_root: Path) -> Numbers:
    """Measure this process alone; without /proc all that is known is its peak."""
    status = _read_kib_fields(proc_root / "self/status", "VmRSS", "RssAnon", "RssShmem")
    if "VmRSS" in status:
        resident_bytes = status["VmRSS"]
        used_bytes = status.get("RssAnon", resident_bytes) + status.get("RssShmem", 0)
        return Numbers(used_bytes, resident_bytes, resident_bytes)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
    return Numbers(peak_bytes, peak_bytes, peak_bytes)


def _read_kib_fields(path: Path, *names: str) -> dict[str, int]:
    """Read some `Name:  123 kB` lines of /proc/meminfo or /proc/self/status, in bytes."""
    line = rf"^({'|'.join(names)}):\s+(\d+) kB$"
    fields = re.findall(line, read_text(path), flags=re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in fields}

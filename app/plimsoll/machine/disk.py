"""Measure what this process reads from disks, and what reading costs it.

Reads /proc and control groups on every call; keeps no history and decides nothing.
Sources: proc_pid_io(5), getrusage(2), the kernel's Documentation/accounting/psi.rst.
"""

import resource
from dataclasses import dataclass
from pathlib import Path

from plimsoll.machine.groups import USUAL_CGROUP_ROOT, own_groups, read_pressure_ratio, read_text


@dataclass(frozen=True, slots=True)
class DiskSample:
    """Reading at one moment; all but the ratio only ever grow.

    read_bytes: what the kernel fetched from disks for this process, faults on maps included.
    n_major_faults: faults that had to wait for a disk.
    system_s: own processor time in the kernel, where faults and reclaim are paid.
    pressure_ratio: share of the last 10 s in which a task waited for a disk (PSI "some avg10"): of
        this process's own v2 group, else of the whole machine. None where it is not measured.
    """

    read_bytes: int
    n_major_faults: int
    system_s: float
    pressure_ratio: float | None = None


class DiskMonitor:
    """Reads this process's input and output. Safe to share between threads.

    proc_root, cgroup_root: where /proc and /sys/fs/cgroup are.
    """

    def __init__(
        self, *, proc_root: Path = Path("/proc"), cgroup_root: Path = USUAL_CGROUP_ROOT
    ) -> None:
        self._proc_root = proc_root
        groups = own_groups(proc_root, cgroup_root, controller=None)
        self._pressure_paths = [group.folder / "io.pressure" for group in groups[:1]]
        self._pressure_paths.append(proc_root / "pressure/io")

    def sample(self) -> DiskSample:
        """Measure now. Where /proc/self/io is missing or refused nothing seems to be read."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ratios = map(read_pressure_ratio, self._pressure_paths)
        return DiskSample(
            read_bytes=_read_bytes(read_text(self._proc_root / "self/io")),
            n_major_faults=usage.ru_majflt,
            system_s=usage.ru_stime,
            pressure_ratio=next((ratio for ratio in ratios if ratio is not None), None),
        )


def _read_bytes(text: str) -> int:
    """Find the number in /proc/self/io, whose lines are `name: number`."""
    for line in text.splitlines():
        name, _, number = line.partition(": ")
        if name == "read_bytes" and number.isdecimal():
            return int(number)
    return 0

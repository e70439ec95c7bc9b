"""A control group with a hard memory limit, made and removed by this process.

As a container's limit does it: what passes the limit is killed by the kernel. Version 1 and 2
of the interface; needs root. The group lies in our own group, or, where version 2 allows no
processes beside subgroups, in the nearest one above that takes it.
"""

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from plimsoll.machine.groups import USUAL_CGROUP_ROOT, ControlGroup, own_groups, read_counters

SAMPLE_S = 0.02
REMOVAL_ATTEMPTS = 50


class NoLimitError(Exception):
    """A limited group cannot be made here; says why."""


@dataclass(frozen=True)
class _Files:
    limit: str
    swap_limit: str
    usage: str
    peak: str
    anonymous: str  # counter of memory.stat
    events: str


_FILES = {
    1: _Files(
        limit="memory.limit_in_bytes",
        swap_limit="memory.memsw.limit_in_bytes",
        usage="memory.usage_in_bytes",
        peak="memory.max_usage_in_bytes",
        anonymous="total_rss",
        events="memory.oom_control",
    ),
    2: _Files(
        limit="memory.max",
        swap_limit="memory.swap.max",
        usage="memory.current",
        peak="memory.peak",
        anonymous="anon",
        events="memory.events",
    ),
}


class LimitedGroup:
    """A group with a limit; samples its usage in a thread and owns the peaks."""

    def __init__(self, version: int, folder: Path, limit_bytes: int) -> None:
        """Set the limit of an existing group and start to sample."""
        self._files = _FILES[version]
        self.folder = folder
        self.usage_peak_bytes = 0
        self.anonymous_peak_bytes = 0
        (folder / self._files.limit).write_text(str(limit_bytes))
        # Without this the kernel would swap instead of killing; absent where swap is not counted.
        swap = folder / self._files.swap_limit
        if swap.exists():
            swap.write_text(str(limit_bytes if version == 1 else 0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def prefix(self) -> list[str]:
        """Command that enters the group and becomes the command that follows."""
        enter = 'echo $$ >"$0" && exec "$@"'
        return ["/bin/sh", "-c", enter, str(self.folder / "cgroup.procs")]

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel has killed."""
        return read_counters(self.folder / self._files.events).get("oom_kill", 0)

    def stop(self) -> None:
        """Take the last sample."""
        self._stopped.set()
        self._thread.join()
        self._sample()
        peak = self.folder / self._files.peak  # absent before Linux 5.19 on version 2
        if peak.exists():
            self.usage_peak_bytes = max(self.usage_peak_bytes, int(peak.read_text()))

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        usage = int((self.folder / self._files.usage).read_text())
        anonymous = read_counters(self.folder / "memory.stat").get(self._files.anonymous, 0)
        self.usage_peak_bytes = max(self.usage_peak_bytes, usage)
        self.anonymous_peak_bytes = max(self.anonymous_peak_bytes, anonymous)


@contextmanager
def limited_group(
    limit_bytes: int,
    *,
    proc_root: Path = Path("/proc"),
    cgroup_root: Path = USUAL_CGROUP_ROOT,
) -> Iterator[LimitedGroup]:
    """A group with a hard limit for the length of a `with` block; its processes have ended.

    Raises NoLimitError with the reason where none can be made.
    """
    parents = own_groups(proc_root, cgroup_root)
    if not parents:
        raise NoLimitError("no memory control group is mounted here")
    name = f"plimsoll-benchmark-{os.getpid()}"
    reasons = []
    for parent in parents:
        folder = parent.folder / name
        try:
            _make(parent, folder)
            group = LimitedGroup(parent.version, folder, limit_bytes)
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            if folder.exists():
                _remove(folder)
            continue
        try:
            yield group
        finally:
            group.stop()
            _remove(folder)
        return
    raise NoLimitError("; ".join(reasons))


def evict(path: Path) -> None:
    """Drop the pages of a file, or of all below a folder; no process may have them mapped.

    Pages are charged to the group that first read them: those of a warm cache outside a
    group would not count inside it.
    """
    for file in _files(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def warm(path: Path) -> None:
    """Read a file, or all below a folder, once, so that it is in the page cache."""
    buffer = bytearray(1 << 20)
    for one in _files(path):
        with one.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [below for below in path.rglob("*") if below.is_file()]


def _make(parent: ControlGroup, folder: Path) -> None:
    if parent.version == 2:
        control = parent.folder / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
    folder.mkdir()
    if not (folder / _FILES[parent.version].limit).exists():
        raise OSError(errno.ENOTSUP, "the group has no memory controller")


def _remove(folder: Path) -> None:
    """Remove a group; the kernel needs a moment after its last process has ended."""
    for _ in range(REMOVAL_ATTEMPTS):
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.1)
        else:
            return

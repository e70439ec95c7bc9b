"""Tell which processors others keep busy, and keep this process's working threads off them.

What others use of a processor is its busy time without ours. The kernel tells of each of our
threads how long it has worked and where it stands, not where it worked: between two looks a second
apart all of it is put down to where it stands, which averages out over some looks.
Sources: proc_stat(5), proc_pid_stat(5), sched_setaffinity(2).
"""

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from app.memory.groups import read_text

log = logging.getLogger(__name__)

# Columns of a processor's line in /proc/stat that are work, as cpu.py counts them.
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)
# Columns of /proc/self/task/<id>/stat after the thread's name: fields 14, 15 and 39.
_UTIME, _STIME, _PROCESSOR = 11, 12, 36


class CoreWatch:
    """Owns how long others have worked on each processor since the first look.

    For one thread at a time. `proc_root`: where /proc is.
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
        busy_s = _busy_s(self._proc_root)
        return {core: seconds - self._own_s[core] for core, seconds in busy_s.items()}


class ThreadPlacement:
    """Owns where this process's working threads may run.

    Those are the Python threads whose names `is_worker` knows, and whatever threads libraries
    have started; threads that these start later stand where they do.
    """

    def __init__(self, is_worker: Callable[[str], bool]) -> None:
        self._is_worker = is_worker
        self._allowed: frozenset[int] | None = None  # where they stood before; None: untouched

    @property
    def is_moved(self) -> bool:
        """Whether the threads are held off some processors."""
        return self._allowed is not None

    def move(self, cores: Collection[int]) -> bool:
        """Let working threads run on `cores` alone; False where the system does not do that."""
        if not hasattr(os, "sched_setaffinity"):
            return False
        allowed = self._allowed or frozenset(os.sched_getaffinity(0))
        if not _place(self._workers(), cores):
            _place(self._workers(), allowed)
            return False
        self._allowed = allowed
        return True

    def restore(self) -> None:
        """Let them run where they ran before."""
        if self._allowed is not None:
            _place(self._workers(), self._allowed)
            self._allowed = None

    def _workers(self) -> Iterable[int]:
        others = {
            thread.native_id for thread in threading.enumerate() if not self._is_worker(thread.name)
        }
        return [thread for thread in _thread_ids(Path("/proc")) if thread not in others]


def _place(threads: Iterable[int], cores: Collection[int]) -> bool:
    """Returns False where the kernel refuses; a thread that has ended meanwhile is no matter."""
    for thread in threads:
        try:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)
        except OSError as error:
            log.warning("threads cannot be moved to processors %s: %s", sorted(cores), error)
            return False
    return True


def _thread_ids(proc_root: Path) -> list[int]:
    try:
        return [int(path.name) for path in (proc_root / "self/task").iterdir()]
    except OSError:
        return []


def _thread_times(proc_root: Path) -> dict[int, tuple[float, int]]:
    """Processor time of each of our threads, and the processor that it stands on."""
    times = {}
    for thread in _thread_ids(proc_root):
        # The name, in parentheses, may hold blanks and parentheses itself.
        fields = read_text(proc_root / f"self/task/{thread}/stat").rpartition(")")[2].split()
        if len(fields) > _PROCESSOR:
            ticks = int(fields[_UTIME]) + int(fields[_STIME])
            times[thread] = (ticks / os.sysconf("SC_CLK_TCK"), int(fields[_PROCESSOR]))
    return times


def _busy_s(proc_root: Path) -> dict[int, float]:
    """Work on each processor, whoever did it."""
    busy_s = {}
    for line in read_text(proc_root / "stat").splitlines():
        columns = line.split()
        number = columns[0].removeprefix("cpu") if columns else ""
        if number.isdecimal() and columns[0] != number:
            ticks = sum(int(columns[i]) for i in _BUSY_COLUMNS if i < len(columns))
            busy_s[int(number)] = ticks / os.sysconf("SC_CLK_TCK")
    return busy_s

"""Keep this process's working threads off some processors. Sources: sched_setaffinity(2)."""

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from plimsoll.machine.cpu import thread_ids

log = logging.getLogger(__name__)


class ThreadPlacement:
    """Owns where this process's working threads may run.

    Those are the Python threads whose names `is_worker` knows, and all threads that libraries
    have started. A thread that one of these starts later may run on the same processors.
    """

    def __init__(self, is_worker: Callable[[str], bool]) -> None:
        self._is_worker = is_worker
        self._allowed: frozenset[int] | None = None  # where they ran before; None: not moved

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
        return [thread for thread in thread_ids() if thread not in others]


def _place(threads: Iterable[int], cores: Collection[int]) -> bool:
    """Return False where the kernel refuses; threads that have ended by then are left out."""
    for thread in threads:
        try:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)
        except OSError as error:
            log.warning("threads cannot be moved to processors %s: %s", sorted(cores), error)
            return False
    return True

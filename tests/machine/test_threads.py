"""Working threads that are moved off some processors: this process's own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plimsoll.machine.threads import ThreadPlacement

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="threads cannot be placed here"
)


@contextmanager
def waiting_thread(name: str) -> Iterator[threading.Thread]:
    """A thread that does nothing until the end."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name=name)
    thread.start()
    try:
        yield thread
    finally:
        done.set()
        thread.join()


def test_workers_are_moved_and_put_back_and_no_other_thread():
    """The event loop's thread must stay: where it may run is how processors are counted."""
    allowed = os.sched_getaffinity(0)
    placement = ThreadPlacement(lambda name: name.startswith("engine"))
    with waiting_thread("engine_0") as worker, waiting_thread("texts_0") as other:
        assert placement.move([min(allowed)])
        assert os.sched_getaffinity(worker.native_id) == {min(allowed)}
        assert os.sched_getaffinity(other.native_id) == allowed
        assert os.sched_getaffinity(0) == allowed

        placement.restore()
        assert os.sched_getaffinity(worker.native_id) == allowed


def test_a_processor_that_is_not_there_is_refused_and_nothing_stays_changed():
    """A container's processors may have changed in between."""
    allowed = os.sched_getaffinity(0)
    placement = ThreadPlacement(lambda name: name.startswith("engine"))
    with waiting_thread("engine_0") as worker:
        assert not placement.move([4000])
        assert os.sched_getaffinity(worker.native_id) == allowed

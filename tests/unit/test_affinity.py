"""Who works on which processor, and threads that are moved off some: this process's own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.memory.affinity import CoreWatch, ThreadPlacement
from tests.fake_machine import Machine

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
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


def test_workers_are_moved_and_put_back_and_nobody_else():
    """The event loop's thread must stay: where it may run is how processors are counted."""
    allowed = os.sched_getaffinity(0)
    placement = ThreadPlacement(lambda name: name.startswith("engine"))
    with waiting_thread("engine_0") as worker, waiting_thread("texts_0") as other:
        assert placement.move([min(allowed)])
        assert placement.is_moved
        assert os.sched_getaffinity(worker.native_id) == {min(allowed)}
        assert os.sched_getaffinity(other.native_id) == allowed
        assert os.sched_getaffinity(0) == allowed

        placement.restore()
        assert not placement.is_moved
        assert os.sched_getaffinity(worker.native_id) == allowed


def test_a_processor_that_is_not_there_is_refused_and_nothing_stays_changed():
    """A container's processors may have changed in between."""
    allowed = os.sched_getaffinity(0)
    placement = ThreadPlacement(lambda name: name.startswith("engine"))
    with waiting_thread("engine_0") as worker:
        assert not placement.move([4000])
        assert not placement.is_moved
        assert os.sched_getaffinity(worker.native_id) == allowed


def test_others_work_is_what_is_left_of_a_processors(tmp_path: Path):
    """By /proc: 6 s of work on processor 0, of which one of our threads did 4."""
    machine = Machine(tmp_path)

    def write(busy: tuple[int, int], own_s: int) -> None:
        lines = [f"cpu{i} {s * TICKS_PER_S} 0 0 9999 5 0 0 0" for i, s in enumerate(busy)]
        machine.write_proc("stat", "\n".join(["cpu  9 9 9", *lines, "intr 5", ""]))
        fields = ["0"] * 50
        fields[11], fields[36] = str(own_s * TICKS_PER_S), "0"
        folder = machine.proc / "self/task/7"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"7 (a (thread) x) {' '.join(fields)}")

    write((100, 200), 50)
    cores = CoreWatch(proc_root=machine.proc)
    earlier = cores.others_s()
    write((106, 203), 54)
    later = cores.others_s()

    assert {core: later[core] - earlier[core] for core in later} == {0: 2.0, 1: 3.0}


def test_a_system_without_proc_knows_of_no_processor(tmp_path: Path):
    """Then none is avoided."""
    assert CoreWatch(proc_root=tmp_path).others_s() == {}

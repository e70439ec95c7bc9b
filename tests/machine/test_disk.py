"""What is read from disks, against fake folders and once from this machine."""

import os
from pathlib import Path

import pytest

from plimsoll.machine.disk import DiskMonitor
from tests.fake_machine import V2_MOUNT, Machine

PSI = "some avg10={:.2f} avg60=71.00 avg300=72.00 total=73\nfull avg10=74.00 avg60=1.00\n"

# The kernel may count in hundredths of a second; so many calls take it far more.
MANY_CALLS = 100_000


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.stand_in("0::/a/b\n", V2_MOUNT.format(root="/", below=""))
    machine.write_file("a/b/cgroup.procs", "")
    return machine


def monitor(machine: Machine) -> DiskMonitor:
    return DiskMonitor(proc_root=machine.proc, cgroup_root=machine.cgroup)


def test_bytes_are_those_that_came_from_a_disk(machine: Machine):
    """What was read from the file cache costs no disk."""
    machine.write_proc("self/io", "rchar: 999\nread_bytes: 4096\nwrite_bytes: 8\n")
    assert monitor(machine).sample().read_bytes == 4096


def test_pressure_is_that_of_our_own_group(machine: Machine):
    """Other people's disks are not ours."""
    machine.write_file("a/b/io.pressure", PSI.format(12.5))
    machine.write_proc("pressure/io", PSI.format(90))
    assert monitor(machine).sample().pressure_ratio == 0.125


def test_pressure_of_the_machine_is_used_where_no_group_tells(machine: Machine):
    """What presses on the machine presses on us."""
    machine.write_proc("pressure/io", PSI.format(90))
    assert monitor(machine).sample().pressure_ratio == 0.9


def test_a_system_that_tells_nothing_reads_nothing(machine: Machine):
    """macOS has no /proc, and hardened containers hide /proc/self/io."""
    sample = monitor(machine).sample()
    assert (sample.read_bytes, sample.pressure_ratio) == (0, None)


def test_the_kernel_counts_time_that_it_spends_for_us():
    """Faults and reclaim are paid there."""
    disk = DiskMonitor()
    earlier = disk.sample()
    for _ in range(MANY_CALLS):
        os.stat(".")  # noqa: PTH116 - as little as can be, but for the kernel
        if disk.sample().system_s > earlier.system_s:
            return
    pytest.fail(f"{MANY_CALLS} calls of the kernel took none of its time")

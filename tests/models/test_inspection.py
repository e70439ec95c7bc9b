"""What a report on a file says of the machine, from a made-up one."""

import os
from pathlib import Path

import pytest

from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.memory import MIB
from plimsoll.models.inspection import Machine, MemoryLimit, describe_machine
from tests.fake_machine import v2_machine


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two limits on the path, and a quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    fake = v2_machine(tmp_path)
    fake.write_group("a", max=1024 * MIB)
    fake.write_group("a/b", max=400 * MIB)
    fake.write_file("a/cpu.max", "150000 100000")
    return describe_machine(
        fake.monitor(), CPUMonitor(proc_root=fake.proc, cgroup_root=fake.cgroup)
    )


def test_a_machine_is_described_by_every_limit_that_was_found(limited: Machine):
    """An operator who set one limit must see the other that counts."""
    assert limited == Machine(
        budget_bytes=400 * MIB,
        budget_source="control group v2 /a/b",
        limits=[
            MemoryLimit("control group v2 /a", 1024 * MIB),
            MemoryLimit("control group v2 /a/b", 400 * MIB),
        ],
        host_bytes=4096 * MIB,
        quota_cores=1.5,
        cores=1.5,
    )


def test_the_rows_name_each_limit_with_its_source(limited: Machine):
    """One line each, for people."""
    assert limited.rows() == [
        ("budget here", "400.0 MiB from control group v2 /a/b"),
        (
            "limits here",
            "1,024.0 MiB from control group v2 /a, 400.0 MiB from control group v2 /a/b",
        ),
        ("host memory", "4,096.0 MiB"),
        ("CPU quota", "1.5 cores"),
        ("cores to use", "1.5"),
    ]


def test_a_machine_without_limits_says_so():
    """And one that does not tell its memory says that."""
    free = Machine(400 * MIB, "PLIMSOLL_MEMORY_BUDGET", [], None, None, 4)
    assert dict(free.rows()) == {
        "budget here": "400.0 MiB from PLIMSOLL_MEMORY_BUDGET",
        "limits here": "none",
        "host memory": "unknown",
        "CPU quota": "none",
        "cores to use": "4",
    }

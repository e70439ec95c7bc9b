"""Cores, load and throttled time, from made-up machines and once from this one."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from plimsoll.machine.cpu import (
    CoreWatch,
    CPULoad,
    CPUMonitor,
    CPUSample,
    available_cores,
    cpu_load,
)
from tests.fake_machine import V2_MOUNT, Machine

V1_CPU_MOUNT = (
    "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def v1(machine: Machine) -> Machine:
    """A v1 host where the process's cpu group is /p/q, and its memory group another one."""
    machine.stand_in(
        "5:memory:/elsewhere\n4:cpu,cpuacct:/p/q\n0::/x\n",
        V2_MOUNT.format(root="/", below="/unified") + V1_CPU_MOUNT.format(root="/"),
    )
    for group in ("", "/p", "/p/q"):
        write_v1_quota(machine, group, -1)
    return machine


@pytest.fixture
def v2(machine: Machine) -> Machine:
    """A v2 host where the process is in /p/q; a root has no cpu.max."""
    machine.stand_in("0::/p/q\n", V2_MOUNT.format(root="/", below=""))
    for group in ("/p", "/p/q"):
        machine.write_file(f"{group}/cpu.max", "max 100000")
    return machine


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores of which the process may use four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def write_v1_quota(
    machine: Machine, group: str, quota: str | int, period: str | int = 100000
) -> None:
    machine.write_file(f"cpu,cpuacct{group}/cpu.cfs_quota_us", quota)
    machine.write_file(f"cpu,cpuacct{group}/cpu.cfs_period_us", period)


def write_quota(machine: Machine, version: str, group: str, quota_us: int) -> None:
    if version == "v1":
        write_v1_quota(machine, group, quota_us)
    else:
        machine.write_file(f"{group}/cpu.max", f"{quota_us} 100000")


def monitor(machine: Machine) -> CPUMonitor:
    return CPUMonitor(proc_root=machine.proc, cgroup_root=machine.cgroup)


def usable(machine: Machine) -> int:
    return available_cores(proc_root=machine.proc, cgroup_root=machine.cgroup)


# --- quota ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000", 2.0),
        ("150000 100000", 1.5),
        ("25000 50000", 0.5),
        ("max 100000", None),
        ("", None),
        ("0 100000", None),
        ("100000 0", None),
        ("100000", None),
        ("nonsense here", None),
    ],
)
def test_version_2_gives_quota_over_period(v2: Machine, text: str, cores: float | None):
    """`docker run --cpus 1.5` writes 150000 100000."""
    v2.write_file("p/q/cpu.max", text)
    assert monitor(v2).quota_cores == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        (200000, 100000, 2.0),
        (50000, 100000, 0.5),
        (-1, 100000, None),
        ("x", 100000, None),
        (100000, "", None),
        (100000, 0, None),
    ],
)
def test_version_1_gives_quota_over_period(
    v1: Machine, quota: str | int, period: str | int, cores: float | None
):
    """There -1 is no limit, and half a limit is none."""
    write_v1_quota(v1, "/p/q", quota, period)
    assert monitor(v1).quota_cores == cores


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("outer_us", "inner_us"), [(150000, 300000), (300000, 150000)], ids=["outer", "inner"]
)
def test_the_smallest_quota_on_the_path_counts(
    version: str, outer_us: int, inner_us: int, request: pytest.FixtureRequest
):
    """A service's slice, a pod and a container may each have one."""
    machine = request.getfixturevalue(version)
    write_quota(machine, version, "/p", outer_us)
    write_quota(machine, version, "/p/q", inner_us)
    assert monitor(machine).quota_cores == 1.5


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_neighbours_quota_does_not_count(version: str, request: pytest.FixtureRequest):
    """Groups beside and below the path are other people's."""
    machine = request.getfixturevalue(version)
    write_quota(machine, version, "/p/other", 10000)
    write_quota(machine, version, "/p/q/below", 10000)
    assert monitor(machine).quota_cores is None


def test_a_container_that_sees_only_its_own_group_finds_its_quota(machine: Machine):
    """There /proc/self/cgroup names a path of the host that no folder has."""
    machine.stand_in("0::/kubepods/pod1/box\n", V2_MOUNT.format(root="/", below=""))
    machine.write_file("cpu.max", "50000 100000")
    assert monitor(machine).quota_cores == 0.5


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_quota_that_changes_while_running_is_followed(
    version: str, request: pytest.FixtureRequest
):
    """Orchestrators resize running containers in place."""
    machine = request.getfixturevalue(version)
    running = monitor(machine)
    assert running.sample().cores == 4
    write_quota(machine, version, "/p", 250000)
    assert running.sample().cores == 2.5
    write_quota(machine, version, "/p", 50000)
    assert running.sample().cores == 0.5


@pytest.mark.parametrize(("quota_us", "cores"), [(800000, 4), (300000, 3), (250000, 3), (10000, 1)])
def test_the_smaller_of_affinity_and_quota_counts(v2: Machine, quota_us: int, cores: int):
    """More threads than the quota allows are stopped together in the middle of a layer."""
    write_quota(v2, "v2", "/p/q", quota_us)
    assert usable(v2) == cores


def test_without_control_groups_the_affinity_counts(machine: Machine):
    """A plain process on a plain host."""
    assert monitor(machine).quota_cores is None
    assert usable(machine) == 4


def test_a_system_without_affinity_counts_its_cores(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    """macOS has neither affinity nor control groups."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable(machine) == 8
    assert monitor(machine).sample().cpus == frozenset()

    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable(machine) == 1


# --- samples ----------------------------------------------------------------------------------


def test_busy_is_the_work_and_theft_on_our_processors(machine: Machine):
    """Not idle, not waiting for disks, not guests twice, and not what other processors do."""
    machine.write_proc(
        "stat",
        "cpu  9999 9999 9999 9999 9999 9999 9999 9999 9999 9999\n"
        # user nice system idle iowait irq softirq steal guest guest_nice
        "cpu0 100 20 30 5000 6000 7 8 9 90 10\n"
        "cpu1 1 0 0 5000 0 0 0 0 0 0\n"
        "cpu3 7777 0 0 0 0 0 0 0 0 0\n"
        "cpu5 2 0 0 5000 0 0 0 0 0 0\n"
        "intr 123 0 1\n"
        "ctxt 5\n",
    )
    assert monitor(machine).sample().busy_s == pytest.approx(
        (100 + 20 + 30 + 7 + 8 + 9 + 1 + 2) / TICKS_PER_S
    )


def test_old_kernels_with_fewer_columns_are_read(machine: Machine):
    """Steal and guests came later; sandboxes leave them out too."""
    machine.write_proc("stat", "cpu0 100 20 30 5000\ncpu1 x 5 0 0\n\n")
    assert monitor(machine).sample().busy_s == pytest.approx(155 / TICKS_PER_S)


def test_own_time_is_user_and_system_time_of_all_threads(machine: Machine):
    """A process may call itself anything, with blanks and parentheses."""
    machine.write_proc(
        "self/stat", "7 (a) b (c)) R 1 7 7 0 -1 4194304 111 222 33 44 1500 250 77 88 20 0 9 0 5\n"
    )
    assert monitor(machine).sample().own_s == pytest.approx(1750 / TICKS_PER_S)


def test_without_proc_our_own_time_is_still_known(machine: Machine):
    """And others' is not: nothing is made up."""
    before = os.times()
    sample = monitor(machine).sample()
    after = os.times()
    assert before.user + before.system <= sample.own_s <= after.user + after.system
    assert sample.busy_s == 0
    assert cpu_load(sample, sample, 1.0).others_ratio == 0


def test_version_2_gives_throttled_time_in_microseconds(v2: Machine):
    """A group counts what its own quota stops, so those above it are added."""
    v2.write_file("cpu.stat", "usage_usec 99\nuser_usec 9\nsystem_usec 9")
    v2.write_file("p/cpu.stat", "usage_usec 99\nnr_throttled 9\nthrottled_usec 500000")
    v2.write_file("p/q/cpu.stat", "usage_usec 99\nnr_throttled 9\nthrottled_usec 1500000")
    v2.write_file("p/other/cpu.stat", "throttled_usec 7000000")
    assert monitor(v2).sample().throttled_s == pytest.approx(2.0)


def test_version_1_gives_throttled_time_in_nanoseconds(v1: Machine):
    """The same number a thousand times larger."""
    v1.write_file("cpu,cpuacct/p/cpu.stat", "nr_throttled 9\nthrottled_time 500000000")
    v1.write_file("cpu,cpuacct/p/q/cpu.stat", "nr_throttled 9\nthrottled_time 1500000000")
    assert monitor(v1).sample().throttled_s == pytest.approx(2.0)


# --- load -------------------------------------------------------------------------------------

EARLIER = CPUSample(
    busy_s=1000.0, own_s=100.0, throttled_s=10.0, cores=4, cpus=frozenset({0, 1, 2, 5})
)


@pytest.mark.parametrize(
    ("busy_s", "own_s", "others_ratio"),
    [(8.0, 8.0, 0.0), (8.0, 2.0, 0.75), (8.0, 0.0, 1.0), (3.0, 3.2, 0.0), (9.0, 0.0, 1.0)],
    ids=["all ours", "mostly others", "all others", "ticks rounded down", "ticks rounded up"],
)
def test_load_is_what_others_do_and_never_our_own_work(
    busy_s: float, own_s: float, others_ratio: float
):
    """Else the server would slow down because it is working. Four processors, two seconds."""
    later = replace(EARLIER, busy_s=1000.0 + busy_s, own_s=100.0 + own_s)
    assert cpu_load(EARLIER, later, 2.0).others_ratio == pytest.approx(others_ratio)


@pytest.mark.parametrize(
    ("throttled_s", "ratio"), [(0.0, 0.0), (0.5, 0.25), (2.0, 1.0), (7.0, 1.0), (-3.0, 0.0)]
)
def test_throttled_time_is_held_against_the_clock(throttled_s: float, ratio: float):
    """The kernel adds it up over processors, so it may pass the time that has passed."""
    later = replace(EARLIER, throttled_s=10.0 + throttled_s)
    assert cpu_load(EARLIER, later, 2.0) == CPULoad(0.0, ratio, 4)


def test_no_time_is_no_load():
    """Two samples at once must not divide by zero."""
    later = replace(EARLIER, busy_s=1001.0, throttled_s=11.0)
    assert cpu_load(EARLIER, later, 0.0) == CPULoad(0.0, 0.0, 4)


def test_moving_to_other_processors_is_no_load():
    """Their years of work are not the work of this second; Kubernetes moves pods so."""
    later = replace(EARLIER, busy_s=9000.0, cpus=frozenset({0, 1, 2, 6}), throttled_s=11.0)
    assert cpu_load(EARLIER, later, 2.0) == CPULoad(0.0, 0.5, 4)


def test_the_cores_of_a_load_are_those_of_now():
    """A quota cut a moment ago decides how many threads help."""
    assert cpu_load(EARLIER, replace(EARLIER, cores=1.5), 1.0).cores == 1.5


def test_on_this_machine_the_kernels_real_files_are_understood(monkeypatch: pytest.MonkeyPatch):
    """The fakes prove the arithmetic; the process's clock is another way to the same number."""
    monkeypatch.undo()
    sample = CPUMonitor().sample()
    assert sample.own_s == pytest.approx(time.process_time(), abs=0.1)
    assert sample.busy_s > 0 or not sample.cpus
    assert 0 < sample.cores <= (os.cpu_count() or 1)


def test_others_work_is_what_is_left_of_a_processors(machine: Machine):
    """By /proc: 6 s of work on processor 0, of which one of our threads did 4."""

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

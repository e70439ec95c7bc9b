"""The memory monitor against fake /proc and control-group folders, and once against the machine."""

import os
import resource
from pathlib import Path

import pytest

from plimsoll.errors import SettingsError
from plimsoll.machine.memory import (
    MIB,
    Budget,
    MemoryMonitor,
    MemorySample,
    MemoryUsage,
)
from tests.fake_machine import (
    STAT_V1,
    STAT_V2,
    UNLIMITED_V1,
    V1_MOUNT,
    V2_MOUNT,
    Machine,
    v1_machine,
    v2_machine,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def v1(tmp_path: Path) -> Machine:
    return v1_machine(tmp_path)


@pytest.fixture
def v2(tmp_path: Path) -> Machine:
    return v2_machine(tmp_path)


PROCESS_SAMPLE = MemorySample(12 * MIB, 30 * MIB, 30 * MIB, 4096 * MIB, "process")


def test_v1_group_numbers_follow_their_definition(v1):
    """Used is rss, tmpfs, dirty, writeback and kernel memory: what a v1 limit kills for."""
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB)
    used_bytes = (100 + 4 + 2 + 1 + 6) * MIB
    assert v1.monitor().sample() == MemorySample(
        used_bytes, used_bytes + 8 * MIB, 197 * MIB, 400 * MIB, "group", is_hard=True
    )
    assert v1.monitor().budget == Budget(400 * MIB, "control group v1 /a/b")


def test_v2_group_numbers_follow_their_definition(v2):
    """Used leaves out the slab that the kernel can take back and counts socket buffers."""
    v2.write_group("a/b", max=400 * MIB)
    used_bytes = (100 + 4 + 2 + 1 + 6 - 5) * MIB + MIB // 2
    assert v2.monitor().sample() == MemorySample(
        used_bytes, used_bytes + 8 * MIB, 197 * MIB, 400 * MIB, "group", is_hard=True
    )
    assert v2.monitor().budget == Budget(400 * MIB, "control group v2 /a/b")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_usage_is_measured_now_against_the_limit_of_the_last_sample(version, request):
    """Admission asks before every request, and looking up every limit takes ten times as long."""
    machine = request.getfixturevalue(version)
    group, limit = ("memory/a/b", "limit_in_bytes") if version == "v1" else ("a/b", "max")
    machine.write_group(group, **{limit: 400 * MIB})
    monitor = machine.monitor()
    used_bytes = monitor.sample().used_bytes
    assert monitor.usage() == MemoryUsage(used_bytes, 400 * MIB)

    machine.write_group(group, stat=f"total_rss {9 * MIB}\nanon {9 * MIB}", **{limit: 300 * MIB})
    kernel_bytes = 6 * MIB if version == "v1" else 0
    assert monitor.usage() == MemoryUsage(9 * MIB + kernel_bytes, 400 * MIB)
    monitor.sample()
    assert monitor.usage().budget_bytes == 300 * MIB


def test_usage_without_a_limit_is_this_processs(v2):
    assert v2.monitor().usage() == MemoryUsage(
        PROCESS_SAMPLE.used_bytes, PROCESS_SAMPLE.budget_bytes
    )


def test_utilization_is_used_over_budget(v1):
    """Every threshold of the degradation ladder is held against this ratio."""
    v1.write_group("memory/a/b", limit_in_bytes=226 * MIB)
    assert v1.monitor().sample().utilization_ratio == 0.5


def test_older_v2_kernels_give_kernel_memory_in_parts(v2):
    """Before 5.18 memory.stat has no `kernel` line; its parts must not be forgotten."""
    parts = "kernel_stack 1048576\npagetables 2097152\npercpu 1048576\nslab_unreclaimable 3145728\n"
    stat = STAT_V2.replace("kernel 6291456\n", parts)
    v2.write_group("a/b", max=400 * MIB, stat=stat)
    assert v2.monitor().sample().used_bytes == (100 + 4 + 2 + 1 + 7) * MIB + MIB // 2


def test_v1_without_kernel_accounting_counts_the_rest(v1):
    """Hosts started with cgroup.memory=nokmem have no such file."""
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB)
    (v1.cgroup / "memory/a/b/memory.kmem.usage_in_bytes").unlink()
    assert v1.monitor().sample().used_bytes == 107 * MIB


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_smallest_limit_on_the_path_counts_and_is_measured_where_it_is_set(version, request):
    """A pod's limit kills its containers, with everything that its siblings use in it."""
    machine = request.getfixturevalue(version)
    base, limit, stat = {
        "v1": ("memory/", "limit_in_bytes", STAT_V1.replace("total_rss 104857600", "total_rss 0")),
        "v2": ("", "max", STAT_V2.replace("anon 104857600", "anon 0")),
    }[version]
    machine.write_group(f"{base}a", **{limit: 300 * MIB})
    machine.write_group(f"{base}a/b", **{limit: 500 * MIB}, stat=stat)
    assert machine.monitor().budget == Budget(300 * MIB, f"control group {version} /a")
    assert machine.monitor().sample().used_bytes > 100 * MIB, "measured at /a, not at /a/b"


def test_of_equal_limits_the_outer_one_counts(v2):
    """It holds the same bytes and more, so it is the one that is reached first."""
    v2.write_group("a", max=300 * MIB)
    v2.write_group("a/b", max=300 * MIB)
    assert v2.monitor().budget.source == "control group v2 /a"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_without_a_limit_this_process_alone_is_measured(version, request):
    """An unlimited group also holds other people's processes; their memory is not ours."""
    monitor = request.getfixturevalue(version).monitor()
    assert monitor.sample() == PROCESS_SAMPLE
    assert monitor.budget == Budget(4096 * MIB, "host memory")
    assert monitor.notes == ()


def test_a_limit_above_the_hosts_memory_is_none(v1):
    """v1 writes `unlimited` as a number that differs with the page size."""
    v1.write_group("memory/a/b", limit_in_bytes=4097 * MIB)
    assert v1.monitor().sample().scope == "process"


def test_a_limit_of_exactly_the_hosts_memory_counts(v1):
    """LXC shows a container's limit as the host's memory; its group must still be measured."""
    v1.write_group("memory/a/b", limit_in_bytes=4096 * MIB)
    assert v1.monitor().budget.source == "control group v1 /a/b"


def test_a_smaller_configured_budget_is_held_against_the_groups_numbers(v2):
    """The group still pays for tmpfs and dirty pages, which the process does not show."""
    v2.write_group("a/b", max=400 * MIB)
    monitor = v2.monitor(configured_bytes=256 * MIB)
    assert monitor.budget == Budget(256 * MIB, "PLIMSOLL_MEMORY_BUDGET")
    assert monitor.sample().scope == "group"
    assert not monitor.sample().is_hard  # the group's cache may grow past it
    assert monitor.sample().budget_bytes == 256 * MIB


def test_a_configured_budget_above_the_limit_is_noted_and_does_not_count(v2):
    """The operator expects 800 MiB and would be killed at 400."""
    v2.write_group("a/b", max=400 * MIB)
    monitor = v2.monitor(configured_bytes=800 * MIB)
    assert monitor.budget.budget_bytes == 400 * MIB
    assert monitor.notes == (
        "PLIMSOLL_MEMORY_BUDGET (800 MiB) is above control group v2 /a/b (400 MiB), which counts",
    )


def test_a_hybrid_host_is_read_where_the_memory_controller_is(v1):
    """There a v2 tree is mounted too, and its line in /proc/self/cgroup must not mislead."""
    v1.stand_in(
        "4:memory:/a/b\n0::/x\n",
        V2_MOUNT.format(root="/", below="/unified") + V1_MOUNT.format(root="/"),
    )
    v1.write_group("unified/x", max=1 * MIB, current=1, stat=STAT_V2)
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB)
    assert v1.monitor().budget == Budget(400 * MIB, "control group v1 /a/b")


def test_a_v2_tree_without_the_memory_controller_gives_no_limit(machine):
    """The rest of a hybrid host's v2 tree has no memory files at all."""
    machine.stand_in("0::/x\n", V2_MOUNT.format(root="/", below="/unified"))
    (machine.cgroup / "unified/x").mkdir(parents=True)
    assert machine.monitor().sample() == PROCESS_SAMPLE


def test_a_container_that_sees_only_its_own_group_finds_it_at_the_mount_point(machine):
    """With the host's path in /proc/self/cgroup but no such folder below the mount."""
    machine.stand_in("0::/kubepods/pod1/box\n", V2_MOUNT.format(root="/", below=""))
    machine.write_group("", max=400 * MIB, current=200 * MIB, stat=STAT_V2)
    assert machine.monitor().budget == Budget(400 * MIB, "control group v2 /")
    assert machine.monitor().sample().scope == "group"


@pytest.mark.parametrize("path", ["/docker/1", "/", "/../elsewhere"])
def test_a_mount_that_shows_a_container_as_its_root_is_that_containers_group(machine, path):
    """v1 containers without a namespace of their own see the host's names around one folder."""
    machine.stand_in(f"4:memory:{path}\n", V1_MOUNT.format(root="/docker/1"))
    machine.write_group("memory", limit_in_bytes=400 * MIB, usage_in_bytes=1, stat=STAT_V1)
    machine.write_group("elsewhere", limit_in_bytes=1)
    assert machine.monitor().budget == Budget(400 * MIB, "control group v1 /docker/1")


def test_a_group_below_a_containers_mount_is_found_with_its_ancestors(machine):
    """Programs make groups inside containers; both limits are on the path."""
    machine.stand_in("4:memory:/docker/1/sub\n", V1_MOUNT.format(root="/docker/1"))
    machine.write_group("memory", limit_in_bytes=400 * MIB, usage_in_bytes=1, stat=STAT_V1)
    machine.write_group("memory/sub", limit_in_bytes=300 * MIB, usage_in_bytes=1, stat=STAT_V1)
    assert machine.monitor().budget == Budget(300 * MIB, "control group v1 /docker/1/sub")


def test_v1_limits_above_what_a_container_sees_are_known_from_memory_stat(machine):
    """A pod's limit stands in no folder that its container sees, and kills all the same."""
    machine.stand_in("4:memory:/pod/1\n", V1_MOUNT.format(root="/pod/1"))
    stat = STAT_V1.replace(UNLIMITED_V1, str(250 * MIB))
    machine.write_group("memory", limit_in_bytes=400 * MIB, usage_in_bytes=1, stat=stat)
    assert machine.monitor().budget == Budget(250 * MIB, "control group v1 /pod/1, from above it")
    assert machine.monitor().sample().scope == "group"


def test_every_limit_on_the_path_is_listed_from_the_outside_in(v2):
    """An operator who wonders at the budget sees which of several limits made it."""
    assert v2.monitor().limits == ()
    v2.write_group("a", max=400 * MIB)
    v2.write_group("a/b", max=500 * MIB)
    monitor = v2.monitor(configured_bytes=256 * MIB)
    assert monitor.limits == (
        ("control group v2 /a", 400 * MIB),
        ("control group v2 /a/b", 500 * MIB),
    )
    assert monitor.host_bytes == 4096 * MIB


def test_v1_lists_no_limit_twice_and_none_that_never_bites(v1):
    """There memory.stat repeats the smallest limit, and a group without one shows a number."""
    stat = STAT_V1.replace(UNLIMITED_V1, str(400 * MIB))
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB, stat=stat)
    assert v1.monitor().limits == (("control group v1 /a/b", 400 * MIB),)


def test_a_v1_limit_out_of_sight_is_listed_as_the_outermost(v1):
    """It stands in no folder, and is told from the limits that do."""
    stat = STAT_V1.replace(UNLIMITED_V1, str(300 * MIB))
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB, stat=stat)
    assert v1.monitor().limits == (
        ("control group v1 /, from above it", 300 * MIB),
        ("control group v1 /a/b", 400 * MIB),
    )


def test_mounts_in_unusual_places_are_found(machine, tmp_path):
    """mountinfo is the truth; it writes a blank as \\040."""
    place = tmp_path / "odd place"
    place.mkdir()
    (place / "memory.max").write_text(f"{400 * MIB}\n")
    escaped = str(place).replace(" ", "\\040")
    machine.stand_in("0::/\n", f"41 31 0:38 / {escaped} rw shared:9 - cgroup2 cgroup2 rw\n")
    assert machine.monitor().budget.budget_bytes == 400 * MIB


def test_without_mountinfo_the_usual_places_are_tried(v1):
    """Some sandboxes hide the file but mount the groups."""
    (v1.proc / "self/mountinfo").unlink()
    v1.write_group("memory/a", limit_in_bytes=400 * MIB)
    assert v1.monitor().budget.source == "control group v1 /a"


def test_a_limit_that_changes_while_running_is_seen(v2):
    """Orchestrators resize running containers in place."""
    monitor = v2.monitor()
    v2.write_group("a", max=400 * MIB)
    assert monitor.sample().budget_bytes == 400 * MIB
    v2.write_group("a", max=300 * MIB)
    assert monitor.sample().budget_bytes == 300 * MIB


def test_a_malformed_limit_is_left_out_and_noted(v2):
    """The next limit up still counts, and the operator is told about the other."""
    v2.write_group("a", max=400 * MIB)
    v2.write_group("a/b", max="plenty")
    monitor = v2.monitor()
    assert monitor.budget.budget_bytes == 400 * MIB
    assert monitor.notes == (
        "control group v2 /a/b: memory.max holds no limit that can be read; it is left out",
    )


@pytest.mark.parametrize("stat", ["", "anon many\n", "anon\n", "total_rss -1\n"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_group_that_cannot_be_measured_keeps_its_limit_and_is_noted(version, stat, request):
    """Some sandboxes show a limit without statistics; the process's own numbers remain."""
    machine = request.getfixturevalue(version)
    if version == "v1":
        machine.write_group("memory/a/b", limit_in_bytes=400 * MIB, stat=stat)
    else:
        machine.write_group("a/b", max=400 * MIB, stat=stat)
    monitor = machine.monitor()
    assert monitor.sample() == MemorySample(
        12 * MIB, 30 * MIB, 30 * MIB, 400 * MIB, "process", is_hard=True
    )
    assert monitor.notes == (
        f"control group {version} /a/b: memory.stat cannot be read; this process alone counts",
    )


@pytest.mark.parametrize("cgroup", ["", "nonsense\n", "1:cpu:/a\n", "::\n"])
def test_a_cgroup_file_without_a_memory_group_means_no_group(machine, cgroup):
    """A host may run with the memory controller off."""
    machine.stand_in(cgroup, "also nonsense - \n1 2 - cgroup2\n")
    assert machine.monitor().sample() == PROCESS_SAMPLE


def test_without_proc_the_peak_and_the_hosts_memory_are_known(tmp_path):
    """macOS has no /proc and no groups; that the number never falls is said at start."""
    monitor = MemoryMonitor(512 * MIB, proc_root=tmp_path / "none", cgroup_root=tmp_path / "none")
    sample = monitor.sample()
    assert monitor.budget == Budget(512 * MIB, "PLIMSOLL_MEMORY_BUDGET")
    assert sample.scope == "process"
    assert 0 < sample.used_bytes <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert monitor.notes == (
        "no /proc here: used memory is this process's peak, which never falls",
    )
    unconfigured = MemoryMonitor(proc_root=tmp_path / "none", cgroup_root=tmp_path / "none")
    assert unconfigured.budget.source == "host memory"


def test_without_any_source_a_budget_must_be_set(tmp_path, monkeypatch):
    """Guessing a budget would be worse than not starting."""

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    with pytest.raises(SettingsError, match="set PLIMSOLL_MEMORY_BUDGET"):
        MemoryMonitor(proc_root=tmp_path / "none", cgroup_root=tmp_path / "none")
    configured = MemoryMonitor(99 * MIB, proc_root=tmp_path / "none", cgroup_root=tmp_path / "none")
    assert configured.sample().budget_bytes == 99 * MIB


def test_v1s_unlimited_is_no_budget_when_the_hosts_memory_is_unknown(v1, monkeypatch):
    """Then nothing says that its huge number is not a real limit, and it must not become one."""
    (v1.proc / "meminfo").unlink()
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    with pytest.raises(SettingsError, match="set PLIMSOLL_MEMORY_BUDGET"):
        v1.monitor()


def test_on_this_machine_touched_memory_raises_used_by_its_size():
    """The fakes prove the arithmetic; this proves that the kernel's real files are understood."""
    monitor = MemoryMonitor()
    before = monitor.sample()
    block = b"\x01" * (64 * MIB)
    after = monitor.sample()
    assert len(block) == 64 * MIB
    slack_bytes = 8 * MIB if after.scope == "process" else 32 * MIB  # others share the group
    assert abs(after.used_bytes - before.used_bytes - 64 * MIB) < slack_bytes
    assert after.used_bytes <= after.resident_bytes
    assert after.utilization_ratio > 0
    assert after.budget_bytes == monitor.budget.budget_bytes

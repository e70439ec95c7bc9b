"""Find this process's control groups; read what those of memory limit and count.

Knows the files of control groups v1 and v2 and nothing of budgets: memory.py has those.
Every function reads anew and keeps nothing.
Sources: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst,
Documentation/accounting/psi.rst, proc_pid_cgroup(5), proc_pid_mountinfo(5).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

USUAL_CGROUP_ROOT = Path("/sys/fs/cgroup")

Version = Literal[1, 2]


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """One control group: its name as in /proc/self/cgroup and its folder."""

    version: Version
    name: str
    folder: Path

    def __str__(self) -> str:
        return f"control group v{self.version} {self.name}"


class Limit(NamedTuple):
    """A limit, the group to measure against it, and where it stands."""

    limit_bytes: int
    group: ControlGroup
    source: str


class Numbers(NamedTuple):
    """A group's or a process's memory; see memory.MemorySample for what each number holds."""

    used_bytes: int
    resident_bytes: int
    working_set_bytes: int


class Counts(NamedTuple):
    """What has befallen a group since it was made; see memory.MemorySample."""

    n_refaults: int
    oom_kills: int


class _Files(NamedTuple):
    limit: str
    usage: str
    events: str
    used: tuple[str, ...]  # counters of memory.stat, the first always present
    mapped: str
    inactive: str
    refaults: str


_FILES: Mapping[Version, _Files] = {
    1: _Files(
        limit="memory.limit_in_bytes",
        usage="memory.usage_in_bytes",
        events="memory.oom_control",
        used=("total_rss", "total_shmem", "total_dirty", "total_writeback"),
        mapped="total_mapped_file",
        inactive="total_inactive_file",
        refaults="total_workingset_refault_file",
    ),
    2: _Files(
        limit="memory.max",
        usage="memory.current",
        events="memory.events",
        used=("anon", "shmem", "file_dirty", "file_writeback", "sock"),
        mapped="file_mapped",
        inactive="inactive_file",
        refaults="workingset_refault_file",
    ),
}


def own_groups(
    proc_root: Path, cgroup_root: Path, controller: str | None = "memory"
) -> tuple[ControlGroup, ...]:
    """Return this process's groups, its own first, up to the highest one visible.

    controller: the tree that holds it, v1 or v2; None: the v2 tree, with any controllers.

    Which version holds a controller, and where it is mounted, is read from /proc/self: hosts
    exist with both versions mounted. In a container the path in /proc/self/cgroup may be the
    host's; then the mount point is the container's own group.
    """
    membership = _membership(read_text(proc_root / "self/cgroup"), controller)
    if membership is None:
        return ()
    version, path = membership
    v1_controller = controller if version == 1 else None
    mounts = _mounts(read_text(proc_root / "self/mountinfo"), v1_controller, cgroup_root)
    for root, point in mounts:
        if ".." in path.parts or not path.is_relative_to(root):
            continue
        below = path.relative_to(root)
        if (point / below).is_dir():
            steps = [below, *below.parents]
            return tuple(ControlGroup(version, str(root / step), point / step) for step in steps)
    return tuple(ControlGroup(version, str(root), point) for root, point in mounts[:1])


def path_limits(groups: Sequence[ControlGroup], host_bytes: int | None) -> tuple[Limit, ...]:
    """Return every memory limit on the path, the outermost first.

    host_bytes: the machine's memory. A limit above it never bites, and v1 writes "unlimited" as
        such a number: those are left out.
    """
    limits = [
        Limit(limit_bytes, group, str(group))
        for group in reversed(groups)
        if (limit_bytes := _read_number(group.folder / _FILES[group.version].limit)) is not None
    ]
    if groups and groups[0].version == 1:  # v1 also tells of limits above what a container sees
        counters = read_counters(groups[0].folder / "memory.stat")
        visible_bytes = min((limit.limit_bytes for limit in limits), default=math.inf)
        smallest_bytes = counters.get("hierarchical_memory_limit")
        if smallest_bytes is not None and smallest_bytes < visible_bytes:
            top = groups[-1]
            limits.insert(0, Limit(smallest_bytes, top, f"{top}, from above it"))
    ceiling_bytes = 1 << 60 if host_bytes is None else host_bytes
    return tuple(limit for limit in limits if limit.limit_bytes <= ceiling_bytes)


def unreadable_limit(group: ControlGroup) -> str | None:
    """Return the name of the group's limit file if it holds neither a number nor "max"."""
    path = group.folder / _FILES[group.version].limit
    is_fine = not path.exists() or re.fullmatch(r"\d+|max", read_text(path))
    return None if is_fine else path.name


def measure_group(group: ControlGroup) -> Numbers | None:
    """Measure a group, or return None where the kernel does not account for its memory."""
    files = _FILES[group.version]
    counters = read_counters(group.folder / "memory.stat")
    usage_bytes = _read_number(group.folder / files.usage)
    if usage_bytes is None or files.used[0] not in counters:
        return None
    used_bytes = sum(counters.get(name, 0) for name in files.used) + _kernel_bytes(group, counters)
    return Numbers(
        used_bytes,
        used_bytes + counters.get(files.mapped, 0),
        max(0, usage_bytes - counters.get(files.inactive, 0)),
    )


def count_events(groups: Sequence[ControlGroup]) -> Counts:
    """Read the innermost group's counts that there are; v1 counts a kill where its victim was."""
    for group in groups:
        files = _FILES[group.version]
        if counters := read_counters(group.folder / "memory.stat"):
            kills = read_counters(group.folder / files.events)
            return Counts(counters.get(files.refaults, 0), kills.get("oom_kill", 0))
    return Counts(0, 0)


def read_pressure_ratio(path: Path) -> float | None:
    """Read a file of pressure stall information: the share of the last 10 s, "some avg10"."""
    found = re.match(r"some avg10=(\d+(?:\.\d+)?) ", read_text(path))
    return float(found[1]) / 100 if found else None


def _kernel_bytes(group: ControlGroup, counters: Mapping[str, int]) -> int:
    """Return the kernel's memory for the group, on v2 without what it can take back."""
    if group.version == 1:  # the file is gone where the host does not account for it
        return _read_number(group.folder / "memory.kmem.usage_in_bytes") or 0
    if "kernel" in counters:
        return max(0, counters["kernel"] - counters.get("slab_reclaimable", 0))
    parts = ("kernel_stack", "pagetables", "percpu", "slab_unreclaimable")  # before Linux 5.18
    return sum(counters.get(name, 0) for name in parts)


def read_counters(path: Path) -> dict[str, int]:
    """Read a control-group file of `name number` lines; other lines are left out."""
    pairs = (line.split() for line in read_text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def read_text(path: Path) -> str:
    """Read a small file of the kernel's; empty where it is missing or refused."""
    try:
        # Admission waits for some of these: a buffer and a text layer would cost as much again.
        with path.open("rb", buffering=0) as file:
            return file.read().decode("utf-8", errors="replace").strip()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    """Read a file that holds a whole number; None where it is missing or holds another thing."""
    text = read_text(path)
    return int(text) if text.isdecimal() else None


def _membership(text: str, controller: str | None) -> tuple[Version, PurePosixPath] | None:
    """Find the controller's line in /proc/self/cgroup: `id:controllers:path`."""
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, controllers, path in lines:
        if controller is not None and controller in controllers.split(","):
            return 1, PurePosixPath(path)
    for hierarchy, controllers, path in lines:
        if hierarchy == "0" and not controllers:
            return 2, PurePosixPath(path)
    return None


def _mounts(
    mountinfo: str, v1_controller: str | None, cgroup_root: Path
) -> list[tuple[PurePosixPath, Path]]:
    """Find the mounts of a v1 controller or of v2, else their usual place.

    v1_controller: None for v2.
    Returns (group shown, mount point).
    """
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = (part.split() for part in line.partition(" - "))
        if len(left) < 5 or len(right) < 3:
            continue
        is_v1 = right[0] == "cgroup" and v1_controller in right[2].split(",")
        if is_v1 if v1_controller else right[0] == "cgroup2":
            point = Path(_unescape(left[4]))
            if point.is_relative_to(USUAL_CGROUP_ROOT):
                point = cgroup_root / point.relative_to(USUAL_CGROUP_ROOT)
            mounts.append((PurePosixPath(_unescape(left[3])), point))
    usual = cgroup_root / v1_controller if v1_controller else cgroup_root
    return mounts or [(PurePosixPath("/"), usual)]


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blanks."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)

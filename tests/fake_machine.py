"""A machine's /proc and /sys/fs/cgroup as folders of small files, for what measures them."""

from pathlib import Path

from plimsoll.machine.memory import MIB, MemoryMonitor

UNLIMITED_V1 = "9223372036854771712"
STATUS = "Name:\tpython\nVmRSS:\t  30720 kB\nRssAnon:\t  10240 kB\nRssShmem:\t   2048 kB\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "41 31 0:38 {root} /sys/fs/cgroup{below} rw,relatime - cgroup2 cgroup2 rw\n"

STAT_V1 = """cache 999
rss 1
total_rss 104857600
total_shmem 4194304
total_dirty 2097152
total_writeback 1048576
total_mapped_file 8388608
total_inactive_file 3145728
hierarchical_memory_limit 9223372036854771712
"""
STAT_V2 = """anon 104857600
file 99999999
shmem 4194304
file_mapped 8388608
file_dirty 2097152
file_writeback 1048576
kernel 6291456
slab_reclaimable 5242880
sock 524288
inactive_file 3145728
"""


class Machine:
    """A fake /proc and /sys/fs/cgroup; `host_mib` of memory."""

    def __init__(self, folder: Path, host_mib: int = 4096) -> None:
        self.proc = folder / "proc"
        self.cgroup = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroup.mkdir()
        self.write_proc("meminfo", f"MemTotal:  {host_mib * 1024} kB\nHugePages_Total:   0\n")
        self.write_proc("self/status", STATUS)

    def write_proc(self, name: str, text: str) -> None:
        path = self.proc / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def stand_in(self, cgroup: str, mountinfo: str) -> None:
        self.write_proc("self/cgroup", cgroup)
        self.write_proc("self/mountinfo", mountinfo)

    def write_group(self, folder: str, **files: str | int) -> None:
        """Write `memory.` files of a group."""
        for name, text in files.items():
            self.write_file(f"{folder}/memory.{name}", text)

    def write_file(self, name: str, text: str | int) -> None:
        """Write any file of a group; its name is its path below /sys/fs/cgroup."""
        path = self.cgroup / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")

    def monitor(self, configured_bytes: int | None = None) -> MemoryMonitor:
        return MemoryMonitor(configured_bytes, proc_root=self.proc, cgroup_root=self.cgroup)


def v1_machine(folder: Path) -> Machine:
    """A v1 host whose memory groups /a and /a/b have no limit yet."""
    machine = Machine(folder)
    machine.stand_in("9:name=systemd:/\n4:cpu,memory:/a/b\n", V1_MOUNT.format(root="/"))
    for group in ("memory", "memory/a", "memory/a/b"):
        machine.write_group(
            group,
            limit_in_bytes=UNLIMITED_V1,
            usage_in_bytes=200 * MIB,
            stat=STAT_V1,
        )
        machine.write_file(f"{group}/memory.kmem.usage_in_bytes", 6 * MIB)
    return machine


def v2_machine(folder: Path) -> Machine:
    """A v2 host whose groups /a and /a/b have no limit yet; a root has neither limit nor usage."""
    machine = Machine(folder)
    machine.stand_in("0::/a/b\n", V2_MOUNT.format(root="/", below=""))
    machine.write_group("", stat=STAT_V2)
    for group in ("a", "a/b"):
        machine.write_group(group, max="max", current=200 * MIB, stat=STAT_V2)
    return machine

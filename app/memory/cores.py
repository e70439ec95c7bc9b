"""How many cores the process may really use: affinity and the control group's CPU quota."""

import math
import os
from pathlib import Path


def available_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that threads of this process can keep busy, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = quota_cores(cgroup_root)
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def quota_cores(cgroup_root: Path) -> float | None:
    """Cores' worth of time that the group may use, v2 or v1; None without a quota."""
    try:
        quota, period = (cgroup_root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup_root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup_root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        return int(quota) / int(period) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # "max"

"""Make the C allocator give memory back.

glibc raises its own threshold each time a large block is freed, until activations of tens
of megabytes live in heaps that never shrink: after a few hundred mixed texts the process
holds ten times what it uses. Fixed thresholds and two arenas stop that. Elsewhere (musl,
macOS) there is nothing to set, and both functions do nothing.
"""

import ctypes
import sys
from functools import cache

# mallopt's parameters, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# Larger blocks are mapped, and unmapped when freed; smaller ones are reused in place.
MMAP_THRESHOLD_BYTES = 256 << 10
# Free memory that a heap may keep at its top.
TRIM_THRESHOLD_BYTES = 1 << 20
ARENAS = 2


def tune() -> bool:
    """Fix the thresholds, for all later allocations; returns whether the allocator took them."""
    libc = _glibc()
    if libc is None:
        return False
    return all(
        libc.mallopt(parameter, value) == 1
        for parameter, value in (
            (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
            (_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
            (_M_ARENA_MAX, ARENAS),
        )
    )


def release() -> None:
    """Give every free page back to the kernel; takes milliseconds."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None

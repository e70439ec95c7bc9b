"""Give back pages of a file that some library of this process has mapped.

The kernel's list of mappings says where: proc_pid_maps(5). Where there is none (macOS), nothing
is given back. Only for mappings that are never written to: written pages would be lost.
"""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

MAPS = Path("/proc/self/maps")
# Addresses that were read from the list are others' once a mapping has gone: memory that no file
# backs would be given back there, and be zeros.
_dropping = Lock()


@contextmanager
def unmapping() -> Iterator[None]:
    """Unmap files whose pages other threads may drop, for the length of a `with` block."""
    with _dropping:
        yield


def drop_pages(file: Path, start: int, stop: int, maps: Path = MAPS) -> None:
    """Drop the pages that lie wholly in these bytes of a file from every mapping of it.

    file: its path without symbolic links. By path, for on some file systems (overlayfs, btrfs)
        the list shows another device than stat does.
    They are read again when next used. Mappings of the file go only within `unmapping`.
    """
    with _dropping:
        for address, offset, n_bytes in _mappings(file, maps):
            first = max(start + -start % mmap.PAGESIZE, offset)
            length = min(stop, offset + n_bytes) - first
            length -= length % mmap.PAGESIZE
            if length > 0:
                place = ctypes.c_void_p(address + first - offset)
                _libc().madvise(place, ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _mappings(file: Path, maps: Path) -> Iterator[tuple[int, int, int]]:
    """Address, offset in the file and size of each mapping of a file."""
    names = (f" {file}\n", f" {file} (deleted)\n")
    try:
        lines = maps.read_text(errors="surrogateescape").splitlines(keepends=True)
    except OSError:
        return
    for line in lines:
        if line.endswith(names):
            addresses, _, offset, *_ = line.split(maxsplit=3)
            low, high = (int(part, 16) for part in addresses.split("-"))
            yield low, int(offset, 16), high - low


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)

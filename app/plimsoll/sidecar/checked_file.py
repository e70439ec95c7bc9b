"""A file of places with checksums, mapped read-only: verified, read ahead, given back.

Knows neither tensors nor graphs: a place is a name and some bytes. Places are read through the
file and not through the map to be verified, where a disk's error would kill the process.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BufferedReader
from pathlib import Path

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError, GGUFError, GGUFTruncatedError
from plimsoll.gguf.sources import FileSource
from plimsoll.sidecar.index import (
    CHUNK_BYTES,
    Place,
    checksum,
    chunk_bounds,
    chunk_checksum,
    n_chunks,
)

# The kernel reads at most a device's window ahead per call, so long ranges are split.
_PREFETCH_BYTES = 1 << 20


class CheckedFile:
    """Owns an open file, its mapping, and the record of which chunks have been verified.

    Two threads that verify the same place at once both read it.
    """

    def __init__(
        self,
        file: BufferedReader,
        places: Mapping[str, Place],
        put_aside: Callable[[], None],
        *,
        is_cheap: bool = True,
    ) -> None:
        """Map a file that has been opened by its path, and that this object closes.

        put_aside: makes the next load build the file again. is_cheap: that takes a moment, so what
        the disk cannot read counts as damaged. Raises OSError.
        """
        self.path = Path(file.name)
        self.fd = file.fileno()
        self._places = places
        self._put_aside = put_aside
        self._is_cheap = is_cheap
        with ExitStack() as opened:
            opened.enter_context(file)
            self._file = opened.enter_context(FileSource(self.fd))
            self.map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
            self._opened = opened.pop_all()
        self._found = self._stamp()
        self._verified = {name: bytearray(n_chunks(p.n_bytes)) for name, p in places.items()}

    def verify(self, name: str, start_byte: int = 0, stop_byte: int | None = None) -> None:
        """Compare the chunks that hold these bytes of a place with their checksums, once.

        Raises CacheCorruptError; the caller closes this file and loads the model anew. CacheError
        for what cannot be read now and is dear to make again.
        """
        place = self._places[name]
        done = self._verified[name]
        stop = place.n_bytes if stop_byte is None else stop_byte
        chunks = range(start_byte // CHUNK_BYTES, n_chunks(stop))
        buffer = bytearray(0 if all(done[chunks.start : chunks.stop]) else CHUNK_BYTES)
        for chunk in chunks:
            if not done[chunk]:
                if not self._is_whole(place, chunk, buffer):
                    start, end = chunk_bounds(place, chunk)
                    self._put_aside()
                    raise CacheCorruptError(
                        f"{self.path} is damaged in {name}, bytes {start} to {end}; it is "
                        "built again when the model is loaded next"
                    )
                done[chunk] = 1

    def check_unchanged(self) -> None:
        """See that the file is as it was when it was mapped, by its size and time: cheap.

        A read behind the end of a file that has been cut kills the process, and what is written
        into it shows through the map. Raises CacheCorruptError and puts the file aside.
        """
        found = self._stamp()
        if found == self._found:
            return
        self._put_aside()
        was, now = self._found[0], found[0]
        change = "written to" if now == was else f"changed from {was} to {now} bytes"
        raise CacheCorruptError(
            f"{self.path} was {change} while it was served; it is built again when the model is "
            "loaded next"
        )

    def check_at_path(self) -> None:
        """See that its path still leads to this file, for what opens it there: cheap.

        The map goes on without it. Raises CacheCorruptError and puts the file aside.
        """
        if not files.is_at(self.fd, self.path):
            self._put_aside()
            raise CacheCorruptError(
                f"{self.path} was removed or replaced while it was served; it is built again when "
                "the model is loaded next"
            )

    def damaged_chunks(self, name: str) -> list[tuple[int, int]]:
        """Read a whole place; bytes of the file, from and to, that are not as written."""
        place = self._places[name]
        chunks = range(n_chunks(place.n_bytes))
        buffer = bytearray(CHUNK_BYTES)
        damaged = [chunk for chunk in chunks if not self._is_whole(place, chunk, buffer)]
        return [chunk_bounds(place, chunk) for chunk in damaged]

    def advise(self, names: Sequence[str], advice: int) -> None:
        """madvise the pages of our map that hold these places.

        Only whole pages inside a run of places: a page at its edge that holds a part of another
        place is left out.
        """
        for start, end in self.runs(names):
            first = start + -start % mmap.PAGESIZE
            step = _PREFETCH_BYTES if advice == mmap.MADV_WILLNEED else max(end - first, 1)
            for position in range(first, end - mmap.PAGESIZE + 1, step):
                length = min(step, end - position) // mmap.PAGESIZE * mmap.PAGESIZE
                self.map.madvise(advice, position, length)

    def evict(self, names: Sequence[str]) -> None:
        """Take these places' pages out of the file cache, where no process has them mapped.

        Left there, in a group with a limit, they push out what was used before them.
        """
        if hasattr(os, "posix_fadvise"):
            for start, end in self.runs(names):
                os.posix_fadvise(self.fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def runs(self, names: Sequence[str]) -> Iterator[tuple[int, int]]:
        """First and last byte of these places, those side by side as one."""
        places = sorted((self._places[name] for name in names), key=lambda p: p.offset)
        if not places:
            return
        start, end = places[0].offset, places[0].offset
        for place in places:
            if place.offset - end >= mmap.PAGESIZE:
                yield start, end
                start = place.offset
            end = place.offset + place.n_bytes
        yield start, end

    def close(self) -> None:
        """Unmap. Raises BufferError when arrays over the map are still alive."""
        self.map.close()
        self._opened.close()
        # A method of the owner: both would keep each other, and all that the owner has read.
        self._put_aside = _nothing

    def _stamp(self) -> tuple[int, int]:
        """Bytes, and time of the last write."""
        found = os.fstat(self.fd)
        return found.st_size, found.st_mtime_ns

    def _is_whole(self, place: Place, chunk: int, buffer: bytearray) -> bool:
        """Read a chunk into a buffer, which is used again: to map a new one costs more."""
        start, end = chunk_bounds(place, chunk)
        data = memoryview(buffer)[: end - start]
        try:
            self._file.readinto_at(start, data)
        except GGUFTruncatedError:
            return False
        except GGUFError as error:  # the disk failed
            if self._is_cheap:
                return False
            raise CacheError(f"{self.path} cannot be read now: {error}") from error
        return checksum(data) == chunk_checksum(place, chunk)


def _nothing() -> None:
    """What is closed is put aside no more."""

"""The sidecar: a model's float32 weights in a folder that Plimsoll owns.

A folder `<cache>/sidecars/<key>/` with three files:

    index.json     source, places and checksums of the tensors; see sidecar_index.py
    header.gguf    the source's own header (metadata, vocabulary), so that the folder is
                   complete even when the source is gone
    weights.f32    tensors in layer order, or a clone of the source where that is float32;
                   absent when the weights are mapped where the source lies

The folder appears under its name in one rename and is not changed afterwards, but for one
thing: when damage is found its index is removed, and so the next load makes it anew. Whoever
has a sidecar open holds a shared lock on its index.
"""

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from app.errors import CacheCorruptError, CacheError, GGUFError
from app.gguf import storage
from app.gguf.reader import GGUFHeader, read_header
from app.gguf.sidecar_index import (
    CHUNK_BYTES,
    SidecarIndex,
    TensorPlace,
    WeightsPlace,
    checksum,
    n_chunks,
    parse_index,
)
from app.gguf.sources import FileSource

INDEX_NAME = "index.json"
HEADER_NAME = "header.gguf"
WEIGHTS_NAME = "weights.f32"

# The kernel reads at most a device's window ahead per call, so long ranges are split.
_PREFETCH_BYTES = 1 << 20
_DAMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO})


class Sidecar:
    """An open sidecar: its header, and its weights mapped read-only.

    Owns the mapping, the lock that keeps it from being evicted, and the record of which chunks
    have been verified in this process. Arrays handed out by `array` must be dropped before
    `close`. `verify` is for one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        """Open and map.

        Raises CacheCorruptError when a file is missing, damaged or of a wrong size, or when the
        format is old; CacheError when the format is newer or the system refuses to open it.
        """
        self.folder = folder
        with ExitStack() as opened, _open_failures(folder):
            self._mark = opened.enter_context((folder / INDEX_NAME).open("rb"))
            if not storage.share(self._mark.fileno(), folder / INDEX_NAME):
                raise CacheCorruptError(f"sidecar {folder} was removed while it was being opened")
            self.index: SidecarIndex = parse_index(self._mark.read(), str(folder))
            self.header: GGUFHeader = _read_header(folder, self.index.header_checksum)
            self._weights = opened.enter_context(self.weights_path.open("rb"))
            self._check_weights(os.fstat(self._weights.fileno()))
            self._file = opened.enter_context(FileSource(self._weights.fileno()))
            self._map = mmap.mmap(self._weights.fileno(), 0, prot=mmap.PROT_READ)
            self._opened = opened.pop_all()
        self._verified = {
            name: bytearray(place.n_chunks) for name, place in self.index.tensors.items()
        }

    @property
    def weights_path(self) -> Path:
        """The mapped file."""
        if self.index.weights is WeightsPlace.COPY:
            return self.folder / WEIGHTS_NAME
        return Path(self.index.source.path)

    def array(self, name: str) -> np.ndarray:
        """The tensor as a read-only float32 view of the map, not verified."""
        place = self.index.tensors[name]
        flat = np.frombuffer(self._map, np.float32, place.n_bytes // 4, place.offset)
        return flat.reshape(place.shape)

    def verify(self, name: str, start_byte: int = 0, stop_byte: int | None = None) -> None:
        """Compare the chunks that hold these bytes of a tensor with their checksums, once.

        Raises CacheCorruptError; the caller closes this sidecar and loads the model anew, from
        fetching its file on.
        """
        place = self.index.tensors[name]
        done = self._verified[name]
        stop = place.n_bytes if stop_byte is None else stop_byte
        for chunk in range(start_byte // CHUNK_BYTES, n_chunks(stop)):
            if not done[chunk]:
                if not self._is_whole(place, chunk):
                    start, end = place.chunk_bounds(chunk)
                    self.put_aside()
                    raise CacheCorruptError(
                        f"{self.weights_path} is damaged in {name}, bytes {start} to {end}; it is "
                        "built again when the model is loaded next"
                    )
                done[chunk] = 1

    def damaged_chunks(self, name: str) -> list[tuple[int, int]]:
        """Read a whole tensor; bytes of the weights file, from and to, that are not as written."""
        place = self.index.tensors[name]
        chunks = range(place.n_chunks)
        return [place.chunk_bounds(chunk) for chunk in chunks if not self._is_whole(place, chunk)]

    def put_aside(self) -> None:
        """Make the next load, in whatever process, build these weights again.

        A built source is damaged itself, so it goes too. What another process has already
        replaced is left alone.
        Raises CacheCorruptError when the cache cannot be written to.
        """
        damaged = [(self._mark.fileno(), self.folder / INDEX_NAME)]
        if self.index.weights is WeightsPlace.BUILT:
            damaged.append((self._weights.fileno(), self.weights_path))
        try:
            for fd, path in damaged:
                if storage.is_at(fd, path):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheCorruptError(
                f"{self.weights_path} is damaged and cannot be put aside ({error.strerror}): "
                f"remove {self.folder}"
            ) from error

    def advise(self, names: Sequence[str], advice: int) -> None:
        """madvise the pages that hold these tensors.

        Only whole pages inside a tensor are dropped; a page shared with a stranger stays.
        """
        for start, end in self._runs(names):
            first = start + -start % mmap.PAGESIZE
            step = _PREFETCH_BYTES if advice == mmap.MADV_WILLNEED else max(end - first, 1)
            for position in range(first, end - mmap.PAGESIZE + 1, step):
                length = min(step, end - position) // mmap.PAGESIZE * mmap.PAGESIZE
                self._map.madvise(advice, position, length)

    def evict(self, names: Sequence[str]) -> None:
        """Take these tensors' pages out of the file cache, where nobody has them mapped.

        Left there, in a group with a limit, they push out what was used before them.
        """
        if hasattr(os, "posix_fadvise"):
            for start, end in self._runs(names):
                fd = self._weights.fileno()
                os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Unmap. Raises BufferError when arrays over the map are still alive."""
        self._map.close()
        self._opened.close()

    def _runs(self, names: Sequence[str]) -> Iterator[tuple[int, int]]:
        """First and last byte of these tensors, those side by side as one."""
        places = sorted((self.index.tensors[name] for name in names), key=lambda p: p.offset)
        start, end = places[0].offset, places[0].offset
        for place in places:
            if place.offset - end >= mmap.PAGESIZE:
                yield start, end
                start = place.offset
            end = place.offset + place.n_bytes
        yield start, end

    def _check_weights(self, found: os.stat_result) -> None:
        if found.st_size != self.index.weights_bytes:
            raise CacheCorruptError(
                f"{self.weights_path} has {found.st_size} bytes, not {self.index.weights_bytes}"
            )
        source = self.index.source
        if self.index.weights is not WeightsPlace.COPY and (
            (found.st_mtime_ns, found.st_ino) != (source.mtime_ns, source.inode)
        ):
            raise CacheCorruptError(f"{self.weights_path} has changed since it was checked")

    def _is_whole(self, place: TensorPlace, chunk: int) -> bool:
        """Read a chunk and compare; not through the map, where a disk's error would kill us."""
        start, end = place.chunk_bounds(chunk)
        data = bytearray(end - start)
        try:
            self._file.readinto_at(start, memoryview(data))
        except GGUFError:  # the disk failed, or the file has become shorter
            return False
        return checksum(data) == place.checksum(chunk)


def _read_header(folder: Path, expected_checksum: str) -> GGUFHeader:
    with FileSource(folder / HEADER_NAME) as source:
        if checksum(source.read_at(0, source.size or 0)).hex() != expected_checksum:
            raise CacheCorruptError(f"{folder / HEADER_NAME} is damaged")
        source.size = None  # the data that the header speaks of lies elsewhere
        return read_header(source)


@contextmanager
def _open_failures(folder: Path) -> Iterator[None]:
    """Tell a sidecar that is damaged, and will be built again, from a system that refuses."""
    try:
        yield
    except GGUFError as error:
        raise CacheCorruptError(f"sidecar {folder} is damaged: {error}") from error
    except OSError as error:
        if error.errno in _DAMAGE:
            raise CacheCorruptError(f"sidecar {folder} is incomplete: {error}") from error
        raise CacheError(f"sidecar {folder} cannot be opened: {error}") from error

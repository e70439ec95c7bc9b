"""The sidecar: a model's float32 weights in a folder that Plimsoll owns.

A folder `<cache>/sidecars/<key>/` with

    index.json     source, places and checksums of the tensors; see index.py
    header.gguf    the source's own header (metadata, vocabulary), so that the folder is
                   complete even when the source is gone
    weights.f32    tensors in layer order, or a clone of the source where that is float32;
                   absent when the weights are mapped where the source lies

The folder appears under its name in one rename, and these files are not changed afterwards, but for
one thing: when damage is found the index is removed, and so the next load makes all anew. What is
made of the weights later lies beside them: packed weights (packed.py), and codes with their figures
(encoder/quantization/codes_file.py, models/). An open sidecar holds a shared lock on its index.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError, GGUFError
from plimsoll.gguf.reader import GGUFHeader, read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.sidecar.checked_file import CheckedFile
from plimsoll.sidecar.index import SidecarIndex, WeightsPlace, checksum, parse_index

INDEX_NAME = "index.json"
HEADER_NAME = "header.gguf"
WEIGHTS_NAME = "weights.f32"

_DAMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO})


class Sidecar:
    """An open sidecar: its header, and its weights mapped read-only.

    Owns the mapping, the lock that keeps it from being evicted, and the record of which chunks
    have been verified in this process. Arrays handed out by `array` must be dropped before
    `close`.
    """

    def __init__(self, folder: Path) -> None:
        """Open and map.

        Raises CacheCorruptError when a file is missing, damaged or of a wrong size, or when the
        format is old; CacheError when the format is newer or the system refuses to open it.
        """
        self.folder = folder
        with ExitStack() as opened, open_failures(folder):
            self._mark = opened.enter_context((folder / INDEX_NAME).open("rb"))
            if not files.share(self._mark.fileno(), folder / INDEX_NAME):
                raise CacheCorruptError(f"sidecar {folder} was removed while it was being opened")
            self.index: SidecarIndex = parse_index(self._mark.read(), str(folder))
            self.header: GGUFHeader = _read_header(folder, self.index.header_checksum)
            weights = opened.enter_context(self.weights_path.open("rb"))
            self._check_weights(os.fstat(weights.fileno()))
            self._weights = CheckedFile(weights, self.index.tensors, self.put_aside)
            self._opened = opened.pop_all()

    @property
    def weights_path(self) -> Path:
        """The mapped file."""
        if self.index.weights is WeightsPlace.COPY:
            return self.folder / WEIGHTS_NAME
        return Path(self.index.source.path)

    def array(self, name: str) -> np.ndarray:
        """The tensor as a read-only float32 view of the map, not verified."""
        place = self.index.tensors[name]
        flat = np.frombuffer(self._weights.map, np.float32, place.n_bytes // 4, place.offset)
        return flat.reshape(place.shape)

    def offset_of(self, array: np.ndarray) -> int:
        """Where in the weights file a view of the map begins."""
        return int(array.ctypes.data - np.frombuffer(self._weights.map, np.uint8, 1).ctypes.data)

    def verify(self, name: str, start_byte: int = 0, stop_byte: int | None = None) -> None:
        """Compare the chunks that hold these bytes of a tensor with their checksums, once.

        Raises CacheCorruptError; the caller closes this sidecar and loads the model anew, from
        fetching its file on.
        """
        self._weights.verify(name, start_byte, stop_byte)

    def check_unchanged(self) -> None:
        """Raises CacheCorruptError where the weights are written to or cut; see `CheckedFile`."""
        self._weights.check_unchanged()

    def check_at_path(self) -> None:
        """Raises CacheCorruptError where the weights are not at their path; see `CheckedFile`."""
        self._weights.check_at_path()

    def damaged_chunks(self, name: str) -> list[tuple[int, int]]:
        """Read a whole tensor; bytes of the weights file, from and to, that are not as written."""
        return self._weights.damaged_chunks(name)

    def put_aside(self) -> None:
        """Make the next load, in any process, build these weights again.

        A built source is damaged itself, so it goes too. What another process has already
        replaced is left alone.
        Raises CacheCorruptError when the cache cannot be written to.
        """
        damaged = [(self._mark.fileno(), self.folder / INDEX_NAME)]
        if self.index.weights is WeightsPlace.BUILT:
            damaged.append((self._weights.fd, self.weights_path))
        try:
            for fd, path in damaged:
                if files.is_at(fd, path):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheCorruptError(
                f"{self.weights_path} is damaged and cannot be put aside ({error.strerror}): "
                f"remove {self.folder}"
            ) from error

    def advise(self, names: Sequence[str], advice: int) -> None:
        """madvise the pages that hold these tensors; pages of another tensor are left out."""
        self._weights.advise(names, advice)

    def evict(self, names: Sequence[str]) -> None:
        """Take these tensors' pages out of the file cache, where no process has them mapped."""
        self._weights.evict(names)

    def close(self) -> None:
        """Unmap. Raises BufferError when arrays over the map are still alive."""
        self._weights.close()
        self._opened.close()

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


def _read_header(folder: Path, expected_checksum: str) -> GGUFHeader:
    with FileSource(folder / HEADER_NAME) as source:
        if checksum(source.read_at(0, source.size or 0)).hex() != expected_checksum:
            raise CacheCorruptError(f"{folder / HEADER_NAME} is damaged")
        source.size = None  # the data that the header speaks of lies elsewhere
        return read_header(source)


@contextmanager
def open_failures(folder: Path) -> Iterator[None]:
    """Tell a sidecar that is damaged, and will be built again, from a system that refuses."""
    try:
        yield
    except GGUFError as error:
        raise CacheCorruptError(f"sidecar {folder} is damaged: {error}") from error
    except OSError as error:
        if error.errno in _DAMAGE:
            raise CacheCorruptError(f"sidecar {folder} is incomplete: {error}") from error
        raise CacheError(f"sidecar {folder} cannot be opened: {error}") from error

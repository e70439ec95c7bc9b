"""Packed weights: a model's matrices in the order in which a backend's kernels read them.

A derivative of a sidecar for one kind of machine, in a folder of its own inside the sidecar's,
`packed-<compute>-<key>`, with two files:

    index.json     which blobs there are, of which graph, by which name the backend finds them
    packed.bin     the blobs, layer by layer, each from a page of its own on

The folder appears under its name in one rename. It can always be made again from the sidecar: when
it is damaged its index is removed, and the next load makes it anew. What a blob means is the
backend's matter; here are bytes.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plimsoll import files
from plimsoll.errors import CacheError
from plimsoll.sidecar.index import CHUNK_BYTES, LAYER_ALIGNMENT, checksum, sealed
from plimsoll.sidecar.indexed_file import IndexedFile
from plimsoll.sidecar.sidecar import INDEX_NAME
from plimsoll.sidecar.sinks import FileSink

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER_PREFIX = "packed-"
PACKED_NAME = "packed.bin"
# Before the first blob: something to point at that is of no weight.
HEAD_BYTES = LAYER_ALIGNMENT


@dataclass(frozen=True)
class Blob:
    """Where a blob lies. graph: which of the model's graphs it belongs to; key: the backend's."""

    graph: str
    key: str
    offset: int
    n_bytes: int
    checksums: bytes

    @property
    def name(self) -> str:
        """One of a kind in the file."""
        return f"{self.graph}/{self.offset}"


@dataclass(frozen=True)
class PackedIndex:
    """What packed.bin holds. made_by: versions and machine, in words."""

    made_by: str
    n_bytes: int
    blobs: tuple[Blob, ...]

    @property
    def places(self) -> tuple[Blob, ...]:
        """The blobs, as what has checksums."""
        return self.blobs

    def to_json(self) -> str:
        """Serialize; checksums as hexadecimal."""
        blobs = [asdict(blob) | {"checksums": blob.checksums.hex()} for blob in self.blobs]
        return sealed(asdict(self) | {"blobs": blobs}, FORMAT_VERSION)


def _index(fields: dict[str, Any]) -> PackedIndex:
    blobs = (
        Blob(**(entry | {"checksums": bytes.fromhex(entry["checksums"])}))
        for entry in fields["blobs"]
    )
    return PackedIndex(**(fields | {"blobs": tuple(blobs)}))


def open_file(folder: Path) -> IndexedFile[PackedIndex]:
    """The file of a folder, as bytes. Raises CacheError as `IndexedFile` does."""
    return IndexedFile(folder / INDEX_NAME, folder / PACKED_NAME, FORMAT_VERSION, _index)


class PackedFile:
    """An open packed file. The backend maps it once more, as it likes."""

    def __init__(self, folder: Path) -> None:
        """Open. Raises CacheError as `IndexedFile` does."""
        self.folder = folder
        self._file = open_file(folder)
        self.index = self._file.contents
        self._data = self._file.data
        self._by_graph: dict[str, list[Blob]] = {}
        for blob in self.index.blobs:
            self._by_graph.setdefault(blob.graph, []).append(blob)

    @property
    def path(self) -> Path:
        """The file of blobs."""
        return self._data.path

    def blobs(self, graph: str) -> Sequence[Blob]:
        """Those of one graph, in the order they were written in."""
        return self._by_graph.get(graph, ())

    def verify(self, graphs: Sequence[str]) -> None:
        """Compare these graphs' blobs with their checksums, once. Raises CacheCorruptError."""
        for name in self._names(graphs):
            self._data.verify(name)

    def check_unchanged(self) -> None:
        """Raises CacheCorruptError where the file is written to or cut; see `CheckedFile`."""
        self._data.check_unchanged()

    def check_at_path(self) -> None:
        """Raises CacheCorruptError where the file is not at its path; see `CheckedFile`."""
        self._data.check_at_path()

    def advise(self, graphs: Sequence[str], advice: int) -> None:
        """madvise our own map of these graphs' blobs; the backend's map shares the file cache."""
        self._data.advise(self._names(graphs), advice)

    def evict(self, graphs: Sequence[str]) -> None:
        """Take these graphs' pages out of the file cache, where no process has them mapped."""
        self._data.evict(self._names(graphs))

    def runs(self, graphs: Sequence[str]) -> Iterator[tuple[int, int]]:
        """First and last byte of these graphs' blobs, those side by side as one."""
        return self._data.runs(self._names(graphs))

    def close(self) -> None:
        """Unmap and unlock."""
        self._file.close()

    def _names(self, graphs: Sequence[str]) -> list[str]:
        return [blob.name for graph in graphs for blob in self.blobs(graph)]


class PackedWriter:
    """Writes a packed file into a temporary folder; owned by the function that makes one."""

    def __init__(self, folder: Path) -> None:
        path = folder / PACKED_NAME
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._folder = folder
        self._sink = FileSink(self._fd)
        self._blobs: list[Blob] = []
        self._sink.write_at(0, memoryview(bytes(HEAD_BYTES)))
        self._end = HEAD_BYTES

    def add(self, graph: str, key: str, source: int, offset: int, n_bytes: int) -> None:
        """Copy a blob from an open file, piece by piece. Raises CacheError where that ends first.

        A full disk may show only when a file is closed, and a library may not look.
        """
        checksums = bytearray()
        for start in range(0, n_bytes, CHUNK_BYTES):
            n_wanted = min(CHUNK_BYTES, n_bytes - start)
            piece = os.pread(source, n_wanted, offset + start)
            if len(piece) < n_wanted:
                raise CacheError(f"a blob of {graph} ends after {start + len(piece)} bytes")
            self._sink.write_at(self._end + start, memoryview(piece))
            checksums += checksum(piece)
        self._blobs.append(Blob(graph, key, self._end, n_bytes, bytes(checksums)))
        self._end += n_bytes + -n_bytes % LAYER_ALIGNMENT

    def finish(self, made_by: str) -> None:
        """Make the file durable and write its index."""
        os.truncate(self._fd, self._end)
        self._sink.flush()
        os.fsync(self._fd)
        index = PackedIndex(made_by, self._end, tuple(self._blobs))
        files.write_durably(self._folder / INDEX_NAME, index.to_json().encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def packed_folders(sidecar_folder: Path) -> list[Path]:
    """Folders of packed weights in a sidecar's, without those that were put aside."""
    found = sidecar_folder.glob(f"{FOLDER_PREFIX}*")
    return sorted(
        folder
        for folder in found
        if folder.suffix != files.TEMPORARY_SUFFIX and (folder / INDEX_NAME).exists()
    )


def folder_of(sidecar_folder: Path, compute: str, key: str) -> Path:
    """Where the packed weights of a sidecar lie for one kind of machine."""
    return sidecar_folder / f"{FOLDER_PREFIX}{compute}-{key}"


def make(folder: Path, made_by: str, write: Callable[[PackedWriter, Path], None]) -> None:
    """Make a folder of packed weights unless it is there; another process's is waited for.

    write: gives every blob to the writer; the path is a folder for files of its own.
    Raises CacheError, and what `write` raises; nothing half made is left.
    """
    parent = folder.parent
    with files.disk_failures(parent), files.locked(files.lock_of(folder)):
        if (folder / INDEX_NAME).exists():
            return
        temporary = files.temporary_of(folder)
        for path in (folder, temporary):  # put aside; left by a process that was killed
            if path.exists():
                shutil.rmtree(path)
        temporary.mkdir(mode=0o700)
        try:
            with closing(PackedWriter(temporary)) as writer:
                scratch = temporary / "scratch"
                scratch.mkdir()
                write(writer, scratch)
                shutil.rmtree(scratch)
                writer.finish(made_by)
            files.publish(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove(sidecar_folder: Path, compute: str, *, kept: Path | None = None) -> None:
    """Remove what is packed for a compute, but what is kept, and what a process has open or makes.

    What a process that was killed has half made goes too.
    """
    for folder in sorted(sidecar_folder.glob(f"{FOLDER_PREFIX}{compute}-*")):
        if folder != kept and folder.suffix != files.LOCK_SUFFIX:
            _remove(folder)


def _remove(folder: Path) -> None:
    try:
        with files.locked(files.lock_of(folder), wait=False):
            if not files.in_use(folder / INDEX_NAME):
                (folder / INDEX_NAME).unlink(missing_ok=True)
                shutil.rmtree(folder)
    except BlockingIOError:  # it is being made
        return
    except (OSError, CacheError) as error:  # it only takes room
        log.warning("%s cannot be removed: %s", folder, error)

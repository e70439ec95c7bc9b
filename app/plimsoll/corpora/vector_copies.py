"""Exact search over vectors of any number, in bounded memory.

A version's vectors are copied into a file that is mapped, of unit length, so that a scan is one
product a segment. The file has no name: it ends with the process, and there is nothing of an
earlier one to be wrong about. SQLite has the truth: before a segment is used, its number of changes
is compared with the one it was copied at, and where they differ it is copied again. A scan of
SQLite itself takes ten times as long or more, and wants the interpreter's lock at every row.

Everything here blocks and belongs to one thread.
"""

import logging
import mmap
import os
import sqlite3
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from plimsoll.corpora import vectors
from plimsoll.corpora.parts import PartFound, SearchPart
from plimsoll.corpora.ranking import Ranked, best
from plimsoll.corpora.records import Version
from plimsoll.corpora.vectors import STORED, Segment, places_of
from plimsoll.policy.costs import SEGMENT_ROWS

log = logging.getLogger(__name__)

# Files that are kept; each takes a descriptor and its version's size on disk.
MOST_COPIES = 16
# Pages that the disk does not have yet count as used memory: so many are waited for at a time.
SYNC_BYTES = 16 << 20


RowFilter: TypeAlias = Callable[[range], np.ndarray]
"""Which of some rows are to be searched: int64, ascending."""


@dataclass(frozen=True)
class _Copied:
    """A segment as it was copied; rows: uint16 (n,), counted from its first."""

    n_changes: int
    rows: np.ndarray


class VectorCopies:
    """Owns the copies of the versions that were searched last; `folder`: where their files lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies: OrderedDict[int, _VectorCopy] = OrderedDict()

    def search(
        self,
        connection: sqlite3.Connection,
        version: Version,
        query: np.ndarray,
        most: int,
        among: RowFilter | None = None,
    ) -> Ranked:
        """The `most` nearest rows by cosine; `among`: None: all rows.

        query: float32 (dimensions,), of the version's own space.
        """
        (found,) = self.search_parts(connection, [SearchPart(version, query)], most, among)
        return found.near

    def search_parts(
        self,
        connection: sqlite3.Connection,
        parts: Sequence[SearchPart],
        most: int,
        among: RowFilter | None = None,
    ) -> list[PartFound]:
        """Likewise in each of the parts, given in order of their precedence."""
        scans = [_Scan(self._copy(part.version), connection, part) for part in parts]
        self._forget(connection)
        for number in sorted({number for scan in scans for number in scan.segments}):
            taken = np.zeros(SEGMENT_ROWS, bool)
            fitting = None if among is None else among(places_of(number))
            for scan in scans:
                scan.look(number, most, fitting, taken)
        return [PartFound(scan.part.version, scan.near, scan.n_documents) for scan in scans]

    def copy_next(self, connection: sqlite3.Connection, version: Version, after: int) -> int | None:
        """Copy the next segment behind number `after` that searches would have to read from SQLite.

        Returns its number; None where there is none, it cannot be copied, or the version is gone.
        """
        copy = self._copy(version)
        self._forget(connection)
        return copy.copy_next(connection, after) if version.id in self._copies else None

    def close(self) -> None:
        """Give every file back."""
        while self._copies:
            self._copies.popitem()[1].close()

    def _copy(self, version: Version) -> "_VectorCopy":
        copy = self._copies.get(version.id)
        if copy is None:
            copy = self._copies[version.id] = _VectorCopy(self._folder, version)
        self._copies.move_to_end(version.id)
        return copy

    def _forget(self, connection: sqlite3.Connection) -> None:
        """Close copies of versions that are gone, and of those not searched for longest."""
        there = {number for (number,) in connection.execute("SELECT id FROM versions")}
        for number in [number for number in self._copies if number not in there]:
            self._copies.pop(number).close()
        while len(self._copies) > MOST_COPIES:
            self._copies.popitem(last=False)[1].close()


class _Scan:
    """One part's way through its segments."""

    def __init__(
        self, copy: "_VectorCopy", connection: sqlite3.Connection, part: SearchPart
    ) -> None:
        self.part = part
        self.segments = {
            segment.number: segment for segment in vectors.segments(connection, part.version.id)
        }
        self.near = Ranked.none()
        self.n_documents = 0
        self._copy = copy
        self._connection = connection
        self._query = vectors.unit(part.query[np.newaxis])[0]

    def look(self, number: int, most: int, fitting: np.ndarray | None, taken: np.ndarray) -> None:
        """Look for nearer rows in a segment.

        fitting: rows to be looked at, int64, ascending; None: all. taken: bool (SEGMENT_ROWS,),
        places that an earlier part answers for; this part's are added.
        """
        segment = self.segments.get(number)
        if segment is None:
            return
        rows, values = self._copy.up_to_date(self._connection, segment)
        if fitting is not None:
            are_fitting = _positions(rows, fitting)
            rows, values = rows[are_fitting], values[are_fitting]
        near = best(rows, values @ self._query, most)
        self.near = best(
            np.concatenate((self.near.rows, near.rows)),
            np.concatenate((self.near.scores, near.scores)),
            most,
        )
        places = rows - segment.first_row
        self.n_documents += int(np.count_nonzero(~taken[places]))
        taken[places] = True


class _VectorCopy:
    """One version's vectors, by their segments."""

    def __init__(self, folder: Path, version: Version) -> None:
        self._version = version
        self._dimensions = version.space.dimensions
        self._segment_bytes = SEGMENT_ROWS * self._dimensions * STORED.itemsize
        self._file = tempfile.TemporaryFile(dir=folder, prefix="vectors-")  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self._copied: dict[int, _Copied] = {}
        self._n_unsynced = 0

    def copy_next(self, connection: sqlite3.Connection, after: int) -> int | None:
        for segment in vectors.segments(connection, self._version.id, after):
            if not self._is_up_to_date(segment):
                self._read(connection, segment)
                return segment.number if self._is_up_to_date(segment) else None
        return None

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()

    def up_to_date(
        self, connection: sqlite3.Connection, segment: Segment
    ) -> tuple[np.ndarray, np.ndarray]:
        """A segment's rows and unit vectors as SQLite has them in this transaction."""
        if self._is_up_to_date(segment):
            rows = self._copied[segment.number].rows
            return rows + np.int64(segment.first_row), self._mapped(segment, len(rows))
        return self._read(connection, segment)

    def _is_up_to_date(self, segment: Segment) -> bool:
        copied = self._copied.get(segment.number)
        return copied is not None and copied.n_changes == segment.n_changes

    def _read(
        self, connection: sqlite3.Connection, segment: Segment
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same from SQLite; it is copied where the disk has room."""
        rows, values = vectors.of_segment(
            connection, self._version.id, segment.number, self._dimensions
        )
        values = vectors.unit(values)
        self._keep(segment, rows, values)
        return rows, values

    def _keep(self, segment: Segment, rows: np.ndarray, values: np.ndarray) -> None:
        self._copied.pop(segment.number, None)
        try:
            _write(self._file.fileno(), values, segment.number * self._segment_bytes)
            self._n_unsynced += values.nbytes
            if self._n_unsynced >= SYNC_BYTES:
                os.fdatasync(self._file.fileno())
                self._n_unsynced = 0
        except OSError as error:  # a full disk: searches read SQLite itself
            log.warning("vectors of version %d are not copied: %s", self._version.id, error)
            return
        places = (rows - segment.first_row).astype(np.uint16)
        self._copied[segment.number] = _Copied(segment.n_changes, places)

    def _mapped(self, segment: Segment, n_rows: int) -> np.ndarray:
        start = segment.number * self._segment_bytes
        if self._map is None or len(self._map) < start + self._segment_bytes:
            n_bytes = (max(self._copied) + 1) * self._segment_bytes
            if os.fstat(self._file.fileno()).st_size < n_bytes:
                self._file.truncate(n_bytes)  # the last segment may not be full
            # Views of an earlier map live no longer than a search's step.
            self._map = mmap.mmap(self._file.fileno(), n_bytes, prot=mmap.PROT_READ)
        values = np.frombuffer(self._map, np.float32, n_rows * self._dimensions, start)
        return values.reshape(n_rows, self._dimensions)


def _positions(rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which of `rows` are in `among`, bool (n,); both ascend."""
    if not len(rows) or not len(among):
        return np.zeros(len(rows), bool)
    places = np.searchsorted(among, rows)
    fitting: np.ndarray = among[np.minimum(places, len(among) - 1)] == rows
    return fitting


def _write(fd: int, values: np.ndarray, offset: int) -> None:
    left = values.data.cast("B") if values.size else memoryview(b"")
    while left:
        n_written = os.pwrite(fd, left, offset)
        left, offset = left[n_written:], offset + n_written

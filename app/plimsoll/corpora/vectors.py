"""Vectors of a version: put, read and deleted by the rows of their documents.

Functions over a connection that is in a transaction, which the caller holds. Rows are counted in
segments of SEGMENT_ROWS, each with a number that grows with every change in it: what was copied
from a segment is known to be behind by that number.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plimsoll.corpora.schema import vectors_table
from plimsoll.policy.costs import SEGMENT_ROWS

STORED = np.dtype("<f4")


@dataclass(frozen=True)
class Segment:
    """State of the rows from `number` * SEGMENT_ROWS on."""

    number: int
    n_changes: int
    n_vectors: int

    @property
    def first_row(self) -> int:
        """The row of its first place."""
        return self.number * SEGMENT_ROWS


def places_of(segment: int) -> range:
    """Rows that a segment of this number has a place for."""
    return range(segment * SEGMENT_ROWS, (segment + 1) * SEGMENT_ROWS)


def put(
    connection: sqlite3.Connection,
    version: int,
    rows: Sequence[int],
    vectors: Iterable[np.ndarray],
) -> None:
    """Store a vector a row, float32 (dimensions,), in the place of what the rows have."""
    n_before = _delete(connection, version, rows)
    connection.executemany(
        f"INSERT INTO {vectors_table(version)} (row, vector) VALUES (?, ?)",
        zip(rows, (vector.astype(STORED).tobytes() for vector in vectors), strict=True),
    )
    _note(connection, version, Counter(row // SEGMENT_ROWS for row in rows), n_before)


def delete(connection: sqlite3.Connection, version: int, rows: Sequence[int]) -> None:
    """Delete vectors, where the rows have any."""
    _note(connection, version, Counter(), _delete(connection, version, rows))


def get(connection: sqlite3.Connection, version: int, rows: Sequence[int]) -> dict[int, np.ndarray]:
    """Vectors by their rows, of those that have one."""
    query = f"SELECT row, vector FROM {vectors_table(version)} WHERE row = ?"
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return {pair[0]: np.frombuffer(pair[1], STORED) for pair in found if pair is not None}


def having(connection: sqlite3.Connection, version: int, rows: Sequence[int]) -> set[int]:
    """Those of the rows that have a vector."""
    query = f"SELECT 1 FROM {vectors_table(version)} WHERE row = ?"
    return {row for row in rows if connection.execute(query, (row,)).fetchone()}


def count(connection: sqlite3.Connection, version: int) -> int:
    """How many vectors the version has."""
    (n,) = connection.execute(
        "SELECT coalesce(sum(n_vectors), 0) FROM segments WHERE version = ?", (version,)
    ).fetchone()
    return int(n)


def segments(connection: sqlite3.Connection, version: int, after: int = -1) -> Iterator[Segment]:
    """States of the segments that have vectors, in their order; after: behind that number."""
    found = connection.execute(
        """SELECT segment, n_changes, n_vectors FROM segments
        WHERE version = ? AND n_vectors > 0 AND segment > ? ORDER BY segment""",
        (version, after),
    )
    return (Segment(*values) for values in found)


def of_segment(
    connection: sqlite3.Connection, version: int, segment: int, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """A segment's rows, int64 (n,), ascending, and their vectors, float32 (n, dimensions)."""
    found = connection.execute(
        f"SELECT row, vector FROM {vectors_table(version)} WHERE row BETWEEN ? AND ? ORDER BY row",
        (segment * SEGMENT_ROWS, (segment + 1) * SEGMENT_ROWS - 1),
    ).fetchall()
    rows = np.fromiter((row for row, _ in found), np.int64, len(found))
    values = np.frombuffer(b"".join(vector for _, vector in found), STORED)
    return rows, values.reshape(len(found), dimensions)


def unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 (n, dimensions); those of length 0 stay so."""
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit = np.zeros_like(values, np.float32)
    np.divide(values, lengths, out=unit, where=lengths > 0)
    # Their squares are beyond float32 from 1e19 on, and below 1e-19; before that they lose digits.
    extreme = np.flatnonzero(~((lengths > 1e-15) & (lengths < 1e15)))
    if len(extreme):
        wide = values[extreme].astype(np.float64)
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        unit[extreme] = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return unit


def _delete(connection: sqlite3.Connection, version: int, rows: Sequence[int]) -> Counter[int]:
    """Delete vectors; returns how many there were in each of the segments."""
    query = f"DELETE FROM {vectors_table(version)} WHERE row = ?"
    return Counter(
        row // SEGMENT_ROWS for row in rows if connection.execute(query, (row,)).rowcount
    )


def _note(
    connection: sqlite3.Connection, version: int, now: Counter[int], before: Counter[int]
) -> None:
    """Count what came into the segments and what went."""
    connection.executemany(
        """INSERT INTO segments (version, segment, n_changes, n_vectors) VALUES (?1, ?2, 1, ?3)
        ON CONFLICT DO UPDATE SET n_changes = n_changes + 1, n_vectors = n_vectors + ?3""",
        [(version, segment, now[segment] - before[segment]) for segment in {*now, *before}],
    )

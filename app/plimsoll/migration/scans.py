"""Scans over all vectors of a version, a segment at a time: neighbours of many, and their health.

Functions over a connection that is in a transaction, which the caller holds.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.records import Version
from plimsoll.corpora.schema import documents_table, vectors_table
from plimsoll.migration.stages import NORM_TOLERANCE

# Vectors that are compared bit by bit: the first that many rows.
MOST_COMPARED = 200_000
SAMPLE_STEP = 256


@dataclass
class VectorHealth:
    """What a scan has found. n_repeated: vectors that stand before already, bit by bit."""

    n_vectors: int = 0
    n_not_finite: int = 0
    n_zero: int = 0
    n_not_unit: int = 0
    n_repeated: int = 0
    least_norm: float | None = None
    greatest_norm: float | None = None

    def figures(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def vector_health(connection: sqlite3.Connection, version: Version) -> VectorHealth:
    """Look at every vector of a version."""
    health, seen = VectorHealth(), set[int]()
    for _, values in _segments(connection, version):
        health.n_vectors += len(values)
        are_finite = np.isfinite(values).all(axis=1)
        health.n_not_finite += int((~are_finite).sum())
        norms = np.linalg.norm(values[are_finite], axis=1)
        if len(norms):
            least, greatest = float(norms.min()), float(norms.max())
            if health.least_norm is None or least < health.least_norm:
                health.least_norm = least
            if health.greatest_norm is None or greatest > health.greatest_norm:
                health.greatest_norm = greatest
        health.n_zero += int((norms == 0).sum())
        health.n_not_unit += int((np.abs(norms - 1) > NORM_TOLERANCE).sum())
        if len(seen) < MOST_COMPARED:
            hashes = [hash(vector.tobytes()) for vector in values]
            new = {*hashes} - seen
            health.n_repeated += len(hashes) - len(new)
            seen |= new
    return health


def nearest(
    connection: sqlite3.Connection,
    version: Version,
    queries: np.ndarray,
    depth: int,
    among: np.ndarray | None = None,
) -> list[list[int]]:
    """Rows of the `depth` nearest vectors by cosine, nearest first, for each query.

    queries: float32 (n, dimensions), of the version's own space. Equal ones in order of their rows.
    among: int64, ascending: no other rows are looked at; None: every one is.
    """
    queries = vectors.unit(queries)
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for numbers, values in _segments(connection, version):
        if among is not None:
            start, end = np.searchsorted(among, (numbers[0], numbers[-1] + 1))
            is_among = np.isin(numbers, among[start:end], assume_unique=True)
            numbers, values = numbers[is_among], values[is_among]
        scores = np.hstack((scores, queries @ vectors.unit(values).T))
        rows = np.hstack((rows, np.broadcast_to(numbers, (len(queries), len(numbers)))))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        scores = np.take_along_axis(scores, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
    found: list[list[int]] = rows.tolist()
    return found


def rows_of_different_texts(
    connection: sqlite3.Connection, old: Version, new: Version
) -> np.ndarray:
    """A row of each text that has vectors of both versions, int64, ascending."""
    found = connection.execute(
        f"""SELECT min(documents.row) FROM {documents_table(old.collection_id)} AS documents
        JOIN {vectors_table(old.id)} AS old ON old.row = documents.row
        JOIN {vectors_table(new.id)} AS new ON new.row = documents.row
        GROUP BY documents.text_sha256"""
    )
    return np.sort(np.fromiter((row for (row,) in found), np.int64))


def sample_rows(
    connection: sqlite3.Connection, version: Version, most: int, seed: int
) -> list[int]:
    """Up to `most` rows that have a vector, drawn at random, ascending; a seed gives the same."""
    every = np.sort(documents.rows(connection, version.collection_id))
    drawn = list[int]()
    shuffled = np.random.default_rng(seed).permutation(every)
    for start in range(0, len(shuffled), SAMPLE_STEP):
        step = shuffled[start : start + SAMPLE_STEP].tolist()
        there = vectors.having(connection, version.id, step)
        drawn += [row for row in step if row in there]
        if len(drawn) >= most:
            break
    return sorted(drawn[:most])


def _segments(
    connection: sqlite3.Connection, version: Version
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, int64 (n,), and vectors, float32 (n, dimensions), of each segment."""
    for segment in vectors.segments(connection, version.id):
        yield vectors.of_segment(connection, version.id, segment.number, version.space.dimensions)

"""A million vectors of 768 values, 3 GB, are searched without being loaded."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import monotonic

import numpy as np
import pytest

from plimsoll.bench.comparison.processes import MemoryWatch, process_memory
from plimsoll.corpora import vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.ranking import Ranked
from plimsoll.corpora.records import Collection, Space
from plimsoll.corpora.vector_copies import VectorCopies
from plimsoll.policy.costs import SEGMENT_ROWS, vector_search_demand

N, DIMENSIONS, TOP_K = 1_000_000, 768, 10
WRITTEN_AT_ONCE = 8 * SEGMENT_ROWS
N_SEARCHES = 20
# Beside what a search is admitted with: rows of each segment, 2 bytes a vector, and arenas.
MOST_BESIDE_BYTES = 16 << 20


def parts() -> Iterator[tuple[range, np.ndarray]]:
    """Rows and their vectors, float32 (n, DIMENSIONS), of any length."""
    chance = np.random.default_rng(7)
    for start in range(1, N + 1, WRITTEN_AT_ONCE):
        rows = range(start, min(start + WRITTEN_AT_ONCE, N + 1))
        yield rows, chance.standard_normal((len(rows), DIMENSIONS), np.float32)


def fill(database: Database, query: np.ndarray) -> tuple[Collection, np.ndarray]:
    """Store them; returns the collection, and the rows nearest to the query by plain NumPy."""
    with database.writing() as connection:
        collection = versions.create(connection, "ships", Space("v1:a", DIMENSIONS, "large"))
    best = np.empty((0, 2))  # (TOP_K, 2): cosine and row
    for rows, values in parts():
        with database.writing() as connection:
            vectors.put(connection, collection.active.id, rows, values)
        cosines = values @ query / np.linalg.norm(values, axis=1)
        best = np.concatenate((best, np.stack((cosines, rows), axis=1)))
        best = best[np.argsort(-best[:, 0])[:TOP_K]]
    return collection, best[:, 1].astype(np.int64)


@contextmanager
def copied(database: Database) -> Iterator[VectorCopies]:
    copies = VectorCopies(database.path.parent)
    yield copies
    copies.close()


def test_a_million_vectors_are_searched_without_being_loaded(
    is_soak: bool, database: Database, tmp_path: Path
):
    """Exact, and in as little memory as admission has counted for a search."""
    if not is_soak:
        pytest.skip("writes 6 GB: add --soak")
    queries = np.random.default_rng(1).standard_normal((N_SEARCHES, DIMENSIONS), np.float32)
    collection, expected = fill(database, queries[0])

    def search(copies: VectorCopies, query: np.ndarray) -> tuple[Ranked, float]:
        began_s = monotonic()
        with database.reading() as connection:
            found = copies.search(connection, collection.active, query, TOP_K)
        return found, monotonic() - began_s

    before = process_memory(os.getpid())
    watch = MemoryWatch(os.getpid())
    with copied(database) as copies:
        first, first_s = search(copies, queries[0])
        again = [search(copies, query) for query in queries]
    assert before is not None
    grown_bytes = watch.stop().anonymous_bytes - before.anonymous_bytes
    figures = {
        "vectors": N,
        "dimensions": DIMENSIONS,
        "first_search_s": first_s,
        "median_search_s": median(seconds for _, seconds in again),
        "slowest_search_s": max(seconds for _, seconds in again),
        "anonymous_grown_mib": grown_bytes / (1 << 20),
        "load_average": os.getloadavg()[0],
    }
    (tmp_path / "million.json").write_text(json.dumps(figures, indent=1))
    assert first.rows.tolist() == again[0][0].rows.tolist() == expected.tolist()
    most_bytes = vector_search_demand(DIMENSIONS).held_bytes + MOST_BESIDE_BYTES
    assert grown_bytes <= most_bytes, figures

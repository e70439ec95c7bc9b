"""What a look at every vector of a version finds."""

from pathlib import Path

import numpy as np

from plimsoll.corpora import vectors, versions
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.records import Space
from plimsoll.migration.scans import vector_health
from plimsoll.policy.costs import SEGMENT_ROWS


def test_norms_are_those_of_all_segments(tmp_path: Path):
    """A zero vector in the first of them is still the shortest at the end."""
    database = Database(tmp_path / FILE_NAME)
    with database.writing() as connection:
        version = versions.create(connection, "ships", Space("s", 3)).active
        rows = [1, 2, SEGMENT_ROWS + 1, 2 * SEGMENT_ROWS + 1]
        values = np.float32([[0, 0, 0], [0, 3, 4], [0, 0, 1], [0, 0, 2]])
        vectors.put(connection, version.id, rows, values)
        health = vector_health(connection, version)
    database.close()
    assert (health.least_norm, health.greatest_norm) == (0.0, 5.0)
    assert (health.n_vectors, health.n_zero, health.n_not_unit) == (4, 1, 3)

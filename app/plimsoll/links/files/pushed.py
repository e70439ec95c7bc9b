"""Vectors that are on their way into files: kept by id until all of them are there.

One SQLite file in the folder, for each space. What `put` has stored survives kill -9 and a power
cut; putting it again changes nothing.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.files.parts import FULL_RETRY_S
from plimsoll.links.records import OutgoingRow

FILE_NAME = "pushed.sqlite3"
STORED = np.dtype("<f4")


class PushedVectors:
    """Owns the connection to the file at `path`, which is made at its first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def put(self, rows: Sequence[OutgoingRow]) -> None:
        """Store vectors, each in the place of what its id has. Raises OutsideUnavailableError."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            put = connection.executemany(
                """INSERT INTO pushed (id, text_sha256, vector) VALUES (?1, ?2, ?3)
                ON CONFLICT DO UPDATE SET text_sha256 = ?2, vector = ?3
                WHERE (text_sha256, vector) <> (?2, ?3)""",
                [(row.id, row.text_sha256, row.vector.astype(STORED).tobytes()) for row in rows],
            )
            connection.execute("UPDATE changes SET n = n + ?", (put.rowcount,))
            connection.execute("COMMIT")

    def get(self, row_id: str) -> tuple[bytes, np.ndarray] | None:
        """SHA-256 of a row's text, and the vector of that text, float32 (dimensions,)."""
        query = "SELECT text_sha256, vector FROM pushed WHERE id = ?"
        with self._open() as connection:
            found = connection.execute(query, (row_id,)).fetchone()
        return None if found is None else (found[0], np.frombuffer(found[1], STORED))

    def n_changes(self) -> int:
        """A number that grows with every vector that is stored and was not there."""
        with self._open() as connection:
            (n,) = connection.execute("SELECT n FROM changes").fetchone()
        return int(n)

    def close(self) -> None:
        """Let go of the file; a later call opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = _connect(self.path)
            yield self._connection
        except sqlite3.OperationalError as error:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise OutsideUnavailableError(
                f"vectors on their way to files, {self.path}: {error}", retry_after_s=FULL_RETRY_S
            ) from error
        except sqlite3.DatabaseError as error:
            raise OutsideMismatchError(
                f"{self.path} is damaged: {error}; take the folder {self.path.parent} away, and "
                "push all of it again"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    for statement in (
        "BEGIN IMMEDIATE",
        """CREATE TABLE IF NOT EXISTS pushed (
            id TEXT PRIMARY KEY, text_sha256 BLOB NOT NULL, vector BLOB NOT NULL
        ) STRICT""",
        "CREATE TABLE IF NOT EXISTS changes (only INTEGER PRIMARY KEY, n INTEGER NOT NULL) STRICT",
        "INSERT OR IGNORE INTO changes VALUES (1, 0)",
        "COMMIT",
    ):
        connection.execute(statement)
    return connection

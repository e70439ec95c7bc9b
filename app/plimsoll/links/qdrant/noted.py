"""What points of a collection were like when they were copied, of any number, in bounded memory."""

import sqlite3
from collections.abc import Iterator

from plimsoll.links.outside import PAGE_ROWS
from plimsoll.links.qdrant.points import Digest, PointId, id_of


class NotedPoints:
    """Owns a table in a file without a name, which goes with it; SQLite keeps 2 MiB in memory."""

    def __init__(self) -> None:
        """Begin with none."""
        self._connection = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False  # lent to one thread at a time
        )  # fmt: skip
        self._connection.execute("PRAGMA synchronous = OFF")  # nothing of it outlives the process
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute(
            """CREATE TABLE points (id TEXT PRIMARY KEY, digest BLOB NOT NULL,
            is_seen INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID"""
        )

    def put(self, point: PointId, digest: Digest) -> None:
        """Note what a point is like now."""
        self._connection.execute(
            "INSERT OR REPLACE INTO points (id, digest) VALUES (?, ?)", (str(point), digest)
        )

    def see(self, point: PointId) -> Digest | None:
        """What a point was like, None where it was not there; it is there now."""
        found = self._connection.execute(
            "UPDATE points SET is_seen = 1 WHERE id = ? RETURNING digest", (str(point),)
        ).fetchone()
        return None if found is None else found[0]

    def unseen(self) -> Iterator[dict[PointId, Digest]]:
        """Points that were there and were not seen, some at a time."""
        last = ""
        while True:
            found = self._connection.execute(
                "SELECT id, digest FROM points WHERE NOT is_seen AND id > ? ORDER BY id LIMIT ?",
                (last, PAGE_ROWS),
            ).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield {id_of(written): digest for written, digest in found}

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

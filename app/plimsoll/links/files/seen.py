"""Which ids have come already, of any number of rows, in bounded memory."""

import sqlite3
from collections.abc import Generator, Iterable

from plimsoll.links.files.rows import BadRow, Row


class SeenIds:
    """Owns a table in a file without a name, which goes with it; SQLite keeps 2 MiB in memory."""

    def __init__(self) -> None:
        """Begin with none."""
        self._connection = sqlite3.connect(
            "", isolation_level=None, check_same_thread=False  # lent to one thread at a time
        )  # fmt: skip
        self._connection.execute("PRAGMA synchronous = OFF")  # nothing of it outlives the process
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, row_id: str) -> bool:
        """Note an id; returns whether it is new."""
        added = self._connection.execute("INSERT OR IGNORE INTO ids VALUES (?)", (row_id,))
        return added.rowcount == 1

    def once(self, rows: Iterable[Row]) -> Generator[Row, None, None]:
        """The rows, of those with one id the first; the others are wrong, and have none."""
        for row in rows:
            if row.id is None or self.add(row.id):
                yield row
            else:
                yield BadRow(row.place, None, f"the id {row.id!r} has come before")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

"""Gives the room of dropped collections and versions back, slice by slice.

Either goes in one short transaction, which deletes the rows that name it. What its tables hold may
be much, and other writers would wait while all of it is deleted: it goes in further transactions,
each short. A server that starts goes on with what is left.
"""

import logging
import re
import sqlite3
from concurrent.futures import Executor
from threading import Event

from plimsoll.corpora.database import Database
from plimsoll.errors import StoreError

log = logging.getLogger(__name__)

SLICE_ROWS = 1024  # at most 0.06 s, where 60,000 documents and their words at once took 1 s
# Between two slices, for other writers: the lock that they wait for does not queue them.
PAUSE_S = 0.005

# Tables that are named by a number, where the number is in use, and what of them may be large.
# FTS5 keeps its index in tables beside it. Source: https://sqlite.org/fts5.html, section 10.
_NAME = re.compile("(documents|words|vectors)_([0-9]+)")
_OWNERS = {"documents": "collections", "words": "collections", "vectors": "versions"}
_PARTS = {"documents": ("",), "words": ("_data", "_docsize"), "vectors": ("",)}
# Rows that go with their table: the first ones of `_data` are what FTS5 needs to open its index.
_LAST_ROWS = 10


class TableReclaim:
    """Owns the work under way. thread: writes the file for it, and for nothing else."""

    def __init__(self, database: Database, thread: Executor) -> None:
        self._database = database
        self._thread = thread
        self._closing = Event()

    def start(self) -> None:
        """Give back what is there to be given back now, where there is a file."""
        if self._database.path.exists():
            self._thread.submit(self._work)

    def stop(self) -> None:
        """End with the slice under way; the thread then is free."""
        self._closing.set()

    def _work(self) -> None:
        try:
            while not self._closing.wait(PAUSE_S) and self._slice():
                pass
        except StoreError as error:
            log.error("the room of what was dropped is not given back yet: %s", error)
        except Exception:
            log.exception("the room of what was dropped is not given back")

    def _slice(self) -> bool:
        with self._database.writing() as connection:
            return reclaim(connection, SLICE_ROWS)


def reclaim(connection: sqlite3.Connection, most_rows: int) -> bool:
    """Delete up to so many rows of what was dropped; returns whether there was anything to delete.

    A table goes once so few are left in it.
    """
    table = _left_table(connection)
    if table is None:
        return False
    kind, number = table
    for part in _PARTS[kind]:
        name = f"{kind}_{number}{part}"
        deleted = connection.execute(
            f"""DELETE FROM {name} WHERE rowid IN
            (SELECT rowid FROM {name} WHERE rowid > ? ORDER BY rowid LIMIT ?)""",
            (_LAST_ROWS, most_rows),
        )
        if deleted.rowcount == most_rows:
            return True
    connection.execute(f"DROP TABLE {kind}_{number}")
    return True


def _left_table(connection: sqlite3.Connection) -> tuple[str, int] | None:
    """A table of a collection or a version that has gone: its kind, and its number."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    used = {
        owner: {number for (number,) in connection.execute(f"SELECT id FROM {owner}")}
        for owner in {*_OWNERS.values()}
    }
    for (name,) in names:
        if (match := _NAME.fullmatch(name)) is not None:
            kind, number = match[1], int(match[2])
            if number not in used[_OWNERS[kind]]:
                return kind, number
    return None

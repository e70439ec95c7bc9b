"""How far links are, in the file of collections: what they follow, have read, and still bring out.

Functions over a connection that is in a transaction, which the caller holds; the tables are made in
corpora/schema.py. The outbox has a place for every vector that is not outside yet, in the order in
which they came. SQLite's own triggers put them there, so that what stores a vector need not know of
it, and none is forgotten; a place is deleted once the vector has been confirmed outside. A vector
that is stored anew gets a new place, which the confirmation of the old one leaves alone.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plimsoll.corpora.schema import documents_table, vectors_table
from plimsoll.corpora.vectors import STORED
from plimsoll.links.records import StaleVector


@dataclass(frozen=True)
class LinkState:
    """A link as the file says. is_pulling: a pass over all rows is under way, behind `position`.

    follows: changes are noted outside, and taken in. n_pulled: rows of this pass, or of the last.
    """

    follows: bool
    is_pulling: bool
    position: str | None
    n_pulled: int


def get(connection: sqlite3.Connection, collection: int) -> LinkState | None:
    """How far a link is; None of a collection that is not linked."""
    row = connection.execute(
        "SELECT follows, is_pulling, position, n_pulled FROM links WHERE collection = ?",
        (collection,),
    ).fetchone()
    return None if row is None else LinkState(bool(row[0]), bool(row[1]), row[2], row[3])


def begin_pull(connection: sqlite3.Connection, collection: int) -> None:
    """Follow from now on, and read every row once, from the first."""
    connection.execute(
        """INSERT INTO links (collection, follows, is_pulling, n_pulled) VALUES (?, 1, 1, 0)
        ON CONFLICT DO UPDATE SET follows = 1, is_pulling = 1, position = NULL, n_pulled = 0""",
        (collection,),
    )
    connection.execute("DELETE FROM link_seen WHERE collection = ?", (collection,))


def note_seen(connection: sqlite3.Connection, collection: int, rows: Iterable[int]) -> None:
    """These documents are outside, as the pass that is under way has found."""
    connection.executemany(
        "INSERT OR IGNORE INTO link_seen (collection, row) VALUES (?, ?)",
        ((collection, row) for row in rows),
    )


def note_position(
    connection: sqlite3.Connection, collection: int, position: str, n_rows: int
) -> None:
    """The pass has taken in so many further rows, and goes on behind a position."""
    connection.execute(
        "UPDATE links SET position = ?, n_pulled = n_pulled + ? WHERE collection = ?",
        (position, n_rows, collection),
    )


def unseen(connection: sqlite3.Connection, collection: int, most: int) -> list[str]:
    """Ids of up to so many documents that the pass has not found outside."""
    found = connection.execute(
        f"""SELECT id FROM {documents_table(collection)} AS documents
        LEFT JOIN link_seen ON link_seen.collection = ?1 AND link_seen.row = documents.row
        WHERE link_seen.row IS NULL ORDER BY documents.row LIMIT ?2""",
        (collection, most),
    )
    return [document_id for (document_id,) in found]


def end_pull(connection: sqlite3.Connection, collection: int) -> None:
    """The pass has come to its end."""
    connection.execute(
        "UPDATE links SET is_pulling = 0, position = NULL WHERE collection = ?", (collection,)
    )
    connection.execute("DELETE FROM link_seen WHERE collection = ?", (collection,))
    connection.execute(
        f"""DELETE FROM link_stale
        WHERE version IN (SELECT id FROM versions WHERE collection = ?)
        AND row NOT IN (SELECT row FROM {documents_table(collection)})""",
        (collection,),
    )


def end_following(connection: sqlite3.Connection, collection: int) -> None:
    """Follow no longer; what is left to do outside is the link's to do."""
    connection.execute("UPDATE links SET follows = 0 WHERE collection = ?", (collection,))
    end_pull(connection, collection)


def forget(connection: sqlite3.Connection, collection: int) -> None:
    """Link it no more; its documents stay."""
    connection.execute("DELETE FROM links WHERE collection = ?", (collection,))


def is_watched(connection: sqlite3.Connection, version: int) -> bool:
    """Whether vectors of a version go to the outbox."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = ?", (_trigger(version),)
    ).fetchone()
    return found is not None


def watch(connection: sqlite3.Connection, version: int, *, with_all: bool) -> None:
    """Let a version's vectors go to the outbox from now on; with_all: those there are as well."""
    connection.execute(
        f"""CREATE TRIGGER {_trigger(version)} AFTER INSERT ON {vectors_table(version)} BEGIN
            DELETE FROM link_outbox WHERE version = {version:d} AND row = new.row;
            INSERT INTO link_outbox (version, row) VALUES ({version:d}, new.row);
        END"""
    )
    if with_all:
        put_all(connection, version)


def unwatch(connection: sqlite3.Connection, version: int) -> None:
    """Let them go there no longer, and leave out what has not gone."""
    connection.execute(f"DROP TRIGGER IF EXISTS {_trigger(version)}")
    connection.execute("DELETE FROM link_outbox WHERE version = ?", (version,))


def put(connection: sqlite3.Connection, version: int, rows: Iterable[int]) -> None:
    """Bring these vectors out, or once more."""
    connection.executemany(
        "INSERT OR REPLACE INTO link_outbox (version, row) VALUES (?, ?)",
        ((version, row) for row in rows),
    )


def put_all(connection: sqlite3.Connection, version: int) -> None:
    """Bring every vector of a version out, or once more."""
    connection.execute(
        f"""INSERT OR REPLACE INTO link_outbox (version, row)
        SELECT ?, row FROM {vectors_table(version)} ORDER BY row""",
        (version,),
    )


def take_out(connection: sqlite3.Connection, version: int, rows: Iterable[int]) -> None:
    """These vectors are outside: they have come from there."""
    connection.executemany(
        "DELETE FROM link_outbox WHERE version = ? AND row = ?", ((version, row) for row in rows)
    )


def are_waiting(connection: sqlite3.Connection, version: int, rows: Iterable[int]) -> set[int]:
    """Those of the rows whose vector is still to be brought out."""
    query = "SELECT 1 FROM link_outbox WHERE version = ? AND row = ?"
    return {row for row in rows if connection.execute(query, (version, row)).fetchone()}


def waiting(
    connection: sqlite3.Connection, collection: int, version: int, most: int, most_bytes: int
) -> list[tuple[int, int]]:
    """The first places of the outbox and their rows: as many as make a page, one at least."""
    found = connection.execute(
        f"""SELECT place, link_outbox.row, coalesce(length(CAST(text AS BLOB)), 0)
        FROM link_outbox
        LEFT JOIN {documents_table(collection)} AS documents ON documents.row = link_outbox.row
        WHERE version = ? ORDER BY place LIMIT ?""",
        (version, most),
    )
    places, total_bytes = list[tuple[int, int]](), 0
    for place, row, n_bytes in found:
        total_bytes += n_bytes
        if places and total_bytes > most_bytes:
            break
        places.append((place, row))
    return places


def confirm(connection: sqlite3.Connection, places: Sequence[int]) -> None:
    """What stood in these places is done with."""
    connection.executemany(
        "DELETE FROM link_outbox WHERE place = ?", ((place,) for place in places)
    )


def count_waiting(connection: sqlite3.Connection, version: int) -> int:
    """How many vectors of a version are still to be brought out."""
    (n,) = connection.execute(
        "SELECT count(*) FROM link_outbox WHERE version = ?", (version,)
    ).fetchone()
    return int(n)


def stale_vectors(
    connection: sqlite3.Connection, version: int, rows: Iterable[int]
) -> dict[int, StaleVector]:
    """By row, the vector outside that is of an earlier text, where one was seen."""
    query = "SELECT row, vector, text_sha256 FROM link_stale WHERE version = ? AND row = ?"
    found = (connection.execute(query, (version, row)).fetchone() for row in rows)
    return {
        row: StaleVector(np.frombuffer(vector, STORED), text_sha256)
        for row, vector, text_sha256 in filter(None, found)
    }


def remember_stale(
    connection: sqlite3.Connection, version: int, seen: Mapping[int, StaleVector]
) -> None:
    """These vectors outside, by row, are of earlier texts."""
    connection.executemany(
        """INSERT OR REPLACE INTO link_stale (version, row, vector, text_sha256)
        VALUES (?, ?, ?, ?)""",
        (
            (version, row, one.vector.astype(STORED).tobytes(), one.text_sha256)
            for row, one in seen.items()
        ),
    )


def forget_stale(connection: sqlite3.Connection, version: int, rows: Iterable[int]) -> None:
    """Vectors of their present texts have come to these rows."""
    connection.executemany(
        "DELETE FROM link_stale WHERE version = ? AND row = ?", ((version, row) for row in rows)
    )


def _trigger(version: int) -> str:
    return f"outbox_of_{version:d}"

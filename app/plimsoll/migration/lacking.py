"""Documents that a migration has still to embed: no new vector, and not left out.

Functions over a connection that is in a transaction, which the caller holds.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from plimsoll.corpora.schema import documents_table, vectors_table
from plimsoll.migration.records import Migration


def after(
    connection: sqlite3.Connection, migration: Migration, position: int
) -> Iterable[tuple[int, int]]:
    """Rows after `position` whose documents have no new vector and are not left out, with the
    bytes of their texts; in their order.
    """
    query = f"{_query(migration)} AND documents.row > ? ORDER BY documents.row"
    found: Iterable[tuple[int, int]] = connection.execute(query, (migration.id, position))
    return found


def among(
    connection: sqlite3.Connection, migration: Migration, rows: Sequence[int]
) -> list[tuple[int, int]]:
    """The same of these rows alone, in the order given; no other text is looked at."""
    query = f"{_query(migration)} AND documents.row = ?"
    found = (connection.execute(query, (migration.id, row)).fetchone() for row in rows)
    return [pair for pair in found if pair is not None]


def _query(migration: Migration) -> str:
    """SQL up to its last condition; its first parameter is the migration's number."""
    return f"""SELECT documents.row, length(CAST(documents.text AS BLOB))
        FROM {documents_table(migration.collection_id)} AS documents
        LEFT JOIN {vectors_table(migration.target_version)} AS new ON new.row = documents.row
        LEFT JOIN quarantine ON quarantine.migration = ? AND quarantine.row = documents.row
            AND quarantine.text_sha256 = documents.text_sha256
        WHERE new.row IS NULL AND quarantine.row IS NULL"""

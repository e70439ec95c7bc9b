"""The table of texts that a migration leaves out: each as it was when it failed, and why.

Functions over a connection that is in a transaction, which the caller holds, as in journal.py.
"""

import sqlite3

from plimsoll.corpora.records import StoredDocument
from plimsoll.corpora.schema import documents_table, vectors_table
from plimsoll.migration.records import Migration, Quarantined


def add(
    connection: sqlite3.Connection,
    migration: int,
    document: StoredDocument,
    reason: str,
    n_attempts: int,
) -> None:
    """Leave a text out: as it is now, so that the document is tried again once it has changed."""
    connection.execute(
        """INSERT OR REPLACE INTO quarantine (migration, row, text_sha256, reason, n_attempts)
        VALUES (?, ?, ?, ?, ?)""",
        (migration, document.row, document.text_sha256, reason, n_attempts),
    )


def clear(connection: sqlite3.Connection, migration: int) -> None:
    """Let every text that was left out be tried again."""
    connection.execute("DELETE FROM quarantine WHERE migration = ?", (migration,))


def listed(connection: sqlite3.Connection, migration: Migration, most: int) -> list[Quarantined]:
    """Up to `most` documents that are left out now, in their order."""
    found = connection.execute(
        f"""SELECT documents.id, reason, n_attempts, old.row IS NOT NULL
        {_now(migration)} ORDER BY quarantine.row LIMIT ?""",
        (migration.id, most),
    )
    return [Quarantined(id, why, n, bool(has_old)) for id, why, n, has_old in found]


def count(connection: sqlite3.Connection, migration: Migration) -> tuple[int, int]:
    """How many documents are left out now, and how many of them have an old vector."""
    query = f"SELECT count(*), count(old.row) {_now(migration)}"
    n, n_with_old = connection.execute(query, (migration.id,)).fetchone()
    return int(n), int(n_with_old)


def _now(migration: Migration) -> str:
    """Of rows whose text is still the one that failed, and that got no vector elsewhere."""
    return f"""FROM quarantine
        JOIN {documents_table(migration.collection_id)} AS documents
            ON documents.row = quarantine.row AND documents.text_sha256 = quarantine.text_sha256
        LEFT JOIN {vectors_table(migration.source_version)} AS old ON old.row = quarantine.row
        LEFT JOIN {vectors_table(migration.target_version)} AS new ON new.row = quarantine.row
        WHERE quarantine.migration = ? AND new.row IS NULL"""

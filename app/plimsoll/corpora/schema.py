"""The tables of the file of collections, and the steps that brought them about.

`PRAGMA user_version` counts the steps that a file has. A step is never edited once it was
published: what changes is a further step at the end. Tables of other parts that must commit
together with documents and vectors are steps here too.

Each collection has tables of its own, named by its number: documents, and their words for BM25,
whose statistics then are those of the collection alone. Each version has a table of vectors.
A scan reads nothing else. They are made in this module, and go in reclaim.py.
"""

import sqlite3

from plimsoll.errors import StoreError

# Each a list of statements.
STEPS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE collections (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL UNIQUE,
            active_version INTEGER REFERENCES versions (id),
            created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        ) STRICT""",
        """CREATE TABLE versions (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            collection INTEGER NOT NULL REFERENCES collections (id),
            fingerprint TEXT NOT NULL,
            dimensions INTEGER NOT NULL,
            model TEXT,
            state TEXT NOT NULL,
            takes_writes INTEGER NOT NULL,
            created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        ) STRICT""",
        "CREATE INDEX versions_of_collection ON versions (collection)",
        """CREATE TABLE segments (
            version INTEGER NOT NULL REFERENCES versions (id),
            segment INTEGER NOT NULL,
            n_changes INTEGER NOT NULL,
            n_vectors INTEGER NOT NULL,
            PRIMARY KEY (version, segment)
        ) STRICT, WITHOUT ROWID""",
    ),
    (  # written by plimsoll.migration; rows outlive their collection and versions, as history
        """CREATE TABLE migrations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            collection INTEGER NOT NULL,
            name TEXT NOT NULL,
            source_version INTEGER NOT NULL,
            source_fingerprint TEXT NOT NULL,
            source_dimensions INTEGER NOT NULL,
            source_model TEXT,
            target_version INTEGER NOT NULL,
            target_fingerprint TEXT NOT NULL,
            target_dimensions INTEGER NOT NULL,
            target_model TEXT,
            state TEXT NOT NULL,
            position INTEGER NOT NULL DEFAULT 0,
            n_embedded INTEGER NOT NULL DEFAULT 0,
            n_skipped INTEGER NOT NULL DEFAULT 0,
            n_tokens INTEGER NOT NULL DEFAULT 0,
            judged TEXT NOT NULL,
            verdict TEXT,
            created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        ) STRICT""",
        "CREATE INDEX migrations_of_collection ON migrations (collection)",
        """CREATE TABLE migration_changes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            migration INTEGER NOT NULL REFERENCES migrations (id),
            who TEXT NOT NULL,
            before TEXT,
            after TEXT NOT NULL,
            why TEXT NOT NULL,
            changed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
        ) STRICT""",
        "CREATE INDEX changes_of_migration ON migration_changes (migration)",
        """CREATE TABLE quarantine (
            migration INTEGER NOT NULL REFERENCES migrations (id),
            row INTEGER NOT NULL,
            text_sha256 BLOB NOT NULL,
            reason TEXT NOT NULL,
            n_attempts INTEGER NOT NULL,
            PRIMARY KEY (migration, row)
        ) STRICT, WITHOUT ROWID""",
    ),
    (  # they may be megabytes, which a migration's row is not to be read and rewritten with
        """CREATE TABLE judged_queries (
            migration INTEGER PRIMARY KEY REFERENCES migrations (id),
            n_queries INTEGER NOT NULL,
            queries TEXT NOT NULL
        ) STRICT""",
        """INSERT INTO judged_queries (migration, n_queries, queries)
            SELECT id, json_array_length(judged), judged FROM migrations""",
        "ALTER TABLE migrations DROP COLUMN judged",
    ),
    (  # written by plimsoll.links; see links/state.py
        """CREATE TABLE links (
            collection INTEGER PRIMARY KEY REFERENCES collections (id) ON DELETE CASCADE,
            follows INTEGER NOT NULL,
            is_pulling INTEGER NOT NULL,
            position TEXT,
            n_pulled INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE link_seen (
            collection INTEGER NOT NULL REFERENCES links (collection) ON DELETE CASCADE,
            row INTEGER NOT NULL,
            PRIMARY KEY (collection, row)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE link_outbox (
            place INTEGER PRIMARY KEY AUTOINCREMENT,
            version INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
            row INTEGER NOT NULL,
            UNIQUE (version, row)
        ) STRICT""",
    ),
    (  # written by plimsoll.migration: hooks by name and what they answered, and how fast it went
        """CREATE TABLE migration_hooks (
            migration INTEGER NOT NULL REFERENCES migrations (id),
            place INTEGER NOT NULL,
            hook TEXT NOT NULL,
            PRIMARY KEY (migration, place)
        ) STRICT, WITHOUT ROWID""",
        """CREATE TABLE hook_outcomes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            migration INTEGER NOT NULL REFERENCES migrations (id),
            round INTEGER NOT NULL,
            moment TEXT NOT NULL,
            hook TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            reason TEXT NOT NULL DEFAULT '',
            figures TEXT NOT NULL DEFAULT '{}',
            began_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
            seconds REAL,
            UNIQUE (migration, round, moment, hook)
        ) STRICT""",
        """CREATE TABLE migration_progress (
            migration INTEGER NOT NULL REFERENCES migrations (id),
            second INTEGER NOT NULL,
            n_embedded INTEGER NOT NULL,
            n_tokens INTEGER NOT NULL,
            PRIMARY KEY (migration, second)
        ) STRICT, WITHOUT ROWID""",
    ),
    (  # versions that searches read before the active one; what live searches said of a new one
        """CREATE TABLE versions_ahead (
            collection INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
            place INTEGER NOT NULL,
            version INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
            PRIMARY KEY (collection, place)
        ) STRICT, WITHOUT ROWID""",
        "CREATE INDEX ahead_by_version ON versions_ahead (version)",
        """CREATE TABLE migration_shadow (
            migration INTEGER PRIMARY KEY REFERENCES migrations (id),
            share REAL NOT NULL,
            n_compared INTEGER NOT NULL DEFAULT 0,
            n_both INTEGER NOT NULL DEFAULT 0,
            overlap REAL NOT NULL DEFAULT 0,
            least_overlap REAL NOT NULL DEFAULT 1,
            agreement REAL NOT NULL DEFAULT 0,
            old_seconds REAL NOT NULL DEFAULT 0,
            new_seconds REAL NOT NULL DEFAULT 0,
            n_old_empty INTEGER NOT NULL DEFAULT 0,
            n_new_empty INTEGER NOT NULL DEFAULT 0,
            n_failed INTEGER NOT NULL DEFAULT 0,
            last_failure TEXT
        ) STRICT""",
    ),
    (  # written by plimsoll.links: vectors outside that are of earlier texts
        """CREATE TABLE link_stale (
            version INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
            row INTEGER NOT NULL,
            vector BLOB NOT NULL,
            PRIMARY KEY (version, row)
        ) STRICT""",
    ),
    ("ALTER TABLE judged_queries ADD COLUMN sha256 TEXT NOT NULL DEFAULT ''",),
    (  # written by plimsoll.migration; see migration/bridges.py
        """CREATE TABLE bridges (
            migration INTEGER PRIMARY KEY REFERENCES migrations (id),
            is_forced INTEGER NOT NULL,
            state TEXT NOT NULL,
            version INTEGER,
            map BLOB,
            figures TEXT,
            reason TEXT
        ) STRICT""",
    ),
    ("ALTER TABLE bridges ADD COLUMN is_read INTEGER NOT NULL DEFAULT 1",),
    # Documents without an old vector, at the cut-over.
    ("ALTER TABLE migrations ADD COLUMN n_without_old INTEGER NOT NULL DEFAULT 0",),
    # Of the text that the vector is of; NULL where that was never seen.
    ("ALTER TABLE link_stale ADD COLUMN text_sha256 BLOB",),
)


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Take the steps that the file lacks, all in the transaction that is open.

    Raises StoreError for a file of a later Plimsoll.
    """
    (n_taken,) = connection.execute("PRAGMA user_version").fetchone()
    if n_taken > len(STEPS):
        raise StoreError(
            f"the file of collections has schema {n_taken}, and this Plimsoll knows {len(STEPS)}: "
            "it was written by a later version"
        )
    for step in STEPS[n_taken:]:
        for statement in step:
            connection.execute(statement)
    if n_taken < len(STEPS):
        connection.execute(f"PRAGMA user_version = {len(STEPS):d}")


def documents_table(collection: int) -> str:
    """Name of the table of a collection's documents."""
    return f"documents_{collection:d}"


def words_table(collection: int) -> str:
    """Name of the full-text index over them."""
    return f"words_{collection:d}"


def vectors_table(version: int) -> str:
    """Name of the table of a version's vectors."""
    return f"vectors_{version:d}"


def make_collection_tables(connection: sqlite3.Connection, collection: int) -> None:
    """Make the tables of a new collection. A row's number is its place, and is never used again."""
    documents = documents_table(collection)
    connection.execute(
        f"""CREATE TABLE {documents} (
            row INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            text TEXT NOT NULL,
            metadata TEXT NOT NULL,
            text_sha256 BLOB NOT NULL
        ) STRICT"""
    )
    connection.execute(
        f"""CREATE VIRTUAL TABLE {words_table(collection)} USING fts5 (
            text, content='{documents}', content_rowid='row', tokenize='unicode61'
        )"""
    )


def make_vectors_table(connection: sqlite3.Connection, version: int) -> None:
    """Make the table of a new version: little-endian float32, by the row of their document."""
    connection.execute(
        f"""CREATE TABLE {vectors_table(version)} (
            row INTEGER PRIMARY KEY,
            vector BLOB NOT NULL
        ) STRICT"""
    )

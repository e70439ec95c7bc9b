"""The tables of migrations: what each is, how far, what changed its state, what failed.

Functions over a connection that is in a transaction of the file of collections, which the caller
holds: a batch's vectors and its checkpoint commit together. The tables are made in
corpora/schema.py.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.corpora import versions
from plimsoll.corpora.records import Collection, Space, Version
from plimsoll.errors import MigrationStateError, UnknownMigrationError
from plimsoll.migration.judged import JudgedQuery, check_judged, judged_sha256
from plimsoll.migration.records import SERVER, Checkpoint, Migration, Progress, StateChange
from plimsoll.migration.states import ENDED, TRANSITIONS, MigrationState, check_change

# Of what is kept for the report: a day of work takes 8640 short rows.
PROGRESS_EVERY_S = 10

_COLUMNS = """id, collection, name, source_version, source_fingerprint, source_dimensions,
    source_model, target_version, target_fingerprint, target_dimensions, target_model, state,
    position, n_embedded, n_skipped, n_tokens,
    (SELECT n_queries FROM judged_queries WHERE migration = migrations.id),
    (SELECT sha256 FROM judged_queries WHERE migration = migrations.id), verdict, created_at"""


def create(
    connection: sqlite3.Connection,
    collection: Collection,
    target: Version,
    judged: Sequence[Mapping[str, Any]],
    who: str,
    why: str,
) -> Migration:
    """Note a new migration, planned.

    Raises MigrationStateError where another has not ended, and as check_judged does.
    """
    other = of_collection(connection, collection.id)
    if other is not None:
        end = "cancel" if MigrationState.CANCELLED in TRANSITIONS[other.state] else "purge"
        raise MigrationStateError(
            f"migration {other.id} of {collection.name!r} is {other.state.value}; {end} it before "
            "another begins"
        )
    source = collection.active
    (number,) = connection.execute(
        """INSERT INTO migrations (collection, name, source_version, source_fingerprint,
            source_dimensions, source_model, target_version, target_fingerprint,
            target_dimensions, target_model, state)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id""",
        (
            collection.id, collection.name,
            source.id, source.space.fingerprint, source.space.dimensions, source.space.model,
            target.id, target.space.fingerprint, target.space.dimensions, target.space.model,
            MigrationState.PLANNED.value,
        ),
    ).fetchone()  # fmt: skip
    _put_judged(connection, number, source.space, judged)
    _note_change(connection, number, None, MigrationState.PLANNED, who, why)
    return find(connection, number)


def find(connection: sqlite3.Connection, migration: int) -> Migration:
    """The migration of this number. Raises UnknownMigrationError."""
    query = f"SELECT {_COLUMNS} FROM migrations WHERE id = ?"
    row = connection.execute(query, (migration,)).fetchone()
    if row is None:
        raise UnknownMigrationError(
            f"there is no migration {migration}; see GET /migrations", param="id"
        )
    return _migration(row)


def all_migrations(connection: sqlite3.Connection) -> list[Migration]:
    """Every migration, the newest first."""
    query = f"SELECT {_COLUMNS} FROM migrations ORDER BY id DESC"
    return [_migration(row) for row in connection.execute(query)]


def of_collection(connection: sqlite3.Connection, collection: int) -> Migration | None:
    """The one of a collection that has not ended; there is at most one."""
    query = f"SELECT {_COLUMNS} FROM migrations WHERE collection = ? ORDER BY id DESC LIMIT 1"
    row = connection.execute(query, (collection,)).fetchone()
    found = None if row is None else _migration(row)
    return None if found is None or found.state in ENDED else found


def is_there(connection: sqlite3.Connection, migration: Migration) -> bool:
    """Whether both versions still are: they go with their collection, or one of them at the end."""
    there = {version.id for version in versions.of_collection(connection, migration.collection_id)}
    return {migration.source_version, migration.target_version} <= there


def has_collection(connection: sqlite3.Connection, migration: Migration) -> bool:
    """Whether its collection is there yet."""
    return bool(versions.of_collection(connection, migration.collection_id))


def versions_of(connection: sqlite3.Connection, migration: Migration) -> tuple[Version, Version]:
    """The old and the new one."""
    by_id = {
        version.id: version
        for version in versions.of_collection(connection, migration.collection_id)
    }
    return by_id[migration.source_version], by_id[migration.target_version]


def check_there(connection: sqlite3.Connection, migration: Migration) -> None:
    """Raise MigrationStateError where a version has gone."""
    if not is_there(connection, migration):
        raise MigrationStateError(
            f"migration {migration.id} has nothing to work on: {migration.collection!r} was dropped"
        )


def change_state(
    connection: sqlite3.Connection, migration: int, after: MigrationState, who: str, why: str
) -> Migration:
    """Change a state and write down who did and why.

    Raises UnknownMigrationError, and MigrationStateError where it may not follow.
    """
    before = find(connection, migration).state
    check_change(migration, before, after)
    connection.execute("UPDATE migrations SET state = ? WHERE id = ?", (after.value, migration))
    _note_change(connection, migration, before, after, who, why)
    return find(connection, migration)


def note(connection: sqlite3.Connection, migration: Migration, who: str, why: str) -> None:
    """Write down what was changed of a migration beside its state."""
    _note_change(connection, migration.id, migration.state, migration.state, who, why)


def add_to_why(connection: sqlite3.Connection, migration: int, told: str) -> None:
    """Say more of the last change of a migration's state."""
    connection.execute(
        """UPDATE migration_changes SET why = ltrim(why || '; ' || ?1, '; ')
        WHERE id = (SELECT max(id) FROM migration_changes WHERE migration = ?2)""",
        (told, migration),
    )


def changes(connection: sqlite3.Connection, migration: int) -> list[StateChange]:
    """Every change of state, the first one first."""
    found = connection.execute(
        """SELECT changed_at, who, before, after, why FROM migration_changes
        WHERE migration = ? ORDER BY id""",
        (migration,),
    )
    return [
        StateChange(
            changed_at, who, MigrationState(before) if before else None, MigrationState(after), why
        )
        for changed_at, who, before, after, why in found
    ]


def cut_over_age_s(connection: sqlite3.Connection, migration: int) -> float:
    """Seconds since the last cut-over of a migration that is cut over, by the machine's clock.

    At least 0: the clock may have been set back.
    """
    (age_s,) = connection.execute(
        """SELECT strftime('%s', 'now') - strftime('%s', changed_at) FROM migration_changes
        WHERE migration = ? AND after = ? ORDER BY id DESC LIMIT 1""",
        (migration, MigrationState.CUT_OVER.value),
    ).fetchone()
    return max(0.0, float(age_s))


def was_taken_back(connection: sqlite3.Connection, migration: int) -> bool:
    """Whether the server by itself has ever taken a cut-over of it back."""
    return bool(
        connection.execute(
            "SELECT 1 FROM migration_changes WHERE migration = ? AND who = ? AND after = ?",
            (migration, SERVER, MigrationState.ROLLED_BACK.value),
        ).fetchone()
    )


def set_checkpoint(connection: sqlite3.Connection, migration: int, checkpoint: Checkpoint) -> None:
    """Say how far a migration is, and keep how far it was when, every few seconds."""
    connection.execute(
        """UPDATE migrations SET position = ?, n_embedded = ?, n_skipped = ?, n_tokens = ?
        WHERE id = ?""",
        (
            checkpoint.position,
            checkpoint.n_embedded,
            checkpoint.n_skipped,
            checkpoint.n_tokens,
            migration,
        ),
    )
    connection.execute(
        """INSERT OR REPLACE INTO migration_progress (migration, second, n_embedded, n_tokens)
        VALUES (?1, unixepoch() / ?2 * ?2, ?3, ?4)""",
        (migration, PROGRESS_EVERY_S, checkpoint.n_embedded, checkpoint.n_tokens),
    )


def progress(connection: sqlite3.Connection, migration: int) -> list[Progress]:
    """How far it was, and when; the first one first."""
    found = connection.execute(
        """SELECT second, n_embedded, n_tokens FROM migration_progress WHERE migration = ?
        ORDER BY second""",
        (migration,),
    )
    return [Progress(*row) for row in found]


def set_verdict(connection: sqlite3.Connection, migration: int, verdict: Mapping[str, Any]) -> None:
    """Keep the last verdict."""
    connection.execute(
        "UPDATE migrations SET verdict = ? WHERE id = ?", (json.dumps(verdict), migration)
    )


def set_judged(
    connection: sqlite3.Connection, migration: Migration, judged: Sequence[Mapping[str, Any]]
) -> None:
    """Keep the queries that the next verdict asks. Raises as check_judged does."""
    _put_judged(connection, migration.id, migration.source, judged)


def judged_queries(connection: sqlite3.Connection, migration: int) -> list[JudgedQuery]:
    """The queries that it is judged by."""
    (queries,) = connection.execute(
        "SELECT queries FROM judged_queries WHERE migration = ?", (migration,)
    ).fetchone()
    return [JudgedQuery.of_json(given) for given in json.loads(queries)]


def _put_judged(
    connection: sqlite3.Connection,
    migration: int,
    source: Space,
    judged: Sequence[Mapping[str, Any]],
) -> None:
    check_judged(judged, source)
    connection.execute(
        """INSERT OR REPLACE INTO judged_queries (migration, n_queries, queries, sha256)
        VALUES (?, ?, ?, ?)""",
        (migration, len(judged), json.dumps(judged), judged_sha256(judged)),
    )


def _note_change(
    connection: sqlite3.Connection,
    migration: int,
    before: MigrationState | None,
    after: MigrationState,
    who: str,
    why: str,
) -> None:
    connection.execute(
        "INSERT INTO migration_changes (migration, who, before, after, why) VALUES (?, ?, ?, ?, ?)",
        (migration, who, before.value if before else None, after.value, why),
    )


def _migration(row: tuple[Any, ...]) -> Migration:
    number, collection, name, *rest = row
    source_version, *source = rest[:4]
    target_version, *target = rest[4:8]
    state, position, n_embedded, n_skipped, n_tokens, *judged, verdict, created_at = rest[8:]
    return Migration(
        id=number,
        collection_id=collection,
        collection=name,
        source_version=source_version,
        source=Space(*source),
        target_version=target_version,
        target=Space(*target),
        state=MigrationState(state),
        checkpoint=Checkpoint(position, n_embedded, n_skipped, n_tokens),
        n_judged=judged[0],
        judged_sha256=judged[1],
        verdict=json.loads(verdict) if verdict else None,
        created_at=created_at,
    )

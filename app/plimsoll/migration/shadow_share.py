"""How many live searches are compared: set, and written down who did.

Functions over a connection that is in a transaction, which the caller holds.
"""

import sqlite3

from plimsoll.errors import MigrationStateError
from plimsoll.migration import bridges, journal, progressive, shadow
from plimsoll.migration.records import Migration
from plimsoll.migration.states import BEFORE_CUTOVER, MigrationState

# Searches read the old version.
ALLOWED = BEFORE_CUTOVER | {MigrationState.ROLLED_BACK}


def switch(
    connection: sqlite3.Connection, number: int, share: float, who: str, why: str, most_open: int
) -> Migration:
    """Compare that share of the searches of the collection; 0 ends it. most_open: models at a time.

    Raises UnknownMigrationError, and MigrationStateError where there is nothing to compare.
    """
    migration = journal.find(connection, number)
    if share:
        _check(connection, migration, most_open)
    shadow.set_share(connection, number, share)
    told = f"{100 * share:.4g} % of searches are compared" if share else "no searches are compared"
    journal.note(connection, migration, who, "; ".join(filter(None, (told, why))))
    return migration


def _check(connection: sqlite3.Connection, migration: Migration, most_open: int) -> None:
    if migration.state not in ALLOWED:
        raise MigrationStateError(
            f"migration {migration.id} is {migration.state.value}: searches are compared while "
            "they read the old version"
        )
    journal.check_there(connection, migration)
    if migration.source.is_foreign:
        raise MigrationStateError(
            f"no model here embeds a query into {migration.source.fingerprint!r}, so no search by "
            "meaning has an answer to compare with; judged queries with old_vector compare both"
        )
    progressive.check_both_open(migration, most_open)
    if progressive.is_progressive(connection, migration):
        raise MigrationStateError(
            f"searches read both versions of migration {migration.id} already: end progressive "
            "search first"
        )
    if bridges.is_awaited(connection, migration.id):
        raise MigrationStateError(
            f"searches read both versions of migration {migration.id} as soon as its bridge is "
            "there: end progressive search then, and compare after that"
        )

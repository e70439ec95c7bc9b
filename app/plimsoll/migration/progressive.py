"""Progressive search: searches read the new version while it is made, and the old one for the rest.

Functions over a connection that is in a transaction, which the caller holds. Which versions
searches read is a matter of the collection (corpora/versions.py); here is when they may. It begins
by itself with a bridge, whose vectors then stand between both, and ends with the cut-over, which
makes the new version the only one, with a verdict that is not go, and on request.
"""

import sqlite3

from plimsoll.corpora import versions
from plimsoll.errors import MigrationStateError
from plimsoll.migration import bridges, journal, shadow
from plimsoll.migration.records import Migration
from plimsoll.migration.states import BEFORE_CUTOVER, MigrationState


def is_progressive(connection: sqlite3.Connection, migration: Migration) -> bool:
    """Whether searches read the new version beside the old one."""
    return versions.is_ahead(connection, migration.target_version)


def begin(connection: sqlite3.Connection, migration: Migration, most_open: int) -> None:
    """Let searches read the new version where it has vectors. most_open: models at a time.

    Raises MigrationStateError where they cannot, or it is no time for that.
    """
    _check(connection, migration, most_open)
    read_ahead(connection, migration)


def read_ahead(connection: sqlite3.Connection, migration: Migration) -> None:
    """Let searches read the new version, then bridged vectors where there are any, unchecked."""
    _, target = journal.versions_of(connection, migration)
    bridged = bridges.version_in_use(connection, migration)
    ahead = [target] if bridged is None else [target, bridged]
    versions.set_ahead(connection, migration.collection_id, ahead)


def end(connection: sqlite3.Connection, migration: Migration) -> None:
    """Let searches read the active version alone."""
    versions.set_ahead(connection, migration.collection_id, [])


def end_where_alone(connection: sqlite3.Connection, migration: Migration, most_open: int) -> None:
    """End it where searches would have two models take turns, now that there is no bridge."""
    if not migration.source.is_foreign and not may_both_open(migration, most_open):
        end(connection, migration)


def switch(
    connection: sqlite3.Connection, number: int, who: str, why: str, most_open: int, *, is_on: bool
) -> None:
    """Begin or end it, and write down who did. Raises UnknownMigrationError, and as `begin`."""
    migration = journal.find(connection, number)
    bridges.set_read(connection, number, is_read=is_on)  # also one that is not there yet
    if is_on:
        begin(connection, migration, most_open)
        told = "searches read the new version where it has vectors, and the old one for the rest"
    else:
        journal.check_there(connection, migration)
        end(connection, migration)
        told = "searches read one version"
    journal.note(connection, migration, who, "; ".join(filter(None, (told, why))))


def _check(connection: sqlite3.Connection, migration: Migration, most_open: int) -> None:
    name = f"migration {migration.id}"
    if migration.state not in BEFORE_CUTOVER:
        raise MigrationStateError(
            f"{name} is {migration.state.value}: progressive search is for the time before cut-over"
        )
    journal.check_there(connection, migration)
    if migration.state is MigrationState.READY and not migration.is_go:
        raise MigrationStateError(
            f"the verdict of {name} is not go, so searches stay with the old version: validate it "
            "again, or force the cut-over"
        )
    if migration.source.is_foreign and not bridges.has_been_in_use(connection, migration.id):
        raise MigrationStateError(
            f"no model here embeds a query into {migration.source.fingerprint!r}, so documents "
            "without a new vector could not be searched by meaning: leave progressive search out, "
            "or have a bridge; searches by words find all of them until cut-over"
        )
    if not migration.source.is_foreign and not bridges.version_in_use(connection, migration):
        check_both_open(migration, most_open)
    if shadow.share_of(connection, migration.id):
        raise MigrationStateError(
            f"{name} compares a share of searches, which read the old version: end that first, "
            "with a share of 0"
        )


def check_both_open(migration: Migration, most_open: int) -> None:
    """Raise MigrationStateError where searches would have two models take turns."""
    if not may_both_open(migration, most_open):
        raise MigrationStateError(
            "searches would open two models in turn: set PLIMSOLL_MAX_OPEN_MODELS to 2 or more"
        )


def may_both_open(migration: Migration, most_open: int) -> bool:
    """Whether both models may be open at once, so that searches have none of them wait."""
    return most_open >= 2 or migration.source.model == migration.target.model

"""What moves a collection from one version to the other and back, each in one transaction.

Functions over a connection that is in a transaction, which the caller holds: the pointer, the
versions and the journal change together or not at all.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.records import Collection, Space, Version, VersionState
from plimsoll.errors import InvalidRequestError, VerdictError
from plimsoll.migration import bridges, journal, progressive, quarantine, shadow
from plimsoll.migration.records import Migration
from plimsoll.migration.states import MigrationState, check_change


def begin(
    connection: sqlite3.Connection,
    name: str,
    target: Space,
    judged: list[Mapping[str, Any]],
    who: str,
    why: str,
) -> Migration:
    """Plan a collection's move into `target`; new documents get a vector of it from now on.

    Raises UnknownCollectionError, MigrationStateError, and InvalidRequestError where it is there.
    """
    collection = versions.find(connection, name)
    if collection.active.space.fingerprint == target.fingerprint:
        raise InvalidRequestError(
            f"{name!r} has vectors of {target.fingerprint} already: {target.model!r} would give "
            "the same ones",
            param="model",
        )
    version = versions.add(connection, collection.id, target, VersionState.BUILDING)
    return journal.create(connection, collection, version, judged, who, why)


def set_target_takes_writes(
    connection: sqlite3.Connection, migration: Migration, *, takes_writes: bool
) -> None:
    """Whether new documents get a vector of the new version, if that is still there."""
    if journal.is_there(connection, migration):
        _, target = journal.versions_of(connection, migration)
        versions.set_takes_writes(connection, target, takes_writes=takes_writes)
        if not takes_writes:
            _put_bridge_aside(connection, migration)


def set_idle_takes_writes(
    connection: sqlite3.Connection, before: Migration, *, takes_writes: bool
) -> bool:
    """Whether new documents get a vector of the version that searches do not read.

    Returns whether that is news. Does nothing where the migration is another than `before` now.
    """
    if journal.find(connection, before.id).state is not before.state:
        return False
    if not journal.is_there(connection, before):
        return False
    idle = _idle_version(connection, before)
    versions.set_takes_writes(connection, idle, takes_writes=takes_writes)
    if not takes_writes:
        _put_bridge_aside(connection, before)
    return idle.takes_writes is not takes_writes


def leave_out(
    connection: sqlite3.Connection, migration: Migration, numbers: list[int]
) -> list[Version]:
    """Give new documents no vector of these versions; returns those that took them until now."""
    left = [
        version
        for version in journal.versions_of(connection, migration)
        if version.id in numbers and version.takes_writes
    ]
    for version in left:
        versions.set_takes_writes(connection, version, takes_writes=False)
        if version.id == migration.target_version:
            _put_bridge_aside(connection, migration)
    return left


def make_ready(connection: sqlite3.Connection, number: int, decision: str, who: str) -> Migration:
    """Note that it was judged; where that is no go, searches read the old version alone again.

    Raises MigrationStateError.
    """
    why = f"verdict: {decision}"
    migration = journal.find(connection, number)
    if decision != "go" and progressive.is_progressive(connection, migration):
        progressive.end(connection, migration)
        why += "; searches read the old version alone again"
    return journal.change_state(connection, number, MigrationState.READY, who, why)


def cut_over(
    connection: sqlite3.Connection,
    number: int,
    who: str,
    why: str,
    *,
    force: bool,
    keeps_old: bool,
) -> Migration:
    """Let searches read the new version. keeps_old: what is written goes into the old one too.

    Raises MigrationStateError, and VerdictError unless forced where the verdict is not go, a
    document has come since that lacks a new vector, or the way back is no longer what it says.
    """
    check_cut_over(connection, number, force=force, keeps_old=keeps_old)
    migration = journal.change_state(connection, number, MigrationState.CUT_OVER, who, why)
    collection = _collection(connection, migration)
    source, target = journal.versions_of(connection, migration)
    versions.set_state(connection, target, VersionState.COMPLETE)
    versions.set_takes_writes(connection, source, takes_writes=keeps_old)
    connection.execute(
        "UPDATE migrations SET n_without_old = ? WHERE id = ?",
        (n_without_old(connection, migration), number),
    )
    versions.activate(connection, collection, target)
    progressive.end(connection, migration)
    return migration


def check_cut_over(
    connection: sqlite3.Connection, number: int, *, force: bool, keeps_old: bool
) -> None:
    """Raise as `cut_over` does; nothing is written."""
    migration = journal.find(connection, number)
    check_change(number, migration.state, MigrationState.CUT_OVER)
    _collection(connection, migration)
    if not force:
        _check_verdict(connection, migration, keeps_old=keeps_old)


def n_without_old(connection: sqlite3.Connection, migration: Migration) -> int:
    """How many documents the old version has no vector of."""
    n_documents = documents.count(connection, migration.collection_id)
    return n_documents - vectors.count(connection, migration.source_version)


def n_without_old_before(connection: sqlite3.Connection, number: int) -> int:
    """How many there were at the cut-over."""
    (n_before,) = connection.execute(
        "SELECT n_without_old FROM migrations WHERE id = ?", (number,)
    ).fetchone()
    return int(n_before)


def roll_back(connection: sqlite3.Connection, number: int, who: str, why: str) -> Migration:
    """Let searches read the old version again. Raises MigrationStateError."""
    migration = journal.change_state(connection, number, MigrationState.ROLLED_BACK, who, why)
    collection = _collection(connection, migration)
    source, _ = journal.versions_of(connection, migration)
    versions.activate(connection, collection, source)
    return migration


def purge(connection: sqlite3.Connection, number: int, who: str, why: str) -> Migration:
    """Drop the version that searches do not read. Raises MigrationStateError."""
    before = journal.find(connection, number)
    migration = journal.change_state(connection, number, MigrationState.PURGED, who, why)
    shadow.end(connection, number)
    if journal.is_there(connection, before):
        versions.drop_version(connection, _idle_version(connection, before))
    return migration


def cancel(connection: sqlite3.Connection, number: int, who: str, why: str) -> Migration:
    """Drop the new version, and the bridge to it. Raises MigrationStateError."""
    bridges.drop(connection, number)
    shadow.end(connection, number)
    migration = journal.change_state(connection, number, MigrationState.CANCELLED, who, why)
    if journal.is_there(connection, migration):
        _, target = journal.versions_of(connection, migration)
        versions.drop_version(connection, target)
    return migration


def _put_bridge_aside(connection: sqlite3.Connection, migration: Migration) -> None:
    """Let searches read the old version alone: new documents get a vector of that one only.

    No query can be embedded into a foreign one, so there the bridge stays in use.
    """
    if not migration.source.is_foreign and bridges.interrupt(connection, migration.id):
        progressive.end(connection, migration)


def _check_verdict(
    connection: sqlite3.Connection, migration: Migration, *, keeps_old: bool
) -> None:
    verdict = migration.verdict or {"decision": "none", "reasons": ["nothing was judged"]}
    if verdict["decision"] != "go":
        raise VerdictError(
            f"the verdict of migration {migration.id} is {verdict['decision']}: "
            f"{'; '.join(verdict['reasons'])}; force it if that is meant"
        )
    (way_back,) = (check for check in verdict["checks"] if check["name"] == "rollback")
    if way_back["figures"]["exact"] and not keeps_old:
        raise VerdictError(
            f"since the verdict of migration {migration.id}, {migration.source.model!r} cannot "
            "be used any more or gives other vectors, so rollback would be partial and not exact: "
            "serve it as it was, validate the migration again, or force the cut-over"
        )
    n_documents = documents.count(connection, migration.collection_id)
    n_new = vectors.count(connection, migration.target_version)
    n_quarantined, _ = quarantine.count(connection, migration)
    n_lacking = n_documents - n_new - n_quarantined
    if n_lacking:
        raise VerdictError(
            f"since the verdict of migration {migration.id}, {n_lacking} documents came that lack "
            "a new vector: validate it again, or force the cut-over"
        )


def _collection(connection: sqlite3.Connection, migration: Migration) -> Collection:
    journal.check_there(connection, migration)
    return versions.find(connection, migration.collection)


def _idle_version(connection: sqlite3.Connection, migration: Migration) -> Version:
    """The one that searches do not read."""
    both = journal.versions_of(connection, migration)
    return next(version for version in both if version.id == migration.idle[0])

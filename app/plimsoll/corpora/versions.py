"""Collections and their versions, as rows: made, found, pointed to, dropped.

Functions over a connection that is in a transaction, which the caller holds.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plimsoll.corpora import schema
from plimsoll.corpora.records import Collection, Space, Version, VersionState
from plimsoll.errors import InvalidRequestError, LinkStateError, UnknownCollectionError

_VERSION = "versions.id, versions.collection, fingerprint, dimensions, model, state, takes_writes"
_COLLECTION = f"""
    SELECT collections.id, name, collections.created_at,
        EXISTS (SELECT 1 FROM links WHERE links.collection = collections.id), {_VERSION}
    FROM collections JOIN versions ON versions.id = active_version"""


def create(connection: sqlite3.Connection, name: str, space: Space) -> Collection:
    """Make a collection, empty, with one version, which is active and takes writes."""
    row = connection.execute("INSERT INTO collections (name) VALUES (?) RETURNING id", (name,))
    (collection,) = row.fetchone()
    schema.make_collection_tables(connection, collection)
    version = add(connection, collection, space, VersionState.COMPLETE)
    connection.execute(
        "UPDATE collections SET active_version = ? WHERE id = ?", (version.id, collection)
    )
    return find(connection, name)


def find(connection: sqlite3.Connection, name: str) -> Collection:
    """The collection of this name. Raises UnknownCollectionError."""
    row = connection.execute(f"{_COLLECTION} WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise UnknownCollectionError(
            f"there is no collection {name!r}; see GET /collections", param="name"
        )
    return _with_ahead(connection, _collection(row))


def find_own(connection: sqlite3.Connection, name: str) -> Collection:
    """Likewise, to be changed by clients. Raises LinkStateError for one that mirrors another."""
    collection = find(connection, name)
    if collection.is_linked:
        raise LinkStateError(
            f"{name!r} mirrors what it is linked to: change that, or unlink it with `plimsoll "
            f"links unlink {name}`",
            param="name",
        )
    return collection


def all_collections(connection: sqlite3.Connection) -> list[Collection]:
    """Every collection, by name."""
    found = connection.execute(f"{_COLLECTION} ORDER BY name").fetchall()
    return [_with_ahead(connection, _collection(row)) for row in found]


def drop(connection: sqlite3.Connection, collection: Collection) -> None:
    """Drop a collection with everything in it: reclaim.py then gives the room back."""
    connection.execute(
        "UPDATE collections SET active_version = NULL WHERE id = ?", (collection.id,)
    )
    for version in of_collection(connection, collection.id):
        _forget(connection, version.id)
    connection.execute("DELETE FROM collections WHERE id = ?", (collection.id,))


def add(
    connection: sqlite3.Connection, collection: int, space: Space, state: VersionState
) -> Version:
    """Make a further version, without vectors yet, which takes writes from now on."""
    row = connection.execute(
        f"""INSERT INTO versions (collection, fingerprint, dimensions, model, state, takes_writes)
        VALUES (?, ?, ?, ?, ?, 1) RETURNING {_VERSION}""",
        (collection, space.fingerprint, space.dimensions, space.model, state.value),
    )
    version = _version(row.fetchone())
    schema.make_vectors_table(connection, version.id)
    return version


def of_collection(connection: sqlite3.Connection, collection: int) -> list[Version]:
    """Its versions, in the order in which they were made."""
    query = f"SELECT {_VERSION} FROM versions WHERE collection = ? ORDER BY id"
    return [_version(row) for row in connection.execute(query, (collection,))]


def of_number(connection: sqlite3.Connection, collection: Collection, number: int) -> Version:
    """One of its versions. Raises InvalidRequestError for one that is not there."""
    for version in of_collection(connection, collection.id):
        if version.id == number:
            return version
    raise InvalidRequestError(
        f"{collection.name!r} has no version {number}; see GET /collections/{collection.name}",
        param="version",
    )


def taking_writes(connection: sqlite3.Connection, collection: Collection) -> list[Version]:
    """Those that a new document's vectors go to; the active one always is among them."""
    return [
        version
        for version in of_collection(connection, collection.id)
        if version.takes_writes or version.id == collection.active.id
    ]


def activate(connection: sqlite3.Connection, collection: Collection, version: Version) -> None:
    """Let searches read another version of the collection: the pointer's change, nothing else.

    Raises ValueError for a version that is another collection's or not complete.
    """
    changed = connection.execute(
        """UPDATE collections SET active_version = ?1 WHERE id = ?2 AND EXISTS
        (SELECT 1 FROM versions WHERE id = ?1 AND collection = ?2 AND state = 'complete')""",
        (version.id, collection.id),
    )
    if changed.rowcount != 1:
        raise ValueError(f"version {version.id} is no complete one of {collection.name!r}")


def set_ahead(connection: sqlite3.Connection, collection: int, versions: Sequence[Version]) -> None:
    """Let searches read these before the active one, in this order; none: that one alone."""
    connection.execute("DELETE FROM versions_ahead WHERE collection = ?", (collection,))
    connection.executemany(
        "INSERT INTO versions_ahead (collection, place, version) VALUES (?, ?, ?)",
        [(collection, place, version.id) for place, version in enumerate(versions)],
    )


def is_ahead(connection: sqlite3.Connection, version: int) -> bool:
    """Whether searches read the version of this number before the active one."""
    query = "SELECT 1 FROM versions_ahead WHERE version = ?"
    return connection.execute(query, (version,)).fetchone() is not None


def set_state(connection: sqlite3.Connection, version: Version, state: VersionState) -> None:
    """Say whether every document that can have one has a vector of this version."""
    connection.execute("UPDATE versions SET state = ? WHERE id = ?", (state.value, version.id))


def set_takes_writes(
    connection: sqlite3.Connection, version: Version, *, takes_writes: bool
) -> None:
    """Say whether new documents get a vector of this version."""
    connection.execute(
        "UPDATE versions SET takes_writes = ? WHERE id = ?", (takes_writes, version.id)
    )


def drop_version(connection: sqlite3.Connection, version: Version) -> None:
    """Drop a version, likewise. Raises ValueError for the active one."""
    is_active = connection.execute(
        "SELECT 1 FROM collections WHERE active_version = ?", (version.id,)
    ).fetchone()
    if is_active:
        raise ValueError(f"version {version.id} is active")
    _forget(connection, version.id)


def _forget(connection: sqlite3.Connection, version: int) -> None:
    connection.execute("DELETE FROM segments WHERE version = ?", (version,))
    connection.execute("DELETE FROM versions WHERE id = ?", (version,))


def _collection(row: tuple[Any, ...]) -> Collection:
    number, name, created_at, is_linked, *version = row
    return Collection(number, name, _version(tuple(version)), created_at, bool(is_linked))


def _with_ahead(connection: sqlite3.Connection, collection: Collection) -> Collection:
    found = connection.execute(
        f"""SELECT {_VERSION} FROM versions_ahead JOIN versions ON versions.id = version
        WHERE versions_ahead.collection = ? ORDER BY place""",
        (collection.id,),
    )
    return replace(collection, ahead=tuple(_version(row) for row in found))


def _version(row: tuple[Any, ...]) -> Version:
    number, collection, fingerprint, dimensions, model, state, takes_writes = row
    return Version(
        id=number,
        collection_id=collection,
        space=Space(fingerprint, dimensions, model),
        state=VersionState(state),
        takes_writes=bool(takes_writes),
    )

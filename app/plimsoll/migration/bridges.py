"""Bridges of migrations: what became of each, and its vectors, in the file of collections.

Functions over a connection that is in a transaction, which the caller holds; the table is made in
corpora/schema.py. Bridged vectors are a version of their own, in a space of its own: no model
embeds into it, no document is written to it, and no pointer may lead there. A trigger of SQLite
takes a row's bridged vector out in the transaction that stores its real one, wherever that is done;
a document that changes or goes loses it as it loses every vector.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias

import numpy as np

from plimsoll.corpora import vectors, versions
from plimsoll.corpora.records import Version, VersionState
from plimsoll.corpora.schema import vectors_table
from plimsoll.migration import journal
from plimsoll.migration.bridge_figures import BridgeFigures
from plimsoll.migration.bridge_map import BridgeMap
from plimsoll.migration.records import Migration
from plimsoll.policy.costs import SEGMENT_ROWS

BridgeWish: TypeAlias = Literal["none", "gated", "forced"]
"""Whether a migration is to have one; forced: at any retention."""


class BridgeState(Enum):
    """What became of the bridge that a migration was to have."""

    PLANNED = "planned"  # nothing is fitted yet
    REFUSED = "refused"  # it would lose too much, or could not be fitted
    BUILDING = "building"  # documents are still to be bridged
    IN_USE = "in_use"  # every document with an old vector and no new one has a bridged one
    DROPPED = "dropped"  # it has done its work, or the migration was given up


@dataclass(frozen=True)
class Bridge:
    """A migration's bridge. figures: None before it is fitted. reason: why it was refused.

    is_read: searches are to read it once it is there.
    """

    is_forced: bool
    state: BridgeState
    version: int | None
    figures: Mapping[str, Any] | None
    reason: str | None
    is_read: bool

    @property
    def is_to_be_built(self) -> bool:
        """Whether a run has something to do for it."""
        return self.state not in (BridgeState.REFUSED, BridgeState.DROPPED)


def plan(connection: sqlite3.Connection, migration: int, *, is_forced: bool) -> None:
    """Have a bridge built when the migration runs; is_forced: at any retention."""
    connection.execute(
        "INSERT INTO bridges (migration, is_forced, state) VALUES (?, ?, ?)",
        (migration, is_forced, BridgeState.PLANNED.value),
    )


def find(connection: sqlite3.Connection, migration: int) -> Bridge | None:
    """The bridge of a migration; None of one without."""
    row = connection.execute(
        """SELECT is_forced, state, version, figures, reason, is_read FROM bridges
        WHERE migration = ?""",
        (migration,),
    ).fetchone()
    if row is None:
        return None
    is_forced, state, version, figures, reason, is_read = row
    told = None if figures is None else json.loads(figures)
    return Bridge(bool(is_forced), BridgeState(state), version, told, reason, bool(is_read))


def refuse(
    connection: sqlite3.Connection,
    migration: int,
    reason: str | None,
    figures: BridgeFigures | None,
) -> None:
    """Do without it, and say why."""
    connection.execute(
        "UPDATE bridges SET state = ?, reason = ?, figures = ? WHERE migration = ?",
        (BridgeState.REFUSED.value, reason, _json(figures), migration),
    )


def begin(
    connection: sqlite3.Connection,
    migration: Migration,
    bridge: BridgeMap,
    figures: BridgeFigures,
    reason: str | None,
) -> None:
    """Keep the map, and make the version that its vectors go to. reason: why it had to be forced.

    Raises MigrationStateError where the migration's versions have gone.
    """
    journal.check_there(connection, migration)
    space = migration.target.bridged(bridge.digest)
    version = versions.add(connection, migration.collection_id, space, VersionState.BUILDING)
    versions.set_takes_writes(connection, version, takes_writes=False)
    connection.execute(
        """UPDATE bridges SET state = ?, version = ?, map = ?, figures = ?, reason = ?
        WHERE migration = ?""",
        (
            BridgeState.BUILDING.value, version.id, bridge.as_bytes(), _json(figures), reason,
            migration.id,
        ),
    )  # fmt: skip
    bridged = vectors_table(version.id)
    connection.execute(
        f"""CREATE TRIGGER {_trigger(version.id)}
        AFTER INSERT ON {vectors_table(migration.target_version)}
        WHEN EXISTS (SELECT 1 FROM {bridged} WHERE row = new.row) BEGIN
            DELETE FROM {bridged} WHERE row = new.row;
            UPDATE segments SET n_changes = n_changes + 1, n_vectors = n_vectors - 1
            WHERE version = {version.id:d} AND segment = new.row / {SEGMENT_ROWS:d};
        END"""
    )


def map_of(connection: sqlite3.Connection, migration: Migration) -> BridgeMap:
    """The map that its vectors are made with."""
    (stored,) = connection.execute(
        "SELECT map FROM bridges WHERE migration = ?", (migration.id,)
    ).fetchone()
    return BridgeMap.of_bytes(stored, migration.source.dimensions, migration.target.dimensions)


def unbridged(
    connection: sqlite3.Connection, migration: Migration, version: int, segment: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a segment with an old vector alone, int64 (n,), and these, float32 (n, old)."""
    rows, values = vectors.of_segment(
        connection, migration.source_version, segment, migration.source.dimensions
    )
    numbers = rows.tolist()
    has_one = vectors.having(connection, migration.target_version, numbers)
    has_one |= vectors.having(connection, version, numbers)
    wanted = have_direction(values) & np.array([row not in has_one for row in numbers], bool)
    return rows[wanted], values[wanted]


def have_direction(values: np.ndarray) -> np.ndarray:
    """Which vectors can be bridged, bool (n,): those that are finite and not zero."""
    found: np.ndarray = np.isfinite(values).all(axis=1) & values.any(axis=1)
    return found


def put(
    connection: sqlite3.Connection, version: int, rows: np.ndarray, bridged: np.ndarray
) -> None:
    """Store bridged vectors, float32 (n, new), of these rows."""
    vectors.put(connection, version, rows.tolist(), bridged)


def version_in_use(connection: sqlite3.Connection, migration: Migration) -> Version | None:
    """The version of its vectors, where every document that can have one has one."""
    found = find(connection, migration.id)
    if found is None or found.state is not BridgeState.IN_USE or found.version is None:
        return None
    there = _there(connection, migration.collection_id, found.version)
    return there[0] if there else None


def has_been_in_use(connection: sqlite3.Connection, migration: int) -> bool:
    """Whether searches need the old version no more: bridged vectors, or all of the new ones."""
    found = find(connection, migration)
    return found is not None and found.state in (BridgeState.IN_USE, BridgeState.DROPPED)


def set_in_use(connection: sqlite3.Connection, migration: int) -> None:
    """Every document that can have one has a bridged vector, or its real one."""
    connection.execute(
        "UPDATE bridges SET state = ? WHERE migration = ?", (BridgeState.IN_USE.value, migration)
    )


def is_awaited(connection: sqlite3.Connection, migration: int) -> bool:
    """Whether searches are yet to read it."""
    found = find(connection, migration)
    if found is None or not found.is_read:
        return False
    return found.state in (BridgeState.PLANNED, BridgeState.BUILDING)


def set_read(connection: sqlite3.Connection, migration: int, *, is_read: bool) -> None:
    """Whether searches are to read it once it is there, where a migration has one."""
    connection.execute("UPDATE bridges SET is_read = ? WHERE migration = ?", (is_read, migration))


def interrupt(connection: sqlite3.Connection, migration: int) -> bool:
    """Have the next run bridge what it then lacks before it is in use; returns whether it was."""
    changed = connection.execute(
        "UPDATE bridges SET state = ? WHERE migration = ? AND state = ?",
        (BridgeState.BUILDING.value, migration, BridgeState.IN_USE.value),
    )
    return changed.rowcount == 1


def drop(connection: sqlite3.Connection, migration: int) -> None:
    """Drop the vectors and the map, where there are any; what they were worth stays told."""
    found = find(connection, migration)
    if found is None or not found.is_to_be_built:
        return
    if found.version is not None:
        connection.execute(f"DROP TRIGGER IF EXISTS {_trigger(found.version)}")
        collection = journal.find(connection, migration).collection_id
        for version in _there(connection, collection, found.version):
            versions.drop_version(connection, version)
    connection.execute(
        "UPDATE bridges SET state = ?, version = NULL, map = NULL WHERE migration = ?",
        (BridgeState.DROPPED.value, migration),
    )


def n_bridged(connection: sqlite3.Connection, bridge: Bridge | None) -> int:
    """How many documents have a bridged vector now."""
    if bridge is None or bridge.version is None:
        return 0
    return vectors.count(connection, bridge.version)


def _there(connection: sqlite3.Connection, collection: int, version: int) -> Sequence[Version]:
    """The version, unless it has gone with its collection."""
    every = versions.of_collection(connection, collection)
    return [each for each in every if each.id == version]


def _json(figures: BridgeFigures | None) -> str | None:
    return None if figures is None else json.dumps(figures.as_json())


def _trigger(version: int) -> str:
    return f"replaces_bridge_{version:d}"

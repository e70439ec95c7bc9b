"""What the file says of a migration's two versions, for a verdict to be drawn from.

Functions over a connection that is in a transaction, which the caller holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.records import StoredDocument, Version
from plimsoll.migration import bridges, journal, lacking, quarantine, shadow
from plimsoll.migration.bridges import Bridge
from plimsoll.migration.judged import JudgedQuery
from plimsoll.migration.quality import TIMED_CHARACTERS, TIMED_QUERIES
from plimsoll.migration.records import Migration
from plimsoll.migration.scans import VectorHealth, sample_rows, vector_health
from plimsoll.migration.shadow import Shadow

SAMPLE_DOCUMENTS = 200
SEED = 7


@dataclass(frozen=True)
class Facts:
    """What the file says of a migration's two versions.

    sample: rows that have a new vector, with the bytes of their documents. openings: short texts.
    old_vectors: None where a row has none. shadow: what live searches say, if any were compared.
    """

    old: Version
    new: Version
    n_documents: int
    n_changed_texts: int
    n_lacking: int
    n_new_vectors: int
    n_quarantined: int
    n_lost: int
    health: VectorHealth
    sample: list[tuple[int, int]]
    openings: list[str]
    new_vectors: np.ndarray
    old_vectors: list[np.ndarray | None]
    judged: list[JudgedQuery]
    shadow: Shadow | None
    bridge: Bridge | None


def facts_of_old(
    connection: Connection, migration: Migration
) -> tuple[Version, list[tuple[int, int]], list[str], list[JudgedQuery]]:
    """Of the old version alone: sample and openings as Facts has them, and judged queries."""
    journal.check_there(connection, migration)
    old, _ = journal.versions_of(connection, migration)
    rows = sample_rows(connection, old, SAMPLE_DOCUMENTS, SEED)
    sample, openings = _sampled(connection, migration, rows)
    return old, sample, openings, journal.judged_queries(connection, migration.id)


def facts_of(connection: Connection, migration: Migration) -> Facts:
    """Of both versions as they are now. Raises MigrationStateError where one is gone."""
    journal.check_there(connection, migration)
    old, new = journal.versions_of(connection, migration)
    rows = sample_rows(connection, new, SAMPLE_DOCUMENTS, SEED)
    after = vectors.get(connection, new.id, rows)
    before = vectors.get(connection, old.id, rows)
    n_quarantined, n_lost = quarantine.count(connection, migration)
    sample, openings = _sampled(connection, migration, rows)
    return Facts(
        old=old,
        new=new,
        n_documents=documents.count(connection, migration.collection_id),
        n_changed_texts=documents.n_changed_texts(connection, migration.collection_id),
        n_lacking=sum(1 for _ in lacking.after(connection, migration, 0)),
        n_new_vectors=vectors.count(connection, new.id),
        n_quarantined=n_quarantined,
        n_lost=n_lost,
        health=vector_health(connection, new),
        sample=sample,
        openings=openings,
        new_vectors=_stacked([after[row] for row in rows], new),
        old_vectors=[before.get(row) for row in rows],
        judged=journal.judged_queries(connection, migration.id),
        shadow=shadow.find(connection, migration.id),
        bridge=bridges.find(connection, migration.id),
    )


def with_vectors(
    connection: Connection, version: Version, rows: Sequence[int]
) -> tuple[list[StoredDocument], dict[int, np.ndarray]]:
    """Documents in these rows that have a vector, as both are now."""
    stored = vectors.get(connection, version.id, rows)
    return documents.of_rows(connection, version.collection_id, list(stored)), stored


def _sampled(
    connection: Connection, migration: Migration, rows: Sequence[int]
) -> tuple[list[tuple[int, int]], list[str]]:
    """Rows with the bytes of their documents, and short texts of the first of them."""
    collection = migration.collection_id
    openings = documents.openings(connection, collection, rows[:TIMED_QUERIES], TIMED_CHARACTERS)
    return [(row, documents.n_bytes(connection, collection, [row])) for row in rows], openings


def _stacked(found: Sequence[np.ndarray], version: Version) -> np.ndarray:
    return np.array(found, np.float32).reshape(len(found), version.space.dimensions)

"""What a batch of documents changes, and its storing in one transaction.

Functions over a connection that is in a transaction, which the caller holds. A text is embedded
before its batch's transaction begins; in the transaction is looked again whether that was all that
it takes, since other writers, or another version, may have come in the meantime.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import TypeAlias

import numpy as np

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.records import Collection, Version
from plimsoll.corpora.tasks import NewDocument
from plimsoll.telemetry.corpora import DocumentOutcome

FoundVectors: TypeAlias = dict[tuple[int, int], np.ndarray | None]
"""By version and line: None where the version has to do without."""


@dataclass
class Plan:
    """What a batch changes, as the file is now. wanted: what a version needs vectors of."""

    collection: Collection
    outcomes: list[DocumentOutcome] = field(default_factory=list)
    wanted: dict[Version, list[NewDocument]] = field(default_factory=dict)

    def is_met_by(self, found: FoundVectors) -> bool:
        """Whether every vector that is wanted has been looked for; the active version's are there.

        A version may have become active after one of its vectors was not to be had.
        """
        return all(
            found.get((version.id, new.line)) is not None
            if version.id == self.collection.active.id
            else (version.id, new.line) in found
            for version, wanted in self.wanted.items()
            for new in wanted
        )


def plan_of(connection: Connection, name: str, batch: Sequence[NewDocument]) -> Plan:
    """What storing a batch would take now."""
    plan = Plan(versions.find(connection, name))
    active, collection = plan.collection.active, plan.collection.id
    writable = versions.taking_writes(connection, plan.collection)
    for new in batch:
        before = documents.get(connection, collection, new.document.id)
        outcome: DocumentOutcome = "added" if before is None else "updated"
        wanting = writable
        if before is not None and before.text_sha256 == new.document.text_sha256:
            # Of other versions a migration looks after what they lack.
            has_vector = vectors.having(connection, active.id, [before.row])
            wanting = [] if has_vector else [active]
            # As they are stored: to Python true, 1 and 1.0 are equal.
            told = documents.as_json(new.document.metadata)
            if has_vector and before.metadata_json == told:
                outcome = "unchanged"
        plan.outcomes.append(outcome)
        for version in wanting:
            plan.wanted.setdefault(version, []).append(new)
    return plan


def store(
    connection: Connection, name: str, batch: Sequence[NewDocument], found: FoundVectors
) -> list[DocumentOutcome] | None:
    """Store a batch with its vectors; None, and nothing, where it takes other vectors now."""
    plan = plan_of(connection, name, batch)
    if not plan.is_met_by(found):
        return None
    pairs = zip(batch, plan.outcomes, strict=True)
    changed = [new for new, outcome in pairs if outcome != "unchanged"]
    put = documents.put(connection, plan.collection.id, [new.document for new in changed])
    rows = {new.line: row for new, row in zip(changed, put, strict=True)}
    for version, wanted in plan.wanted.items():
        there = {
            rows[new.line]: vector
            for new in wanted
            if (vector := found[version.id, new.line]) is not None
        }
        vectors.put(connection, version.id, list(there), there.values())
    return plan.outcomes

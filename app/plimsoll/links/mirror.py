"""What rows from outside change in the collection that mirrors them.

Functions over a connection that is in a transaction, which the caller holds. A row's vector is
taken as that of its text, in the space that is active outside, unless it is *stale*, of an earlier
text: the home has noted so, or the text is another than before and the vector is not. A stale one
is none. Of a foreign space it is remembered until the row has another or its own text again, or the
next look would find text and vector as they were and take them for a pair. Where a vector is made
here, and is not outside by now, what stands there is of an older text still.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.records import Collection, Document, StoredDocument, Version
from plimsoll.links import state
from plimsoll.links.records import OutsideRow, StaleVector


@dataclass(frozen=True)
class Mirrored:
    """What became of rows. rows: of the documents that are there now, each outside row's own."""

    rows: Sequence[int]
    n_added: int
    n_updated: int
    n_deleted: int


def mirror(
    connection: sqlite3.Connection,
    collection: Collection,
    active: Version | None,
    found: Sequence[OutsideRow],
    asked: Sequence[str],
    rounding: float = 0.0,
) -> Mirrored:
    """Make documents like the rows that were found; what else was asked for is gone.

    active: the version that the rows' vectors are of; None where the collection has none of it.
    rounding: see OutsideRows.
    A row without text is no document. A row without a vector gets the one that is here.
    """
    given = {row.id: Document(row.id, row.text) for row in found if row.text is not None}
    before = {each: documents.get(connection, collection.id, each) for each in given}
    changed = [new for each, new in given.items() if _differs(before[each], new)]
    known, behind = dict[int, np.ndarray](), set[int]()
    if active is not None:  # before a text that changes takes its vectors along
        there = [document.row for document in before.values() if document is not None]
        known = vectors.get(connection, active.id, there)
        if not active.space.is_foreign:
            behind = state.are_waiting(connection, active.id, there) | (set(there) - known.keys())
    _remember_stale(connection, collection, [before[each.id] for each in changed])
    put = documents.put(connection, collection.id, changed)
    rows = {document.id: document.row for document in before.values() if document is not None}
    rows |= dict(zip((document.id for document in changed), put, strict=True))
    if active is not None:
        news = {document.id for document in changed}
        with_text = [
            row if rows[row.id] not in behind else replace(row, vector=None)
            for row in found
            if row.id in given
        ]
        _take_vectors(connection, active, with_text, given, news, known, rows, rounding)
    gone = {*asked, *(row.id for row in found)} - rows.keys()
    n_new = sum(document is None for document in before.values())
    return Mirrored(
        list(rows.values()),
        n_added=n_new,
        n_updated=len(changed) - n_new,
        n_deleted=documents.delete(connection, collection.id, sorted(gone)),
    )


def _take_vectors(
    connection: sqlite3.Connection,
    active: Version,
    found: Sequence[OutsideRow],
    given: Mapping[str, Document],
    changed: AbstractSet[str],
    known: Mapping[int, np.ndarray],
    rows: Mapping[str, int],
    rounding: float,
) -> None:
    """Store the vectors that came along and are news; bring out those that are lacking outside.

    given: by id, the documents with these texts; changed: those that are news. known: by row, the
    vectors from before.
    """
    came, stale, lacking = dict[int, np.ndarray](), dict[int, StaleVector](), list[int]()
    remembered = state.stale_vectors(connection, active.id, rows.values())
    for row in found:
        number, vector = rows[row.id], row.vector
        old = known.get(number)
        is_as_before = old is not None and vector is not None and _is_same(old, vector, rounding)
        if is_as_before and row.id not in changed:
            continue
        if vector is not None:
            digest, before = given[row.id].text_sha256, remembered.get(number)
            if one := _stale(vector, row.is_stale, digest, is_as_before, before, rounding):
                stale[number], vector = one, None
        if vector is None:
            if old is not None and row.id not in changed:
                lacking.append(number)
        elif _fits(vector, active):
            came[number] = vector
    vectors.put(connection, active.id, list(came), came.values())
    state.take_out(connection, active.id, came)
    state.put(connection, active.id, lacking)
    if active.space.is_foreign:  # else one that is lacking is made here
        state.forget_stale(connection, active.id, came)
        state.remember_stale(connection, active.id, stale)


def _stale(
    vector: np.ndarray,
    is_noted: bool | None,
    text_sha256: bytes,
    is_as_before: bool,
    remembered: StaleVector | None,
    rounding: float,
) -> StaleVector | None:
    """A row's vector where it is of an earlier text: what the home noted goes first.

    text_sha256: of the row's text. is_as_before: that is another than it was, and the vector is
    not. remembered: one that was stale when it was seen last; a home that rounds may have done so
    once more since.
    """
    if remembered is not None and not _is_same(remembered.vector, vector, rounding):
        remembered = None
    if remembered is not None and remembered.text_sha256 == text_sha256:
        return None  # its own text has come back
    is_stale = is_as_before or remembered is not None if is_noted is None else is_noted
    return StaleVector(vector, remembered.text_sha256 if remembered else None) if is_stale else None


def _remember_stale(
    connection: sqlite3.Connection,
    collection: Collection,
    changing: Sequence[StoredDocument | None],
) -> None:
    """What documents whose text changes have of foreign spaces stays outside, of the text before.

    Also of a space that others do not read now: it may be read again.
    """
    texts = {document.row: document.text_sha256 for document in changing if document is not None}
    for version in versions.of_collection(connection, collection.id):
        if version.space.is_foreign and not version.space.is_bridge:
            here = vectors.get(connection, version.id, list(texts))
            seen = {row: StaleVector(vector, texts[row]) for row, vector in here.items()}
            state.remember_stale(connection, version.id, seen)


def _differs(document: StoredDocument | None, new: Document) -> bool:
    return document is None or document.text_sha256 != new.text_sha256


def _is_same(old: np.ndarray, new: np.ndarray, rounding: float) -> bool:
    if rounding == 0.0 or old.shape != new.shape:
        return np.array_equal(old, new)
    return bool(np.abs(old - new).max() <= rounding * np.abs(old).max())


def _fits(vector: np.ndarray, version: Version) -> bool:
    return len(vector) == version.space.dimensions and bool(np.isfinite(vector).all())

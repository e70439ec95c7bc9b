"""Documents of a collection: put, found, listed in their order, deleted.

Functions over a connection that is in a transaction, which the caller holds. Words for BM25 and
vectors are kept in step here: a text that changes or goes takes its vectors of every version along.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from plimsoll.corpora import vectors, versions
from plimsoll.corpora.filters import Condition
from plimsoll.corpora.records import Document, StoredDocument, text_sha256
from plimsoll.corpora.schema import documents_table, words_table

_COLUMNS = "row, id, text, metadata, text_sha256"
_N_BYTES = "length(CAST(text AS BLOB)) + length(CAST(metadata AS BLOB))"


@dataclass(frozen=True)
class SeenDocument:
    """What a document was in one transaction, by which another knows it again.

    n_bytes: of text and metadata, in UTF-8.
    """

    row: int
    text_sha256: bytes
    n_bytes: int


def as_json(metadata: Mapping[str, Any]) -> str:
    """Metadata in the one form that is stored, so that equal ones are equal strings."""
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def put(
    connection: sqlite3.Connection, collection: int, documents: Sequence[Document]
) -> list[int]:
    """Add documents, or change those whose id is there; returns their rows, in order.

    A changed document keeps its row. Where its text is another, its vectors go.
    """
    rows, stale = list[int](), list[int]()
    for document in documents:
        before = get(connection, collection, document.id)
        if before is None:
            rows.append(_insert(connection, collection, document))
            continue
        rows.append(before.row)
        _update(connection, collection, before, document)
        if before.text_sha256 != document.text_sha256:
            stale.append(before.row)
    _delete_vectors(connection, collection, stale)
    return rows


def delete(connection: sqlite3.Connection, collection: int, ids: Iterable[str]) -> int:
    """Delete documents with their vectors of every version; returns how many there were."""
    query = f"DELETE FROM {documents_table(collection)} WHERE id = ? RETURNING row, text"
    rows = list[int]()
    for document_id in ids:
        found = connection.execute(query, (document_id,)).fetchone()
        if found is not None:
            _take_out_words(connection, collection, *found)
            rows.append(found[0])
    _delete_vectors(connection, collection, rows)
    return len(rows)


def get(connection: sqlite3.Connection, collection: int, document_id: str) -> StoredDocument | None:
    """The document of this id."""
    found = connection.execute(
        f"SELECT {_COLUMNS} FROM {documents_table(collection)} WHERE id = ?", (document_id,)
    ).fetchone()
    return None if found is None else _document(found)


def of_rows(
    connection: sqlite3.Connection, collection: int, rows: Sequence[int]
) -> list[StoredDocument]:
    """The documents in these rows, in the order asked for; those that are gone are left out."""
    query = f"SELECT {_COLUMNS} FROM {documents_table(collection)} WHERE row = ?"
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return [_document(values) for values in found if values is not None]


def seen(
    connection: sqlite3.Connection, collection: int, rows: Sequence[int]
) -> list[SeenDocument]:
    """What the documents in these rows are now, in the order asked for; no text is read."""
    query = f"""SELECT row, text_sha256, {_N_BYTES}
        FROM {documents_table(collection)} WHERE row = ?"""
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return [SeenDocument(*values) for values in found if values is not None]


def still(
    connection: sqlite3.Connection,
    collection: int,
    before: Sequence[SeenDocument],
    condition: Condition | None = None,
) -> list[StoredDocument]:
    """Those of the documents that have the text and the size that were seen before, in that order.

    condition: and that fit it now.
    """
    fitting, values = (
        ("", ()) if condition is None else (f"AND ({condition.sql})", condition.values)
    )
    query = f"""SELECT {_COLUMNS} FROM {documents_table(collection)}
        WHERE row = ? AND text_sha256 = ? AND {_N_BYTES} = ? {fitting}"""
    found = (
        connection.execute(query, (each.row, each.text_sha256, each.n_bytes, *values)).fetchone()
        for each in before
    )
    return [_document(values) for values in found if values is not None]


def hashes(
    connection: sqlite3.Connection, collection: int, rows: Sequence[int]
) -> dict[int, bytes]:
    """SHA-256 of the texts in these rows, of those that are there."""
    query = f"SELECT row, text_sha256 FROM {documents_table(collection)} WHERE row = ?"
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return dict(pair for pair in found if pair is not None)


def ids(connection: sqlite3.Connection, collection: int, rows: Sequence[int]) -> list[str]:
    """Ids of the documents in these rows, in the order asked for; no text is read."""
    query = f"SELECT id FROM {documents_table(collection)} WHERE row = ?"
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return [values[0] for values in found if values is not None]


def having(connection: sqlite3.Connection, collection: int, ids: Iterable[str]) -> set[str]:
    """Those of these ids that a document has."""
    query = f"SELECT 1 FROM {documents_table(collection)} WHERE id = ?"
    return {each for each in {*ids} if connection.execute(query, (each,)).fetchone()}


def after(
    connection: sqlite3.Connection, collection: int, row: int, most: int
) -> list[StoredDocument]:
    """Up to `most` documents in the rows after `row`, in their order; 0 begins at the first."""
    return [*islice(following(connection, collection, row), most)]


def following(
    connection: sqlite3.Connection, collection: int, row: int
) -> Iterator[StoredDocument]:
    """All of them, read one by one as they are taken."""
    query = f"SELECT {_COLUMNS} FROM {documents_table(collection)} WHERE row > ? ORDER BY row"
    return map(_document, connection.execute(query, (row,)))


def count(connection: sqlite3.Connection, collection: int) -> int:
    """How many there are."""
    (n,) = connection.execute(f"SELECT count(*) FROM {documents_table(collection)}").fetchone()
    return int(n)


def rows(connection: sqlite3.Connection, collection: int) -> np.ndarray:
    """The rows of all documents, int64 (n,), in any order: SQLite reads the index of ids alone."""
    found = connection.execute(f"SELECT row FROM {documents_table(collection)}")
    return np.fromiter((row for (row,) in found), np.int64)


def n_changed_texts(connection: sqlite3.Connection, collection: int) -> int:
    """Documents whose text is not the one that its hash names: damage, or an edit by hand."""
    found = connection.execute(f"SELECT text, text_sha256 FROM {documents_table(collection)}")
    return sum(text_sha256(text) != digest for text, digest in found)


def openings(
    connection: sqlite3.Connection, collection: int, rows: Sequence[int], n_characters: int
) -> list[str]:
    """The first characters of the texts in these rows, of those that are there."""
    query = f"SELECT substr(text, 1, ?) FROM {documents_table(collection)} WHERE row = ?"
    found = (connection.execute(query, (n_characters, row)).fetchone() for row in rows)
    return [values[0] for values in found if values is not None]


def text_counts(connection: sqlite3.Connection, collection: int) -> tuple[int, int, int]:
    """How many documents, how many of them without text, how many with the text of another."""
    n, n_blank, n_different = connection.execute(
        f"""SELECT count(*), total(trim(text, char(9, 10, 13, 32)) = ''),
        count(DISTINCT text_sha256) FROM {documents_table(collection)}"""
    ).fetchone()
    return n, int(n_blank), n - n_different


def _insert(connection: sqlite3.Connection, collection: int, document: Document) -> int:
    (row,) = connection.execute(
        f"""INSERT INTO {documents_table(collection)} (id, text, metadata, text_sha256)
        VALUES (?, ?, ?, ?) RETURNING row""",
        (document.id, document.text, as_json(document.metadata), document.text_sha256),
    ).fetchone()
    _put_in_words(connection, collection, row, document.text)
    return int(row)


def _update(
    connection: sqlite3.Connection,
    collection: int,
    before: StoredDocument,
    document: Document,
) -> None:
    connection.execute(
        f"""UPDATE {documents_table(collection)} SET text = ?, metadata = ?, text_sha256 = ?
        WHERE row = ?""",
        (document.text, as_json(document.metadata), document.text_sha256, before.row),
    )
    if before.text_sha256 != document.text_sha256:
        _take_out_words(connection, collection, before.row, before.text)
        _put_in_words(connection, collection, before.row, document.text)


def n_bytes(connection: sqlite3.Connection, collection: int, rows: Sequence[int]) -> int:
    """Of the texts and the metadata in these rows, in UTF-8."""
    query = f"SELECT {_N_BYTES} FROM {documents_table(collection)} WHERE row = ?"
    found = (connection.execute(query, (row,)).fetchone() for row in rows)
    return sum(values[0] for values in found if values is not None)


def fitting(
    connection: sqlite3.Connection, collection: int, condition: Condition, rows: range
) -> np.ndarray:
    """Those of the rows whose documents' metadata fit, int64, ascending."""
    query = f"""SELECT row FROM {documents_table(collection)}
        WHERE row BETWEEN ? AND ? AND ({condition.sql}) ORDER BY row"""
    found = connection.execute(query, (rows.start, rows.stop - 1, *condition.values))
    return np.fromiter((row for (row,) in found), np.int64)


def _delete_vectors(connection: sqlite3.Connection, collection: int, rows: Sequence[int]) -> None:
    if rows:
        for version in versions.of_collection(connection, collection):
            vectors.delete(connection, version.id, rows)


def _put_in_words(connection: sqlite3.Connection, collection: int, row: int, text: str) -> None:
    connection.execute(
        f"INSERT INTO {words_table(collection)} (rowid, text) VALUES (?, ?)", (row, text)
    )


def _take_out_words(connection: sqlite3.Connection, collection: int, row: int, text: str) -> None:
    """FTS5 does not keep the text, and has to be told what it was to take out its words."""
    words = words_table(collection)
    connection.execute(
        f"INSERT INTO {words} ({words}, rowid, text) VALUES ('delete', ?, ?)", (row, text)
    )


def _document(values: tuple[Any, ...]) -> StoredDocument:
    row, document_id, text, metadata, digest = values
    return StoredDocument(row, document_id, text, metadata, digest)

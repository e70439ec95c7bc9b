"""Documents of a collection one page after another, with their vectors of one version.

A function over a connection that is in a transaction, which the caller holds. A page ends where it
would take too much, so it may be shorter than asked for.
"""

import sqlite3
from dataclasses import dataclass

import numpy as np

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.records import StoredDocument, Version
from plimsoll.policy.costs import LISTED_BYTES, LISTED_NUMBERS


@dataclass(frozen=True)
class DocumentPage:
    """Documents in the order in which they came. after: where the next page begins; None: nowhere.

    vectors: float32 (dimensions,) of `version` by row, of those that have one.
    """

    version: Version
    documents: list[StoredDocument]
    vectors: dict[int, np.ndarray]
    after: int | None


def page_after(
    connection: sqlite3.Connection,
    name: str,
    row: int,
    most: int,
    *,
    version: int | None = None,
    has_vectors: bool = False,
) -> DocumentPage:
    """Up to `most` documents in the rows after `row`; version: None is the active one.

    Raises UnknownCollectionError, and InvalidRequestError for a version that is not there.
    """
    collection = versions.find(connection, name)
    chosen = collection.active
    if version is not None:
        chosen = versions.of_number(connection, collection, version)
    if has_vectors:
        most = min(most, max(1, LISTED_NUMBERS // chosen.space.dimensions))
    found, n_bytes, has_more = list[StoredDocument](), 0, False
    for document in documents.following(connection, collection.id, row):
        n_bytes += len(document.text.encode()) + len(document.metadata_json.encode())
        if found and (n_bytes > LISTED_BYTES or len(found) == most):
            has_more = True
            break
        found.append(document)
    rows = [document.row for document in found]
    return DocumentPage(
        chosen,
        found,
        vectors.get(connection, chosen.id, rows) if has_vectors else {},
        rows[-1] if has_more else None,
    )

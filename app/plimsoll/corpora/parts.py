"""The parts of a search: versions that it reads together, each in a space of its own.

While a collection moves, documents that have a vector of the new version are ranked by it, and the
rest by the old one, which mostly has vectors of all. Cosines of two spaces do not compare, so ranks
are merged: the last part ranks what it has, and each part before it puts its own documents, in its
order, into the places that they hold there. So no guess is needed of where the best of a small part
stands in the whole, and both ends are exact: the old order with nothing done, the new one with all.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plimsoll.corpora import vectors
from plimsoll.corpora.ranking import Ranked, fused, in_places
from plimsoll.corpora.records import Version


@dataclass(frozen=True)
class SearchPart:
    """A version, and the query as it is compared with its vectors, float32 (dimensions,).

    Of several, the first that has a vector of a document answers for it.
    """

    version: Version
    query: np.ndarray


@dataclass(frozen=True)
class PartFound:
    """What a part has found: its nearest rows, whether it answers for them or not.

    n_documents: those that it answers for, among which the search was.
    """

    version: Version
    near: Ranked
    n_documents: int


def merged(connection: sqlite3.Connection, found: Sequence[PartFound], most: int) -> Ranked:
    """The `most` best rows of all parts, given in order of their precedence.

    A lone part's scores are its cosines; of several a score is as reciprocal rank fusion has it.
    """
    *ahead, last = found
    if not ahead:
        return last.near
    order, behind = last.near.rows.tolist(), [last.version]
    for part in reversed(ahead):
        own = part.near.rows.tolist()
        held = vectors.having(connection, part.version.id, order)
        placed = set[int]()
        for version in behind:
            placed |= vectors.having(connection, version.id, own)
        order = in_places(order, held, own, placed, most)
        behind.append(part.version)
    return fused([Ranked(np.array(order, np.int64), np.zeros(len(order)))], most)

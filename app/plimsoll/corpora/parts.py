"""The parts of a search: versions that it reads together, each in a space of its own.

While a collection moves, documents that have a vector of the new version are ranked by it, and the
rest by the old one, which mostly has vectors of all. Cosines of two spaces do not compare, so ranks
are merged: the last part ranks what it has, and each part before it puts its own documents, in its
order, into the places that they hold there. So no guess is needed of where the best of a small part
stands in the whole, and both ends are exact: the old order with nothing done, the new one with all.

Bridged vectors lie near the new ones and are asked by the same query: those two parts are merged by
their cosines.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plimsoll.corpora import vectors
from plimsoll.corpora.ranking import Ranked, best, fused, in_places
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

    Where all were asked by one query, scores are cosines; else a score is as reciprocal rank fusion
    has it.
    """
    *ahead, last = found
    if len({part.version.space.query_fingerprint for part in found}) == 1:
        rows = np.concatenate([part.near.rows for part in found])
        return best(rows, np.concatenate([part.near.scores for part in found]), most)
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

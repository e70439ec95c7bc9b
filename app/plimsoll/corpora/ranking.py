"""Rows in order of their scores, and several orders made one. Pure.

Equal scores stand in the order of their rows, so that an order never depends on how it was found.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

# Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet", SIGIR 2009.
FUSION_K = 60


@dataclass(frozen=True)
class Ranked:
    """Rows, int64 (n,), best first, and their scores, float64 (n,): more is better."""

    rows: np.ndarray
    scores: np.ndarray

    @classmethod
    def none(cls) -> "Ranked":
        """An order of nothing."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float64))


def best(rows: np.ndarray, scores: np.ndarray, most: int) -> Ranked:
    """The `most` best of rows in any order."""
    if len(rows) > most:
        last = np.partition(scores, -most)[-most]
        kept = scores >= last  # those that equal the last one compete by their rows
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:most]
    return Ranked(rows[order], scores[order].astype(np.float64))


def in_places(
    whole: Sequence[int],
    held: Container[int],
    order: Sequence[int],
    placed: Container[int],
    most: int,
) -> list[int]:
    """The `most` first of `whole` with the rows that a better judge knows put in its order.

    whole: rows, best first. held: those whose places the judge fills. order: rows as the judge has
    them. placed: those of them that have a place in the whole, be it further down than is given;
    one that has none comes along with the next that has.
    """
    known, merged = iter(order), list[int]()
    for row in whole:
        if row not in held:
            merged.append(row)
            continue
        for better in known:
            merged.append(better)
            if better in placed:
                break
    return [*merged, *known][:most]


def fused(orders: Sequence[Ranked], most: int) -> Ranked:
    """Reciprocal rank fusion: a row's score is the sum over orders of 1 / (60 + its rank)."""
    rows, places = np.unique(np.concatenate([order.rows for order in orders]), return_inverse=True)
    shares = np.concatenate([1 / (FUSION_K + 1 + np.arange(len(order.rows))) for order in orders])
    return best(rows, np.bincount(places, shares, len(rows)), most)

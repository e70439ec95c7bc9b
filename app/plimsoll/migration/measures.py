"""Measures of a search's answers: against judgements, and against another version's. Pure.

nDCG as Järvelin and Kekäläinen have it (TOIS 2002), with the grade itself as the gain.
"""

from collections.abc import Mapping, Sequence
from math import log2, sqrt

import numpy as np

DEPTH = 10


def ndcg(found: Sequence[str], grades: Mapping[str, float]) -> float:
    """Of the first DEPTH found, beside the best order there could be; grades: by document, > 0."""
    best = sorted(grades.values(), reverse=True)[:DEPTH]
    gained = _discounted([grades.get(document, 0.0) for document in found[:DEPTH]])
    return gained / _discounted(best)


def recall(found: Sequence[str], grades: Mapping[str, float]) -> float:
    """The share of relevant documents, DEPTH of them at most, among the first DEPTH found."""
    n_found = sum(document in grades for document in found[:DEPTH])
    return n_found / min(DEPTH, len(grades))


def mean_overlap(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], n_documents: int
) -> float:
    """How far two lists of neighbours agree beyond chance: 1 wholly, 0 as far as random ones do.

    n_documents: how many there were to choose from.
    """
    shares = [
        len({*ours} & {*theirs}) / max(1, len(ours))
        for ours, theirs in zip(first, second, strict=True)
    ]
    depth = max((len(ours) for ours in first), default=0)
    by_chance = depth / max(1, n_documents)
    if by_chance >= 1:
        return 0.0
    return (float(np.mean(shares)) - by_chance) / (1 - by_chance)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / log2(place + 2) for place, gain in enumerate(gains))

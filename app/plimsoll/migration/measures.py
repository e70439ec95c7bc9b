"""Measures of a search's answers: against judgements, and against another version's. Pure.

nDCG as Järvelin and Kekäläinen have it (TOIS 2002), with the grade itself as the gain.
"""

from collections.abc import Mapping, Sequence
from math import log2, sqrt

import numpy as np

DEPTH = 10
# How much a rank weighs beside the one before it: the first ten have 86 % of the whole.
PERSISTENCE = 0.9


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


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """The share of the longer list that both have; of two empty ones 0."""
    return len({*first} & {*second}) / max(1, len(first), len(second))


def rank_biased_overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """How far two orders agree, 1 wholly and 0 not at all; what is nearer the top weighs more.

    Extrapolated from the depth that both have, at least 1: Webber, Moffat and Zobel, "A similarity
    measure for indefinite rankings", TOIS 2010, equation 23.
    """
    depth = min(len(first), len(second))
    n_shared, weight, agreed = 0, 1.0, 0.0
    for d in range(1, depth + 1):
        n_shared = len({*first[:d]} & {*second[:d]})
        weight *= PERSISTENCE
        agreed += n_shared / d * weight
    return n_shared / depth * weight + (1 - PERSISTENCE) / PERSISTENCE * agreed


def standard_error(values: Sequence[float]) -> float:
    """Of the mean."""
    return float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / log2(place + 2) for place, gain in enumerate(gains))

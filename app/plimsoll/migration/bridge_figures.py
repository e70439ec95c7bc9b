"""What a bridge is worth: how much of what the new model finds is found by bridged vectors. Pure.

Measured on documents that the map was not fitted on. Retention is recall@10: of the 10 nearest by
the new model's own vectors, the share that is among the 10 nearest by bridged ones, asked by the
new model's vectors of the documents themselves.

Only a sample has both vectors. In it neighbours lie further apart than among all documents, and
are told apart more easily: of 200 of Cranfield's documents recall@10 is 0.67, and of all 0.62. Of
the 10 nearest among all, a sample of a tenth has one: recall is measured at the depth that stands
for 10 among all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from plimsoll.migration.bridge_map import Fit, KindName, fit
from plimsoll.migration.measures import DEPTH, ndcg, standard_error

LEAST_RETENTION = 0.95
# Fewer say nothing: their 10 nearest are found by chance.
LEAST_DOCUMENTS = 50
# Their texts are embedded before anything is bridged, and their vectors held while it is fitted.
MOST_DOCUMENTS = 2000
# More would leave little to be bridged.
MOST_RATIO = 0.5
LEAST_QUERIES = 10
QUERIES_AT_ONCE = 256
# Of 95 % of a normal distribution, in standard errors.
INTERVAL = 1.96


class TooFewDocumentsError(ValueError):
    """A bridge cannot be fitted on so few documents."""


@dataclass(frozen=True)
class BridgeFigures:
    """What a fit came to. kind, strength: as in bridge_map.Kind.

    documents: that it was fitted and measured on. depth: in this sample, of the retention.
    cosine: the mean of bridged vectors to the real ones. queries: judged ones that have a relevant
    document among these; with fewer than LEAST_QUERIES there is no nDCG. fit_s: seconds of fitting
    and measuring. row_s: of one vector.
    """

    documents: int
    depth: int
    kind: KindName
    strength: float | None
    retention: float
    standard_error: float
    cosine: float
    fit_s: float
    row_s: float
    queries: int = 0
    real_ndcg_at_10: float | None = None
    bridged_ndcg_at_10: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Of the retention, 95 % of it."""
        half = INTERVAL * self.standard_error
        return max(0.0, self.retention - half), min(1.0, self.retention + half)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.interval
        return asdict(self) | {"least": low, "most": high}


def sample_size(n_documents: int) -> int:
    """How many documents a bridge is fitted on."""
    return min(MOST_DOCUMENTS, int(MOST_RATIO * n_documents))


def check_enough(n_documents: int) -> None:
    """Raise TooFewDocumentsError where a bridge fitted on so many would say nothing."""
    if n_documents < LEAST_DOCUMENTS:
        raise TooFewDocumentsError(
            f"it would be fitted on {n_documents} documents, half of those of different texts that "
            f"have an old vector, and {LEAST_DOCUMENTS} are the least"
        )


def why_refused(figures: BridgeFigures) -> str | None:
    """Why searches are not to read this bridge; None where they are."""
    if figures.retention >= LEAST_RETENTION:
        return None
    low, high = figures.interval
    return (
        f"its retention is {figures.retention:.3f} ({low:.3f} to {high:.3f}), and "
        f"{LEAST_RETENTION} is the least"
    )


def fitted(
    old: np.ndarray,
    new: np.ndarray,
    n_documents: int,
    queries: np.ndarray | None = None,
    relevant: Sequence[Mapping[int, float]] = (),
) -> tuple[Fit, BridgeFigures]:
    """Fit a bridge on pairs of vectors, and measure it.

    old: float32 (n, old). new: float32 (n, new), of length 1. n_documents: that they were drawn
    from. queries: float32 (m, new), of judged queries, of length 1; relevant: of each of them
    grades by the place of a pair.
    Raises TooFewDocumentsError.
    """
    check_enough(len(old))
    began_s = perf_counter()
    found = fit(old, new)
    depth = sample_depth(len(old), n_documents)
    recalls = neighbour_recalls(found.held_out, new, depth)
    mapping_s = perf_counter()
    found.map(old)
    ended_s = perf_counter()
    n_queries, real_ndcg, bridged_ndcg = 0, None, None
    if queries is not None and len(queries) >= LEAST_QUERIES:
        n_queries = len(queries)
        real_ndcg = _mean_ndcg(new, queries, relevant)
        bridged_ndcg = _mean_ndcg(found.held_out, queries, relevant)
    return found, BridgeFigures(
        documents=len(old),
        depth=depth,
        kind=found.kind.name,
        strength=found.kind.strength,
        retention=float(np.mean(recalls)),
        standard_error=standard_error(recalls.tolist()),
        cosine=found.cosine,
        fit_s=mapping_s - began_s,
        row_s=(ended_s - mapping_s) / len(old),
        queries=n_queries,
        real_ndcg_at_10=real_ndcg,
        bridged_ndcg_at_10=bridged_ndcg,
    )


def sample_depth(n_sampled: int, n_documents: int) -> int:
    """How many of a sample's documents stand for the DEPTH nearest of all: one at least."""
    return max(1, round(DEPTH * min(1.0, n_sampled / n_documents)))


def neighbour_recalls(bridged: np.ndarray, new: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """Of each document the share of its `depth` nearest that bridged vectors find too, float64.

    bridged, new: float32 (n, new), of length 1, n greater than depth. A document is not its own
    neighbour. Returns (n,).
    """
    shares = np.empty(len(new))
    for start in range(0, len(new), QUERIES_AT_ONCE):
        asked = np.arange(start, min(start + QUERIES_AT_ONCE, len(new)))
        real, found = (_nearest(new[asked], among, asked, depth) for among in (new, bridged))
        shares[asked] = [
            len({*ours} & {*theirs}) / depth
            for ours, theirs in zip(found.tolist(), real.tolist(), strict=True)
        ]
    return shares


def _nearest(
    queries: np.ndarray, among: np.ndarray, themselves: np.ndarray, depth: int
) -> np.ndarray:
    """Places of the `depth` nearest, int64 (m, depth), in any order, without the query's own."""
    scores = queries @ among.T
    scores[np.arange(len(queries)), themselves] = -np.inf
    return np.argpartition(-scores, depth - 1, axis=1)[:, :depth]


def _mean_ndcg(
    vectors: np.ndarray, queries: np.ndarray, relevant: Sequence[Mapping[int, float]]
) -> float:
    found = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :DEPTH]
    gains = [
        ndcg([*map(str, places)], {str(place): grade for place, grade in grades.items()})
        for places, grades in zip(found.tolist(), relevant, strict=True)
    ]
    return float(np.mean(gains))

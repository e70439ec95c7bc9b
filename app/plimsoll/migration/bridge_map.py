"""A map from one vector space into another, fitted on vectors of the same texts. Pure NumPy.

Three kinds are fitted between the centred vectors, those with a strength with several of them:
`ridge` regression; `shift`, the same of what two spaces of one size differ by, so that it leaves
alone what it knows nothing of, as is right for two quantizations of a model; and orthogonal
`procrustes`, which turns and does nothing else (Schönemann, Psychometrika 1966). Each is tried on
pairs that it was not fitted on: they are cut into FOLDS parts, and what is said of a part comes
from a map of the others. The best one, by the mean cosine to the real vectors, is then fitted on
all of them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from plimsoll.corpora.vectors import STORED, unit

FOLDS = 5
# Of regressions, beside the mean variance of an old value.
STRENGTHS = (1e-2, 1e-1, 1.0, 10.0)
BLOCK_ROWS = 512
# Of each map while it is fitted: sums in float64, what is solved, and the solver's copy of it.
SQUARES, RECTANGLES = 3, 4


@dataclass(frozen=True)
class BridgeMap:
    """Old vectors, of length 1, to new ones: (old - old_mean) @ matrix + new_mean, of length 1.

    old_mean: float32 (old,). new_mean: float32 (new,). matrix: float32 (old, new).
    """

    old_mean: np.ndarray
    new_mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, old: np.ndarray) -> np.ndarray:
        """Bridged vectors, float32 (n, new), of length 1. old: float32 (n, old), of any length."""
        return unit((unit(old) - self.old_mean) @ self.matrix + self.new_mean)

    @property
    def digest(self) -> str:
        """What tells it from every other map."""
        return hashlib.sha256(self.as_bytes()).hexdigest()[:16]

    def as_bytes(self) -> bytes:
        """Its numbers as they are stored."""
        parts = (self.old_mean, self.new_mean, self.matrix)
        return b"".join(part.astype(STORED).tobytes() for part in parts)

    @classmethod
    def of_bytes(cls, stored: bytes, n_old: int, n_new: int) -> "BridgeMap":
        """The map between vectors of these sizes, as `as_bytes` gave it."""
        values = np.frombuffer(stored, STORED)
        old_mean, new_mean, matrix = np.split(values, (n_old, n_old + n_new))
        return cls(old_mean, new_mean, matrix.reshape(n_old, n_new))


KindName: TypeAlias = Literal["ridge", "shift", "procrustes"]


@dataclass(frozen=True)
class Kind:
    """A way of fitting. strength: None where it has none."""

    name: KindName
    strength: float | None = None


@dataclass(frozen=True)
class Fit:
    """What was fitted, and how.

    held_out: float32 (n, new): each pair's bridged vector by a map that was fitted without it.
    cosine: the mean of theirs to the real ones.
    """

    map: BridgeMap
    kind: Kind
    held_out: np.ndarray
    cosine: float


def fit(old: np.ndarray, new: np.ndarray) -> Fit:
    """Fit on pairs in any order that owes nothing to their contents.

    old: float32 (n, old). new: float32 (n, new), of length 1. n is FOLDS at least.
    """
    old, kinds = unit(old), kinds_between(old.shape[1], new.shape[1])
    held_out = {kind: np.empty_like(new, np.float32) for kind in kinds}
    for part in range(FOLDS):
        is_left_out = np.arange(len(old)) % FOLDS == part
        sums = _sums(old[~is_left_out], new[~is_left_out])
        for kind, found in _maps(sums, kinds):
            held_out[kind][is_left_out] = found(old[is_left_out])
    cosines = {kind: float(np.mean(np.sum(held_out[kind] * new, axis=1))) for kind in kinds}
    best = max(kinds, key=cosines.__getitem__)
    ((_, whole),) = _maps(_sums(old, new), (best,))
    return Fit(whole, best, held_out[best], cosines[best])


def kinds_between(n_old: int, n_new: int) -> list[Kind]:
    """What is tried between vectors of these sizes."""
    names: list[KindName] = ["ridge", "shift"] if n_old == n_new else ["ridge"]
    regressions = [Kind(name, strength) for name in names for strength in STRENGTHS]
    return [*regressions, Kind("procrustes")]


def fit_bytes(n_pairs: int, n_old: int, n_new: int) -> int:
    """Predict what `fit` takes at its peak, the pairs included."""
    float32, float64 = np.dtype(np.float32).itemsize, np.dtype(np.float64).itemsize
    n_kinds = len(kinds_between(n_old, n_new))
    pairs = n_pairs * (3 * n_old + (n_kinds + 3) * n_new) * float32
    solving = (SQUARES * n_old * n_old + RECTANGLES * n_old * n_new) * float64
    return pairs + solving + BLOCK_ROWS * (n_old + n_new) * float64


@dataclass(frozen=True)
class _Sums:
    """Of n pairs: means, and products of what differs from them, all in float64."""

    old_mean: np.ndarray  # (old,)
    new_mean: np.ndarray  # (new,)
    old_old: np.ndarray  # (old, old)
    old_new: np.ndarray  # (old, new)


def _sums(old: np.ndarray, new: np.ndarray) -> _Sums:
    old_mean, new_mean = old.mean(axis=0, dtype=np.float64), new.mean(axis=0, dtype=np.float64)
    old_old = np.zeros((old.shape[1], old.shape[1]))
    old_new = np.zeros((old.shape[1], new.shape[1]))
    for start in range(0, len(old), BLOCK_ROWS):
        olds = old[start : start + BLOCK_ROWS] - old_mean
        old_old += olds.T @ olds
        old_new += olds.T @ (new[start : start + BLOCK_ROWS] - new_mean)
    return _Sums(old_mean, new_mean, old_old, old_new)


def _maps(sums: _Sums, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, BridgeMap]]:
    for kind in kinds:
        yield (
            kind,
            BridgeMap(
                sums.old_mean.astype(np.float32),
                sums.new_mean.astype(np.float32),
                _matrix(sums, kind).astype(np.float32),
            ),
        )


def _matrix(sums: _Sums, kind: Kind) -> np.ndarray:
    """Of a map, float64 (old, new)."""
    if kind.strength is None:
        left, _, right = np.linalg.svd(sums.old_new, full_matrices=False)
        turned: np.ndarray = left @ right
        return turned
    mean_variance = max(float(np.trace(sums.old_old)) / len(sums.old_old), np.finfo(float).tiny)
    penalised = sums.old_old.copy()
    penalised[np.diag_indices_from(penalised)] += kind.strength * mean_variance
    if kind.name == "ridge":
        return np.linalg.solve(penalised, sums.old_new)
    shift = np.linalg.solve(penalised, sums.old_new - sums.old_old)
    shift[np.diag_indices_from(shift)] += 1
    return shift

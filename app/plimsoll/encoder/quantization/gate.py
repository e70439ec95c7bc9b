"""The gate: how near int8 vectors are to float32 ones, and what stays in float32 so that they are.

Pure: vectors in, verdicts out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from plimsoll.errors import QuantizationError

# Texts of fewer tokens stay in float32, where that is enough.
SHORT_TOKENS = (0, 8, 16)
# Of the distance that is allowed, what the texts here may take: those of clients are others.
USED_RATIO = 0.8


@dataclass(frozen=True)
class Verdict:
    """How near int8 came to float32 on texts that were not used for calibration."""

    n_texts: int
    mean_cosine: float
    worst_cosine: float


@dataclass(frozen=True, slots=True)
class Int8Figures:
    """What of a model is computed in int8, and how near its vectors come to float32 ones."""

    linears: list[str]
    float32_below_tokens: int  # texts of fewer tokens are computed in float32
    verified_texts: int
    mean_cosine: float
    worst_cosine: float


@dataclass(frozen=True)
class Choice:
    """What is int8, and how near that comes."""

    linears: tuple[str, ...]  # names of those that are int8, in every layer
    short_tokens: int  # texts of fewer tokens stay in float32
    verdict: Verdict

    def figures(self) -> Int8Figures:
        """What operators are told."""
        return Int8Figures(
            linears=list(self.linears),
            float32_below_tokens=self.short_tokens,
            verified_texts=self.verdict.n_texts,
            mean_cosine=round(self.verdict.mean_cosine, 6),
            worst_cosine=round(self.verdict.worst_cosine, 6),
        )


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of each row with its counterpart, float64; 0 where a row is not finite."""
    a, b = vectors.astype(np.float64), others.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.nan_to_num(np.einsum("ij,ij->i", a, b) / norms)
    return found


def choices(linears: tuple[str, ...], near: np.ndarray, lengths: Sequence[int]) -> Iterable[Choice]:
    """A choice for each length below which texts may stay in float32.

    near: cosine of each text with everything in `linears` int8. lengths: its tokens.
    """
    for short_tokens in SHORT_TOKENS:
        found = np.where(np.asarray(lengths) < short_tokens, 1.0, near)
        verdict = Verdict(len(found), float(found.mean()), float(found.min()))
        yield Choice(linears, short_tokens, verdict)


def passes(choice: Choice, min_cosine: float) -> bool:
    """Whether the worst text is near enough, with something in hand for others."""
    return 1 - choice.verdict.worst_cosine <= USED_RATIO * (1 - min_cosine)


def check(choice: Choice, min_cosine: float) -> None:
    """Raise QuantizationError where the worst text is not near enough."""
    verdict = choice.verdict
    if verdict.worst_cosine < min_cosine:
        raise QuantizationError(
            f"int8 is refused: the worst of {verdict.n_texts} texts has cosine "
            f"{verdict.worst_cosine:.5f} to float32, below PLIMSOLL_MIN_COSINE {min_cosine:g}"
        )

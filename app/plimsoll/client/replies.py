"""What a server answers, as frozen records. Fields that a later server adds are left out."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from plimsoll.errors import NoAnswerError, RefusedError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextError:
    """Why a text has no vector: empty_text, too_long, non_finite, or the code of a 413."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Truncated:
    """A text of which `kept` of its `tokens` are in the vector."""

    index: int
    tokens: int
    kept: int


@dataclass(frozen=True, slots=True)
class Degraded:
    """Why words stand in place of vectors, and when to ask for those again."""

    reason: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Vectors of a list: float32 (texts, dimensions), NaN in rows of the texts in `errors`.

    Compare vectors only where the fingerprint is equal.
    """

    vectors: np.ndarray
    model: str
    fingerprint: str
    compute: str
    n_tokens: int
    truncated: tuple[Truncated, ...]
    errors: tuple[TextError, ...]
    warnings: tuple[str, ...]

    def complete(self) -> np.ndarray:
        """The vectors, where every text has one. Raises RefusedError for the first without."""
        if self.errors:
            first = self.errors[0]
            raise RefusedError(f"text {first.index}: {first.message}", code=first.code)
        return self.vectors

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class SparseVector:
    """A text's words by number, ascending, and their weights."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SparseEmbeddings:
    """BM25 vectors of words, for an index that brings the inverse document frequency."""

    vectors: tuple[SparseVector, ...]
    fingerprint: str
    degraded: Degraded

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document by its place in the list; scores compare within one answer."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Documents, best first. kind: dense, or bm25 where `degraded` says why."""

    kind: str
    fingerprint: str | None
    results: tuple[RankedDocument, ...]
    truncated: tuple[Truncated, ...]
    errors: tuple[TextError, ...]
    warnings: tuple[str, ...]
    degraded: Degraded | None


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A document of a collection; scores compare within one answer."""

    id: str
    score: float
    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SearchResults:
    """Documents, best first. mode: dense, bm25 or hybrid."""

    mode: str
    fingerprint: str | None
    results: tuple[FoundDocument, ...]
    warnings: tuple[str, ...]
    degraded: Degraded | None


def ranking_of(answer: Mapping[str, Any]) -> Ranking:
    """Raises KeyError and TypeError for what is no such answer."""
    return Ranking(
        answer["kind"],
        answer["fingerprint"],
        records(RankedDocument, answer["results"]),
        records(Truncated, answer["truncated"]),
        records(TextError, answer["errors"]),
        tuple(answer["warnings"]),
        degraded_of(answer),
    )


def search_results_of(answer: Mapping[str, Any]) -> SearchResults:
    """Raises KeyError and TypeError for what is no such answer."""
    return SearchResults(
        answer["mode"],
        answer["fingerprint"],
        records(FoundDocument, answer["results"]),
        tuple(answer["warnings"]),
        degraded_of(answer),
    )


def degraded_of(answer: Mapping[str, Any]) -> Degraded | None:
    """None where the answer is the primary one."""
    told = answer["degraded"]
    return None if told is None else records(Degraded, [told])[0]


def records(kind: type[T], rows: Iterable[Mapping[str, Any]]) -> tuple[T, ...]:
    """A record of a dataclass for each JSON object. Raises KeyError for a field that is missing."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    return tuple(kind(**{name: row[name] for name in names}) for row in rows)


@contextmanager
def reading() -> Iterator[None]:
    """Turn a field that is missing or of another kind into NoAnswerError."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise NoAnswerError(f"what answers is no Plimsoll: {error!r}") from error

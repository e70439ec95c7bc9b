"""What the use cases take and give: plain records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from app.encoder.model import Traits
from app.retrieval.bm25 import SparseVector

Fallback = Literal["bm25", "none"]
Encoder = Literal["dense", "bm25"]


@dataclass(frozen=True)
class EmbedTask:
    """What to embed and how; `dimensions` None means all of the model's, `model` None the first.

    encoder: bm25 asks for sparse vectors at any time. fallback: what a client can do with when
    the model cannot answer; most dialects have no place for anything but dense vectors.
    """

    texts: Sequence[str]
    input_type: str | None = None
    dimensions: int | None = None
    truncate: bool = True
    model: str | None = None
    encoder: Encoder = "dense"
    fallback: Fallback = "none"


@dataclass(frozen=True)
class Truncation:
    """A text that was cut: how many tokens it has and how many went in."""

    index: int
    tokens: int
    kept: int


@dataclass(frozen=True)
class TextFailure:
    """Why a text has no vector."""

    index: int
    code: str
    message: str


@dataclass
class Embeddings:
    """Dense vectors: `vectors[i]` is None exactly when `failures` holds index i."""

    traits: Traits
    input_type: str | None
    dimensions: int
    fingerprint: str
    warnings: list[str]
    vectors: list[np.ndarray | None] = field(default_factory=list)  # float32 (dimensions,)
    truncated: list[Truncation] = field(default_factory=list)
    failures: list[TextFailure] = field(default_factory=list)
    n_tokens: int = 0


@dataclass(frozen=True)
class Degraded:
    """Why an answer is not the primary one, and when to ask for that again."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True)
class SparseEmbeddings:
    """BM25 vectors; `degraded` is None where they were asked for."""

    fingerprint: str
    vectors: list[SparseVector]
    degraded: Degraded | None


@dataclass(frozen=True)
class Explanation:
    """What would become of a request, and the numbers that decide it.

    outcome: admit, wait, queue_full, too_large, breaker_open or model_loading. Tokens are those
    that would run.
    """

    outcome: str
    step: int
    n_texts: int
    n_tokens: int
    longest_tokens: int
    predicted_bytes: int
    predicted_s: float
    headroom_bytes: int
    largest_bytes: int
    queue_tokens: int
    tokens_per_s: float
    retry_after_s: float


@dataclass(frozen=True)
class RankTask:
    """Documents to put in order for a query."""

    query: str
    documents: Sequence[str]
    top_k: int | None = None
    model: str | None = None
    fallback: Fallback = "bm25"


@dataclass(frozen=True)
class Ranked:
    """A document's place in the list that was sent, and its score: more is better."""

    index: int
    score: float


@dataclass(frozen=True)
class Ranking:
    """Documents, best first. kind: dense where scores are cosines of embeddings, else bm25.

    truncated: documents of which only the beginning counts.
    """

    kind: Literal["dense", "bm25"]
    fingerprint: str | None
    results: list[Ranked]
    degraded: Degraded | None
    truncated: list[Truncation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    n_tokens: int = 0

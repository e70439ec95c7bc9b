"""What the use cases take and give: plain records, and how a text's failure fails a request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.tokenizer import Cut
from plimsoll.encoder.traits import Traits
from plimsoll.errors import EmptyTextError, NonFiniteError, RequestError, TextTooLongError
from plimsoll.policy.costs import CHARACTERS_PER_TOKEN
from plimsoll.policy.priority import Priority
from plimsoll.retrieval.bm25 import SparseVector

Fallback = Literal["bm25", "none"]
Encoder = Literal["dense", "bm25"]


@dataclass(frozen=True)
class EmbedTask:
    """What to embed and how; `dimensions` None means all of the model's, `model` None the first.

    encoder: bm25 asks for sparse vectors at any time. fallback: what a client can do with when
    the model cannot answer; most dialects have no place for anything but dense vectors.
    cut: the side of a long text that goes. priority: None: by its size.
    form: what the vectors are; "tokens": a state for each token, of all dimensions.
    token_ids: texts that their sender has tokenized, in place of `texts`.
    keep_alive_s: seconds without a request for which the model shall stay open from now on; None:
    as the server is set.
    encodings: how often each vector stands in the reply. echoed_bytes: of what else stands there.
    """

    texts: Sequence[str]
    input_type: str | None = None
    dimensions: int | None = None
    truncate: bool = True
    model: str | None = None
    encoder: Encoder = "dense"
    fallback: Fallback = "none"
    priority: Priority | None = None
    cut: Cut = "end"
    form: RowForm = "unit"
    token_ids: Sequence[Sequence[int]] | None = None
    keep_alive_s: float | None = None
    encodings: int = 1
    echoed_bytes: int = 0

    @property
    def n_texts(self) -> int:
        """How many texts there are, however they came."""
        return len(self.texts if self.token_ids is None else self.token_ids)

    @property
    def size(self) -> int:
        """Characters of the texts, as far as they are known."""
        if self.token_ids is None:
            return sum(map(len, self.texts))
        return CHARACTERS_PER_TOKEN * sum(map(len, self.token_ids))


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


_KINDS: dict[str, type[RequestError]] = {
    kind.code: kind for kind in (EmptyTextError, TextTooLongError)
}


def raise_first(
    failures: Sequence[TextFailure], place: Callable[[int], str], *, param: str
) -> None:
    """Raise the failure of the lowest index, as an error of its own kind; none: return.

    place: how the client finds the text of an index in the field `param`.
    Raises EmptyTextError, TextTooLongError, NonFiniteError.
    """
    if not failures:
        return
    first = min(failures, key=lambda failure: failure.index)
    message = f"{place(first.index)}: {first.message}"
    if first.code == "non_finite":
        raise NonFiniteError(message)
    raise _KINDS[first.code](message, param=param)


@dataclass
class Embeddings:
    """Dense vectors: `vectors[i]` is None exactly when `failures` holds index i.

    Of the form "tokens" each is float32 (tokens, dimensions).
    """

    traits: Traits
    input_type: str | None
    dimensions: int
    fingerprint: str
    warnings: list[str]
    vectors: list[np.ndarray | None] = field(default_factory=list)  # float32 (dimensions,)
    truncated: list[Truncation] = field(default_factory=list)
    failures: list[TextFailure] = field(default_factory=list)
    n_tokens: int = 0
    loading_s: float = 0.0  # that the request waited for its model to be open


@dataclass(frozen=True)
class Degraded:
    """Why an answer is not the primary one, and when to ask for that again.

    reason: code of the refusal. retry_after_s: None where waiting would not help.
    """

    reason: str
    retry_after_s: float | None


@dataclass(frozen=True)
class SparseEmbeddings:
    """BM25 vectors; `degraded` is None where they were asked for."""

    fingerprint: str
    vectors: list[SparseVector]
    degraded: Degraded | None


@dataclass(frozen=True)
class Explanation:
    """What would become of a request, and the numbers that decide it.

    outcome: admit, wait, no_room, queue_full, too_large, breaker_open or model_loading. Tokens are
    those that would run.
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
    """Documents to put in order for a query; the other fields as in EmbedTask.

    echoed_bytes: of what was sent, as it stands in the reply again.
    """

    query: str
    documents: Sequence[str]
    top_k: int | None = None
    model: str | None = None
    fallback: Fallback = "bm25"
    priority: Priority | None = None
    truncate: bool = True
    cut: Cut = "end"
    echoed_bytes: int = 0


@dataclass(frozen=True)
class Ranked:
    """A document's place in the list that was sent, and its score: more is better."""

    index: int
    score: float


@dataclass(frozen=True)
class Ranking:
    """Documents, best first. kind: dense where scores are cosines of embeddings, else bm25.

    truncated: documents of which only the beginning counts. failures: those without a vector,
    which `results` leaves out.
    """

    kind: Encoder
    fingerprint: str | None
    results: list[Ranked]
    degraded: Degraded | None
    truncated: list[Truncation] = field(default_factory=list)
    failures: list[TextFailure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    n_tokens: int = 0

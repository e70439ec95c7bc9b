"""The ranking use case: put documents that come with a request in order for its query.

By the cosine of embeddings; by words where the model cannot answer. Nothing is stored.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

import numpy as np

from plimsoll.errors import InvalidRequestError
from plimsoll.policy.costs import ranking_demand
from plimsoll.retrieval.ranking import count_words, rank_documents
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import degraded_by, with_fallback
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import (
    Degraded,
    Embeddings,
    EmbedTask,
    Ranked,
    Ranking,
    RankTask,
    raise_first,
)
from plimsoll.serving.threads import run_in
from plimsoll.telemetry.pressure import PressureMetrics

# rank-bm25 looks at every document once for each distinct word of the query.
MOST_QUERY_CHARACTERS = 10_000


class RankingService:
    """Ranks documents with what `embeddings` gives. `thread`: where scores are computed."""

    def __init__(
        self, embeddings: EmbeddingService, pressure: PressureMetrics, thread: Executor
    ) -> None:
        self._embeddings = embeddings
        self._pressure = pressure
        self._thread = thread

    async def rank(self, task: RankTask, permit: RequestPermit) -> Ranking:
        """Order documents for a query by the cosine of embeddings, or by their words.

        Raises as EmbeddingService.embed does, and for a query without a vector.
        """
        if not task.documents:
            raise InvalidRequestError("documents is empty; send at least one", param="documents")
        return await with_fallback(
            task.fallback,
            permit,
            self._pressure,
            lambda: self._by_vectors(task, permit),
            lambda refusal: self._by_words(task, permit, degraded_by(refusal)),
        )

    async def _by_vectors(self, task: RankTask, permit: RequestPermit) -> Ranking:
        query, *rest = await self._embeddings.embed_in_turn(
            [
                _half(task, [task.query], "search_query"),
                _half(task, task.documents, "search_document", task.echoed_bytes),
            ],
            permit,
        )
        raise_first(query.failures, lambda index: "query", param="query")
        (documents,) = rest
        return Ranking(
            kind="dense",
            fingerprint=documents.fingerprint,
            results=await self._in_thread(partial(_by_cosine, query, documents, task.top_k)),
            degraded=None,
            truncated=documents.truncated,
            failures=documents.failures,
            warnings=_warnings(query, documents),
            n_tokens=query.n_tokens + documents.n_tokens,
        )

    async def _by_words(self, task: RankTask, permit: RequestPermit, degraded: Degraded) -> Ranking:
        if len(task.query) > MOST_QUERY_CHARACTERS:
            raise InvalidRequestError(
                f"the query has {len(task.query)} characters, and ranking by words takes "
                f"{MOST_QUERY_CHARACTERS}; shorten it",
                param="query",
            )
        n_words = await run_in(self._thread, count_words, task.documents)
        permit.renew_now(ranking_demand(task.documents, n_words))
        results = await self._in_thread(partial(_by_words, task))
        return Ranking("bm25", None, results, degraded)

    async def similarities(self, embedded: Embeddings) -> list[float]:
        """Cosines of the first text with each of the others, in their order; all have vectors."""
        return await run_in(self._thread, _cosines_with_first, embedded)

    async def _in_thread(self, work: Callable[[], list[Ranked]]) -> list[Ranked]:
        return await run_in(self._thread, work)


def _half(
    task: RankTask, texts: Sequence[str], input_type: str, echoed_bytes: int = 0
) -> EmbedTask:
    """One half of a search: its query, or its documents."""
    return EmbedTask(
        texts,
        input_type,
        truncate=task.truncate,
        model=task.model,
        priority=task.priority,
        cut=task.cut,
        echoed_bytes=echoed_bytes,
    )


def _cosines_with_first(embedded: Embeddings) -> list[float]:
    first, *others = _rows(embedded).values()
    cosines: list[float] = (np.stack(others) @ first).tolist()
    return cosines


def _by_cosine(query: Embeddings, documents: Embeddings, top_k: int | None) -> list[Ranked]:
    (wanted,) = _rows(query).values()
    rows = _rows(documents)
    if not rows:
        return []
    return _best_first(list(rows), np.stack(list(rows.values())) @ wanted, top_k)


def _by_words(task: RankTask) -> list[Ranked]:
    scores = rank_documents(task.query, task.documents)
    return _best_first(range(len(scores)), scores, task.top_k)


def _warnings(query: Embeddings, documents: Embeddings) -> list[str]:
    """What a client should be told. Of prefixes nothing: the client has not asked for any."""
    said = [*documents.traits.notes]
    said += [
        f"query: only the first {cut.kept} of its {cut.tokens} tokens count"
        for cut in query.truncated
    ]
    return list(dict.fromkeys(said))


def _rows(answer: Embeddings) -> dict[int, np.ndarray]:
    """Vectors by their texts' indices, where there are any."""
    return {index: row for index, row in enumerate(answer.vectors) if row is not None}


def _best_first(indices: Sequence[int], scores: np.ndarray, top_k: int | None) -> list[Ranked]:
    """Documents by their scores; those of `scores[i]` are called `indices[i]`."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Ranked(indices[place], float(scores[place])) for place in order]

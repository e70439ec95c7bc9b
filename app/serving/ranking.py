"""The ranking use case: put documents that come with a request in order for its query.

By the cosine of embeddings; by words where the model cannot answer. Nothing is stored.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack

import numpy as np

from app.errors import InvalidRequestError, NonFiniteError
from app.retrieval.ranking import rank_documents
from app.serving.admission import ranking_demand
from app.serving.fallback import with_fallback
from app.serving.gate import AdmissionGate
from app.serving.service import EmbeddingService
from app.serving.tasks import Degraded, Embeddings, EmbedTask, Ranked, Ranking, RankTask
from app.telemetry import Telemetry

# rank-bm25 looks at every document once for each distinct word of the query.
MOST_QUERY_CHARACTERS = 10_000


class RankingService:
    """Ranks documents with what `embeddings` gives. `thread`: where words are counted."""

    def __init__(
        self,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        telemetry: Telemetry,
        thread: Executor,
    ) -> None:
        self._embeddings = embeddings
        self._gate = gate
        self._telemetry = telemetry
        self._thread = thread

    async def rank(self, task: RankTask, releases: ExitStack) -> Ranking:
        """Order documents for a query by the cosine of embeddings, or by their words.

        Raises as EmbeddingService.embed does, and for a query or a document without a vector.
        """
        if not task.documents:
            raise InvalidRequestError("documents is empty; send at least one", param="documents")
        return await with_fallback(
            task.fallback,
            releases,
            self._telemetry,
            lambda attempt: self._by_vectors(task, attempt),
            lambda degraded: self._by_words(task, releases, degraded),
        )

    async def _by_vectors(self, task: RankTask, releases: ExitStack) -> Ranking:
        query = await self._embed(task, [task.query], "search_query", releases)
        _raise_first(query, lambda index: "query", param="query")
        documents = await self._embed(task, task.documents, "search_document", releases)
        _raise_first(documents, lambda index: f"documents[{index}]", param="documents")
        (wanted,) = _rows(query)
        scores = np.stack(_rows(documents)) @ wanted
        return Ranking(
            kind="dense",
            fingerprint=documents.fingerprint,
            results=_best_first(scores, task.top_k),
            degraded=None,
            truncated=documents.truncated,
            warnings=_warnings(query, documents),
            n_tokens=query.n_tokens + documents.n_tokens,
        )

    async def _embed(
        self, task: RankTask, texts: Sequence[str], input_type: str, releases: ExitStack
    ) -> Embeddings:
        embed_task = EmbedTask(texts, input_type, model=task.model, fallback="none")
        answer = await self._embeddings.embed(embed_task, releases)
        assert isinstance(answer, Embeddings)  # noqa: S101 - the task has no fallback
        return answer

    async def _by_words(self, task: RankTask, releases: ExitStack, degraded: Degraded) -> Ranking:
        if len(task.query) > MOST_QUERY_CHARACTERS:
            raise InvalidRequestError(
                f"the query has {len(task.query)} characters, and ranking by words takes "
                f"{MOST_QUERY_CHARACTERS}; shorten it",
                param="query",
            )
        demand = ranking_demand(task.query, task.documents, is_fallback=True)
        releases.callback(self._gate.leave, self._gate.enter_now(demand))
        scores = await asyncio.get_running_loop().run_in_executor(
            self._thread, rank_documents, task.query, task.documents
        )
        return Ranking("bm25", None, _best_first(scores, task.top_k), degraded)


def _raise_first(answer: Embeddings, name: Callable[[int], str], *, param: str) -> None:
    """An order has no place for a text without a vector: the first one fails the request."""
    if not answer.failures:
        return
    first = min(answer.failures, key=lambda failure: failure.index)
    message = f"{name(first.index)}: {first.message}"
    if first.code == "non_finite":
        raise NonFiniteError(message)
    raise InvalidRequestError(message, param=param)


def _warnings(query: Embeddings, documents: Embeddings) -> list[str]:
    """What a client should be told; each once, though it may hold for both."""
    said = [*query.warnings, *documents.warnings]
    said += [
        f"query: only the first {cut.kept} of its {cut.tokens} tokens count"
        for cut in query.truncated
    ]
    return list(dict.fromkeys(said))


def _rows(answer: Embeddings) -> list[np.ndarray]:
    return [vector for vector in answer.vectors if vector is not None]


def _best_first(scores: np.ndarray, top_k: int | None) -> list[Ranked]:
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [Ranked(int(index), float(scores[index])) for index in order]

"""The use case of a search: by meaning, by words, or by both, in one collection.

A query is compared with vectors of its own space alone. Where that cannot be, a search that left
the mode open is answered by words, and says so; one that named its mode is refused.
"""

from collections.abc import Callable
from time import perf_counter
from typing import TypeAlias

from plimsoll.corpora.filters import Condition, parse_filter
from plimsoll.corpora.query_vectors import AT_FAULT, UNEMBEDDED, QueryVectors
from plimsoll.corpora.records import Collection, Version
from plimsoll.corpora.search_reading import Hits, SearchReading
from plimsoll.corpora.tasks import DegradedSearch, Found, SearchResults, SearchTask
from plimsoll.errors import PlimsollError
from plimsoll.policy.costs import (
    Demand,
    found_documents_bytes,
    vector_search_demand,
    word_search_demand,
)
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import DEGRADING, with_fallback
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.corpora import CorpusMetrics
from plimsoll.telemetry.pressure import PressureMetrics

# Of one search, where documents that it found change before they are read.
MOST_RANKINGS = 4

SearchListener: TypeAlias = Callable[[str, bool], None]
AnswerListener: TypeAlias = Callable[[SearchTask, SearchResults, float], None]


class CollectionSearch:
    """Searches collections."""

    def __init__(
        self,
        reading: SearchReading,
        embeddings: EmbeddingService,
        metrics: CorpusMetrics,
        pressure: PressureMetrics,
    ) -> None:
        self._reading = reading
        self._queries = QueryVectors(embeddings)
        self._metrics = metrics
        self._pressure = pressure
        self._listener: SearchListener | None = None
        self._answer_listener: AnswerListener | None = None
        pressure.expect_degraded(kind.code for kind in UNEMBEDDED)

    def listen(self, listener: SearchListener) -> None:
        """Tell `listener` of each search by meaning: its collection, and whether it was answered.

        It was not where the version or its model is at fault, or where nothing was found without a
        filter in a collection with documents. Refusals for want of memory are not told.
        """
        self._listener = listener

    def listen_to_answers(self, listener: AnswerListener) -> None:
        """Show `listener` each answer by meaning, with the seconds it took; it must not wait."""
        self._answer_listener = listener

    async def search(self, task: SearchTask, permit: RequestPermit) -> SearchResults:
        """The `top_k` best documents.

        Raises InvalidRequestError, UnknownCollectionError, SpaceMismatchError, StoreError,
        SearchStoppedError, and where the mode is not left open what EmbeddingService.embed_dense
        does.
        """
        began_s = perf_counter()
        condition = None if task.filter is None else parse_filter(task.filter)
        found = await self._answer(task, condition, permit)
        self._metrics.searched(found.mode, perf_counter() - began_s)
        return found

    async def by_meaning(self, task: SearchTask, permit: RequestPermit) -> SearchResults:
        """The answer by meaning alone, which counts as no client's search. Raises as `search`."""
        condition = None if task.filter is None else parse_filter(task.filter)
        return await self._by_meaning(task, condition, permit)

    async def make_ready(self, version: Version, permit: RequestPermit) -> None:
        """Have the first search of a version take no longer than those after it.

        Raises StoreError, OverloadErrors and TooLargeError.
        """
        await permit.renew(vector_search_demand(version.space.dimensions))
        await self._reading.make_ready(version)

    def stop(self) -> None:
        """End the searches that run, and those that come."""
        self._reading.stop()

    def close(self) -> None:
        """Give the copies of vectors back."""
        self._reading.close()

    async def _answer(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        if task.mode == "bm25":
            return await self._by_words(task, condition, permit, None)
        return await with_fallback(
            "bm25" if task.mode == "auto" else "none",
            permit,
            self._pressure,
            lambda: self._told_by_meaning(task, condition, permit),
            lambda refusal: self._by_words(task, condition, permit, _degraded(refusal)),
            UNEMBEDDED,
        )

    async def _told_by_meaning(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        began_s = perf_counter()
        try:
            found = await self._by_meaning(task, condition, permit)
        except DEGRADING:
            raise
        except AT_FAULT:
            self._tell(task.collection, is_answered=False)
            raise
        answered_s = perf_counter() - began_s
        is_answered = bool(found.results) or condition is not None
        if not is_answered:
            is_answered = await self._reading.is_empty(task.collection)
        self._tell(task.collection, is_answered=is_answered)
        if self._answer_listener is not None:
            self._answer_listener(task, found, answered_s)
        return found

    def _tell(self, collection: str, *, is_answered: bool) -> None:
        if self._listener is not None:
            self._listener(collection, is_answered)

    async def _by_meaning(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        n_rankings = 0
        while True:  # again where others are read now, or what was ranked has changed
            collection = await self._reading.collection(task)
            query = await self._queries.of(task, collection, permit)
            demand = vector_search_demand(query.dimensions)
            await permit.renew(demand)
            hits = await self._reading.near(task, condition, collection, query.parts)
            if hits is None:
                continue
            n_rankings += 1
            results = await self._documents(collection, hits, condition, demand, permit)
            if results is not None and _is_final(results, hits, n_rankings):
                break
        if collection.ahead:
            self._metrics.searched_in_parts(is_whole=not query.n_left_out)
        return SearchResults(
            mode="hybrid" if task.mode == "hybrid" else "dense",
            results=results,
            parts=hits.parts,
            warnings=query.warnings,
            n_tokens=query.n_tokens,
        )

    async def _by_words(
        self,
        task: SearchTask,
        condition: Condition | None,
        permit: RequestPermit,
        degraded: DegradedSearch | None,
    ) -> SearchResults:
        demand = word_search_demand()
        if degraded:  # it has waited already
            permit.renew_now(demand)
        else:
            await permit.renew(demand)
        n_rankings = 0
        while True:  # again where the name is another's, or what was ranked has changed
            collection, hits = await self._reading.by_words(task, condition)
            n_rankings += 1
            found = await self._documents(collection, hits, condition, demand, permit)
            if found is not None and _is_final(found, hits, n_rankings):
                return SearchResults("bm25", found, degraded=degraded)

    async def _documents(
        self,
        collection: Collection,
        hits: Hits,
        condition: Condition | None,
        demand: Demand,
        permit: RequestPermit,
    ) -> list[Found] | None:
        """The documents that were ranked, with memory reserved; those that changed are left out.

        A score is of the text that it stands with, and memory is known before any text is read.
        None where another collection has taken the name.
        """
        permit.renew_now(
            Demand(
                n_tokens=0,
                held_bytes=demand.held_bytes + found_documents_bytes(len(hits.seen), hits.n_bytes),
                is_fallback=demand.is_fallback,
            )
        )
        stored = await self._reading.documents(collection, hits, condition)
        if stored is None:
            return None
        scores = dict(zip(hits.ranked.rows.tolist(), hits.ranked.scores.tolist(), strict=True))
        return [Found(document, scores[document.row]) for document in stored]


def _is_final(found: list[Found], hits: Hits, n_rankings: int) -> bool:
    """Whether an answer is given: it is whole, or writers are quicker than it is ranked."""
    return len(found) == len(hits.ranked.rows) or n_rankings >= MOST_RANKINGS


def _degraded(refusal: PlimsollError) -> DegradedSearch:
    return DegradedSearch(refusal.code, f"searched by words: {refusal}", refusal.retry_after_s)

"""The use case of a search: by meaning, by words, or by both, in one collection.

A query is compared with vectors of its own space alone. Where that cannot be, a search that left
the mode open is answered by words, and says so; one that named its mode is refused.
"""

from collections.abc import Callable
from time import perf_counter
from typing import TypeAlias

from plimsoll.corpora.filters import Condition, parse_filter
from plimsoll.corpora.ranking import Ranked
from plimsoll.corpora.records import Collection
from plimsoll.corpora.search_reading import SearchReading
from plimsoll.corpora.spaces import check_space
from plimsoll.corpora.tasks import DegradedSearch, Found, SearchResults, SearchTask
from plimsoll.errors import (
    CacheError,
    EncodeError,
    GGUFError,
    InvalidRequestError,
    ModelError,
    PlimsollError,
    SpaceMismatchError,
    TooLargeError,
    UnknownModelError,
)
from plimsoll.policy.costs import (
    Demand,
    found_documents_bytes,
    vector_search_demand,
    word_search_demand,
)
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import DEGRADING, with_fallback
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first
from plimsoll.telemetry.corpora import CorpusMetrics
from plimsoll.telemetry.pressure import PressureMetrics

SearchListener: TypeAlias = Callable[[str, bool], None]

# The version or its model is at fault, if it is none of DEGRADING: waiting would not help.
AT_FAULT = (SpaceMismatchError, ModelError, GGUFError, CacheError, EncodeError)
# Why a search that left its mode open is answered by words.
SEARCH_DEGRADING = (*DEGRADING, *AT_FAULT, TooLargeError)


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
        self._embeddings = embeddings
        self._metrics = metrics
        self._pressure = pressure
        self._listener: SearchListener | None = None
        pressure.expect_degraded(kind.code for kind in SEARCH_DEGRADING)

    def listen(self, listener: SearchListener) -> None:
        """Tell `listener` of each search by meaning: its collection, and whether it was answered.

        It was not where the version or its model is at fault, or where nothing was found without a
        filter in a collection with documents. Refusals for want of memory are not told.
        """
        self._listener = listener

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
            SEARCH_DEGRADING,
        )

    async def _told_by_meaning(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        try:
            found = await self._by_meaning(task, condition, permit)
        except DEGRADING:
            raise
        except AT_FAULT:
            self._tell(task.collection, is_answered=False)
            raise
        is_answered = bool(found.results) or condition is not None
        if not is_answered:
            is_answered = await self._reading.is_empty(task.collection)
        self._tell(task.collection, is_answered=is_answered)
        return found

    def _tell(self, collection: str, *, is_answered: bool) -> None:
        if self._listener is not None:
            self._listener(collection, is_answered)

    async def _by_meaning(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        while True:  # again where another version became active, or the name is another's now
            collection = await self._reading.collection(task.collection)
            query = await self._embedded(collection, task, permit)
            (vector,) = query.vectors
            assert vector is not None  # noqa: S101 - its failure has been raised
            demand = vector_search_demand(query.dimensions)
            await permit.renew(demand)
            ranked = await self._reading.near(task, condition, collection, vector)
            if ranked is None:
                continue
            results = await self._documents(collection, ranked, demand, permit)
            if results is not None:
                break
        return SearchResults(
            mode="hybrid" if task.mode == "hybrid" else "dense",
            fingerprint=query.fingerprint,
            results=results,
            warnings=[*query.traits.notes, *_cut(query)],
            n_tokens=query.n_tokens,
        )

    async def _embedded(
        self, collection: Collection, task: SearchTask, permit: RequestPermit
    ) -> Embeddings:
        """The query in the collection's space. Raises SpaceMismatchError where it has no vector."""
        space = collection.active.space
        if space.is_foreign:
            raise SpaceMismatchError(
                f"the vectors of {collection.name!r} are of the space {space.fingerprint!r}, into "
                "which no model here embeds a query; mode bm25 searches by words"
            )
        try:
            query = await self._embeddings.embed_dense(
                EmbedTask(
                    [task.query],
                    "search_query",
                    dimensions=space.dimensions,
                    model=space.model,
                    priority=task.priority,
                ),
                permit,
            )
        except (UnknownModelError, InvalidRequestError) as error:  # not served, or cut down
            raise SpaceMismatchError(
                f"the vectors of {collection.name!r} are of {space.fingerprint} by "
                f"{space.model!r}: {error}"
            ) from error
        check_space(collection.name, space, query)
        raise_first(query.failures, lambda index: "query", param="query")
        return query

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
        while True:  # again where another collection took the name in the meantime
            collection, ranked = await self._reading.by_words(task, condition)
            found = await self._documents(collection, ranked, demand, permit)
            if found is not None:
                return SearchResults("bm25", None, found, degraded)

    async def _documents(
        self, collection: Collection, ranked: Ranked, demand: Demand, permit: RequestPermit
    ) -> list[Found] | None:
        """The documents in ranked rows, with memory reserved; those that have gone are left out.

        None where another collection has taken the name.
        """
        rows = ranked.rows.tolist()
        n_bytes = await self._reading.n_bytes(collection, rows)
        if n_bytes is None:
            return None
        permit.renew_now(
            Demand(
                n_tokens=0,
                held_bytes=demand.held_bytes + found_documents_bytes(len(rows), n_bytes),
                is_fallback=demand.is_fallback,
            )
        )
        stored = await self._reading.documents(collection, rows)
        if stored is None:
            return None
        scores = dict(zip(rows, ranked.scores.tolist(), strict=True))
        return [Found(document, scores[document.row]) for document in stored]


def _degraded(refusal: PlimsollError) -> DegradedSearch:
    return DegradedSearch(refusal.code, f"searched by words: {refusal}", refusal.retry_after_s)


def _cut(query: Embeddings) -> list[str]:
    return [
        f"query: only the first {cut.kept} of its {cut.tokens} tokens count"
        for cut in query.truncated
    ]

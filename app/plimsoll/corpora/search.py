"""The use case of a search: by meaning, by words, or by both, in one collection.

A query is compared with vectors of its own space alone. Where that cannot be, a search that left
the mode open is answered by words, and says so; one that named its mode is refused.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from sqlite3 import Connection
from threading import Event
from time import perf_counter
from typing import TypeAlias, TypeVar

import numpy as np

from plimsoll.corpora import documents, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.filters import Condition, parse_filter
from plimsoll.corpora.ranking import Ranked, fused
from plimsoll.corpora.reading_limit import ReadingLimit
from plimsoll.corpora.records import Collection
from plimsoll.corpora.spaces import check_space
from plimsoll.corpora.tasks import DegradedSearch, Found, SearchResults, SearchTask
from plimsoll.corpora.vector_copies import VectorCopies
from plimsoll.corpora.words import search_words
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
from plimsoll.serving.threads import run_until_dropped
from plimsoll.telemetry.corpora import CorpusMetrics
from plimsoll.telemetry.pressure import PressureMetrics

T = TypeVar("T")
SearchListener: TypeAlias = Callable[[str, bool], None]

MOST_READING_S = 10.0

# The version or its model is at fault, if it is none of DEGRADING: waiting would not help.
AT_FAULT = (SpaceMismatchError, ModelError, GGUFError, CacheError, EncodeError)
# Why a search that left its mode open is answered by words.
SEARCH_DEGRADING = (*DEGRADING, *AT_FAULT, TooLargeError)

# Of each of the two orders that a hybrid search makes one of, where no more are asked for. Deeper
# ones leave the first ten on Cranfield as they are; at 20 nDCG@10 is 0.003 lower, at 10 0.019.
FUSED_DEPTH = 100


class CollectionSearch:
    """Searches collections. reading_thread: reads the file; vectors_thread: owns the copies."""

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        metrics: CorpusMetrics,
        pressure: PressureMetrics,
        reading_thread: Executor,
        vectors_thread: Executor,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._metrics = metrics
        self._pressure = pressure
        self._reading_thread = reading_thread
        self._vectors_thread = vectors_thread
        self._copies = VectorCopies(database.path.parent)
        self._closing = Event()
        self._listener: SearchListener | None = None

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
        self._closing.set()

    def close(self) -> None:
        """Give the copies of vectors back."""
        self._copies.close()

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
            is_answered = await self._read(
                lambda connection: _is_empty(connection, task.collection)
            )
        self._tell(task.collection, is_answered=is_answered)
        return found

    def _tell(self, collection: str, *, is_answered: bool) -> None:
        if self._listener is not None:
            self._listener(collection, is_answered)

    async def _by_meaning(
        self, task: SearchTask, condition: Condition | None, permit: RequestPermit
    ) -> SearchResults:
        while True:  # again where another version became active, or the name is another's now
            collection = await self._read(
                lambda connection: versions.find(connection, task.collection)
            )
            query = await self._embedded(collection, task, permit)
            (vector,) = query.vectors
            assert vector is not None  # noqa: S101 - its failure has been raised
            demand = vector_search_demand(query.dimensions)
            await permit.renew(demand)
            ranked = await self._read(
                partial(self._near, task, condition, collection, vector), self._vectors_thread
            )
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

        def look(connection: Connection) -> tuple[Collection, Ranked]:
            collection = versions.find(connection, task.collection)
            return collection, search_words(
                connection, collection.id, task.query, task.top_k, condition
            )

        while True:  # again where another collection took the name in the meantime
            collection, ranked = await self._read(look)
            found = await self._documents(collection, ranked, demand, permit)
            if found is not None:
                return SearchResults("bm25", None, found, degraded)

    def _near(
        self,
        task: SearchTask,
        condition: Condition | None,
        seen: Collection,
        vector: np.ndarray,
        connection: Connection,
    ) -> Ranked | None:
        """Rows nearest to a vector of the space of `seen`; None where that is gone or moved on."""
        collection = versions.find(connection, task.collection)
        if collection.id != seen.id or collection.active.space != seen.active.space:
            return None
        among = None
        if condition is not None:
            among = partial(documents.fitting, connection, collection.id, condition)
        is_hybrid = task.mode == "hybrid"
        most = max(task.top_k, FUSED_DEPTH) if is_hybrid else task.top_k
        near = self._copies.search(connection, collection.active, vector, most, among)
        if not is_hybrid:
            return near
        words = search_words(connection, collection.id, task.query, most, condition)
        return fused([near, words], task.top_k)

    async def _documents(
        self, collection: Collection, ranked: Ranked, demand: Demand, permit: RequestPermit
    ) -> list[Found] | None:
        """The documents in ranked rows, with memory reserved; those that have gone are left out.

        None where another collection has taken the name.
        """
        rows = ranked.rows.tolist()
        n_bytes = await self._read_rows(documents.n_bytes, collection, rows)
        if n_bytes is None:
            return None
        permit.renew_now(
            Demand(
                n_tokens=0,
                held_bytes=demand.held_bytes + found_documents_bytes(len(rows), n_bytes),
                is_fallback=demand.is_fallback,
            )
        )
        stored = await self._read_rows(documents.of_rows, collection, rows)
        if stored is None:
            return None
        scores = dict(zip(rows, ranked.scores.tolist(), strict=True))
        return [Found(document, scores[document.row]) for document in stored]

    async def _read_rows(
        self,
        work: Callable[[Connection, int, Sequence[int]], T],
        seen: Collection,
        rows: Sequence[int],
    ) -> T | None:
        """What `work` reads of a collection's rows; None where another has taken its name."""

        def read(connection: Connection) -> T | None:
            collection = versions.find(connection, seen.name)
            return work(connection, seen.id, rows) if collection.id == seen.id else None

        return await self._read(read)

    async def _read(self, work: Callable[[Connection], T], thread: Executor | None = None) -> T:
        limit = ReadingLimit(MOST_READING_S, self._closing)

        def read() -> T:
            with self._database.reading(limit) as connection:
                return work(connection)

        return await run_until_dropped(thread or self._reading_thread, read, limit.drop)


def _is_empty(connection: Connection, name: str) -> bool:
    return not documents.count(connection, versions.find(connection, name).id)


def _degraded(refusal: PlimsollError) -> DegradedSearch:
    return DegradedSearch(refusal.code, f"searched by words: {refusal}", refusal.retry_after_s)


def _cut(query: Embeddings) -> list[str]:
    return [
        f"query: only the first {cut.kept} of its {cut.tokens} tokens count"
        for cut in query.truncated
    ]

"""What a search reads of the file of collections, each time for a bounded while.

A reading that may be long ends with its client, with the server, or when its time is over.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from sqlite3 import Connection
from threading import Event
from typing import TypeVar

from plimsoll.corpora import documents, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.documents import SeenDocument
from plimsoll.corpora.filters import Condition
from plimsoll.corpora.parts import SearchPart, merged
from plimsoll.corpora.ranking import Ranked, fused
from plimsoll.corpora.reading_limit import ReadingLimit
from plimsoll.corpora.records import Collection, Space, StoredDocument, Version
from plimsoll.corpora.tasks import Answering, SearchTask
from plimsoll.corpora.vector_copies import VectorCopies
from plimsoll.corpora.words import search_words
from plimsoll.serving.threads import run_until_dropped

T = TypeVar("T")

MOST_READING_S = 10.0

# Of each of the two orders that a hybrid search makes one of, where no more are asked for. Deeper
# ones leave the first ten on Cranfield as they are; at 20 nDCG@10 is 0.003 lower, at 10 0.019.
FUSED_DEPTH = 100


@dataclass(frozen=True)
class Hits:
    """What was found, and what it was in the transaction that ranked it.

    parts: the versions that said so; none where words did.
    """

    ranked: Ranked
    seen: list[SeenDocument]
    parts: list[Answering] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        """Of texts and metadata, in UTF-8."""
        return sum(each.n_bytes for each in self.seen)


class SearchReading:
    """Owns the copies of vectors. reading_thread: reads the file; vectors_thread: the copies.

    Every method raises UnknownCollectionError, StoreError and SearchStoppedError.
    """

    def __init__(
        self, database: Database, reading_thread: Executor, vectors_thread: Executor
    ) -> None:
        self._database = database
        self._reading_thread = reading_thread
        self._vectors_thread = vectors_thread
        self._copies = VectorCopies(database.path.parent)
        self._closing = Event()

    def stop(self) -> None:
        """End the readings that run, and those that come."""
        self._closing.set()

    def close(self) -> None:
        """Give the copies of vectors back."""
        self._copies.close()

    async def collection(self, task: SearchTask) -> Collection:
        """The collection that a search is for, as if the version that it names was the active one.

        Raises InvalidRequestError for a version that is not there.
        """
        return await self._read(_searched, task)

    async def is_empty(self, name: str) -> bool:
        """Whether it has no document."""
        return await self._read(_is_empty, name)

    async def near(
        self,
        task: SearchTask,
        condition: Condition | None,
        seen: Collection,
        parts: Sequence[SearchPart],
    ) -> Hits | None:
        """What is nearest to the query in parts of `seen`; None where others are read by now."""
        work = partial(self._near, task, condition, seen, parts)
        return await self._read_in(self._vectors_thread, work)

    async def make_ready(self, version: Version) -> None:
        """Copy what searches of a version would read from SQLite now.

        A segment at a time: the searches of others go in between.
        """
        after: int | None = -1
        while after is not None:
            work = partial(self._copies.copy_next, version=version, after=after)
            after = await self._read_in(self._vectors_thread, work)

    async def by_words(
        self, task: SearchTask, condition: Condition | None
    ) -> tuple[Collection, Hits]:
        """Documents that have a word of the query, and the collection that they are of."""
        return await self._read(_by_words, task, condition)

    async def documents(
        self, seen: Collection, hits: Hits, condition: Condition | None
    ) -> list[StoredDocument] | None:
        """Those of the hits that are as they were when they were ranked.

        None where another collection has taken the name.
        """
        return await self._read(_unchanged, seen, hits, condition)

    def _near(
        self,
        task: SearchTask,
        condition: Condition | None,
        seen: Collection,
        parts: Sequence[SearchPart],
        connection: Connection,
    ) -> Hits | None:
        collection = _searched(connection, task)
        if collection.id != seen.id or _spaces(collection) != _spaces(seen):
            return None
        among = None
        if condition is not None:
            among = partial(documents.fitting, connection, collection.id, condition)
        is_hybrid = task.mode == "hybrid"
        most = max(task.top_k, FUSED_DEPTH) if is_hybrid else task.top_k
        found = self._copies.search_parts(connection, parts, most, among)
        near = merged(connection, found, most)
        if is_hybrid:
            words = search_words(connection, collection.id, task.query, most, condition)
            near = fused([near, words], task.top_k)
        there = documents.seen(connection, collection.id, near.rows.tolist())
        return Hits(near, there, [Answering(part.version, part.n_documents) for part in found])

    async def _read(self, work: Callable[..., T], *args: object) -> T:
        return await self._read_in(self._reading_thread, lambda connection: work(connection, *args))

    async def _read_in(self, thread: Executor, work: Callable[[Connection], T]) -> T:
        limit = ReadingLimit(MOST_READING_S, self._closing)

        def read() -> T:
            with self._database.reading(limit) as connection:
                return work(connection)

        return await run_until_dropped(thread, read, limit.drop)


def _searched(connection: Connection, task: SearchTask) -> Collection:
    collection = versions.find(connection, task.collection)
    if task.version is None:
        return collection
    version = versions.of_number(connection, collection, task.version)
    return replace(collection, active=version, ahead=())


def _spaces(collection: Collection) -> list[tuple[int, Space]]:
    """Which versions a search reads, without what may change of them."""
    return [(version.id, version.space) for version in collection.parts]


def _is_empty(connection: Connection, name: str) -> bool:
    return not documents.count(connection, versions.find(connection, name).id)


def _by_words(
    connection: Connection, task: SearchTask, condition: Condition | None
) -> tuple[Collection, Hits]:
    collection = versions.find(connection, task.collection)
    ranked = search_words(connection, collection.id, task.query, task.top_k, condition)
    return collection, Hits(ranked, documents.seen(connection, collection.id, ranked.rows.tolist()))


def _unchanged(
    connection: Connection, seen: Collection, hits: Hits, condition: Condition | None
) -> list[StoredDocument] | None:
    if versions.find(connection, seen.name).id != seen.id:
        return None
    return documents.still(connection, seen.id, hits.seen, condition)

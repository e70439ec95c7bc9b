"""The use cases of collections as such: made, listed, dropped; their documents read and deleted."""

from concurrent.futures import Executor
from sqlite3 import Connection

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.listing import DocumentPage, page_after
from plimsoll.corpora.reclaim import TableReclaim
from plimsoll.corpora.records import Collection, Space, StoredDocument
from plimsoll.corpora.spaces import served_space
from plimsoll.corpora.tasks import CollectionState
from plimsoll.errors import (
    CollectionConflictError,
    InvalidRequestError,
    UnknownCollectionError,
    UnknownDocumentError,
)
from plimsoll.models.pool import ModelPool
from plimsoll.policy.costs import listing_demand
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.corpora import CorpusMetrics


class CollectionCatalog:
    """Keeps the list of collections. The threads read and write the file."""

    def __init__(
        self,
        database: Database,
        models: ModelPool,
        reclaim: TableReclaim,
        metrics: CorpusMetrics,
        reading_thread: Executor,
        writing_thread: Executor,
    ) -> None:
        self._database = database
        self._models = models
        self._reclaim = reclaim
        self._metrics = metrics
        self._reading_thread = reading_thread
        self._writing_thread = writing_thread

    async def ensure(
        self,
        name: str,
        permit: RequestPermit,
        *,
        model: str | None = None,
        dimensions: int | None = None,
        foreign_space: str | None = None,
    ) -> CollectionState:
        """Have a collection of this name: for vectors of a served model, or of a foreign space.

        What is left out fits any collection that is there; a new one takes the default model.
        Raises InvalidRequestError, CollectionConflictError, and ModelErrors and OverloadError where
        the model has to be opened to know its space.
        """
        if foreign_space is not None and (model is not None or dimensions is None):
            raise InvalidRequestError(
                "a foreign space comes with its dimensions, and without a model", param="space"
            )
        served = None if model is None else self._models.find(model).name
        try:
            state = await self.state(name)
        except UnknownCollectionError:
            if foreign_space is not None:
                space = Space.foreign(foreign_space, dimensions or 0)
            else:
                space = await served_space(self._models, served, dimensions, permit)
            return await self._database.write(self._writing_thread, _create, name, space)
        _check_fits(state.collection, served, dimensions, foreign_space)
        return state

    async def states(self) -> list[CollectionState]:
        """Every collection, by name."""
        return await self._database.read(
            self._reading_thread,
            lambda connection: [
                _state(connection, collection)
                for collection in versions.all_collections(connection)
            ],
        )

    async def state(self, name: str) -> CollectionState:
        """One of them. Raises UnknownCollectionError."""
        return await self._database.read(
            self._reading_thread,
            lambda connection: _state(connection, versions.find(connection, name)),
        )

    async def drop(self, name: str) -> CollectionState:
        """Drop one with everything in it; returns what it was.

        Raises UnknownCollectionError, and LinkStateError for one that is linked.
        """
        try:
            state = await self._database.write(self._writing_thread, _drop, name)
        finally:  # it is dropped also where its client has gone meanwhile
            self._reclaim.start()
        self._metrics.documents("deleted", state.n_documents)
        return state

    async def page(
        self,
        name: str,
        permit: RequestPermit,
        *,
        after: int,
        most: int,
        version: int | None,
        has_vectors: bool,
    ) -> DocumentPage:
        """Documents one page after another; see `page_after`, whose errors it raises.

        Raises OverloadError where there is no memory for a page.
        """
        await permit.renew(listing_demand())
        return await self._database.read(
            self._reading_thread,
            lambda connection: page_after(
                connection, name, after, most, version=version, has_vectors=has_vectors
            ),
        )

    async def document(self, name: str, document_id: str) -> StoredDocument:
        """A document. Raises UnknownCollectionError and UnknownDocumentError."""

        def read(connection: Connection) -> StoredDocument | None:
            return documents.get(connection, versions.find(connection, name).id, document_id)

        found = await self._database.read(self._reading_thread, read)
        if found is None:
            raise _unknown(name, document_id)
        return found

    async def delete_document(self, name: str, document_id: str) -> StoredDocument:
        """Delete a document with its vectors; returns what it was.

        Raises as `document` does, and LinkStateError where the collection is linked.
        """

        def delete(connection: Connection) -> StoredDocument | None:
            collection = versions.find_own(connection, name).id
            found = documents.get(connection, collection, document_id)
            documents.delete(connection, collection, [document_id])
            return found

        found = await self._database.write(self._writing_thread, delete)
        if found is None:
            raise _unknown(name, document_id)
        self._metrics.documents("deleted", 1)
        return found


def _create(connection: Connection, name: str, space: Space) -> CollectionState:
    """Make it, unless another request has been quicker."""
    try:
        collection = versions.find(connection, name)
    except UnknownCollectionError:
        return _state(connection, versions.create(connection, name, space))
    if collection.active.space != space:
        raise _conflict(collection)
    return _state(connection, collection)


def _drop(connection: Connection, name: str) -> CollectionState:
    collection = versions.find_own(connection, name)
    state = _state(connection, collection)
    versions.drop(connection, collection)
    return state


def _state(connection: Connection, collection: Collection) -> CollectionState:
    return CollectionState(
        collection,
        documents.count(connection, collection.id),
        [
            (version, vectors.count(connection, version.id))
            for version in versions.of_collection(connection, collection.id)
        ],
    )


def _check_fits(
    collection: Collection, model: str | None, dimensions: int | None, foreign_space: str | None
) -> None:
    """Raise CollectionConflictError where a collection is another than is asked for."""
    space = collection.active.space
    foreign = None if foreign_space is None else Space.foreign(foreign_space, 0).fingerprint
    if (
        model not in (None, space.model)
        or dimensions not in (None, space.dimensions)
        or foreign not in (None, space.fingerprint)
    ):
        raise _conflict(collection)


def _conflict(collection: Collection) -> CollectionConflictError:
    space = collection.active.space
    whose = f"by {space.model!r}" if space.model is not None else f"of {space.fingerprint!r}"
    return CollectionConflictError(
        f"{collection.name!r} has vectors {whose} with {space.dimensions} values, which are kept. "
        "For another model or size, PUT a collection of another name and post the documents to it, "
        "then let searches ask that one; or migrate this one",
        param="model",
    )


def _unknown(name: str, document_id: str) -> UnknownDocumentError:
    return UnknownDocumentError(f"{name!r} has no document {document_id!r}", param="id")

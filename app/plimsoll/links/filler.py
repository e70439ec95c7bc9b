"""Embeds what the documents of a linked collection lack, into every version that takes writes."""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from sqlite3 import Connection

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import DocumentVectors, PatientEmbedder, Pause, Yielding
from plimsoll.corpora.records import StoredDocument, Version
from plimsoll.errors import (
    CacheError,
    GGUFError,
    InvalidRequestError,
    ModelError,
    ModelLoadError,
    SpaceMismatchError,
    UnknownModelError,
)
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import AdmissionGate

log = logging.getLogger(__name__)


class Filler:
    """Owns which versions' models could not be used lately, so that the log has it once.

    thread: reads and writes the file. pause: waits seconds.
    """

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        thread: Executor,
        pause: Pause,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._gate = gate
        self._thread = thread
        self._pause = pause
        self._without_model = set[int]()  # versions

    async def fill(self, collection: str, rows: Sequence[int], yielding: Yielding) -> None:
        """Embed the documents in these rows that lack a vector, with patience.

        yielding: told why nothing is embedded now, and None when it goes on. One that no vector is
        to be had of does without. Raises StoreError; CacheError and ModelLoadError where the model
        of the version that searches read cannot be opened now.
        """
        active, found_lacking = await self._database.read(self._thread, _lacking, collection, rows)
        for version, lacking in found_lacking:
            embedder = PatientEmbedder(
                self._embeddings,
                self._gate,
                collection,
                version.space,
                yielding,
                self._pause,
            )
            try:
                found = await embedder.embed_documents(lacking)
            except (SpaceMismatchError, UnknownModelError, InvalidRequestError, ModelError,
                    GGUFError, CacheError) as error:  # fmt: skip
                if version.id == active and isinstance(error, CacheError | ModelLoadError):
                    raise  # it may open soon, and nobody would ask for these vectors again
                self._note_without_model(collection, version, error)
                continue
            self._without_model.discard(version.id)
            _tell_failures(collection, version, found)
            await self._database.write(self._thread, _store, version, lacking, found)

    def _note_without_model(self, collection: str, version: Version, error: Exception) -> None:
        if version.id not in self._without_model:
            self._without_model.add(version.id)
            log.warning(
                "changed documents of %r get no vector of %r: %s",
                collection, version.space.model, error,
            )  # fmt: skip


def _tell_failures(collection: str, version: Version, found: DocumentVectors) -> None:
    if found.failures:
        reason, _ = next(iter(found.failures.values()))
        log.warning(
            "%d changed documents of %r get no vector of %r, the first of them: %s",
            len(found.failures), collection, version.space.model, reason,
        )  # fmt: skip


def _lacking(
    connection: Connection, name: str, rows: Sequence[int]
) -> tuple[int, list[tuple[Version, list[StoredDocument]]]]:
    """The active version; of each that takes writes and has a model, what lacks a vector."""
    collection = versions.find(connection, name)
    found = []
    for version in versions.taking_writes(connection, collection):
        if not version.space.is_foreign:
            there = vectors.having(connection, version.id, rows)
            lacking = [row for row in rows if row not in there]
            found.append((version, documents.of_rows(connection, collection.id, lacking)))
    return collection.active.id, [(version, lacking) for version, lacking in found if lacking]


def _store(
    connection: Connection,
    version: Version,
    embedded: Sequence[StoredDocument],
    found: DocumentVectors,
) -> None:
    """Store vectors of texts that are still the same; a migration may have been quicker."""
    there = versions.of_collection(connection, version.collection_id)
    if version.id not in (each.id for each in there):
        return
    rows = list(found.vectors)
    now = documents.hashes(connection, version.collection_id, rows)
    has = vectors.having(connection, version.id, rows)
    wanting = [
        document.row
        for document in embedded
        if document.row in found.vectors
        and document.row not in has
        and now.get(document.row) == document.text_sha256
    ]
    vectors.put(connection, version.id, wanting, [found.vectors[row] for row in wanting])

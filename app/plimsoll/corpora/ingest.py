"""The use case of documents that come in: embedded batch by batch, each committed by itself.

A document goes to every version that takes writes. What is stored already is neither embedded nor
written again, so that a client may send a list again after any interruption.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from sqlite3 import Connection

from plimsoll.corpora import versions
from plimsoll.corpora.batches import Plan, plan_of, store
from plimsoll.corpora.database import Database
from plimsoll.corpora.ingest_batch import IngestBatch
from plimsoll.corpora.records import Space, Version
from plimsoll.corpora.spaces import check_space
from plimsoll.corpora.tasks import IngestResult, LineFailure, NewDocument
from plimsoll.errors import (
    CacheError,
    EncodeMemoryError,
    GGUFError,
    IngestStoppedError,
    InvalidRequestError,
    ModelError,
    ModelLoadingError,
    OverloadError,
    PlimsollError,
    SpaceMismatchError,
    UnknownModelError,
)
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import SHORT_RETRY_S
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from plimsoll.serving.tasks import Embeddings, EmbedTask
from plimsoll.telemetry.corpora import CorpusMetrics, DocumentOutcome

log = logging.getLogger(__name__)

MOST_ERRORS = 1000
MOST_MESSAGE_CHARACTERS = 300
# Where other writers, or the beginning of a migration, come in between each time.
MOST_TRIES = 10


class DocumentIngest:
    """Puts documents into collections. The threads read and write the file.

    Owns which versions' models could not be used lately, so that the log has it once.
    """

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        metrics: CorpusMetrics,
        reading_thread: Executor,
        writing_thread: Executor,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._gate = gate
        self._metrics = metrics
        self._reading_thread = reading_thread
        self._writing_thread = writing_thread
        self._without_model = set[int]()  # versions

    async def put(
        self,
        name: str,
        lines: AsyncIterator[NewDocument | LineFailure],
        space: str | None = None,
    ) -> IngestResult:
        """Store the documents of `lines`; space: of vectors in them, by fingerprint or by name.

        Raises UnknownCollectionError, LinkStateError and SpaceMismatchError, what
        EmbeddingService.embed_dense does where nothing is stored yet, and IngestStoppedError where
        something is.
        """
        vector_space = await self._database.read(self._reading_thread, _vector_space, name, space)
        result = IngestResult()
        batch = IngestBatch(vector_space)
        try:
            async for line in lines:
                if isinstance(line, LineFailure):
                    self._fail(result, line)
                    continue
                if line.document.id in batch.documents:
                    await self._put_batch(name, batch, result)
                    batch = IngestBatch(vector_space)
                batch.add(line)
                if batch.is_full:
                    await self._put_batch(name, batch, result)
                    batch = IngestBatch(vector_space)
            await self._put_batch(name, batch, result)
        except (OverloadError, ModelLoadingError, EncodeMemoryError) as error:
            _raise_stopped(error, result)
            raise
        result.errors.sort(key=lambda failure: failure.line)
        return result

    async def _put_batch(self, name: str, batch: IngestBatch, result: IngestResult) -> None:
        permit = self._gate.permit()  # what a batch takes is asked for as if it came alone
        try:
            for _ in range(MOST_TRIES):
                plan = await self._database.read(self._reading_thread, plan_of, name, batch.news)
                for version in plan.wanted:
                    await self._find_vectors(plan, version, batch, permit)
                outcomes = await self._database.write(
                    self._writing_thread, store, name, batch.news, batch.found
                )
                if outcomes is not None:
                    self._count(result, batch, outcomes)
                    return
        finally:
            permit.leave()
        raise IngestStoppedError(
            f"{name!r} changed each time that a batch was to be stored; send all of them again",
            retry_after_s=SHORT_RETRY_S,
        )

    async def _find_vectors(
        self, plan: Plan, version: Version, batch: IngestBatch, permit: RequestPermit
    ) -> None:
        """Find what a version wants: vectors that came along, and of the others the model's.

        A document without a vector of the active version fails. Others have to do without, also
        where their model cannot be used any more: what they lack is for a migration to see to.
        """
        is_active = version.id == plan.collection.active.id
        missing = [
            new for new in plan.wanted[version] if batch.found.get((version.id, new.line)) is None
        ]
        texts = []
        for new in missing:
            batch.found[version.id, new.line] = None
            if new.vector is None or version.space.fingerprint != batch.vector_space:
                texts.append(new)
            elif len(new.vector) == version.space.dimensions:
                batch.found[version.id, new.line] = new.vector
            elif is_active:
                batch.fail(new, "invalid_vector", _wrong_size(len(new.vector), version.space))
        if not version.space.is_foreign:
            await self._embed(plan, version, texts, batch, permit)
        elif is_active:
            for new in texts:
                batch.fail(new, "vector_missing", _no_vector(version.space))

    async def _embed(
        self,
        plan: Plan,
        version: Version,
        texts: Sequence[NewDocument],
        batch: IngestBatch,
        permit: RequestPermit,
    ) -> None:
        if not texts:
            return
        task = EmbedTask(
            [new.document.text for new in texts],
            "search_document",
            dimensions=version.space.dimensions,
            model=version.space.model,
            priority=Priority.BULK,
        )
        is_active = version.id == plan.collection.active.id
        try:
            answer = await self._embedded(plan, version, task, permit)
        except ModelLoadingError:
            raise
        except (SpaceMismatchError, UnknownModelError, InvalidRequestError, ModelError, GGUFError,
                CacheError) as error:  # fmt: skip
            if is_active:
                raise
            self._note_without_model(plan, version, error)
            return
        self._without_model.discard(version.id)
        for new, vector in zip(texts, answer.vectors, strict=True):
            batch.found[version.id, new.line] = vector
        batch.n_tokens += answer.n_tokens
        if is_active:
            batch.truncated += len(answer.truncated)
            for failure in answer.failures:
                batch.fail(texts[failure.index], failure.code, failure.message)

    async def _embedded(
        self, plan: Plan, version: Version, task: EmbedTask, permit: RequestPermit
    ) -> Embeddings:
        answer = await self._embeddings.embed_dense(task, permit)
        check_space(plan.collection.name, version.space, answer)
        return answer

    def _note_without_model(self, plan: Plan, version: Version, error: Exception) -> None:
        if version.id not in self._without_model:
            self._without_model.add(version.id)
            log.warning(
                "new documents of %r get no vector of %r, which searches do not read: %s",
                plan.collection.name, version.space.model, error,
            )  # fmt: skip

    def _fail(self, result: IngestResult, failure: LineFailure) -> None:
        result.failed += 1
        self._metrics.documents("failed", 1)
        if len(result.errors) < MOST_ERRORS:
            # It may quote what the client sent.
            message = failure.message[:MOST_MESSAGE_CHARACTERS]
            result.errors.append(replace(failure, message=message))

    def _count(
        self, result: IngestResult, batch: IngestBatch, outcomes: Sequence[DocumentOutcome]
    ) -> None:
        result.added += outcomes.count("added")
        result.updated += outcomes.count("updated")
        result.unchanged += outcomes.count("unchanged")
        result.truncated += batch.truncated
        result.n_tokens += batch.n_tokens
        for outcome in outcomes:
            self._metrics.documents(outcome, 1)
        for failure in batch.failures:
            self._fail(result, failure)


def _vector_space(connection: Connection, name: str, space: str | None) -> str | None:
    """The fingerprint that is meant by `space`. Raises SpaceMismatchError for one not taken."""
    collection = versions.find_own(connection, name)
    taken = [
        version.space.fingerprint for version in versions.taking_writes(connection, collection)
    ]
    if space is None or space in taken:
        return space
    foreign = Space.foreign(space, 0).fingerprint
    if foreign in taken:
        return foreign
    raise SpaceMismatchError(
        f"{name!r} takes vectors of {' and '.join(taken)}, not of {space!r}", param="space"
    )


def _wrong_size(size: int, space: Space) -> str:
    return f"the vector has {size} values, and those of its space {space.dimensions}"


def _no_vector(space: Space) -> str:
    return (
        f"no model here embeds into {space.fingerprint!r}: send the document's vector, and name "
        "its space in the request"
    )


def _raise_stopped(error: PlimsollError, result: IngestResult) -> None:
    """Say what is stored already, where something is."""
    n_stored = result.added + result.updated + result.unchanged
    if not n_stored or isinstance(error, IngestStoppedError):
        return
    raise IngestStoppedError(
        f"{result.added} documents were added, {result.updated} updated, {result.unchanged} were "
        f"there and {result.failed} failed before this: {error}; send all of them again, what is "
        "stored is skipped",
        retry_after_s=error.retry_after_s or SHORT_RETRY_S,
    ) from error

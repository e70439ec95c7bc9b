"""The use case of documents that come in: embedded batch by batch, each committed by itself.

A document goes to every version that takes writes. What is stored already is neither embedded nor
written again, so that a client may send a list again after any interruption. A text is embedded
before its batch's transaction begins; in the transaction is looked again whether that was all that
it takes, since other writers, or another version, may have come in the meantime.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from sqlite3 import Connection
from typing import TypeAlias, TypeVar

import numpy as np

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Collection, Space, Version
from plimsoll.corpora.search import check_space
from plimsoll.corpora.tasks import IngestResult, LineFailure, NewDocument
from plimsoll.errors import (
    EncodeMemoryError,
    IngestStoppedError,
    ModelLoadingError,
    OverloadError,
    SpaceMismatchError,
)
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.fallback import SHORT_RETRY_S
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from plimsoll.serving.tasks import EmbedTask
from plimsoll.serving.threads import run_in
from plimsoll.telemetry.corpora import CorpusMetrics, DocumentOutcome

T = TypeVar("T")
Vectors: TypeAlias = dict[tuple[int, int], np.ndarray | None]
"""By version and line: None where the version has to do without."""

BATCH_DOCUMENTS = 128
BATCH_CHARACTERS = 512 << 10
MOST_ERRORS = 1000
# Where other writers, or the beginning of a migration, come in between each time.
MOST_TRIES = 10


@dataclass
class _Plan:
    """What a batch changes, as the file is now. wanted: texts that a version needs vectors of."""

    collection: Collection
    outcomes: list[DocumentOutcome] = field(default_factory=list)
    wanted: dict[Version, list[NewDocument]] = field(default_factory=dict)

    def is_met_by(self, found: Vectors) -> bool:
        """Whether every vector that is wanted has been looked for."""
        return all(
            (version.id, new.line) in found
            for version, wanted in self.wanted.items()
            for new in wanted
        )


class DocumentIngest:
    """Puts documents into collections. thread: reads and writes the file."""

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        metrics: CorpusMetrics,
        thread: Executor,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._gate = gate
        self._metrics = metrics
        self._thread = thread

    async def put(
        self,
        name: str,
        lines: AsyncIterator[NewDocument | LineFailure],
        space: str | None = None,
    ) -> IngestResult:
        """Store the documents of `lines`; space: of vectors in them, by fingerprint or by name.

        Raises UnknownCollectionError and SpaceMismatchError, what EmbeddingService.embed_dense does
        where nothing is stored yet, and IngestStoppedError where something is.
        """
        vector_space = await self._read(_vector_space, name, space)
        result = IngestResult()
        batch = dict[str, NewDocument]()  # by id: the same one twice would need an order
        try:
            async for line in lines:
                if isinstance(line, LineFailure):
                    self._fail(result, line)
                    continue
                if line.document.id in batch or _is_full(batch):
                    await self._put_batch(name, list(batch.values()), vector_space, result)
                    batch.clear()
                batch[line.document.id] = line
            await self._put_batch(name, list(batch.values()), vector_space, result)
        except (OverloadError, ModelLoadingError, EncodeMemoryError) as error:
            _raise_stopped(error, result)
            raise
        result.errors.sort(key=lambda failure: failure.line)
        return result

    async def _put_batch(
        self,
        name: str,
        batch: list[NewDocument],
        vector_space: str | None,
        result: IngestResult,
    ) -> None:
        permit = self._gate.permit()  # what a batch takes is asked for as if it came alone
        try:
            found: Vectors = {}
            for _ in range(MOST_TRIES):
                plan = await self._read(_plan, name, batch)
                for version, wanted in plan.wanted.items():
                    missing = [new for new in wanted if (version.id, new.line) not in found]
                    failures = await self._find_vectors(
                        plan.collection, version, missing, vector_space, permit, found, result
                    )
                    if version.id == plan.collection.active.id:
                        for failure in failures:
                            self._fail(result, failure)
                        failed = {failure.line for failure in failures}
                        batch = [new for new in batch if new.line not in failed]
                outcomes = await run_in(self._thread, self._commit, name, batch, found)
                if outcomes is not None:
                    self._count(result, outcomes)
                    return
        finally:
            permit.leave()
        raise IngestStoppedError(
            f"{name!r} changed each time that a batch was to be stored; send all of them again",
            retry_after_s=SHORT_RETRY_S,
        )

    async def _find_vectors(
        self,
        collection: Collection,
        version: Version,
        wanted: Sequence[NewDocument],
        vector_space: str | None,
        permit: RequestPermit,
        found: Vectors,
        result: IngestResult,
    ) -> list[LineFailure]:
        """Add what is wanted to `found`: what came along, else what the model gives."""
        failures = []
        texts = []
        for new in wanted:
            found[version.id, new.line] = None
            if new.vector is None or version.space.fingerprint != vector_space:
                texts.append(new)
            elif len(new.vector) != version.space.dimensions:
                failures.append(_wrong_size(new, version))
            else:
                found[version.id, new.line] = new.vector
        if version.space.is_foreign:
            return failures + [_no_vector(new, version) for new in texts]
        if not texts:
            return failures
        answer = await self._embeddings.embed_dense(
            EmbedTask(
                [new.document.text for new in texts],
                "search_document",
                dimensions=version.space.dimensions,
                model=version.space.model,
                priority=Priority.BULK,
            ),
            permit,
        )
        check_space(collection.name, version.space, answer)
        for new, vector in zip(texts, answer.vectors, strict=True):
            found[version.id, new.line] = vector
        result.n_tokens += answer.n_tokens
        if version.id == collection.active.id:
            result.truncated += len(answer.truncated)
        return failures + [
            LineFailure(
                texts[failure.index].line,
                texts[failure.index].document.id,
                failure.code,
                failure.message,
            )
            for failure in answer.failures
        ]

    def _commit(
        self, name: str, batch: Sequence[NewDocument], found: Vectors
    ) -> list[DocumentOutcome] | None:
        """Store a batch with its vectors; None, and nothing, where it takes more vectors now."""
        with self._database.writing() as connection:
            plan = _plan(connection, name, batch)
            if not plan.is_met_by(found):
                return None
            changed = [
                new
                for new, outcome in zip(batch, plan.outcomes, strict=True)
                if outcome != "unchanged"
            ]
            put = documents.put(connection, plan.collection.id, [new.document for new in changed])
            rows = {new.line: row for new, row in zip(changed, put, strict=True)}
            for version, wanted in plan.wanted.items():
                there = {
                    rows[new.line]: vector
                    for new in wanted
                    if (vector := found[version.id, new.line]) is not None
                }
                vectors.put(connection, version.id, list(there), list(there.values()))
            return plan.outcomes

    def _fail(self, result: IngestResult, failure: LineFailure) -> None:
        result.failed += 1
        self._metrics.documents("failed", 1)
        if len(result.errors) < MOST_ERRORS:
            result.errors.append(failure)

    def _count(self, result: IngestResult, outcomes: Sequence[DocumentOutcome]) -> None:
        result.added += outcomes.count("added")
        result.updated += outcomes.count("updated")
        result.unchanged += outcomes.count("unchanged")
        for outcome in outcomes:
            self._metrics.documents(outcome, 1)

    async def _read(self, work: Callable[..., T], *args: object) -> T:
        def read() -> T:
            with self._database.reading() as connection:
                return work(connection, *args)

        return await run_in(self._thread, read)


def _vector_space(connection: Connection, name: str, space: str | None) -> str | None:
    """The fingerprint that is meant by `space`. Raises SpaceMismatchError for one not taken."""
    collection = versions.find(connection, name)
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


def _plan(connection: Connection, name: str, batch: Sequence[NewDocument]) -> _Plan:
    """What storing a batch would take now."""
    plan = _Plan(versions.find(connection, name))
    active, collection = plan.collection.active, plan.collection.id
    writable = versions.taking_writes(connection, plan.collection)
    for new in batch:
        before = documents.get(connection, collection, new.document.id)
        outcome: DocumentOutcome = "added" if before is None else "updated"
        wanting = writable
        if before is not None and before.text_sha256 == documents.text_sha256(new.document.text):
            # Of other versions a migration looks after what they lack.
            has_vector = vectors.having(connection, active.id, [before.row])
            wanting = [] if has_vector else [active]
            if has_vector and before.metadata == new.document.metadata:
                outcome = "unchanged"
        plan.outcomes.append(outcome)
        for version in wanting:
            plan.wanted.setdefault(version, []).append(new)
    return plan


def _is_full(batch: dict[str, NewDocument]) -> bool:
    n_characters = sum(len(new.document.text) for new in batch.values())
    return len(batch) >= BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS


def _wrong_size(new: NewDocument, version: Version) -> LineFailure:
    size = 0 if new.vector is None else len(new.vector)
    message = f"the vector has {size} values, and those of its space {version.space.dimensions}"
    return LineFailure(new.line, new.document.id, "invalid_vector", message)


def _no_vector(new: NewDocument, version: Version) -> LineFailure:
    message = (
        f"no model here embeds into {version.space.fingerprint!r}: send the document's vector, and "
        "name its space in the request"
    )
    return LineFailure(new.line, new.document.id, "vector_missing", message)


def _raise_stopped(error: Exception, result: IngestResult) -> None:
    """Say what is stored already, where something is."""
    n_stored = result.added + result.updated + result.unchanged
    if not n_stored or isinstance(error, IngestStoppedError):
        return
    raise IngestStoppedError(
        f"{result.added} documents were added, {result.updated} updated, {result.unchanged} were "
        f"there and {result.failed} failed before this: {error}; send all of them again, what is "
        "stored is skipped",
        retry_after_s=getattr(error, "retry_after_s", SHORT_RETRY_S),
    ) from error

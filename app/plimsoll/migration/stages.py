"""The four specialists of a walk over a collection: reader, encoder, validator, writer.

Each takes from the queue before it and gives to the one behind, both bounded, so that none runs
ahead. What is read but not yet stored exists nowhere else: a server that dies loses no more than
that, and reads it again.

The writer stores a batch's vectors, what failed, and the checkpoint in one transaction, in which
it looks again at every document: one that changed or went in the meantime keeps what it has now.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from sqlite3 import Connection
from typing import TypeAlias

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import DocumentVectors, PatientEmbedder
from plimsoll.corpora.records import Space, StoredDocument
from plimsoll.errors import MigrationStateError, TooLargeError
from plimsoll.migration import bridges, journal, lacking, quarantine
from plimsoll.migration.held_memory import HeldMemory
from plimsoll.migration.pace import FULL, BatchLimits, RunPace
from plimsoll.migration.records import Checkpoint, Migration
from plimsoll.migration.states import MigrationState
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.threads import first_error

QUEUE_BATCHES = 16
# A text as Python keeps it, with its record: up to 4 bytes for each of UTF-8.
TEXT_COPIES = 4
# Of a vector's length, which is 1: float32 rounds it by far less.
NORM_TOLERANCE = 1e-3


@dataclass
class Batch:
    """Documents on their way. permit: holds memory for them until they are stored."""

    documents: list[StoredDocument]
    permit: RequestPermit
    found: DocumentVectors = field(default_factory=DocumentVectors)


Queue: TypeAlias = asyncio.Queue[Batch | None]
"""None: the walk has come to its end."""

EncodedQueue: TypeAlias = asyncio.Queue[asyncio.Task[Batch] | None]
"""Likewise, of batches that have their vectors or will."""


@dataclass(frozen=True)
class Written:
    """What one batch came to. n_bridged: documents that searches still find by a bridged vector."""

    n_embedded: int
    n_quarantined: int
    n_skipped: int
    n_tokens: int
    n_bridged: int
    checkpoint: Checkpoint


def first_batch(
    sizes: Iterable[tuple[int, int]], limits: BatchLimits = FULL
) -> list[tuple[int, int]]:
    """The first rows, with the bytes of their texts, that are read at once: one at least."""
    rows, total_bytes = list[tuple[int, int]](), 0
    for row, n_bytes in sizes:
        if rows and total_bytes + n_bytes > limits.bytes:
            break
        rows.append((row, n_bytes))
        total_bytes += n_bytes
        if len(rows) == limits.texts:
            break
    return rows


class Reader:
    """Reads documents that lack a new vector, in the order of their rows."""

    def __init__(
        self, database: Database, memory: HeldMemory, thread: Executor, pace: RunPace
    ) -> None:
        self._database = database
        self._memory = memory
        self._thread = thread
        self._pace = pace

    async def read(self, migration: Migration, position: int, out: Queue) -> None:
        """Give batches of what is behind `position`, then None."""
        while rows := await self._database.read(
            self._thread, _next_rows, migration, position, self._pace.limits
        ):
            numbers = [row for row, _ in rows]
            try:
                permit = await self._memory.hold(TEXT_COPIES * sum(n_bytes for _, n_bytes in rows))
            except TooLargeError as error:
                await out.put(await self._left_out(migration, numbers, str(error)))
            else:
                found = await self._database.read(
                    self._thread, documents.of_rows, migration.collection_id, numbers
                )
                await out.put(Batch(found, permit))
            position = numbers[-1]
        await out.put(None)

    async def _left_out(self, migration: Migration, rows: Sequence[int], reason: str) -> Batch:
        """Documents that failed, without their texts: a lone one that is too large to be read."""
        hashes = await self._database.read(
            self._thread, documents.hashes, migration.collection_id, rows
        )
        unread = [StoredDocument(row, "", "", "{}", digest) for row, digest in hashes.items()]
        failures = {document.row: (reason, 1) for document in unread}
        return Batch(unread, await self._memory.hold(0), DocumentVectors(failures=failures))


async def encode(
    embedder: PatientEmbedder,
    source: Queue,
    out: EncodedQueue,
    group: asyncio.TaskGroup,
    pace: RunPace,
) -> None:
    """Give every batch its vectors, in order: one is made ready while another one runs, unless the
    pace says one at a time.
    """
    encoding = set[asyncio.Task[Batch]]()

    async def embed(batch: Batch) -> Batch:
        if not batch.found.failures:
            batch.found = await embedder.embed_documents(batch.documents)
        return batch

    while (batch := await source.get()) is not None:
        while len(encoding) >= pace.limits.at_once:
            _, encoding = await asyncio.wait(encoding, return_when=asyncio.FIRST_COMPLETED)
        task = group.create_task(embed(batch))
        encoding.add(task)
        await out.put(task)
    await out.put(None)


async def validate(space: Space, source: EncodedQueue, out: Queue) -> None:
    """Take out what is no vector of the space: what is stored has been looked at."""
    while (encoding := await source.get()) is not None:
        batch = await encoding
        take_out_faulty(batch.found, space)
        await out.put(batch)
    await out.put(None)


def take_out_faulty(found: DocumentVectors, space: Space) -> None:
    """Let what is no vector of the space count as a failure."""
    for row, vector in list(found.vectors.items()):
        fault = _fault(vector, space)
        if fault is not None:
            del found.vectors[row]
            found.failures[row] = (fault, 1)


class Writer:
    """Stores batches, each with the checkpoint. stored: told what each came to."""

    def __init__(
        self,
        database: Database,
        memory: HeldMemory,
        thread: Executor,
        stored: Callable[[Written], None],
    ) -> None:
        self._database = database
        self._memory = memory
        self._thread = thread
        self._stored = stored

    async def write(self, migration: Migration, source: Queue) -> int:
        """Store what comes; returns how many batches there were."""
        n_batches = 0
        while (batch := await source.get()) is not None:
            if batch.documents:
                written = await self._database.write(
                    self._thread, store, migration.id, batch.documents, batch.found
                )
                self._stored(written)
                n_batches += 1
            self._memory.leave(batch.permit)
        return n_batches


def store(
    connection: Connection,
    number: int,
    batch: Sequence[StoredDocument],
    found: DocumentVectors,
    *,
    is_in_order: bool = True,
) -> Written:
    """Store a batch's vectors, its failures and the checkpoint, in the transaction that is open.

    is_in_order: it is the next one of the walk, which goes on behind it.
    Raises MigrationStateError where the migration is not running any more.
    """
    migration = journal.find(connection, number)
    journal.check_there(connection, migration)
    if migration.state is not MigrationState.RUNNING:
        raise MigrationStateError(f"migration {number} is {migration.state.value}")
    by_row = {document.row: document for document in batch}
    now = documents.hashes(connection, migration.collection_id, list(by_row))
    present = {row for row, document in by_row.items() if now.get(row) == document.text_sha256}
    # A writer of documents may have been quicker, with the same text.
    present -= vectors.having(connection, migration.target_version, list(present))
    rows = [row for row in found.vectors if row in present]
    vectors.put(connection, migration.target_version, rows, [found.vectors[row] for row in rows])
    failed = [row for row in found.failures if row in present]
    for row in failed:
        reason, n_attempts = found.failures[row]
        quarantine.add(connection, migration.id, by_row[row], reason, n_attempts)
    n_skipped = len(batch) - len(rows) - len(failed)
    before = migration.checkpoint
    checkpoint = replace(
        before,
        position=batch[-1].row if is_in_order else before.position,
        n_embedded=before.n_embedded + len(rows),
        n_skipped=before.n_skipped + n_skipped,
        n_tokens=before.n_tokens + found.n_tokens,
    )
    journal.set_checkpoint(connection, migration.id, checkpoint)
    n_bridged = bridges.n_bridged(connection, bridges.find(connection, migration.id))
    return Written(len(rows), len(failed), n_skipped, found.n_tokens, n_bridged, checkpoint)


async def walk(
    reader: Reader,
    embedder: PatientEmbedder,
    writer: Writer,
    migration: Migration,
    position: int,
    pace: RunPace,
) -> int:
    """Take every document behind `position` that lacks a vector through the four stages.

    Returns how many batches there were. Raises what a stage does, once all of them have ended.
    """
    read, valid = Queue(QUEUE_BATCHES), Queue(QUEUE_BATCHES)
    encoded = EncodedQueue(QUEUE_BATCHES)
    with first_error():
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.read(migration, position, read))
            group.create_task(encode(embedder, read, encoded, group, pace))
            group.create_task(validate(migration.target, encoded, valid))
            written = group.create_task(writer.write(migration, valid))
    return written.result()


def _next_rows(
    connection: Connection, migration: Migration, position: int, limits: BatchLimits
) -> list[tuple[int, int]]:
    journal.check_there(connection, migration)
    return first_batch(lacking.after(connection, migration, position), limits)


def _fault(vector: np.ndarray, space: Space) -> str | None:
    """Why a vector is none of this space; None where it is."""
    if vector.shape != (space.dimensions,):
        return f"vector of shape {vector.shape}, not ({space.dimensions},)"
    length = float(np.linalg.norm(vector))
    if not abs(length - 1) <= NORM_TOLERANCE:  # NaN too
        return f"vector of length {length:g}, not 1"
    return None

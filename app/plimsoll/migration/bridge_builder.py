"""Builds the bridge that a migration was to have, before its walk: fitted, judged, applied.

A sample of the documents is embedded first, whose vectors are stored as any others: they are what
the map is fitted on, and none is embedded twice. Where the bridge is refused the migration goes on
without it, and says why. What is done is in the file: a run that begins again goes on with it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from sqlite3 import Connection

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import PatientEmbedder, Pause
from plimsoll.corpora.records import Version
from plimsoll.corpora.vectors import unit
from plimsoll.errors import MigrationStateError, TooLargeError
from plimsoll.migration import bridges, journal, lacking, progressive, shadow
from plimsoll.migration.bridge_figures import (
    LEAST_DOCUMENTS,
    BridgeFigures,
    TooFewDocumentsError,
    check_enough,
    fitted,
    sample_size,
    why_refused,
)
from plimsoll.migration.bridge_map import BridgeMap, Fit, fit_bytes
from plimsoll.migration.bridges import Bridge, BridgeState
from plimsoll.migration.facts import SEED
from plimsoll.migration.held_memory import HeldMemory
from plimsoll.migration.judged import JudgedQuery
from plimsoll.migration.pace import RunPace
from plimsoll.migration.progress import ProgressMonitor
from plimsoll.migration.records import SERVER, Migration
from plimsoll.migration.scans import sample_rows
from plimsoll.migration.stages import TEXT_COPIES, Written, first_batch, store, take_out_faulty
from plimsoll.migration.states import MigrationState
from plimsoll.migration.validation import MigrationJudge
from plimsoll.policy.costs import FLOAT32_BYTES, vector_search_demand
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.threads import run_in
from plimsoll.telemetry.migrations import MigrationMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Vectors of the same documents: old, float32 (n, old); new, float32 (n, new).

    ids: theirs. n_documents: that have an old vector in all.
    """

    n_documents: int
    ids: Sequence[str]
    old: np.ndarray
    new: np.ndarray


def sample(connection: Connection, old: Version) -> list[int]:
    """Rows that a bridge is fitted on, which have old vectors: ascending, each text once."""
    rows = sample_rows(connection, old, sample_size(vectors.count(connection, old.id)), SEED)
    texts = documents.hashes(connection, old.collection_id, rows)
    return sorted({texts[row]: row for row in reversed(rows)}.values())


class BridgeBuilder:
    """Builds bridges. thread: reads and writes the file, and fits."""

    def __init__(
        self,
        database: Database,
        judge: MigrationJudge,
        gate: AdmissionGate,
        thread: Executor,
        metrics: MigrationMetrics,
        pause: Pause,
    ) -> None:
        self._database = database
        self._judge = judge
        self._gate = gate
        self._thread = thread
        self._metrics = metrics
        self._pause = pause

    async def build(
        self,
        migration: Migration,
        progress: ProgressMonitor,
        pace: RunPace,
        stored: Callable[[Written], None],
    ) -> None:
        """Return once every document can be found by a new vector, or the bridge is refused.

        stored: told what each batch of the sample came to. Raises as a run does.
        """
        bridge = await self._database.read(self._thread, bridges.find, migration.id)
        if bridge is None or not bridge.is_to_be_built:
            return
        memory = HeldMemory(self._gate, progress.set_yielding, self._pause)
        embedder = self._judge.embedder(migration, migration.target, progress.set_yielding)
        try:
            if bridge.state is BridgeState.PLANNED:
                rows, left = await self._database.read(self._thread, _sampled, migration)

                def note(written: Written) -> None:
                    progress.stored(written.n_embedded, written.n_tokens)
                    stored(written)

                await self._embed(migration, left, embedder, memory, pace, note)
                refusal = await self._fit(migration, bridge, rows, embedder, memory)
                if refusal is not None:
                    log.warning(
                        "migration %d of %r goes on without a bridge: %s",
                        migration.id, migration.collection, refusal,
                    )  # fmt: skip
                    return
            await self._bridge(migration, memory)
        finally:
            memory.leave_all()

    async def _embed(
        self,
        migration: Migration,
        left: Sequence[tuple[int, int]],
        embedder: PatientEmbedder,
        memory: HeldMemory,
        pace: RunPace,
        stored: Callable[[Written], None],
    ) -> None:
        """Give the sample its new vectors; where the walk comes there, that is done already."""
        while batch := first_batch(left, pace.limits):
            left = left[len(batch) :]
            try:
                permit = await memory.hold(TEXT_COPIES * sum(n_bytes for _, n_bytes in batch))
            except TooLargeError:  # the walk leaves it out, and says so
                continue
            texts = await self._database.read(
                self._thread, documents.of_rows, migration.collection_id, [row for row, _ in batch]
            )
            found = await embedder.embed_documents(texts)
            take_out_faulty(found, migration.target)
            if texts:
                written = await self._database.write(
                    self._thread, store, migration.id, texts, found, is_in_order=False
                )
                stored(written)
            memory.leave(permit)

    async def _fit(
        self,
        migration: Migration,
        bridge: Bridge,
        rows: Sequence[int],
        embedder: PatientEmbedder,
        memory: HeldMemory,
    ) -> str | None:
        """Fit it and note what it is worth; returns why it is refused, None where it is not."""
        figures = None
        try:
            found, figures = await self._fitted(migration, rows, embedder, memory)
            refusal = why_refused(figures)
        except (TooFewDocumentsError, TooLargeError) as error:
            refusal = str(error)
        if figures is not None and (refusal is None or bridge.is_forced):
            await self._database.write(
                self._thread, bridges.begin, migration, found.map, figures, refusal
            )
            return None
        await self._database.write(self._thread, bridges.refuse, migration.id, refusal, figures)
        return refusal

    async def _fitted(
        self,
        migration: Migration,
        rows: Sequence[int],
        embedder: PatientEmbedder,
        memory: HeldMemory,
    ) -> tuple[Fit, BridgeFigures]:
        """Fit and measure. Raises TooFewDocumentsError, and TooLargeError for want of memory."""
        check_enough(len(rows))
        judged = await self._database.read(self._thread, journal.judged_queries, migration.id)
        # Embedding waits for room as long as it takes: it must not wait for what is held here.
        embedded = await embedder.embed_queries([query.query for query in judged])
        permit = await memory.hold(
            fit_bytes(len(rows), migration.source.dimensions, migration.target.dimensions)
        )
        pairs = await self._database.read(self._thread, _pairs, migration, rows)
        queries, relevant = _answered(judged, embedded, pairs.ids)
        done = await run_in(
            self._thread, fitted, pairs.old, pairs.new, pairs.n_documents, queries, relevant
        )
        memory.leave(permit)
        return done

    async def _bridge(self, migration: Migration, memory: HeldMemory) -> None:
        """Give every document that has an old vector alone a bridged one, a segment at a time."""
        old, new = migration.source.dimensions, migration.target.dimensions
        segment_bytes = vector_search_demand(max(old, new)).held_bytes
        permit = await memory.hold(segment_bytes + FLOAT32_BYTES * old * new)
        bridge, segments = await self._database.read(self._thread, _begun, migration)
        for number in segments:
            n_bridged = await self._database.write(
                self._thread, _bridge_segment, migration.id, bridge, number
            )
            self._metrics.set_bridged(migration.id, n_bridged)
        await self._database.write(self._thread, _take_into_use, migration)
        memory.leave(permit)


def _answered(
    judged: Sequence[JudgedQuery], embedded: Sequence[np.ndarray | None], ids: Sequence[str]
) -> tuple[np.ndarray | None, list[Mapping[int, float]]]:
    """Vectors of the queries that a document of `ids` answers, and grades by its place there."""
    places = {each: place for place, each in enumerate(ids)}
    given, relevant = list[np.ndarray](), list[Mapping[int, float]]()
    for query, vector in zip(judged, embedded, strict=True):
        grades = {places[each]: grade for each, grade in query.grades.items() if each in places}
        if grades and vector is not None:
            given.append(vector)
            relevant.append(grades)
    return (unit(np.stack(given)) if given else None), relevant


def _sampled(
    connection: Connection, migration: Migration
) -> tuple[list[int], list[tuple[int, int]]]:
    """The sample's rows, and those still to be embedded with the bytes of their texts."""
    journal.check_there(connection, migration)
    rows = sample(connection, journal.versions_of(connection, migration)[0])
    if len(rows) < LEAST_DOCUMENTS:  # the walk embeds them as well
        return rows, []
    return rows, lacking.among(connection, migration, rows)


def _pairs(connection: Connection, migration: Migration, rows: Sequence[int]) -> Pairs:
    """Vectors of the documents in these rows that have both."""
    journal.check_there(connection, migration)
    old = vectors.get(connection, migration.source_version, rows)
    new = vectors.get(connection, migration.target_version, rows)
    both = [row for row in rows if row in old and row in new]
    olds = np.array([old[row] for row in both]).reshape(len(both), migration.source.dimensions)
    news = np.array([new[row] for row in both]).reshape(len(both), migration.target.dimensions)
    kept = bridges.have_direction(olds)
    ids = documents.ids(connection, migration.collection_id, both)
    return Pairs(
        vectors.count(connection, migration.source_version),
        [each for each, is_kept in zip(ids, kept, strict=True) if is_kept],
        olds[kept],
        news[kept],
    )


def _begun(connection: Connection, migration: Migration) -> tuple[BridgeMap, list[int]]:
    """The map, and the segments that have old vectors."""
    journal.check_there(connection, migration)
    segments = vectors.segments(connection, migration.source_version)
    return bridges.map_of(connection, migration), [segment.number for segment in segments]


def _take_into_use(connection: Connection, migration: Migration) -> None:
    """Let searches read what was bridged, unless they do, were told not to, or are compared."""
    journal.check_there(connection, migration)
    found = bridges.find(connection, migration.id)
    if found is not None and found.state is BridgeState.BUILDING:
        bridges.set_in_use(connection, migration.id)
        if found.is_read and not shadow.share_of(connection, migration.id):
            progressive.read_ahead(connection, migration)
            told = "searches read the new version and bridged vectors"
            journal.note(connection, migration, SERVER, told)


def _bridge_segment(connection: Connection, number: int, bridge: BridgeMap, segment: int) -> int:
    """Bridge what a segment lacks; returns how many documents have a bridged vector now.

    Raises MigrationStateError where the migration is not running any more.
    """
    migration = journal.find(connection, number)
    journal.check_there(connection, migration)
    if migration.state is not MigrationState.RUNNING:
        raise MigrationStateError(f"migration {number} is {migration.state.value}")
    kept = bridges.find(connection, number)
    assert kept is not None and kept.version is not None  # noqa: S101, PT018 - it was begun
    rows, old = bridges.unbridged(connection, migration, kept.version, segment)
    if len(rows):
        bridges.put(connection, kept.version, rows, bridge(old))
    return bridges.n_bridged(connection, kept)

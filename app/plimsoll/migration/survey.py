"""Looks before a migration: what is in a collection (doctor), what a move would take (plan).

Nothing is written. Both embed a sample, as a request of the client that asks.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from sqlite3 import Connection
from time import perf_counter
from typing import TypeAlias

import numpy as np

from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Collection, Space, StoredDocument, Version
from plimsoll.errors import InvalidRequestError
from plimsoll.migration import journal
from plimsoll.migration.bridge_trial import BridgeTrial, BridgeTrials
from plimsoll.migration.checks import MOST_DISTANCE, cosine
from plimsoll.migration.facts import SEED
from plimsoll.migration.measures import standard_error
from plimsoll.migration.scans import VectorHealth, sample_rows, vector_health
from plimsoll.models.pool import ModelPool
from plimsoll.policy.costs import vector_search_demand
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Embeddings, EmbedTask
from plimsoll.serving.tokens import count_tokens

_Sample: TypeAlias = tuple[VectorHealth, list[tuple[str, np.ndarray]]]

SAMPLED_TEXTS = 64
PROBE = "How fast is this model?"  # where there is no document
COUNTED_TEXTS = 512
# Two quantizations of a model are nearer than this; two models are not.
LOOK_ALIKE_COSINE = 0.98
# Of a vector in SQLite beside its values: the row's number, lengths, and what pages leave empty.
ROW_OVERHEAD_RATIO = 1.15
ROW_OVERHEAD_BYTES = 16


@dataclass(frozen=True)
class VersionReport:
    """A version's vectors, and whether a sample embedded again gives what is stored.

    n_again: sampled texts that got a vector; n_equal: of these, as stored. looks_like: another
    served model whose vectors these might be.
    """

    version: Version
    is_active: bool
    health: VectorHealth
    n_again: int
    n_equal: int
    least_cosine: float | None
    looks_like: str | None


@dataclass(frozen=True)
class DoctorReport:
    """What is in a collection. blocking: what would keep a migration from beginning or from go."""

    collection: Collection
    n_documents: int
    n_without_text: int
    n_repeated_texts: int
    versions: list[VersionReport]
    blocking: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class MigrationPlan:
    """What a move would take. n_tokens is an estimate with its standard error; the sample exact.

    bridge: None where it was not asked for.
    """

    collection: str
    source: Space
    target: Space
    n_documents: int
    n_counted: int
    n_tokens: int
    tokens_error: int
    tokens_per_s: float
    seconds: float
    disk_bytes: int
    warnings: list[str]
    bridge: BridgeTrial | None = None


def version_bytes(n_vectors: int, dimensions: int) -> int:
    """About what so many vectors take in the file."""
    row_bytes = dimensions * vectors.STORED.itemsize + ROW_OVERHEAD_BYTES
    return round(n_vectors * row_bytes * ROW_OVERHEAD_RATIO)


class CollectionSurvey:
    """Looks at collections. thread: reads the file."""

    def __init__(
        self,
        database: Database,
        models: ModelPool,
        embeddings: EmbeddingService,
        thread: Executor,
    ) -> None:
        self._database = database
        self._models = models
        self._embeddings = embeddings
        self._thread = thread
        self._trials = BridgeTrials(database, embeddings, thread)

    async def doctor(self, name: str, permit: RequestPermit) -> DoctorReport:
        """What is in a collection. Raises UnknownCollectionError, OverloadError, ModelErrors."""
        collection, every = await self._database.read(self._thread, _collection_and_versions, name)
        widest = max(version.space.dimensions for version in every)
        await permit.renew(vector_search_demand(widest))
        permit.settle()
        n_documents, n_without_text, n_repeated = await self._database.read(
            self._thread, lambda connection: documents.text_counts(connection, collection.id)
        )
        reports = [await self._version_report(collection, version, permit) for version in every]
        migration = await self._database.read(
            self._thread, lambda connection: journal.of_collection(connection, collection.id)
        )
        blocking = []
        if migration is not None:
            blocking.append(f"migration {migration.id} is {migration.state.value}")
        warnings = []
        if n_without_text:
            warnings.append(f"{n_without_text} documents have no text: they would be quarantined")
        for report in reports:
            if report.is_active:
                blocking += _blocking(report, n_documents)
                warnings += _warnings(report)
        return DoctorReport(
            collection, n_documents, n_without_text, n_repeated, reports, blocking, warnings
        )

    async def plan(
        self,
        name: str,
        model: str,
        dimensions: int | None,
        permit: RequestPermit,
        *,
        tries_bridge: bool = False,
    ) -> MigrationPlan:
        """What a move would take; tries_bridge: embed a larger sample, and fit one on it.

        Raises as `doctor` does, and InvalidRequestError.
        """
        slot = self._models.find(model)
        collection, _ = await self._database.read(self._thread, _collection_and_versions, name)
        sample = await self._database.read(self._thread, _sample, collection, COUNTED_TEXTS)
        texts = [document.text for document in sample[:SAMPLED_TEXTS]] or [PROBE]
        lengths = await self._count_tokens(sample, slot.name) if sample else [0]
        await self._embed(texts[:1], slot.name, dimensions, permit)  # the model may have to open
        began_s = perf_counter()
        answer = await self._embed(texts, slot.name, dimensions, permit)
        tokens_per_s = answer.n_tokens / (perf_counter() - began_s)
        n_documents = await self._database.read(
            self._thread, lambda connection: documents.count(connection, collection.id)
        )
        n_tokens = round(float(np.mean(lengths)) * n_documents)
        left_ratio = 1 - len(sample) / max(1, n_documents)  # what was counted has no error
        target = Space(answer.fingerprint, answer.dimensions, slot.name)
        warnings = []
        if self._models.max_open < 2 and collection.active.space.model not in (None, slot.name):
            warnings.append(
                "only one model may be open at once (PLIMSOLL_MAX_OPEN_MODELS): old and new one "
                "would take turns, slowly"
            )
        if target.fingerprint == collection.active.space.fingerprint:
            warnings.append("the collection has these vectors already: there is nothing to do")
        bridge = None
        if tries_bridge:
            bridge = await self._trials.run(collection, target, permit)
        return MigrationPlan(
            collection=name,
            source=collection.active.space,
            target=target,
            n_documents=n_documents,
            n_counted=len(sample),
            n_tokens=n_tokens,
            tokens_error=round(standard_error(lengths) * n_documents * left_ratio),
            tokens_per_s=tokens_per_s,
            seconds=n_tokens / tokens_per_s,
            disk_bytes=version_bytes(n_documents, target.dimensions),
            warnings=warnings,
            bridge=bridge,
        )

    async def _version_report(
        self, collection: Collection, version: Version, permit: RequestPermit
    ) -> VersionReport:
        def look(connection: Connection) -> _Sample:
            rows = sample_rows(connection, version, SAMPLED_TEXTS, SEED)
            found = documents.of_rows(connection, collection.id, rows)
            stored = vectors.get(connection, version.id, rows)
            return vector_health(connection, version), [
                (document.text, stored[document.row]) for document in found
            ]

        health, sample = await self._database.read(self._thread, look)
        found = [
            (model, await self._cosines(sample, version.space, model, permit))
            for model in self._candidates(version.space)
        ]
        model, cosines = max(found, key=lambda pair: min(pair[1], default=-1.0))
        looks_like = None
        if model != version.space.model:
            if cosines and min(cosines) >= LOOK_ALIKE_COSINE:
                looks_like = model
            else:
                cosines = []
        return VersionReport(
            version,
            version.id == collection.active.id,
            health,
            n_again=len(cosines),
            n_equal=sum(1 - each <= MOST_DISTANCE for each in cosines),
            least_cosine=min(cosines, default=None),
            looks_like=looks_like,
        )

    def _candidates(self, space: Space) -> list[str]:
        """Models that the vectors of a space may be of: its own, else every one that is served."""
        served = [slot.name for slot in self._models.slots]
        return [space.model] if space.model in served else served

    async def _cosines(
        self,
        sample: Sequence[tuple[str, np.ndarray]],
        space: Space,
        model: str,
        permit: RequestPermit,
    ) -> list[float]:
        """Of what is stored and what a model gives; none where its vectors are of another size."""
        if not sample:
            return []
        try:
            answer = await self._embed(
                [text for text, _ in sample], model, space.dimensions, permit
            )
        except InvalidRequestError:  # it has fewer values
            return []
        return [
            cosine(again, stored)
            for again, (_, stored) in zip(answer.vectors, sample, strict=True)
            if again is not None
        ]

    async def _embed(
        self, texts: Sequence[str], model: str, dimensions: int | None, permit: RequestPermit
    ) -> Embeddings:
        task = EmbedTask(texts, "search_document", dimensions, model=model, priority=Priority.BULK)
        return await self._embeddings.embed_dense(task, permit)

    async def _count_tokens(self, sample: Sequence[StoredDocument], model: str) -> list[int]:
        task = EmbedTask([document.text for document in sample], "search_document", model=model)
        async with self._models.lease(model) as opened:
            return await count_tokens(opened, task, self._thread)


def _collection_and_versions(connection: Connection, name: str) -> tuple[Collection, list[Version]]:
    collection = versions.find(connection, name)
    return collection, versions.of_collection(connection, collection.id)


def _sample(connection: Connection, collection: Collection, most: int) -> list[StoredDocument]:
    """Documents that have an active vector, drawn at random; where none has one, the first."""
    rows = sample_rows(connection, collection.active, most, SEED)
    if not rows:
        return documents.after(connection, collection.id, 0, most)
    return documents.of_rows(connection, collection.id, rows)


def _blocking(report: VersionReport, n_documents: int) -> list[str]:
    """What the active version lacks for a migration to begin or to be judged."""
    health, found = report.health, []
    if not n_documents:
        found.append("there are no documents")
    if health.n_not_finite:
        found.append(f"{health.n_not_finite} vectors are not finite")
    return found


def _warnings(report: VersionReport) -> list[str]:
    """What is odd about the active version."""
    health, space = report.health, report.version.space
    whose = space.fingerprint if space.model is None else f"{space.model!r}"
    found = []
    if health.n_zero:
        found.append(f"{health.n_zero} vectors are zero")
    if health.n_not_unit:
        found.append(f"{health.n_not_unit} vectors are not of length 1")
    if report.looks_like is not None:
        found.append(f"the vectors of {whose} look like those of {report.looks_like!r}")
    elif not report.n_again:
        found.append(
            f"no model here gives vectors of {whose}: the old version is left out of query tests, "
            "and rollback would be partial"
        )
    elif report.n_equal < report.n_again:
        kind = "mixed: " if report.n_equal else ""
        found.append(
            f"{kind}{report.n_again - report.n_equal} of {report.n_again} sampled vectors are not "
            f"what {whose} gives now (least cosine {report.least_cosine:.4f})"
        )
    return found

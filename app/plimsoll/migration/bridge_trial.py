"""Tries a bridge before a migration: fitted and measured as it would be, and nothing is written."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from sqlite3 import Connection
from time import perf_counter

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Collection, Space, StoredDocument
from plimsoll.errors import TooLargeError
from plimsoll.migration.bridge_builder import sample
from plimsoll.migration.bridge_figures import (
    BridgeFigures,
    TooFewDocumentsError,
    check_enough,
    fitted,
    why_refused,
)
from plimsoll.migration.bridge_map import fit_bytes
from plimsoll.migration.bridges import have_direction
from plimsoll.migration.stages import TEXT_COPIES, first_batch
from plimsoll.policy.costs import MOST_LINE_BYTES, Demand
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import EmbedTask
from plimsoll.serving.threads import run_in

# Of one bridged vector, read and written: 20 to 40 µs of processor from 768 values to 384.
STORE_S = 50e-6


@dataclass(frozen=True)
class BridgeTrial:
    """What a bridge would be worth. reason: why it would be refused; None: it would not.

    n_documents: that would be bridged, once the sample is embedded. embed_s: seconds that the
    sample took, which a run does not spend twice. apply_s: seconds that bridging would take.
    """

    figures: BridgeFigures | None
    reason: str | None
    n_documents: int
    embed_s: float
    apply_s: float


class BridgeTrials:
    """Tries bridges. thread: reads the file, and fits."""

    def __init__(self, database: Database, embeddings: EmbeddingService, thread: Executor) -> None:
        self._database = database
        self._embeddings = embeddings
        self._thread = thread

    async def run(
        self, collection: Collection, target: Space, permit: RequestPermit
    ) -> BridgeTrial:
        """What a bridge to a served model's space would be worth, as a part of a client's request.

        Raises OverloadError and ModelErrors.
        """
        n_old, rows = await self._database.read(self._thread, _sampled, collection)
        began_s = perf_counter()
        embed_s = 0.0
        try:
            check_enough(len(rows))
            n_bytes = fit_bytes(len(rows), collection.active.space.dimensions, target.dimensions)
            await permit.renew(Demand(0, n_bytes + TEXT_COPIES * MOST_LINE_BYTES))
            permit.settle()
            old, new = await self._pairs(collection, target, rows, permit)
            embed_s = perf_counter() - began_s
            _, figures = await run_in(self._thread, fitted, old, new, n_old)
        except (TooFewDocumentsError, TooLargeError) as error:
            return BridgeTrial(None, str(error), 0, embed_s, 0.0)
        n_left = n_old - len(old)
        return BridgeTrial(
            figures, why_refused(figures), n_left, embed_s, n_left * (figures.row_s + STORE_S)
        )

    async def _pairs(
        self, collection: Collection, target: Space, rows: Sequence[int], permit: RequestPermit
    ) -> tuple[np.ndarray, np.ndarray]:
        """Old and new vectors, float32 (n, old) and (n, new), of those that have both."""
        sizes = await self._database.read(self._thread, _sizes, collection, rows)
        olds, news = list[np.ndarray](), list[np.ndarray]()
        while batch := first_batch(sizes):
            sizes = sizes[len(batch) :]
            found, stored = await self._database.read(
                self._thread, _with_old, collection, [row for row, _ in batch]
            )
            task = EmbedTask(
                [document.text for document in found],
                "search_document",
                target.dimensions,
                model=target.model,
                priority=Priority.BULK,
            )
            answer = await self._embeddings.embed_dense(task, permit)
            for document, vector in zip(found, answer.vectors, strict=True):
                if vector is not None:
                    olds.append(stored[document.row])
                    news.append(vector)
        old = np.array(olds, np.float32).reshape(len(olds), collection.active.space.dimensions)
        new = np.array(news, np.float32).reshape(len(news), target.dimensions)
        kept = have_direction(old)
        return old[kept], new[kept]


def _sampled(connection: Connection, collection: Collection) -> tuple[int, list[int]]:
    """How many old vectors there are, and the sample's rows."""
    version = collection.active
    return vectors.count(connection, version.id), sample(connection, version)


def _sizes(
    connection: Connection, collection: Collection, rows: Sequence[int]
) -> list[tuple[int, int]]:
    return [(row, documents.n_bytes(connection, collection.id, [row])) for row in rows]


def _with_old(
    connection: Connection, collection: Collection, rows: Sequence[int]
) -> tuple[list[StoredDocument], dict[int, np.ndarray]]:
    """Documents in these rows that have an old vector, as both are now."""
    stored = vectors.get(connection, collection.active.id, rows)
    return documents.of_rows(connection, collection.id, list(stored)), stored

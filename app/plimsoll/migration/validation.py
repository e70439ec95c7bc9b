"""Judges a new version before searches may read it: every check, its figures, one verdict.

Three kinds of checks: that every document has a vector made from its present text and that each is
sound; that a sample embedded again gives what was stored; and that searches stay as good. The last
is asked in the strongest way that there is: cosines where both versions come from one model, judged
queries where the user has them, else how far both versions agree on the neighbours of documents.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import PatientEmbedder, Pause, Yielding
from plimsoll.corpora.records import Space, Version
from plimsoll.encoder.traits import Traits
from plimsoll.errors import (
    CacheError,
    GGUFError,
    ModelError,
    ModelLoadingError,
    OverloadError,
    TooLargeError,
    UnknownModelError,
)
from plimsoll.migration import checks, shadow
from plimsoll.migration.facts import (
    SAMPLE_DOCUMENTS,
    SEED,
    Facts,
    facts_of,
    facts_of_old,
    with_vectors,
)
from plimsoll.migration.held_memory import HeldMemory
from plimsoll.migration.quality import QualityJudge
from plimsoll.migration.records import Migration
from plimsoll.migration.stages import TEXT_COPIES, first_batch
from plimsoll.migration.verdict import Check, Verdict, decide
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import LOADING_RETRY_S
from plimsoll.policy.costs import vector_search_demand
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import AdmissionGate

# For the old model to open, before the pointer changes.
MOST_MODEL_WAIT_S = 30.0


class MigrationJudge:
    """Draws verdicts. thread: reads the file. now: the moment, as the journal writes it."""

    def __init__(
        self,
        database: Database,
        models: ModelPool,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        thread: Executor,
        now: Callable[[], str],
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._database = database
        self._models = models
        self._embeddings = embeddings
        self._gate = gate
        self._thread = thread
        self._now = now
        self._pause = pause

    async def judge(self, migration: Migration, yielding: Yielding) -> Verdict:
        """Judge the new version as it is now. Raises as PatientEmbedder.embed does, StoreError."""
        memory = HeldMemory(self._gate, yielding, self._pause)
        try:
            widest = max(migration.source.dimensions, migration.target.dimensions)
            await memory.hold(vector_search_demand(widest).held_bytes)
            facts = await self._database.read(self._thread, facts_of, migration)
            new = self.embedder(migration, migration.target, yielding)
            old = None
            if await self.can_embed(migration.source):
                old = self.embedder(migration, migration.source, yielding)
            found = [
                checks.complete(facts.n_documents, facts.n_lacking, facts.n_new_vectors,
                                facts.n_quarantined),
                checks.hashes(facts.n_documents, facts.n_changed_texts),
                checks.sound(facts.health),
                checks.quarantine(facts.n_documents, facts.n_quarantined, facts.n_lost),
                await self._sample(facts.new, facts.sample, new, memory),
                *await self._quality(migration, facts, old, new),
                checks.rollback(migration.source, can_embed=old is not None),
            ]  # fmt: skip
            if facts.shadow is not None and (facts.shadow.n_compared or facts.shadow.n_failed):
                found.append(shadow.check_of(facts.shadow))
            if facts.bridge is not None:
                found.append(checks.bridge(facts.bridge))
        finally:
            memory.leave_all()
        return decide(found, self._now(), SEED)

    async def judge_old(self, migration: Migration) -> list[Check]:
        """What the old version is worth by itself, before there is another one.

        Its sample embedded again, judged queries where there are any, and latency, in which "new"
        is the version that is judged. Empty where no model here embeds into its space. Raises as
        `judge` does.
        """
        if not await self.can_embed(migration.source):
            return []
        memory = HeldMemory(self._gate, lambda why: None, self._pause)
        try:
            await memory.hold(vector_search_demand(migration.source.dimensions).held_bytes)
            version, sample, openings, judged = await self._database.read(
                self._thread, facts_of_old, migration
            )
            old = self.embedder(migration, migration.source)
            quality = QualityJudge(self._database, self._thread, version, version)
            found = [await self._sample(version, sample, old, memory)]
            if judged:
                found.append(await quality.judged(migration, judged, None, old, decides=False))
            found.append(await quality.latency(openings, None, old))
        finally:
            memory.leave_all()
        return found

    async def can_embed(self, space: Space) -> bool:
        """Whether a model here embeds into `space` as it was when the vectors were made."""
        if space.model is None:
            return False
        try:
            traits = await self._traits(space.model)
        except (UnknownModelError, ModelError, GGUFError, CacheError):
            return False  # not served any more, or not to be opened
        return traits.fingerprint(space.dimensions, "search_document") == space.fingerprint

    async def can_embed_soon(self, space: Space) -> bool:
        """Likewise, for a change of the pointer, which is not patient.

        Raises ModelLoadingError.
        """
        try:
            async with asyncio.timeout(MOST_MODEL_WAIT_S):
                return await self.can_embed(space)
        except TimeoutError:
            raise ModelLoadingError(
                f"{space.model!r} has not opened within {MOST_MODEL_WAIT_S:.0f} s; the migration "
                "is as it was",
                retry_after_s=LOADING_RETRY_S,
            ) from None

    async def _traits(self, model: str) -> Traits:
        """What a model is, which has to be opened first perhaps; refusals are waited out."""
        while True:
            permit = self._gate.permit()
            try:
                permit.enter(asks_breaker=True)  # before it opens into memory that is short
                async with self._models.lease(model) as opened:
                    return opened.traits
            except (OverloadError, ModelLoadingError) as error:
                wait_s = error.retry_after_s
            finally:
                permit.leave()
            await self._pause(wait_s)

    async def _sample(
        self,
        version: Version,
        sample: Sequence[tuple[int, int]],
        embedder: PatientEmbedder,
        memory: HeldMemory,
    ) -> Check:
        """Embed a sample again: what is stored must be what the texts give.

        A document that memory is never enough for is left out of it.
        """
        n_sampled, pairs = 0, list[tuple[np.ndarray, np.ndarray]]()
        left = sample
        while batch := first_batch(left):
            left = left[len(batch) :]
            try:
                permit = await memory.hold(TEXT_COPIES * sum(n_bytes for _, n_bytes in batch))
            except TooLargeError:
                continue
            rows = [row for row, _ in batch]
            read, stored = await self._database.read(self._thread, with_vectors, version, rows)
            found = (await embedder.embed_documents(read)).vectors
            n_sampled += len(read)
            pairs += [(found[row], vector) for row, vector in stored.items() if row in found]
            memory.leave(permit)
        n_identical = sum(np.array_equal(again, stored) for again, stored in pairs)
        distances = [1 - checks.cosine(again, stored) for again, stored in pairs]
        return checks.embedded_again(n_sampled, n_identical, distances)

    async def _quality(
        self,
        migration: Migration,
        facts: Facts,
        old: PatientEmbedder | None,
        new: PatientEmbedder,
    ) -> list[Check]:
        """Whether searches stay as good; the strongest question that has an answer decides."""
        judge = QualityJudge(self._database, self._thread, facts.old, facts.new)
        found = list[Check]()
        if old is not None and await self._is_same_model(migration):
            cosines = [
                checks.cosine(before, after)
                for before, after in zip(facts.old_vectors, facts.new_vectors, strict=True)
                if before is not None
            ]
            found.append(checks.same_model(cosines))
        if facts.judged:
            decides = not _is_settled(found)
            found.append(await judge.judged(migration, facts.judged, old, new, decides=decides))
        decides = not _is_settled(found)
        found.append(await judge.neighbours(SAMPLE_DOCUMENTS, SEED, decides=decides))
        found.append(await judge.latency(facts.openings, old, new))
        return found

    async def _is_same_model(self, migration: Migration) -> bool:
        """Whether both versions go by one model's name and shape, as two quantizations of it do."""
        source, target = migration.source, migration.target
        if source.model is None or target.model is None:
            return False
        if source.dimensions != target.dimensions:
            return False
        old, new = await self._traits(source.model), await self._traits(target.model)
        return (
            old.known.name == new.known.name
            and old.architecture == new.architecture
            and old.vocabulary_sha256 == new.vocabulary_sha256
        )

    def embedder(
        self, migration: Migration, space: Space, yielding: Yielding = lambda why: None
    ) -> PatientEmbedder:
        """What embeds into a space of a migration, behind live requests."""
        return PatientEmbedder(
            self._embeddings, self._gate, migration.collection, space, yielding, self._pause
        )


def _is_settled(found: Sequence[Check]) -> bool:
    return any(check.outcome in ("passed", "failed") for check in found)

"""One run of a migration: walks over the collection until no document lacks a new vector.

The first walk begins at the checkpoint. Each further one begins anew, for documents that came or
changed behind the walk's back and could not be embedded as they did; documents that were embedded
into both versions when they came are not touched. So a run may end and begin at any moment.
"""

from collections.abc import Callable
from concurrent.futures import Executor

from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import PatientEmbedder, Pause
from plimsoll.migration import journal
from plimsoll.migration.held_memory import HeldMemory
from plimsoll.migration.pace import RunPace
from plimsoll.migration.progress import ProgressMonitor
from plimsoll.migration.records import Migration
from plimsoll.migration.stages import Reader, Writer, Written, walk
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import AdmissionGate


class MigrationCoordinator:
    """Runs one migration's stages. stored: told what each batch came to."""

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        thread: Executor,
        progress: ProgressMonitor,
        pace: RunPace,
        stored: Callable[[Written], None],
        pause: Pause,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._gate = gate
        self._thread = thread
        self._progress = progress
        self._pace = pace
        self._stored = stored
        self._pause = pause

    async def run(self, migration: Migration) -> None:
        """Return once every document has a new vector or is quarantined.

        Raises StoreError, SpaceMismatchError, ModelErrors, UnknownModelError and
        MigrationStateError; what was stored until then stays.
        """
        memory = HeldMemory(self._gate, self._progress.set_yielding, self._pause)
        reader = Reader(self._database, memory, self._thread, self._pace)
        writer = Writer(self._database, memory, self._thread, self._note)
        embedder = PatientEmbedder(
            self._embeddings,
            self._gate,
            migration.collection,
            migration.target,
            self._progress.set_yielding,
            self._pause,
        )
        now = await self._database.read(self._thread, journal.find, migration.id)
        position = now.checkpoint.position
        try:
            while await walk(reader, embedder, writer, migration, position, self._pace) or position:
                position = 0
        finally:
            memory.leave_all()

    def _note(self, written: Written) -> None:
        self._progress.stored(written.n_embedded, written.n_tokens)
        self._stored(written)

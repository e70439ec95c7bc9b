"""The tasks of migrations that are under way: started, stopped, and what each ended in.

Owns the tasks. Lives on the event loop. A task that is stopped leaves the state as it is: the
journal says what was, and a server that starts goes on from there.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection
from time import monotonic
from typing import Concatenate, ParamSpec

from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import Pause
from plimsoll.corpora.reclaim import TableReclaim
from plimsoll.errors import (
    MigrationStateError,
    OutsideUnavailableError,
    PlimsollError,
    StoreError,
)
from plimsoll.links.links import Links
from plimsoll.migration import bridges, journal, pointer, progressive
from plimsoll.migration.bridge_builder import BridgeBuilder
from plimsoll.migration.coordinator import MigrationCoordinator
from plimsoll.migration.hooks.hooks import HookedRun, MigrationHooks
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.pace import RunPace
from plimsoll.migration.progress import ProgressMonitor
from plimsoll.migration.records import SERVER, Migration
from plimsoll.migration.stages import Written
from plimsoll.migration.states import MigrationState
from plimsoll.migration.status import counts_of
from plimsoll.migration.validation import MigrationJudge
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.threads import first_error
from plimsoll.telemetry.migrations import MigrationMetrics

P = ParamSpec("P")

log = logging.getLogger(__name__)

UNFORESEEN = "an unforeseen error, which stands in the server's log"


@dataclass
class _Run:
    task: asyncio.Task[None]
    progress: ProgressMonitor


class MigrationRuns:
    """Works off migrations. thread: reads and writes the file. max_open: models at a time."""

    def __init__(
        self,
        database: Database,
        embeddings: EmbeddingService,
        gate: AdmissionGate,
        judge: MigrationJudge,
        links: Links,
        metrics: MigrationMetrics,
        thread: Executor,
        hooks: MigrationHooks,
        reclaim: TableReclaim,
        max_open: int,
        clock: Callable[[], float] = monotonic,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._database = database
        self._embeddings = embeddings
        self._gate = gate
        self._judge = judge
        self._links = links
        self._metrics = metrics
        self._thread = thread
        self._hooks = hooks
        self._reclaim = reclaim
        self._max_open = max_open
        self._clock = clock
        self._pause = pause
        self._bridges = BridgeBuilder(database, judge, gate, thread, metrics, pause)
        self._runs: dict[int, _Run] = {}
        self._ending: dict[int, asyncio.Task[None]] = {}  # of those that are stopped
        self._unwritten: dict[int, str] = {}  # failures that the file would not take

    def start(self, number: int) -> None:
        """Work on a migration that is running or validating, unless that is done already."""
        run = self._runs.get(number)
        if run is not None and not run.task.done():
            return
        self._unwritten.pop(number, None)
        progress = ProgressMonitor(self._clock, self._metrics.yielded)
        # In a context of its own: it works for no request, and outlives the one that began it.
        task = asyncio.get_running_loop().create_task(
            self._work(number, progress), name=f"migration {number}", context=Context()
        )
        self._runs[number] = _Run(task, progress)

    async def stop(self, number: int) -> None:
        """End the work on a migration; what is being stored is stored first."""
        run = self._runs.pop(number, None)
        if run is not None:
            run.task.cancel()
            self._ending[number] = run.task
        task = self._ending.get(number)  # also one that another waits for
        if task is not None:
            await asyncio.wait((task,))
            if self._ending.get(number) is task:
                del self._ending[number]

    async def close(self) -> None:
        """End all of it."""
        for number in list(self._runs):
            await self.stop(number)

    def progress(self, number: int) -> ProgressMonitor | None:
        """Of a migration that is worked on."""
        run = self._runs.get(number)
        return None if run is None or run.task.done() else run.progress

    def unwritten_failure(self, number: int) -> str | None:
        """Why a migration stopped, where the file could not be told."""
        return self._unwritten.get(number)

    def forget_failure(self, number: int) -> None:
        """It has another state now."""
        self._unwritten.pop(number, None)

    async def _work(self, number: int, progress: ProgressMonitor) -> None:
        try:
            await self._to_its_end(number, progress)
        except PlimsollError as error:
            await self._fail(number, str(error))
        except Exception:
            log.exception("migration %d failed", number)
            await self._fail(number, UNFORESEEN)
        finally:
            self._metrics.set_left(number, 0)
            self._metrics.set_bridged(number, 0)

    async def _to_its_end(self, number: int, progress: ProgressMonitor) -> None:
        """Ask what is asked before, run with what is asked beside it, and have it judged."""
        migration = await self._database.read(self._thread, journal.find, number)
        pace, begun, ended = RunPace(), asyncio.Event(), asyncio.Event()
        run = HookedRun(number, progress, pace)
        if migration.state is MigrationState.RUNNING:
            await self._hooks.ask(run, Moment.BEFORE)
        elif migration.state is not MigrationState.VALIDATING:  # another was quicker
            return
        with first_error():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hooks.accompany(run, begun, ended))
                await begun.wait()
                decision = await self._work_off(migration, progress, pace)
                ended.set()
        await self._hooks.ask(run, Moment.AFTER)
        await self._commit(pointer.make_ready, number, decision, SERVER)
        log.info("migration %d of %r: %s", number, migration.collection, decision)

    async def _work_off(
        self, migration: Migration, progress: ProgressMonitor, pace: RunPace
    ) -> str:
        """Embed what lacks a vector, and note the verdict; returns its decision."""
        number = migration.id
        if migration.state is MigrationState.RUNNING:
            left = await self._database.read(self._thread, counts_of, migration)
            self._metrics.set_left(number, left.n_left)
            coordinator = MigrationCoordinator(
                self._database,
                self._embeddings,
                self._gate,
                self._thread,
                progress,
                pace,
                partial(self._count, number),
                self._pause,
            )
            await self._bridges.build(migration, progress, pace, partial(self._count, number))
            await coordinator.run(migration)
            await self._bring_out(migration, progress)
            migration = await self._end_embedding(number)
        verdict = await self._judge.judge(migration, progress.set_yielding)
        await self._database.write(self._thread, journal.set_verdict, number, verdict.as_json())
        self._metrics.judged(verdict.decision)
        return verdict.decision

    async def _end_embedding(self, number: int) -> Migration:
        """There is nothing left to embed, and so nothing that a bridge would be for."""

        def work(connection: Connection) -> Migration:
            bridges.drop(connection, number)
            migration = journal.find(connection, number)
            progressive.end_where_alone(connection, migration, self._max_open)
            why = "every document has a new vector or is quarantined"
            return journal.change_state(connection, number, MigrationState.VALIDATING, SERVER, why)

        changed = await self._database.write(self._thread, work)
        self._reclaim.start()
        self._metrics.changed(MigrationState.VALIDATING.value)
        return changed

    async def _bring_out(self, migration: Migration, progress: ProgressMonitor) -> None:
        """Have everything outside, where the collection is linked; refusals are waited out."""
        while True:
            try:
                async with self._links.held(migration.collection) as link:
                    if link is not None:
                        await link.finish(migration.target, progress.set_yielding)
                break
            except OutsideUnavailableError as error:
                refusal, wait_s = str(error), error.retry_after_s
            progress.set_yielding(refusal)
            await self._pause(wait_s)
        progress.set_yielding(None)

    async def _fail(self, number: int, reason: str) -> None:
        """Write down why it stopped; documents then go to the old version alone."""

        def note(connection: Connection) -> None:
            failed = journal.change_state(connection, number, MigrationState.FAILED, SERVER, reason)
            pointer.set_target_takes_writes(connection, failed, takes_writes=False)

        log.error("migration %d stopped: %s", number, reason)
        try:
            await self._database.write(self._thread, note)
        except StoreError:
            self._unwritten[number] = reason
        except MigrationStateError:  # it was ended otherwise meanwhile
            return
        self._metrics.changed(MigrationState.FAILED.value)

    async def _change(self, number: int, after: MigrationState, why: str) -> Migration:
        return await self._commit(journal.change_state, number, after, SERVER, why)

    async def _commit(
        self,
        work: Callable[Concatenate[Connection, P], Migration],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Migration:
        changed = await self._database.write(self._thread, work, *args, **kwargs)
        self._metrics.changed(changed.state.value)
        return changed

    def _count(self, number: int, written: Written) -> None:
        self._metrics.moved(number, written.n_embedded + written.n_quarantined)
        self._metrics.rows("embedded", written.n_embedded)
        self._metrics.rows("skipped", written.n_skipped)
        self._metrics.rows("quarantined", written.n_quarantined)
        self._metrics.tokens(written.n_tokens)
        self._metrics.set_bridged(number, written.n_bridged)

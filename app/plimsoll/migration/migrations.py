"""The use cases of migrations: begun, looked at, paused, resumed, judged, cut over, taken back.

Every change is one transaction of the file of collections, with who asked for it and why. At most
one migration of a collection is open at a time.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from sqlite3 import Connection
from time import monotonic
from typing import Any, TypeAlias

from plimsoll.corpora.database import Database
from plimsoll.corpora.reclaim import TableReclaim
from plimsoll.corpora.spaces import served_space
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import MigrationStateError, OutsideUnavailableError, StoreError
from plimsoll.links.links import Links
from plimsoll.migration import bridges, journal, pointer, progressive, quarantine, shadow_share
from plimsoll.migration.bridges import BridgeWish
from plimsoll.migration.changes import Change, Follow, StateChanges
from plimsoll.migration.cutovers import Cutovers
from plimsoll.migration.hooks import journal as hooks_journal
from plimsoll.migration.hooks.hooks import MigrationHooks
from plimsoll.migration.old_answers import OldAnswers
from plimsoll.migration.outside import OutsidePointers
from plimsoll.migration.readiness import SearchReadiness
from plimsoll.migration.records import Migration, Progress
from plimsoll.migration.runs import MigrationRuns
from plimsoll.migration.second_answers import SecondAnswers
from plimsoll.migration.shadow_searches import ShadowSearches, shares
from plimsoll.migration.startup import CutOver, IdleVersions, cut_over, leave_out_unserved
from plimsoll.migration.states import UNDER_WAY, MigrationState, check_change
from plimsoll.migration.status import MigrationStatus, counts_of, status_of
from plimsoll.migration.validation import MigrationJudge
from plimsoll.models.pool import ModelPool
from plimsoll.serving.core import Drain
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.migrations import MigrationMetrics

log = logging.getLogger(__name__)

# Of a status that is watched.
EVENT_EVERY_S = 1.0

_S = MigrationState
JUDGED = (_S.READY, _S.ROLLED_BACK)

Shares: TypeAlias = list[tuple[Migration, float]]
"""Of live searches that each compares."""


class Migrations:
    """Begins and ends migrations.

    thread: reads and writes the file for changes of state. scans: the threads of runs and verdicts,
    which may take long. Both end with `close`, and so does `second`. hooks: may be listed and
    tried.
    """

    def __init__(
        self,
        database: Database,
        models: ModelPool,
        reclaim: TableReclaim,
        runs: MigrationRuns,
        judge: MigrationJudge,
        links: Links,
        metrics: MigrationMetrics,
        drain: Drain,
        thread: ThreadPoolExecutor,
        scans: ThreadPoolExecutor,
        hooks: MigrationHooks,
        second: SecondAnswers,
        shadows: ShadowSearches,
        readiness: SearchReadiness,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._models = models
        self._reclaim = reclaim
        self._runs = runs
        self._judge = judge
        self._links = links
        self._drain = drain
        self._scans = scans
        self.hooks = hooks
        self._second = second
        self._shadows = shadows
        self._changes = StateChanges(database, runs, metrics, thread)
        self._cutovers = Cutovers(
            self._changes, judge, links, hooks, readiness, clock, self._find_lost
        )
        self._old_answers = OldAnswers(database, second, self._cutovers, models.max_open)
        self._outside = OutsidePointers(self._changes, links, self._cutovers)
        self._looking = set[asyncio.Task[None]]()  # at versions and homes that searches do not read
        self._finding = set[int]()  # migrations whose lost answer is looked for

    async def start(self) -> None:
        """Go on with what was under way when the server stopped."""
        if not self._database.path.exists():
            return

        def look(connection: Connection) -> tuple[list[Migration], list[CutOver], Shares]:
            found = leave_out_unserved(connection, self._models)
            return found, cut_over(connection, found), shares(connection, found)

        try:
            found, watched, compared = await self._changes.write(look)
            interrupted = await self._changes.read(hooks_journal.interrupted_after_cutover)
        except StoreError as error:  # collections are refused with it; all else is served
            log.error("%s", error)
            return
        for migration in found:
            if migration.state in UNDER_WAY:
                log.info("migration %d of %r goes on", migration.id, migration.collection)
                self._runs.start(migration.id)
        self._cutovers.start(watched, interrupted)
        self._shadows.start(compared)
        idle = IdleVersions(self._changes, self._judge)
        self._look(idle.look(found))
        self._look(self._outside.mend(found))

    async def close(self) -> None:
        """Stop working, and end the thread; a server that starts again goes on."""
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        await self._second.close()
        await self._cutovers.close()
        await self._changes.finish()
        await self._runs.close()
        await self._changes.close()
        await asyncio.to_thread(self._scans.shutdown)

    def searched(self, collection: str, is_answered: bool) -> None:
        """Take note of a search, which may take a cut-over back."""
        self._cutovers.searched(collection, is_answered)

    def answered(self, task: SearchTask, found: SearchResults, seconds: float) -> None:
        """Take note of an answer by meaning, which may be compared with the other version's."""
        self._shadows.answered(task, found, seconds)
        self._old_answers.answered(task, found)

    async def begin(
        self,
        collection: str,
        model: str,
        permit: RequestPermit,
        who: str,
        why: str,
        *,
        dimensions: int | None = None,
        judged: Sequence[Mapping[str, Any]] = (),
        hooks: Sequence[str] = (),
        bridge: BridgeWish = "none",
        starts: bool = True,
        is_progressive: bool = False,
    ) -> MigrationStatus:
        """Move a collection to a served model; starts: at once, else when it is resumed.

        hooks: names of those that are asked, behind those that always are. is_progressive: searches
        read the new version too from now on, where it has vectors. bridge: whether they are to have
        one until everything is embedded.
        Raises UnknownCollectionError, UnknownModelError, UnknownHookError, MigrationStateError,
        InvalidRequestError, and ModelErrors and OverloadError where the model has to be opened to
        know its space.
        """
        self.hooks.check(hooks)
        target = await served_space(self._models, model, dimensions, permit)
        async with self._links.held(collection) as link:
            if link is not None:
                await link.check_followed()

        def work(connection: Connection) -> Migration:
            migration = pointer.begin(connection, collection, target, [*judged], who, why)
            hooks_journal.put_names(connection, migration.id, hooks)
            if bridge != "none":
                bridges.plan(connection, migration.id, is_forced=bridge == "forced")
            if is_progressive:
                progressive.begin(connection, migration, self._models.max_open)
            if starts:
                migration = journal.change_state(connection, migration.id, _S.RUNNING, who, why)
            return migration

        begun = await self._change(work, self._runs.start if starts else lambda number: None)
        self._links.wake(collection)
        return begun

    async def statuses(self) -> list[MigrationStatus]:
        """Every migration, the newest first."""
        found = await self._changes.read(
            lambda connection: [
                counts_of(connection, migration) for migration in journal.all_migrations(connection)
            ]
        )
        return [status_of(counts, *self._run_of(counts.migration.id)) for counts in found]

    async def status(self, number: int) -> MigrationStatus:
        """One of them. Raises UnknownMigrationError."""
        counts = await self._changes.read(
            lambda connection: counts_of(connection, journal.find(connection, number))
        )
        return status_of(counts, *self._run_of(number))

    async def history(self, number: int) -> list[Progress]:
        """How far it was, every few seconds in which something was stored. Raises as `status`."""
        return await self._changes.read(
            lambda connection: journal.progress(connection, journal.find(connection, number).id)
        )

    async def watch(self, number: int) -> AsyncIterator[MigrationStatus]:
        """Its status, again and again, until nothing is under way. Raises as `status` does."""
        while True:
            status = await self.status(number)
            yield status
            if status.state not in UNDER_WAY or self._drain.started:
                return
            await asyncio.sleep(EVENT_EVERY_S)

    async def pause(self, number: int, who: str, why: str) -> MigrationStatus:
        """Stop embedding; new documents still go to both versions. Raises MigrationStateError."""
        await self._changes.stop_and_change(
            number, lambda connection: journal.change_state(connection, number, _S.PAUSED, who, why)
        )
        return await self.status(number)

    async def cancel(self, number: int, who: str, why: str) -> MigrationStatus:
        """Give up before cut-over and drop the new version. Raises MigrationStateError."""
        changed = await self._changes.stop_and_change(
            number, lambda connection: pointer.cancel(connection, number, who, why)
        )
        self._shadows.set_share(changed, 0.0)
        self._reclaim.start()
        self._links.wake(changed.collection)
        return await self.status(number)

    async def resume(self, number: int, who: str, why: str) -> MigrationStatus:
        """Begin, or go on at the checkpoint. Raises MigrationStateError."""

        def work(connection: Connection) -> Migration:
            migration = journal.find(connection, number)
            # One that stopped and could not write that down is under way, by what the file says.
            if self._runs.unwritten_failure(number) is None:
                if migration.state in JUDGED:
                    raise MigrationStateError(
                        f"migration {number} is {migration.state.value}; validate it instead"
                    )
                migration = journal.change_state(connection, number, _S.RUNNING, who, why)
            pointer.set_target_takes_writes(connection, migration, takes_writes=True)
            return migration

        return await self._change(work, self._runs.start)

    async def validate(
        self, number: int, judged: Sequence[Mapping[str, Any]] | None, who: str, why: str
    ) -> MigrationStatus:
        """Judge again, having embedded what lacks a new vector and tried again what failed.

        For one that is ready or rolled back; a failed one goes on.

        judged: None: by the queries it has. Raises as `pause` does, and InvalidRequestError.
        """

        def work(connection: Connection) -> Migration:
            migration = journal.find(connection, number)
            if migration.state not in (*JUDGED, _S.FAILED):
                raise MigrationStateError(
                    f"migration {number} is {migration.state.value}, not ready, failed or rolled "
                    "back"
                )
            if judged is not None:
                journal.set_judged(connection, migration, judged)
            quarantine.clear(connection, number)
            migration = journal.change_state(connection, number, _S.RUNNING, who, why)
            pointer.set_target_takes_writes(connection, migration, takes_writes=True)
            return migration

        return await self._change(work, self._runs.start)

    async def set_progressive(
        self, number: int, who: str, why: str, *, is_on: bool
    ) -> MigrationStatus:
        """Let searches read the new version before cut-over where it has vectors, or not.

        Raises MigrationStateError.
        """
        await self._changes.write(
            lambda connection: progressive.switch(
                connection, number, who, why, self._models.max_open, is_on=is_on
            )
        )
        return await self.status(number)

    async def set_shadow(self, number: int, share: float, who: str, why: str) -> MigrationStatus:
        """Have that share of live searches asked of the new version too, and compared; 0: none.

        Raises MigrationStateError.
        """
        migration = await self._changes.write(
            lambda connection: shadow_share.switch(
                connection, number, share, who, why, self._models.max_open
            )
        )
        self._shadows.set_share(migration, share)
        return await self.status(number)

    async def cut_over(
        self, number: int, who: str, why: str, *, force: bool = False
    ) -> MigrationStatus:
        """Let searches read the new version. Raises as `Cutovers.cut_over` does."""
        with self._lost_answers_found(number):
            await self._cutovers.cut_over(number, who, why, force=force)
        return await self.status(number)

    async def roll_back(self, number: int, who: str, why: str) -> MigrationStatus:
        """Let searches read the old version again. Raises as `Cutovers.roll_back` does."""
        with self._lost_answers_found(number):
            await self._cutovers.roll_back(number, who, why)
        return await self.status(number)

    async def purge(self, number: int, who: str, why: str) -> MigrationStatus:
        """Drop the version that searches do not read. Raises MigrationStateError and OutsideErrors.

        What waits to be taken in or brought out of the other is so first: it is followed no more.
        """

        def work(connection: Connection) -> Migration:
            purged = pointer.purge(connection, number, who, why)
            if journal.has_collection(connection, purged):
                self._links.end_following(connection, purged.collection)
            return purged

        def follow(number: int) -> None:
            self._cutovers.end(number)
            self._reclaim.start()

        before = await self._changes.read(lambda connection: journal.find(connection, number))
        check_change(number, before.state, _S.PURGED)
        async with self._links.caught_up(before.collection):
            status = await self._change(work, follow)
        self._shadows.set_share(status.counts.migration, 0.0)
        self._links.wake(status.counts.migration.collection)
        return status

    def _look(self, looking: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(looking)
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    @contextmanager
    def _lost_answers_found(self, number: int) -> Iterator[None]:
        try:
            yield
        except OutsideUnavailableError:
            self._find_lost(number)
            raise

    def _find_lost(self, number: int) -> None:
        """Look, once the outside answers again, whether it has done what was given up here."""

        async def find() -> None:
            try:
                await self._outside.mend_lost(number)
            finally:
                self._finding.discard(number)

        if number not in self._finding:
            self._finding.add(number)
            self._look(find())

    async def _change(self, work: Change, follow: Follow = lambda number: None) -> MigrationStatus:
        return await self.status((await self._changes.change(work, follow)).id)

    def _run_of(self, number: int) -> Any:
        return (
            self._runs.progress(number),
            self._runs.unwritten_failure(number),
            self._cutovers.watched(number),
        )

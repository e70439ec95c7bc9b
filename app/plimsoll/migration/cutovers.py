"""Which version searches read: moved to the new one and back, and what follows from either.

After a cut-over the hooks are asked and searches are watched; both may take it back. Where the
collection is linked, others read the same version outside: that is changed while the transaction of
the file waits, and what is refused there, or here, changes neither. What was asked for comes to its
end also for a caller that has gone. Owns the watch and the tasks. Lives on the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from sqlite3 import Connection
from typing import Any, TypeAlias

from plimsoll.corpora.records import Space, Version
from plimsoll.errors import (
    LinkStateError,
    MigrationStateError,
    ModelLoadingError,
    OutsideError,
    OutsideUnavailableError,
    StoreError,
)
from plimsoll.links.held import HeldLink
from plimsoll.links.links import Links
from plimsoll.migration import journal, pointer
from plimsoll.migration.after_cutover import HooksAfterCutover
from plimsoll.migration.changes import Change, StateChanges
from plimsoll.migration.hooks.hooks import HookedRun, MigrationHooks
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.readiness import SearchReadiness
from plimsoll.migration.records import SERVER, Migration
from plimsoll.migration.startup import CutOver, least_agreement_of
from plimsoll.migration.states import MigrationState, check_change
from plimsoll.migration.status import Counts, counts_of
from plimsoll.migration.validation import MigrationJudge
from plimsoll.migration.watch import CutoverWatch, Watched

log = logging.getLogger(__name__)

# What a rollback waits at most for the old version to be ready.
MOST_READYING_S = 10.0


Switch: TypeAlias = Callable[[], str]
"""Changes what others read outside; returns what was done, in words."""


class Cutovers:
    """Moves the pointers of collections. clock: seconds."""

    def __init__(
        self,
        changes: StateChanges,
        judge: MigrationJudge,
        links: Links,
        hooks: MigrationHooks,
        readiness: SearchReadiness,
        clock: Callable[[], float],
        find_lost: Callable[[int], None],
    ) -> None:
        """find_lost: begins to look whether the outside has done what it did not answer."""
        self._changes = changes
        self._judge = judge
        self._links = links
        self._hooks = hooks
        self._readiness = readiness
        self._watch = CutoverWatch(clock)
        self._find_lost = find_lost
        self._after_cutover = HooksAfterCutover(hooks, self._go_back)
        self._going_back: dict[int, asyncio.Task[bool]] = {}  # one of a migration
        self._moves = set[asyncio.Task[None]]()

    def start(self, cut_over: Iterable[CutOver], interrupted: Iterable[int]) -> None:
        """Go on watching those that are cut over, and asking hooks of those numbers."""
        for each in cut_over:
            self._watch.begin(
                each.migration.id, each.migration.collection, each.age_s, each.least_agreement
            )
        for number in interrupted:
            self._after_cutover.begin(number)

    async def close(self) -> None:
        """Stop asking, moving and going back; a server that starts again goes on."""
        tasks = [*self._going_back.values(), *self._moves]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._after_cutover.close()

    def watched(self, number: int) -> tuple[Watched, float] | None:
        """What was seen of a migration, and for how many seconds it is still watched."""
        return self._watch.of(number)

    def searched(self, collection: str, is_answered: bool) -> None:
        """Take note of a search; too many without an answer soon after a cut-over take it back."""
        self._take_back(self._watch.searched(collection, is_answered))

    def compares(self, collection: str) -> int | None:
        """The migration whose searches are to be compared with the old version, if any are."""
        return self._watch.compares(collection)

    def compared(self, collection: str, number: int, agreement: float) -> None:
        """Take note of how far a search agrees with the old version; too little takes it back."""
        self._take_back(self._watch.compared(collection, number, agreement))

    def _take_back(self, seen: Watched | None) -> None:
        why = None if seen is None else seen.fault
        if seen is None or why is None or seen.number in self._going_back:
            return
        task = asyncio.create_task(self._go_back(seen.number, why), context=Context())
        self._going_back[seen.number] = task
        task.add_done_callback(lambda _: self._going_back.pop(seen.number))

    async def cut_over(self, number: int, who: str, why: str, *, force: bool) -> None:
        """Let searches read the new version, once the hooks before that have passed.

        What the collection is linked to follows. Raises VerdictError, MigrationStateError,
        HookStoppedError, ModelLoadingError where the old model takes long to open, and
        OutsideErrors and LinkStateError where what it is linked to cannot follow.
        """
        await self._to_its_end(self._cut_over(number, who, why, force=force))

    async def roll_back(self, number: int, who: str, why: str) -> None:
        """Let searches read the old version again, and what the collection is linked to likewise.

        Raises MigrationStateError, OutsideErrors and LinkStateError.
        """
        await self._to_its_end(self._roll_back(number, who, why))

    async def _cut_over(self, number: int, who: str, why: str, *, force: bool) -> None:
        before = await self._allowed(number, MigrationState.CUT_OVER)
        keeps_old = await self._judge.can_embed_soon(before.source)
        await self._changes.read(
            lambda connection: pointer.check_cut_over(
                connection, number, force=force, keeps_old=keeps_old
            )
        )
        await self._hooks.ask(HookedRun(number), Moment.BEFORE_CUTOVER)
        _, target = await self._versions(before)
        await self._readiness.make_ready(target)

        def work(connection: Connection) -> Migration:
            return pointer.cut_over(connection, number, who, why, force=force, keeps_old=keeps_old)

        async with self._links.held(before.collection) as link, _put_back(link, before.source):
            await self.note_cut_over(before, work, await _up_to_date(link, before.target))

    async def _roll_back(self, number: int, who: str, why: str) -> None:
        before = await self._allowed(number, MigrationState.ROLLED_BACK)
        source, _ = await self._versions(before)
        with suppress(TimeoutError):  # one that goes back may be in a hurry
            async with asyncio.timeout(MOST_READYING_S):
                await self._readiness.make_ready(source)

        def work(connection: Connection) -> Migration:
            return pointer.roll_back(connection, number, who, why)

        async with self._links.held(before.collection) as link, _put_back(link, before.target):
            await self.note_way_back(work, await _up_to_date(link, before.source))

    async def note_cut_over(
        self, before: Migration, work: Change, switch: Switch | None = None
    ) -> None:
        """Do the pointer's change to the new version, and what follows from it."""
        least = await self._changes.read(partial(least_agreement_of, migration=before))

        def follow(number: int) -> None:
            self._watch.begin(number, before.collection, least_agreement=least)
            self._after_cutover.begin(number)

        await self._changes.change(_outside_too(self._after_cutover.noted(work), switch), follow)

    async def note_way_back(self, work: Change, switch: Switch | None = None) -> None:
        """Do the pointer's change to the old version."""
        await self._changes.change(_outside_too(work, switch), self.end)

    def end(self, number: int) -> None:
        """It is not cut over any more, or there is no way back: it is watched no longer."""
        self._watch.end(number)

    async def _to_its_end(self, move: Coroutine[Any, Any, None]) -> None:
        """Raises as the move does; a caller that is cancelled leaves it going on."""
        task = asyncio.create_task(move)
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_failure)
            raise

    async def _versions(self, migration: Migration) -> tuple[Version, Version]:
        """The old and the new one. Raises MigrationStateError where they are gone."""

        def look(connection: Connection) -> tuple[Version, Version]:
            journal.check_there(connection, migration)
            return journal.versions_of(connection, migration)

        return await self._changes.read(look)

    async def _allowed(self, number: int, after: MigrationState) -> Migration:
        """The migration, before a state that may follow. Raises MigrationStateError."""
        found = await self._changes.read(lambda connection: journal.find(connection, number))
        check_change(number, found.state, after)
        return found

    async def _go_back(self, number: int, why: str) -> bool:
        """Take a cut-over back; False where that may succeed later."""
        try:
            no_better = await self._why_no_better(number)
            if no_better is not None:
                log.error("migration %d is not taken back (%s): %s", number, why, no_better)
                self._watch.stay(number, no_better)
                return True
            log.error("migration %d is taken back: %s", number, why)
            await self.roll_back(number, SERVER, why)
        except MigrationStateError as error:  # an operator was quicker
            log.error("migration %d is not taken back: %s", number, error)
        # A full disk, a slow model: the next such search, or the hook's task, tries again.
        except (LinkStateError, StoreError, ModelLoadingError, OutsideError) as error:
            log.error("migration %d is not taken back yet: %s", number, error)
            if isinstance(error, OutsideUnavailableError):
                self._find_lost(number)
            return False
        return True

    async def _why_no_better(self, number: int) -> str | None:
        """Why searches of the old version would lack documents, or have no answer either."""

        def look(connection: Connection) -> tuple[Counts, int]:
            counts = counts_of(connection, journal.find(connection, number))
            return counts, pointer.n_without_old_before(connection, number)

        counts, n_before = await self._changes.read(look)
        if not counts.keeps_old or counts.n_without_old > n_before:
            return "what was written after cut-over is not in the old version"
        source = counts.migration.source
        if not await self._judge.can_embed_soon(source):
            return f"{source.model!r} does not embed queries into the old version any more"
        return None


def _tell_failure(move: asyncio.Task[None]) -> None:
    """Log what stopped a move whose caller has gone."""
    error = None if move.cancelled() else move.exception()
    if error is not None:
        log.error("a change of what searches read was refused: %s", error)


async def _up_to_date(link: HeldLink | None, space: Space) -> Switch | None:
    """Bring all of a space outside; returns what lets others read it there.

    Raises OutsideErrors, LinkStateError and StoreError; what was done until then stays.
    """
    if link is None:
        return None
    link.be_quick()
    await link.finish(space)
    return partial(link.switch, space)


def _outside_too(work: Change, switch: Switch | None) -> Change:
    """The same change, and with it the outside's: last of all, for it cannot be taken back."""
    if switch is None:
        return work

    def work_outside_too(connection: Connection) -> Migration:
        changed = work(connection)
        journal.add_to_why(connection, changed.id, switch())
        return changed

    return work_outside_too


@asynccontextmanager
async def _put_back(link: HeldLink | None, space: Space) -> AsyncIterator[None]:
    """Let others read a space again where the file did not take the change, as on a full disk."""
    try:
        yield
    except StoreError:
        if link is not None:
            await link.put_back(space)
        raise

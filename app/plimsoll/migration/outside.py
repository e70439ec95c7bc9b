"""Keeps what a collection is linked to in step with the pointer of its searches.

Others read the same version outside as searches do here. The outside is changed while the
transaction of the file waits: what is refused there, or here, changes neither. A server that dies
in between has changed the outside alone, and finds that when it starts.
"""

import asyncio
import logging
from collections.abc import Sequence
from sqlite3 import Connection

from plimsoll.corpora.records import Space
from plimsoll.errors import (
    LinkStateError,
    MigrationStateError,
    OutsideError,
    OutsideUnavailableError,
    StoreError,
)
from plimsoll.links.held import HeldLink
from plimsoll.links.links import Links
from plimsoll.migration import journal, pointer
from plimsoll.migration.after_cutover import HooksAfterCutover
from plimsoll.migration.changes import Change, StateChanges
from plimsoll.migration.records import Migration
from plimsoll.migration.runs import SERVER
from plimsoll.migration.states import MigrationState
from plimsoll.migration.watch import CutoverWatch

log = logging.getLogger(__name__)

WHY = "this had been done outside when the server stopped"

_S = MigrationState


async def moved(link: HeldLink | None, space: Space, work: Change) -> Change:
    """The same change, and with it the outside's, which gets all of a space first.

    Raises OutsideErrors, LinkStateError and StoreError; what was done until then stays.
    """
    if link is None:
        return work
    await link.finish(space)

    def work_outside_too(connection: Connection) -> Migration:
        changed = work(connection)
        journal.add_to_why(connection, changed.id, link.switch(space))
        return changed

    return work_outside_too


class OutsidePointers:
    """Mends what a server that died has changed outside alone."""

    def __init__(
        self,
        changes: StateChanges,
        links: Links,
        watch: CutoverWatch,
        after_cutover: HooksAfterCutover,
    ) -> None:
        self._changes = changes
        self._links = links
        self._watch = watch
        self._after_cutover = after_cutover

    async def mend(self, migrations: Sequence[Migration]) -> None:
        """Let searches read what others read outside, of each migration that is between both.

        An outside that does not answer keeps no other from being mended.
        """
        async with asyncio.TaskGroup() as group:
            for migration in migrations:
                if migration.state in (_S.READY, _S.CUT_OVER, _S.ROLLED_BACK):
                    group.create_task(self._mend(migration.id))

    async def _mend(self, number: int) -> None:
        try:
            await self._mend_once_it_answers(number)
        except (LinkStateError, MigrationStateError, OutsideError, StoreError) as error:
            log.error("migration %d: %s", number, error)

    async def _mend_once_it_answers(self, number: int) -> None:
        while True:
            before = await self._changes.read(lambda connection: journal.find(connection, number))
            try:
                async with self._links.held(before.collection) as link:
                    if link is not None:
                        await self._follow(before, await link.active())
                return
            except OutsideUnavailableError as error:
                log.warning("migration %d waits: %s", number, error)
                wait_s = error.retry_after_s
            await asyncio.sleep(wait_s)

    async def _follow(self, before: Migration, active: str | None) -> None:
        number = before.id
        if before.state is _S.CUT_OVER and active == before.source.fingerprint:
            await self._changes.change(
                lambda connection: pointer.roll_back(connection, number, SERVER, WHY),
                self._watch.end,
            )
        elif before.state is not _S.CUT_OVER and active == before.target.fingerprint:
            await self._changes.change(
                self._after_cutover.noted(
                    lambda connection: pointer.cut_over(
                        connection,
                        number,
                        SERVER,
                        WHY,
                        force=True,
                        keeps_old=_keeps_old(connection, before),
                    )
                ),
                lambda number: self._begin(number, before.collection),
            )

    def _begin(self, number: int, collection: str) -> None:
        self._watch.begin(number, collection)
        self._after_cutover.begin(number)


def _keeps_old(connection: Connection, migration: Migration) -> bool:
    """Whether documents get a vector of the old version, as the file says."""
    source, _ = journal.versions_of(connection, migration)
    return source.takes_writes and not source.space.is_foreign

"""Mends what a pointer's change has changed outside alone: the server died, or an answer was lost.

`cutovers` changes the outside while the transaction of the file waits; so the outside is found
ahead of the pointer, or both as they were.
"""

import asyncio
import logging
from collections.abc import Sequence
from sqlite3 import Connection

from plimsoll.errors import (
    LinkStateError,
    MigrationStateError,
    OutsideError,
    OutsideUnavailableError,
    StoreError,
)
from plimsoll.links.links import Links
from plimsoll.migration import journal, pointer
from plimsoll.migration.changes import StateChanges
from plimsoll.migration.cutovers import Cutovers
from plimsoll.migration.records import SERVER, Migration
from plimsoll.migration.states import MigrationState

log = logging.getLogger(__name__)

STOPPED = "this had been done outside when the server stopped"
LOST = "this had been done outside, whose answer was lost"

_S = MigrationState


class OutsidePointers:
    """Looks at the outsides of migrations, and lets the pointer follow."""

    def __init__(self, changes: StateChanges, links: Links, cutovers: Cutovers) -> None:
        self._changes = changes
        self._links = links
        self._cutovers = cutovers

    async def mend(self, migrations: Sequence[Migration]) -> None:
        """Let searches read what others read outside, of each migration that is between both.

        An outside that does not answer keeps no other from being mended.
        """
        async with asyncio.TaskGroup() as group:
            for migration in migrations:
                if migration.state in (_S.READY, _S.CUT_OVER, _S.ROLLED_BACK):
                    group.create_task(self._mend(migration.id, STOPPED))

    async def mend_lost(self, number: int) -> None:
        """Likewise of one whose outside has not answered whether it did what it was told."""
        await self._mend(number, LOST)

    async def _mend(self, number: int, why: str) -> None:
        try:
            await self._mend_once_it_answers(number, why)
        except (LinkStateError, MigrationStateError, OutsideError, StoreError) as error:
            log.error("migration %d: %s", number, error)

    async def _mend_once_it_answers(self, number: int, why: str) -> None:
        while True:
            before = await self._changes.read(lambda connection: journal.find(connection, number))
            try:
                async with self._links.held(before.collection) as link:
                    if link is not None:
                        await self._follow(before, await link.active(), why)
                return
            except OutsideUnavailableError as error:
                log.warning("migration %d waits: %s", number, error)
                wait_s = error.retry_after_s
            await asyncio.sleep(wait_s)

    async def _follow(self, before: Migration, active: str | None, why: str) -> None:
        number = before.id
        if before.state is _S.CUT_OVER and active == before.source.fingerprint:
            await self._cutovers.note_way_back(
                lambda connection: pointer.roll_back(connection, number, SERVER, why)
            )
        elif before.state is not _S.CUT_OVER and active == before.target.fingerprint:
            await self._cutovers.note_cut_over(
                before,
                lambda connection: pointer.cut_over(
                    connection,
                    number,
                    SERVER,
                    why,
                    force=True,
                    keeps_old=_keeps_old(connection, before),
                ),
            )


def _keeps_old(connection: Connection, migration: Migration) -> bool:
    """Whether documents get a vector of the old version, as the file says."""
    source, _ = journal.versions_of(connection, migration)
    return source.takes_writes and not source.space.is_foreign

"""The hooks after a cut-over: asked by themselves, and one that stops takes the cut-over back.

Which are to be asked is written down in the transaction of the cut-over: a server that dies before
the last one has answered asks the rest when it starts. Owns the tasks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from sqlite3 import Connection
from typing import TypeAlias

from plimsoll.corpora.patient_embedder import Pause
from plimsoll.errors import HookStoppedError, PlimsollError, StoreError
from plimsoll.migration.changes import Change
from plimsoll.migration.hooks.hooks import HookedRun, MigrationHooks
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.records import Migration

log = logging.getLogger(__name__)

# A full disk, an old model that opens, a table that others hold: each may be over by then.
AGAIN_S = 10.0

GoBack: TypeAlias = Callable[[int, str], Awaitable[bool]]
"""Takes a migration of this number back, and why; False: it may succeed later."""


class HooksAfterCutover:
    """Asks them. go_back: for as long as it has not come to its end, it is called again."""

    def __init__(
        self, hooks: MigrationHooks, go_back: GoBack, pause: Pause = asyncio.sleep
    ) -> None:
        self._hooks = hooks
        self._go_back = go_back
        self._pause = pause
        self._asking = set[asyncio.Task[None]]()
        self._is_closed = False

    def noted(self, work: Change) -> Change:
        """The same cut-over, and with it a note of the hooks that are to be asked."""

        def work_and_note(connection: Connection) -> Migration:
            changed = work(connection)
            self._hooks.expect(connection, changed.id, Moment.AFTER_CUTOVER)
            return changed

        return work_and_note

    def begin(self, number: int) -> None:
        """Ask those of a migration that is cut over and have not passed yet."""
        if self._is_closed:  # by a cut-over that was under way: the note of it stands
            return
        task = asyncio.create_task(self._ask(number), context=Context())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def close(self) -> None:
        """Stop asking; a server that starts again goes on."""
        self._is_closed = True
        asking = [*self._asking]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, number: int) -> None:
        try:
            await self._ask_all(number)
        except HookStoppedError as error:
            while not await self._go_back(number, str(error)):
                await self._pause(AGAIN_S)
        except PlimsollError as error:
            log.error("migration %d: hooks after cut-over: %s", number, error)

    async def _ask_all(self, number: int) -> None:
        """Also where an answer could not be written down: that hook is asked once more."""
        while True:
            try:
                await self._hooks.ask(HookedRun(number), Moment.AFTER_CUTOVER)
                return
            except StoreError as error:
                log.error("migration %d: hooks after cut-over: %s", number, error)
            await self._pause(AGAIN_S)

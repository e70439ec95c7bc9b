"""Changes of migrations' states: each a transaction, and what follows from it in this process.

A change is taken to its end also for a caller that is cancelled: what was committed begins its run,
or its watch.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from sqlite3 import Connection
from typing import Any, TypeAlias, TypeVar

from plimsoll.corpora.database import Database
from plimsoll.migration.records import Migration
from plimsoll.migration.runs import MigrationRuns
from plimsoll.telemetry.migrations import MigrationMetrics

T = TypeVar("T")
Change: TypeAlias = Callable[[Connection], Migration]
Follow: TypeAlias = Callable[[int], None]
"""What follows from a change, told the migration's number."""


class StateChanges:
    """Owns the changes under way, one at a time.

    thread: reads and writes the file for them; no long scan may use it. Ends with `close`.
    """

    def __init__(
        self,
        database: Database,
        runs: MigrationRuns,
        metrics: MigrationMetrics,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._database = database
        self._runs = runs
        self._metrics = metrics
        self._thread = thread
        self._steps = set[asyncio.Task[Migration]]()
        self._changing = asyncio.Lock()  # a run is stopped before its state changes

    async def change(self, work: Change, follow: Follow = lambda number: None) -> Migration:
        """Change a state. Raises as `work` does, and StoreError."""

        async def step() -> Migration:
            changed = await self._commit(work)
            follow(changed.id)
            return changed

        return await self._whole(step)

    async def stop_and_change(self, number: int, work: Change) -> Migration:
        """End the run of a migration, then change its state; it runs on where that is refused."""

        is_worked_on = self._runs.progress(number) is not None

        async def step() -> Migration:
            await self._runs.stop(number)  # where another change has begun it again
            try:
                changed = await self._commit(work)
            except BaseException:
                if is_worked_on:  # it ends at once where nothing is under way any more
                    self._runs.start(number)
                raise
            self._runs.forget_failure(number)
            return changed

        return await self._whole(step, partial(self._runs.stop, number))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Read the file. Raises as `work` does, and StoreError."""
        return await self._database.read(self._thread, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Write what is no change of one state. Raises as `read` does."""
        return await self._database.write(self._thread, work)

    async def finish(self) -> None:
        """Wait for the changes under way."""
        await asyncio.gather(*self._steps, return_exceptions=True)

    async def close(self) -> None:
        """End the thread."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _commit(self, work: Change) -> Migration:
        changed = await self.write(work)
        self._metrics.changed(changed.state.value)
        return changed

    async def _whole(
        self,
        step: Callable[[], Coroutine[Any, Any, Migration]],
        before: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Migration:
        """before: what may wait for a scan to end, as changes of other migrations do not."""

        async def in_turn() -> Migration:
            if before is not None:
                await before()
            async with self._changing:
                return await step()

        task = asyncio.create_task(in_turn())
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,))  # what the caller holds, such as a link, is held until then
            raise

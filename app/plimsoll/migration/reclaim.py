"""Gives the room of dropped versions back, slice by slice.

A version goes in the transaction of its migration. Its vectors may be many, and other writers would
wait while all of them are deleted: they go in further transactions, each short. A server that
starts goes on with what is left.
"""

import asyncio
import logging
from concurrent.futures import Executor
from contextvars import Context

from plimsoll.corpora import versions
from plimsoll.corpora.database import Database
from plimsoll.errors import StoreError
from plimsoll.serving.threads import run_in

log = logging.getLogger(__name__)

SLICE_ROWS = 4096  # 0.07 s for 384 values each, where all of 60,000 at once took 0.44 s


class VersionReclaim:
    """Owns the work under way. thread: writes the file for it."""

    def __init__(self, database: Database, thread: Executor) -> None:
        self._database = database
        self._thread = thread
        self._tasks = set[asyncio.Task[None]]()
        self._working = asyncio.Lock()

    def start(self) -> None:
        """Give back what is there to be given back now."""
        task = asyncio.create_task(self._work(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop after the slice under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        async with self._working:
            try:
                while await run_in(self._thread, self._slice):
                    pass
            except StoreError as error:
                log.error("the room of a dropped version is not given back yet: %s", error)

    def _slice(self) -> bool:
        with self._database.writing() as connection:
            return versions.reclaim(connection, SLICE_ROWS)

"""Asks another version what a client has asked, in the background, after the client's answer.

That is a client of its own: the bulk class of the queue, a permit that waits for no room, a thread
and copies of vectors of its own. It is given up where memory is short, the queue is full or enough
others are under way. Owns the tasks. Lives on the event loop.
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import replace
from typing import Any

from plimsoll.corpora.search import CollectionSearch
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import EncodeMemoryError, ModelLoadingError, OverloadError
from plimsoll.policy.priority import Priority
from plimsoll.serving.gate import AdmissionGate

MOST_AT_ONCE = 2
# Not the version's fault: the server protects what it does for clients.
DROPPING = (OverloadError, EncodeMemoryError, ModelLoadingError)


class SecondAnswers:
    """Asks. search: reads with `thread`, and no client's search does; both end with `close`."""

    def __init__(
        self, search: CollectionSearch, gate: AdmissionGate, thread: ThreadPoolExecutor
    ) -> None:
        self._search = search
        self._gate = gate
        self._tasks = set[asyncio.Task[None]]()
        self.thread = thread

    @property
    def have_room(self) -> bool:
        """Whether one more may begin: memory is not short, and few are under way."""
        is_short = self._gate.governor.step > 0  # of memory, or clients wait for room
        return not is_short and len(self._tasks) < MOST_AT_ONCE

    def begin(self, comparison: Coroutine[Any, Any, None]) -> None:
        """Have a comparison done, which asks with `ask`. Returns at once."""
        # In a context of its own: it works for no request, and outlives the one it repeats.
        running = asyncio.get_running_loop().create_task(comparison, context=Context())
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def ask(self, task: SearchTask, version: int) -> SearchResults:
        """What a version, by its number, answers. Raises as CollectionSearch.by_meaning does."""
        again = replace(task, version=version, priority=Priority.BULK)
        permit = self._gate.permit(wait_s=0.0)
        try:
            return await self._search.by_meaning(again, permit)
        finally:
            permit.leave()

    async def finish(self) -> None:
        """Wait for the comparisons under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """End them, and the thread."""
        self._search.stop()
        for task in self._tasks:
            task.cancel()
        await self.finish()
        await asyncio.to_thread(self.thread.shutdown)
        self._search.close()

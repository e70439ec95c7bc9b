"""The work of one link: rows are taken in, vectors brought out, step by step.

Lives on the event loop; what blocks runs in the link's own thread. The lock is held for a step, and
by a migration for as long as nothing of the link may change. Every step may be repeated: what it
took in is forgotten outside, and what it brought out leaves the outbox, only when it is done.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from functools import partial
from sqlite3 import Connection
from time import monotonic
from typing import Concatenate, ParamSpec, TypeVar

from plimsoll.corpora.database import Database
from plimsoll.corpora.records import Version
from plimsoll.errors import OutsideUnavailableError, PlimsollError
from plimsoll.links import steps
from plimsoll.links.filler import Filler
from plimsoll.links.mirror import Mirrored
from plimsoll.links.outside import PAGE_ROWS, Outside
from plimsoll.links.records import OutsideRows
from plimsoll.links.state import LinkState
from plimsoll.serving.threads import run_until_dropped
from plimsoll.telemetry.corpora import CorpusMetrics
from plimsoll.telemetry.links import LinkCondition, LinkMetrics

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 1.0
"""Between two looks at a home where nothing had changed, at first."""

KEEP_EVERY_S = 5.0
"""Between two looks at whether others have to be told that this server still follows."""

SHOW_EVERY_S = 5.0
"""Between two counts of what waits while there is work: as often as a scrape comes."""

FAULT_RETRY_S = 30.0
"""After a fault that waiting alone does not mend: an operator may mend it outside."""


class LinkWork:
    """Owns a link's task, and why it waits. thread: for what blocks; one at a time.

    most_idle_s: between two looks at a home where nothing has changed for long; each look that
    finds nothing doubles the time to the next, up to that.
    """

    def __init__(
        self,
        name: str,
        outside: Outside,
        database: Database,
        filler: Filler,
        metrics: CorpusMetrics,
        link_metrics: LinkMetrics,
        thread: Executor,
        most_idle_s: float,
    ) -> None:
        self.name = name
        self.outside = outside
        self.lock = asyncio.Lock()
        self.waits: str | None = None
        self._database = database
        self._filler = filler
        self._metrics = metrics
        self._link_metrics = link_metrics
        self._condition: LinkCondition = "at_rest"
        self._counted_s = -math.inf  # when the outbox was counted
        self._thread = thread
        self._most_idle_s = most_idle_s
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._prepared = frozenset[int]()  # versions that have a place outside
        link_metrics.expect(name)

    def start(self) -> None:
        """Work until the link is followed no more, unless that is done already."""
        self._woken.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._work(), name=f"link {self.name}", context=Context()
            )

    def wake(self) -> None:
        """Look at once, where it is worked on."""
        self._woken.set()

    def prepare_anew(self) -> None:
        """Someone may have changed what was made outside: look at it again."""
        self._prepared = frozenset()

    async def stop(self) -> None:
        """End the work; a step that is under way goes as far as its thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self.waits = None
        self._link_metrics.at_rest(self.name)

    async def step(self) -> tuple[bool, bool]:
        """Take in a part of what is new outside, and bring out a part of what is lacking there.

        Returns whether there is more to take in now, and whether something was brought out. The
        lock is the caller's to hold. Raises OutsideErrors and StoreError.
        """
        all_versions = await self.read(steps.versions_of)
        await self._claim([version.space.fingerprint for version in all_versions])
        await self._prepare(all_versions)
        has_more = await self._take_in()
        return has_more, any([await self._push(version) for version in all_versions])

    async def finish(self) -> None:
        """Leave nothing outside but the vectors that others read; the lock is held."""
        await self._drop_others(await self.read(steps.versions_of))
        await self.run(self.outside.unfollow)
        await self.run(self.outside.close)
        await self.write(steps.unwatch)
        self._prepared = frozenset()
        self._condition = "at_rest"
        self._note(None)
        await self._show()
        log.info("link %s is followed no more", self.name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something that blocks, in the link's thread; cut off where the caller is cancelled."""
        return await run_until_dropped(
            self._thread, partial(work, *args, **kwargs), self.outside.interrupt
        )

    async def read(
        self, work: Callable[Concatenate[Connection, str, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Read the file, of this link's collection."""
        return await self._database.read(self._thread, work, self.name, *args, **kwargs)

    async def write(
        self, work: Callable[Concatenate[Connection, str, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Write the file, of this link's collection."""
        return await self._database.write(self._thread, work, self.name, *args, **kwargs)

    def having(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids documents have now. Blocks."""
        with self._database.reading() as connection:
            return steps.having(connection, self.name, ids)

    async def _work(self) -> None:
        keeping = asyncio.create_task(self._keep_claim())
        try:
            await self._work_on()
        finally:
            keeping.cancel()
            await asyncio.wait((keeping,))

    async def _keep_claim(self) -> None:
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            with suppress(PlimsollError):  # of which the work tells
                await asyncio.to_thread(self.outside.keep_claim)

    async def _claim(self, known: Sequence[str]) -> None:
        """Be the server that follows. Raises OutsideErrors."""
        if not await self.run(self.outside.claim, known):
            log.warning(
                "link %s: another server followed it until now; all is read anew", self.name
            )
            await self.write(steps.begin_anew, await self.run(self.outside.active))
            self.prepare_anew()
            await self.run(self.outside.claim, known, begins_anew=True)

    async def _work_on(self) -> None:
        idle_s = FOLLOW_EVERY_S
        while True:
            self._woken.clear()
            try:
                async with self.lock:
                    _, now = await self.read(steps.linked)
                    if not now.follows:
                        await self.finish()
                        return
                    self._condition = "pulling" if now.is_pulling else "following"
                    did_something = any(await self.step())
                    if not did_something:
                        await self._settle()
                self._note(None)
                if not did_something or monotonic() - self._counted_s >= SHOW_EVERY_S:
                    await self._show()
                wait_s = 0.0 if did_something else idle_s
                idle_s = FOLLOW_EVERY_S if did_something else min(2 * idle_s, self._most_idle_s)
            except OutsideUnavailableError as error:
                await self._note_fault(str(error))
                wait_s = error.retry_after_s
            except PlimsollError as error:
                await self._note_fault(str(error))
                self.prepare_anew()
                wait_s = FAULT_RETRY_S
            except Exception:
                log.exception("link %s", self.name)
                await self._note_fault("an unforeseen error, which stands in the server's log")
                wait_s = FAULT_RETRY_S
            if await self._is_woken_within(wait_s):
                idle_s = FOLLOW_EVERY_S

    async def _is_woken_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._woken.wait()
        return False

    async def _settle(self) -> None:
        done = await self.run(self.outside.settle, self.having)
        if done is not None:
            log.info("link %s: %s", self.name, done)

    async def _show(self) -> None:
        """Have the metrics say what is still to be brought out."""
        self._counted_s = monotonic()
        n_read, n_other = await self.read(steps.n_waiting_by_use)
        self._link_metrics.waiting(self.name, "read", n_read)
        self._link_metrics.waiting(self.name, "other", n_other)

    async def _note_fault(self, waits: str) -> None:
        self._link_metrics.failed(self.name)
        self._note(waits)
        with suppress(PlimsollError):  # the file of collections may be what is in the way
            await self._show()  # a migration goes on meanwhile, and so more and more waits

    def _note(self, waits: str | None) -> None:
        """Say once why it waits, and once that it goes on."""
        self._link_metrics.show(self.name, self._condition if waits is None else "waiting")
        if waits != self.waits:
            if waits is not None:
                log.warning("link %s waits: %s", self.name, waits)
            else:
                log.info("link %s goes on", self.name)
            self.waits = waits

    async def _take_in(self) -> bool:
        _, now = await self.read(steps.linked)
        if now.is_pulling:
            return await self._pull(now)
        changes = await self.run(self.outside.changes, PAGE_ROWS)
        if not changes.marks:
            return False
        if changes.is_everything:
            await self.write(steps.begin_pull)
        await self._take_in_rows(changes.ids)
        await self.run(self.outside.forget, changes)
        return changes.is_everything or len(changes.marks) >= PAGE_ROWS

    async def _pull(self, now: LinkState) -> bool:
        page = await self.run(self.outside.page, now.position)
        if page.position is None:
            n_gone = await self.write(steps.delete_unseen, PAGE_ROWS)
            self._count(Mirrored((), 0, 0, n_gone))
            return True
        await self._mirror(page, [row.id for row in page.rows])
        await self.write(steps.note_position, page.position, len(page.rows))
        return True

    async def _take_in_rows(self, ids: Sequence[str]) -> None:
        left = list(ids)
        while left:
            page = await self.run(self.outside.rows, left)
            n_looked_at = len(left) - len(page.left)
            await self._mirror(page, left[:n_looked_at])
            left = left[n_looked_at:]

    async def _mirror(self, page: OutsideRows, asked: Sequence[str]) -> None:
        done = await self.write(steps.mirror_page, page, asked)
        self._count(done)
        await self._filler.fill(self.name, done.rows, self._note)

    def _count(self, done: Mirrored) -> None:
        self._metrics.documents("added", done.n_added)
        self._metrics.documents("updated", done.n_updated)
        self._metrics.documents("deleted", done.n_deleted)
        if done.n_added or done.n_updated or done.n_deleted:
            self._link_metrics.took_in(self.name)

    async def _prepare(self, all_versions: Sequence[Version]) -> None:
        """Have a place outside for every version, an outbox for each, and no place for others."""
        ids = frozenset(version.id for version in all_versions)
        if ids == self._prepared:
            return
        await self._drop_others(all_versions)
        active = await self.run(self.outside.active)
        for version in all_versions:
            if not await self.run(self.outside.has_place, version.space):
                await self.write(steps.put_again, version.id)  # first, or a kill would leave holes
            await self.run(self.outside.prepare, version.space)
            is_home = version.space.fingerprint == active
            await self.write(steps.watch, version.id, with_all=not is_home)
        self._prepared = ids

    async def _drop_others(self, all_versions: Sequence[Version]) -> None:
        kept = [version.space.fingerprint for version in all_versions]
        for done in await self.run(self.outside.drop_all_but, kept):
            log.info("link %s: %s", self.name, done)

    async def _push(self, version: Version) -> bool:
        places, rows = await self.read(steps.outgoing, version)
        if not places:
            return False
        stored, differing = frozenset[str](), frozenset[str]()
        if rows:
            pushed = await self.run(self.outside.push, version.space, list(rows.values()))
            stored, differing = pushed.stored, pushed.differing
            await self._take_in_rows(sorted(differing))
        done = [
            place
            for place, row in places
            if row not in rows or rows[row].id in stored or rows[row].id in differing
        ]
        held = [row for place, row in places if place not in done]
        await self.write(steps.confirm, version.id, done, held)
        return bool(done)

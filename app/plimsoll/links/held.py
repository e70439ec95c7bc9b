"""A link in the hands of a migration: brought up to date and switched, alone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from plimsoll.corpora.patient_embedder import Yielding
from plimsoll.corpora.records import Space
from plimsoll.errors import LinkStateError, OutsideError, OutsideUnavailableError
from plimsoll.links import steps
from plimsoll.links.work import LinkWork

log = logging.getLogger(__name__)

HOLD_WAIT_S = 30.0
HELD_RETRY_S = 2.0
STEP_S = 300.0
"""For a part to be taken in and brought out while something waits for the link to be moved."""


MOST_CATCHING_UP_S = 600.0
"""For all parts together, likewise."""


def _tell_no_one(what: str | None) -> None:
    """Tell no one: for steps that are not watched."""


class HeldLink:
    """A link whose lock is held. Raises OutsideErrors, LinkStateError and StoreError throughout."""

    def __init__(self, work: LinkWork) -> None:
        """Everything is waited for as long as it takes, until `be_quick`."""
        self._work = work
        self._step_s: float | None = None

    def be_quick(self) -> None:
        """Give up where a part takes long, as it does while a model waits for memory.

        And where writers are quicker than what they write is brought out.
        """
        self._step_s = STEP_S

    async def check_followed(self) -> None:
        """Raise LinkStateError where rows may have changed unseen."""
        _, now = await self._work.read(steps.linked)
        if not now.follows:
            raise LinkStateError(
                f"{self._work.name!r} is not followed now, so that rows may have changed: pull it "
                f"first, with `plimsoll links pull {self._work.name}`",
                param="collection",
            )

    async def catch_up(self, space: Space, told: Yielding = _tell_no_one) -> None:
        """Take in what is new outside, and bring every vector of a space out.

        told: how much is left, each time that a part has been brought out.
        """
        await self.check_followed()
        began_s = monotonic()
        while True:
            has_more, was_pushed = await self._step()
            n_waiting = await self._work.read(steps.n_waiting, space.fingerprint)
            if not has_more and not n_waiting:
                return
            if not has_more and not was_pushed:
                raise OutsideUnavailableError(
                    f"{n_waiting} rows of {self._work.name!r} are held by others, and lack their "
                    "vector",
                    retry_after_s=HELD_RETRY_S,
                )
            if self._step_s is not None and monotonic() - began_s > MOST_CATCHING_UP_S:
                raise OutsideUnavailableError(
                    f"rows of {self._work.name!r} change as quickly as they are brought up to "
                    f"date, and {n_waiting} vectors are still to be brought out: let applications "
                    "write less for a while",
                    retry_after_s=HELD_RETRY_S,
                )
            told(f"{n_waiting} vectors are still to be brought out to what it is linked to")

    async def finish(self, space: Space, told: Yielding = _tell_no_one) -> None:
        """Have all of a space outside, fit to be read, with its indexes; may take long.

        told: what is being done.
        """
        await self.catch_up(space, told)
        told("indexes are built where it is linked to")
        async with self._within("its indexes could not be brought up to date"):
            await self._work.run(self._work.outside.finish, space, self._work.having)
        await self.catch_up(space, told)  # of what changed while indexes were built

    async def active(self) -> str | None:
        """Fingerprint of the space that others read."""
        return await self._work.run(self._work.outside.active)

    async def put_back(self, space: Space) -> None:
        """Let others read a space again after a switch that came to nothing here.

        Where that is refused, a server that starts finds the outside ahead, and follows it.
        """
        try:
            log.warning("link %s: %s", self._work.name, await self._work.run(self.switch, space))
        except OutsideError as error:
            log.error("link %s is ahead of its collection: %s", self._work.name, error)

    def switch(self, space: Space) -> str:
        """Let others read a space; returns what was done. Blocks, in any thread."""
        return self._work.outside.switch(space)

    async def _step(self) -> tuple[bool, bool]:
        async with self._within("it could not be brought up to date"):
            return await self._work.step()

    @asynccontextmanager
    async def _within(self, missed: str) -> AsyncIterator[None]:
        """Raise OutsideUnavailableError where a part takes longer than it may."""
        try:
            async with asyncio.timeout(self._step_s):
                yield
        except TimeoutError:
            why = self._work.waits or "what it is linked to is slow"
            raise OutsideUnavailableError(
                f"link {self._work.name!r}: {missed} within {self._step_s:.0f} s: {why}",
                retry_after_s=HELD_RETRY_S,
            ) from None


@asynccontextmanager
async def hold(work: LinkWork) -> AsyncIterator[HeldLink]:
    """A link whose lock is held for the block.

    Raises OutsideUnavailableError where it is worked on for long: it may wait for memory.
    """
    try:
        async with asyncio.timeout(HOLD_WAIT_S):
            await work.lock.acquire()
    except TimeoutError:
        why = work.waits or "a part of it is being taken in"
        raise OutsideUnavailableError(
            f"the link {work.name} is busy: {why}", retry_after_s=HELD_RETRY_S
        ) from None
    try:
        yield HeldLink(work)
    finally:
        work.lock.release()

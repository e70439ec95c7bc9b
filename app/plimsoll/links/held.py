"""A link in the hands of a migration: brought up to date and switched, alone."""

from plimsoll.corpora.patient_embedder import Yielding
from plimsoll.corpora.records import Space
from plimsoll.errors import LinkStateError, OutsideUnavailableError
from plimsoll.links import steps
from plimsoll.links.work import LinkWork

HELD_RETRY_S = 2.0


def _tell_nobody(what: str | None) -> None:
    """For those that nobody watches."""


class HeldLink:
    """A link whose lock is held. Raises OutsideErrors, LinkStateError and StoreError throughout."""

    def __init__(self, work: LinkWork) -> None:
        self._work = work

    async def check_followed(self) -> None:
        """Raise LinkStateError where rows may have changed unseen."""
        _, now = await self._work.read(steps.linked)
        if not now.follows:
            raise LinkStateError(
                f"{self._work.name!r} is not followed now, so that rows may have changed: pull it "
                f"first, with `plimsoll links pull {self._work.name}`",
                param="collection",
            )

    async def catch_up(self, space: Space, told: Yielding = _tell_nobody) -> None:
        """Take in what is new outside, and bring every vector of a space out.

        told: how much is left, each time that a part has been brought out.
        """
        await self.check_followed()
        while True:
            has_more, was_pushed = await self._work.step()
            n_waiting = await self._work.read(steps.n_waiting, space.fingerprint)
            if not has_more and not n_waiting:
                return
            if not has_more and not was_pushed:
                raise OutsideUnavailableError(
                    f"{n_waiting} rows of {self._work.name!r} are held by others, and lack their "
                    "vector",
                    retry_after_s=HELD_RETRY_S,
                )
            told(f"{n_waiting} vectors are still to be brought out to what it is linked to")

    async def finish(self, space: Space, told: Yielding = _tell_nobody) -> None:
        """Have all of a space outside, fit to be read, with its indexes; may take long.

        told: what is being done.
        """
        await self.catch_up(space, told)
        told("indexes are built where it is linked to")
        await self._work.run(self._work.outside.finish, space, self._work.having)
        await self.catch_up(space, told)  # of what changed while indexes were built

    async def active(self) -> str | None:
        """Fingerprint of the space that others read."""
        return await self._work.run(self._work.outside.active)

    def switch(self, space: Space) -> str:
        """Let others read a space; returns what was done. Blocks, in any thread."""
        return self._work.outside.switch(space)

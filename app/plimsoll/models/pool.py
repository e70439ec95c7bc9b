"""Several models, of which only so many are open at once.

Owns the slots and the waiting for room: a model that has to open takes the place of the one that
was used least recently, never of one that is in use. Gives memory back when asked; when to ask is
decided elsewhere. Lives on the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.errors import ModelLoadingError, PlimsollError, UnknownModelError, quoted
from plimsoll.models.slot import LOADING_RETRY_S, ModelSlot, ModelState, SlotEvent, SlotListener

log = logging.getLogger(__name__)

IDLE_CHECK_S = 0.5


class ModelPool:
    """Owns the slots; leases models by name. Who waits for room gets it in order of arrival."""

    def __init__(
        self, slots: Sequence[ModelSlot], *, max_open: int, load_wait_s: float | None
    ) -> None:
        """`slots`: the default first, all names different. `load_wait_s` of None is for ever."""
        self.slots = tuple(slots)
        self.max_open = max_open
        self._load_wait_s = load_wait_s
        self._by_name = {name.lower(): slot for slot in slots for name in slot.names}
        self._making_room = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()  # a model has opened, is free or has closed
        self.listen(self._note_change)

    @property
    def names(self) -> list[str]:
        """Every name that clients may use, the default model's own first."""
        return [name for slot in self.slots for name in slot.names]

    def listen(self, listener: SlotListener) -> None:
        """Tell `listener` when any of the models has opened, is free, or has closed."""
        for slot in self.slots:
            slot.listen(listener)

    def find(self, name: str | None) -> ModelSlot:
        """The slot of a model, in any case; None is the default. Raises UnknownModelError."""
        if name is None:
            return self.slots[0]
        slot = self._by_name.get(name.lower())
        if slot is None:
            served = ", ".join(repr(slot.name) for slot in self.slots)
            raise UnknownModelError(
                f"this server serves {served}, not {quoted(name)}; see GET /v1/models",
                param="model",
            )
        return slot

    @asynccontextmanager
    async def lease(
        self, name: str | None = None, keep_alive_s: float | None = None
    ) -> AsyncIterator[EmbeddingModel]:
        """Hold a model open, opening it and making room for it first where needed.

        keep_alive_s: seconds without a request for which it stays open after this one, in place of
        the server's own; 0 closes it at the end of this one where no other uses it.
        Raises UnknownModelError, ModelLoadingError when it is not open within the load wait, or
        the error that kept it from opening.
        """
        slot = self.find(name)
        slot.refuse_unusable()  # before another model is closed for it
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        await self._make_room(slot)
        wait_s = self._load_wait_s
        if wait_s is not None:
            wait_s = max(0.0, start_s + wait_s - loop.time())
        # No await after making room: the place is taken as soon as the slot is asked.
        async with slot.lease(wait_s, keep_alive_s) as model:
            yield model
        if keep_alive_s == 0 and slot.is_idle:
            await slot.evict("asked")

    async def look(self) -> None:
        """Look at the header of each model that is there; slots keep and log what fails."""
        for slot in self.slots:
            try:
                await slot.look()
            except Exception:  # not a reason to serve nothing: opening it will tell
                log.exception("cannot look at %s", slot.name)

    async def unload_idle(self) -> int:
        """Close the models that no request uses, least recently used first.

        Returns how many were closed.
        """
        n_closed = 0
        for slot in self._idle():
            if slot.is_idle:  # still: closing the ones before took time
                await slot.evict("pressure")
                n_closed += 1
        return n_closed

    async def watch_idleness(self) -> None:
        """Until cancelled: look after every model."""
        await asyncio.gather(*(self._watch(slot) for slot in self.slots))

    async def look_after(self, slot: ModelSlot) -> None:
        """Close after a long pause, try again what failed, open again what has been damaged."""
        if slot.state is ModelState.FAILED and await slot.has_new_file():
            await slot.look()
        elif slot is self.slots[0] and slot.is_due_for_retry:
            # While the default model has failed, the server is not ready and gets no requests.
            await self._open_again(slot)
        elif await slot.check_files() or slot.is_closed_by_damage:
            await self._open_again(slot)
        else:
            await slot.check_idleness()

    async def close(self) -> None:
        """Close every model, waiting for openings under way."""
        await asyncio.gather(*(slot.close() for slot in self.slots))

    async def _open_again(self, slot: ModelSlot) -> None:
        """Open a model unasked."""
        with suppress(PlimsollError):  # in the log and in /health already
            async with self.lease(slot.name):
                pass

    def _note_change(self, slot: ModelSlot, event: SlotEvent) -> None:
        self._changed.set()

    async def _watch(self, slot: ModelSlot) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            try:
                await self.look_after(slot)
            except Exception:  # one error must not end this task
                log.exception("cannot look after %s", slot.name)

    async def _make_room(self, slot: ModelSlot) -> None:
        """Wait until `slot` may open, closing idle models for it."""
        if slot.is_open:
            return
        others = [other for other in self.slots if other is not slot]
        try:
            async with asyncio.timeout(self._load_wait_s), self._making_room:
                while sum(other.holds_memory for other in others) >= self.max_open:
                    idle = self._idle()
                    if idle:
                        await idle[0].evict("lru")
                    else:
                        self._changed.clear()
                        await self._changed.wait()
        except TimeoutError:
            raise ModelLoadingError(
                f"{slot.name} waits for one of the {self.max_open} models that may be open at once "
                "(PLIMSOLL_MAX_OPEN_MODELS), which are all in use",
                retry_after_s=LOADING_RETRY_S,
            ) from None

    def _idle(self) -> list[ModelSlot]:
        """Open models that no request uses, least recently used first."""
        idle = [slot for slot in self.slots if slot.is_idle]
        return sorted(idle, key=lambda slot: slot.last_used_s)

"""Several models, of which only so many are open at once.

Owns the slots and the waiting for room: a model that has to open takes the place of the one that
was used least recently, never of one that is in use. Lives on the event loop.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Generic

from app.errors import ModelLoadingError, PlimsollError, UnknownModelError
from app.memory.slots import LOADING_RETRY_S, ModelSlot, T

log = logging.getLogger(__name__)

IDLE_CHECK_S = 0.5


class ResourceManager(Generic[T]):
    """Owns the slots; leases models by name. Who waits for room gets it in order of arrival."""

    def __init__(
        self, slots: Sequence[ModelSlot[T]], *, max_open: int, load_wait_s: float | None
    ) -> None:
        """`slots`: the default first, all names different. `load_wait_s` of None is for ever."""
        self.slots = tuple(slots)
        self.max_open = max_open
        self._load_wait_s = load_wait_s
        self._by_name = {name.lower(): slot for slot in slots for name in slot.names}
        self._making_room = asyncio.Lock()  # first come, first served
        self._changed = asyncio.Event()  # a model is free, or its memory is
        for slot in slots:
            slot.watch_changes(self._changed.set)

    @property
    def names(self) -> list[str]:
        """Every name that clients may use, the default model's own first."""
        return [name for slot in self.slots for name in slot.names]

    def find(self, name: str | None) -> ModelSlot[T]:
        """The slot of a model, in any case; None is the default. Raises UnknownModelError."""
        if name is None:
            return self.slots[0]
        slot = self._by_name.get(name.lower())
        if slot is None:
            served = ", ".join(repr(slot.name) for slot in self.slots)
            raise UnknownModelError(
                f"this server serves {served}, not {name!r}; see GET /v1/models", param="model"
            )
        return slot

    @asynccontextmanager
    async def lease(self, name: str | None = None) -> AsyncIterator[T]:
        """Hold a model open, opening it and making room for it first where needed.

        Raises UnknownModelError, ModelLoadingError when it is not open within the load wait, or
        the error that kept it from opening.
        """
        slot = self.find(name)
        slot.refuse_unusable()  # before another model goes for it
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        await self._make_room(slot)
        wait_s = self._load_wait_s
        if wait_s is not None:
            wait_s = max(0.0, start_s + wait_s - loop.time())
        # Without a pause after making room: the place is taken as soon as the slot is asked.
        async with slot.lease(wait_s) as model:
            yield model

    async def unload_idle(self, keep: int = 0) -> int:
        """Close models that nobody uses, least recently used first, but for the `keep` latest.

        Returns how many were closed.
        """
        idle = self._idle()
        n_closed = 0
        for slot in idle[: max(0, len(idle) - keep)]:
            if slot.is_idle:  # still: closing the ones before took time
                await slot.evict("pressure")
                n_closed += 1
        return n_closed

    async def release_memory(self) -> None:
        """Let every open model give back what only its runs need."""
        for slot in self.slots:
            await slot.release_memory()

    async def watch_idleness(self) -> None:
        """Until cancelled: look after every model."""
        await asyncio.gather(*(self._watch(slot) for slot in self.slots))

    async def look_after(self, slot: ModelSlot[T]) -> None:
        """Give memory back after a pause, close after a long one, try again what failed."""
        if slot is self.slots[0] and slot.is_due_for_retry:
            # Nobody asks a server that is not ready, and that is for its default model to say.
            with suppress(PlimsollError):  # in the log and in /health already
                async with self.lease():
                    pass
        else:
            await slot.check_idleness()

    async def close(self) -> None:
        """Close every model, waiting for openings under way."""
        await asyncio.gather(*(slot.close() for slot in self.slots))

    async def _watch(self, slot: ModelSlot[T]) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            try:
                await self.look_after(slot)
            except Exception:  # this task must outlive whatever goes wrong once
                log.exception("cannot look after %s", slot.name)

    async def _make_room(self, slot: ModelSlot[T]) -> None:
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
                "(PLIMSOLL_MAX_OPEN_MODELS), which are all in use; try again in a moment",
                retry_after_s=LOADING_RETRY_S,
            ) from None

    def _idle(self) -> list[ModelSlot[T]]:
        """Open models that nobody uses, least recently used first."""
        idle = [slot for slot in self.slots if slot.is_idle]
        return sorted(idle, key=lambda slot: slot.last_used_s)

"""One model's life: closed, loading, ready, and closed again when idle.

Owns the open model, the leases on it and the traits of its last open. Looking at a slot never
opens the model. Lives on the event loop; what blocks runs in threads. How many models may be open
at once is decided in pool.py.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from math import inf
from time import monotonic, perf_counter
from typing import TypeAlias

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.traits import Traits
from plimsoll.errors import CacheCorruptError, ModelLoadError, ModelLoadingError, PlimsollError
from plimsoll.models.opener import ModelOpener
from plimsoll.sidecar.loader import Phase, Progress, unreported
from plimsoll.telemetry.models import EvictionReason, ModelMetrics

log = logging.getLogger(__name__)

# A model that would not open is not tried again for every request that comes in.
RETRY_PAUSE_S = 5.0
RETRY_UNASKED_S = 30.0
# What is told at least, and where nothing is known of how long it will take.
LOADING_RETRY_S = 5.0
SOURCE_LOOK_S = 2.0


class ModelState(Enum):
    """What `/health` says of a model."""

    CLOSED = "closed"  # opens at the next request
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # tried again at the next request after RETRY_PAUSE_S


class SlotEvent(Enum):
    """What a slot tells its listeners."""

    OPENED = "opened"  # memory at rest now includes the model
    FREE = "free"  # the last request that used it has ended
    CLOSED = "closed"  # its memory has been given back, also after an opening that failed


SlotListener: TypeAlias = Callable[["ModelSlot", SlotEvent], None]
"""Told of events on the event loop, after the slot has changed; must not block."""


class ModelSlot:
    """Owns one model; hands out leases on it, and opens it once for all who ask."""

    def __init__(
        self,
        names: tuple[str, ...],
        opener: ModelOpener,
        metrics: ModelMetrics,
        *,
        idle_unload_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`names`: what clients may call the model, its own first. `idle_unload_s` of 0: never."""
        self.names = names
        self.traits: Traits | None = None  # of the last open; kept when the model closes
        self.error: PlimsollError | None = None
        self.damage: str | None = None  # of the weights, from when it is found until they are anew
        self.source_change: str | None = None  # what became of its file while it is open
        self.progress = (0, 0)  # bytes done and in all, of the phase of loading under way
        self._phase: tuple[Phase | None, float] = (None, 0.0)  # and when it began
        self.last_used_s = clock()
        self._opener = opener
        self._metrics = metrics
        self._idle_unload_s = idle_unload_s or inf
        self._keep_alive_s = self._idle_unload_s  # as the last request that ended wants it
        self._clock = clock
        self._model: EmbeddingModel | None = None
        self._loading: asyncio.Task[EmbeddingModel] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._leases = 0  # held or waited for
        self._failed_at_s = -RETRY_PAUSE_S
        self._damaged = False
        self._source_looked_s = clock()
        self._on_progress: Progress = unreported
        self._listeners: list[SlotListener] = []

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

    @property
    def is_closed_by_damage(self) -> bool:
        """Whether it closed under its requests because its files were damaged."""
        return self.damage is not None and self.state is ModelState.CLOSED

    @property
    def state(self) -> ModelState:
        """Where in its life the model is."""
        if self._model is not None:
            return ModelState.READY
        if self._loading is not None and not self._loading.done():
            return ModelState.LOADING
        return ModelState.FAILED if self.error else ModelState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether the model is open or about to be."""
        return self.state in (ModelState.READY, ModelState.LOADING)

    @property
    def holds_memory(self) -> bool:
        """Whether the model is open, about to be, or not wholly closed yet."""
        return self.is_open or (self._closing is not None and not self._closing.done())

    @property
    def is_idle(self) -> bool:
        """Whether the model is open and no request uses it."""
        return self._model is not None and not self._leases

    @property
    def is_due_for_retry(self) -> bool:
        """Whether the model would not open, and no request has tried it in a long while."""
        pause_s = self._clock() - self._failed_at_s
        return self.state is ModelState.FAILED and pause_s >= RETRY_UNASKED_S

    def watch_progress(self, watcher: Progress) -> None:
        """Tell `watcher` how far each phase of loading is; from the loading thread."""
        self._on_progress = watcher

    def listen(self, listener: SlotListener) -> None:
        """Tell `listener` when the model has opened, is free, or has closed."""
        self._listeners.append(listener)

    @asynccontextmanager
    async def lease(
        self, wait_s: float | None = None, keep_alive_s: float | None = None
    ) -> AsyncIterator[EmbeddingModel]:
        """Hold the model open, opening it first where needed.

        keep_alive_s: idle time after which it may close; None: as the server is set.
        Raises ModelLoadingError when it is not open within `wait_s` (None: as long as it takes),
        or the error that kept it from opening.
        """
        self._leases += 1  # from here on, so that nothing closes what has just opened
        try:
            model = await self._opened(wait_s)
            try:
                yield model
            except CacheCorruptError as error:
                self._note_damage(error)
                raise
            finally:
                self.last_used_s = self._clock()
                self._keep_alive_s = self._idle_unload_s if keep_alive_s is None else keep_alive_s
        finally:
            await self._end_lease()

    async def look(self) -> None:
        """Find out by the header of its file whether the model would open, if it has a file yet.

        What kept it from opening before is forgotten where the header is good.
        """
        error: PlimsollError | None = None
        try:
            await asyncio.to_thread(self._opener.look)
        except PlimsollError as found:
            error = found
        if self.is_open:  # a request has been quicker
            return
        if error is None:
            self.error = None
        else:
            self._note_failure(error)

    async def has_new_file(self) -> bool:
        """Whether its file is another than the one that would not open, and no longer grows."""
        return await asyncio.to_thread(self._opener.has_new_file)

    def refuse_unusable(self) -> None:
        """Raise what keeps the model from being used or tried again just now."""
        if self._damaged:
            # Requests under way still hold the damaged model; it closes with the last of them.
            raise ModelLoadingError(
                f"{self.name} has damaged weights, which are being made again",
                retry_after_s=LOADING_RETRY_S,
            )
        paused = self._clock() - self._failed_at_s < RETRY_PAUSE_S
        if self.error is not None and paused and self.state is ModelState.FAILED:
            # Without the frames of earlier requests that met it, which would pile up.
            raise self.error.with_traceback(None)

    async def check_files(self) -> bool:
        """Look whether files of the open model have changed under it; close it where its weights
        have, as soon as no request uses it.

        Returns whether it has been closed for that.
        """
        model = self._model
        if model is None:
            self.source_change = None
            return False
        if not self._damaged:
            try:
                model.check_unchanged()
            except CacheCorruptError as error:
                self._note_damage(error)
                if not self._leases:
                    await self._close_damaged()
                    return True
        await self._look_at_source()
        return False

    async def check_idleness(self) -> None:
        """Close the model where no request has come for long."""
        if self._model is None or self._leases:
            return
        idle_s = self._clock() - self.last_used_s
        if idle_s >= self._keep_alive_s:
            await self.evict("idle")

    async def evict(self, reason: EvictionReason) -> None:
        """Close an idle model, and log and count why."""
        idle_s = self._clock() - self.last_used_s
        log.info("closing %s after %.0f s without a request (%s)", self.name, idle_s, reason)
        self._metrics.evicted(reason)
        await self.close()

    async def close(self) -> None:
        """Close the model, waiting for an opening under way."""
        while self._loading is not None and not self._loading.done():
            await asyncio.wait([self._loading])
        # No await where nothing is loading: no request may lease the model in between.
        model, self._model, self._loading = self._model, None, None
        if model is not None:
            self._metrics.closed()
            # A task of its own, which ends even when the request that began it is cancelled.
            self._closing = asyncio.create_task(asyncio.to_thread(model.close))
            self._closing.add_done_callback(lambda _: self._tell(SlotEvent.CLOSED))
        if self._closing is not None and not self._closing.done():
            await asyncio.shield(self._closing)

    async def _end_lease(self) -> None:
        self._leases -= 1
        if self._leases:
            return
        if self._damaged:
            await self._close_damaged()
        else:
            self._tell(SlotEvent.FREE)

    async def _close_damaged(self) -> None:
        # What is damaged has put itself aside: the next open builds it anew.
        self._damaged = False
        await self.close()

    def _note_damage(self, error: CacheCorruptError) -> None:
        if not self._damaged:
            log.error("%s is to be opened again: %s", self.name, str(error))
        self._damaged, self.damage = True, str(error)

    async def _look_at_source(self) -> None:
        now_s = self._clock()
        if now_s - self._source_looked_s < SOURCE_LOOK_S:
            return
        self._source_looked_s = now_s
        found = await asyncio.to_thread(self._opener.source_change)
        if found is not None and found != self.source_change:
            log.warning("%s: %s", self.name, found)
        self.source_change = found

    async def _opened(self, wait_s: float | None) -> EmbeddingModel:
        self.refuse_unusable()
        if self._model is not None:
            return self._model
        loading = self._loading
        if loading is None or loading.done():
            loading = self._loading = asyncio.create_task(self._open())
            loading.add_done_callback(self._note_loaded)
        done, _ = await asyncio.wait([loading], timeout=wait_s)
        if not done:
            raise ModelLoadingError(self._waiting_message(), retry_after_s=self._loading_left_s())
        return loading.result()

    async def _open(self) -> EmbeddingModel:
        if self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])  # two at once would need twice the memory
        start = perf_counter()
        self.progress, self._phase = (0, 0), (None, 0.0)
        try:
            model = await asyncio.to_thread(self._opener.open, self._note_progress)
        except PlimsollError as error:
            self._metrics.failed_to_open(self.name)
            self._note_failure(error)
            raise
        except Exception as error:  # such as no memory for the backend's own tables
            log.exception("opening %s ended unexpectedly", self.name)
            failure = ModelLoadError(f"opening it ended unexpectedly: {error!r}")
            self._metrics.failed_to_open(self.name)
            self._note_failure(failure)
            raise failure from None
        seconds = perf_counter() - start
        log.info("opened %s in %.2f s", self.name, seconds)
        self._note_traits(model.traits)
        self.error, self.damage, self._model = None, None, model
        self.last_used_s = self._clock()
        self._metrics.opened(self.name, seconds)
        return model

    def _note_failure(self, error: PlimsollError) -> None:
        if str(error) != str(self.error):  # else the log has it
            log.error("cannot open %s: %s", self.name, error)
        self.error, self.damage, self._failed_at_s = error, None, self._clock()

    def _note_loaded(self, _: asyncio.Task[EmbeddingModel]) -> None:
        self._tell(SlotEvent.CLOSED if self._model is None else SlotEvent.OPENED)

    def _note_traits(self, traits: Traits) -> None:
        fingerprint = traits.fingerprint()
        if self.traits and self.traits.fingerprint() != fingerprint:
            log.warning("%s now gives other vectors: its file has changed", self.name)
        self.traits = traits
        log.info("%s is %s", self.name, fingerprint)

    def _tell(self, event: SlotEvent) -> None:
        for listener in self._listeners:
            listener(self, event)

    def _note_progress(self, done_bytes: int, total_bytes: int, phase: Phase) -> None:
        self.progress = (done_bytes, total_bytes)
        if self._phase[0] != phase:
            self._phase = (phase, self._clock())
        self._on_progress(done_bytes, total_bytes, phase)

    def _loading_left_s(self) -> float:
        """Until the phase under way ends, if it goes on as it has."""
        done, total = self.progress
        passed_s = self._clock() - self._phase[1]
        return max(LOADING_RETRY_S, passed_s * (total - done) / done) if done else LOADING_RETRY_S

    def _waiting_message(self) -> str:
        done, total = self.progress
        share = f" ({100 * done // total} % done)" if total else ""
        return f"{self.name} is being fetched or converted{share}"

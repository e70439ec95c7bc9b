"""The served model's life: closed, loading, ready, and closed again when idle.

Owns the open model. It opens at the first request that needs it, once however many ask,
and closes when nobody has used it for a while. Lives on the event loop; opening and closing
run in threads.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from time import monotonic, perf_counter
from typing import Protocol

from app.encoder.model import EmbeddingModel, Traits
from app.errors import CacheCorruptError, ModelLoadingError, PlimsollError
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

# A model that would not open is not tried again for every request that comes in.
RETRY_PAUSE_S = 5.0
RETRY_UNASKED_S = 30.0
IDLE_CHECK_S = 0.5
# After this pause activations' memory goes back to the kernel; the weights stay mapped.
IDLE_RELEASE_S = 1.0
LOADING_RETRY_S = 5.0


class ModelState(Enum):
    """What `/health` says of the model."""

    CLOSED = "closed"  # opens at the next request
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # tried again at the next request after RETRY_PAUSE_S


class Opener(Protocol):
    """Opens the model that a slot serves."""

    def open(self, progress: Callable[[int, int], None]) -> EmbeddingModel:
        """Fetch, convert and open; blocks. Raises PlimsollError."""


class ModelSlot:
    """Owns one model; hands out leases on it."""

    def __init__(
        self,
        name: str,
        opener: Opener,
        telemetry: Telemetry,
        *,
        load_wait_s: float | None,
        idle_unload_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`load_wait_s` of None waits as long as it takes; `idle_unload_s` of 0 never closes."""
        self.name = name
        self.traits: Traits | None = None  # of the last open, kept when the model closes
        self.error: PlimsollError | None = None
        self.progress = (0, 0)  # bytes done and in all, while loading
        self._opener = opener
        self._telemetry = telemetry
        self._load_wait_s = load_wait_s
        self._idle_unload_s = idle_unload_s
        self._clock = clock
        self._model: EmbeddingModel | None = None
        self._loading: asyncio.Task[EmbeddingModel] | None = None
        self._leases = 0
        self._last_used_s = clock()
        self._failed_at_s = -RETRY_PAUSE_S
        self._damaged = False
        self._released = True
        self._watcher: Callable[[int, int], None] = lambda done_bytes, total_bytes: None

    @property
    def state(self) -> ModelState:
        """Where in its life the model is."""
        if self._model is not None:
            return ModelState.READY
        if self._loading is not None and not self._loading.done():
            return ModelState.LOADING
        return ModelState.FAILED if self.error else ModelState.CLOSED

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[EmbeddingModel]:
        """Hold the model open, opening it first where needed.

        Raises ModelLoadingError when it is not open within the load wait, or the error that
        kept it from opening.
        """
        model = await self._opened()
        self._leases += 1
        try:
            yield model
        except CacheCorruptError:
            self._damaged = True
            raise
        finally:
            self._last_used_s = self._clock()
            self._released = False
            await self._end_lease()

    async def watch_idleness(self) -> None:
        """Until cancelled: give memory back after a pause, close the model after a long one."""
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            try:
                await self.check_idleness()
            except Exception:  # this task must outlive whatever goes wrong once
                log.exception("cannot look after %s", self.name)

    async def check_idleness(self) -> None:
        """Do what the time since the last request calls for."""
        if self._model is None or self._leases:
            await self._retry_failed()
            return
        idle_s = self._clock() - self._last_used_s
        if self._idle_unload_s and idle_s >= self._idle_unload_s:
            log.info("closing %s after %.0f s without a request", self.name, idle_s)
            await self.close()
        elif idle_s >= IDLE_RELEASE_S and not self._released:
            self._released = True
            self._leases += 1  # so that nothing closes it meanwhile
            try:
                await asyncio.to_thread(self._model.release_memory)
            finally:
                await self._end_lease()

    async def _retry_failed(self) -> None:
        """Try again what would not open, unasked: nobody asks a server that is not ready."""
        loading = self._loading is not None and not self._loading.done()
        pause_s = self._clock() - self._failed_at_s
        if self._model is None and self.error and not loading and pause_s >= RETRY_UNASKED_S:
            self._loading = asyncio.create_task(self._open())
            await asyncio.wait([self._loading])
            self._loading.exception()  # logged already

    async def close(self) -> None:
        """Close the model, waiting for an opening under way."""
        # Without a pause where nothing is loading: nobody may lease the model in between.
        if self._loading is not None and not self._loading.done():
            await asyncio.wait([self._loading])
        model, self._model = self._model, None
        if model is not None:
            self._telemetry.model_open.set(0)
            await asyncio.to_thread(model.close)

    async def _end_lease(self) -> None:
        self._leases -= 1
        if self._damaged and not self._leases:
            # The damaged sidecar has put itself aside: the next open builds it anew.
            self._damaged = False
            await self.close()

    async def _opened(self) -> EmbeddingModel:
        if self._damaged:
            # Requests under way still hold the damaged model; it closes with the last of them.
            raise ModelLoadingError(
                f"{self.name} has damaged weights, which are being made again",
                retry_after_s=LOADING_RETRY_S,
            )
        if self._model is not None:
            return self._model
        loading = self._loading
        if loading is None or loading.done():
            if self.error is not None and self._clock() - self._failed_at_s < RETRY_PAUSE_S:
                # Without the frames of those who met it before, which would pile up.
                raise self.error.with_traceback(None)
            loading = self._loading = asyncio.create_task(self._open())
        done, _ = await asyncio.wait([loading], timeout=self._load_wait_s)
        if not done:
            retry_after_s = self._load_wait_s or LOADING_RETRY_S
            raise ModelLoadingError(self._waiting_message(), retry_after_s=retry_after_s)
        return loading.result()

    async def _open(self) -> EmbeddingModel:
        start = perf_counter()
        self.progress = (0, 0)
        try:
            model = await asyncio.to_thread(self._opener.open, self._note_progress)
        except PlimsollError as error:
            self.error, self._failed_at_s = error, self._clock()
            self._telemetry.model_loads.labels("failed").inc()
            log.error("cannot open %s: %s", self.name, error)
            raise
        seconds = perf_counter() - start
        if self.traits and self.traits.fingerprint() != model.traits.fingerprint():
            log.warning("%s now gives other vectors: its file has changed", self.name)
        self.error, self._model, self.traits = None, model, model.traits
        self._last_used_s = self._clock()
        self._telemetry.model_loads.labels("ok").inc()
        self._telemetry.model_load_seconds.observe(seconds)
        self._telemetry.model_open.set(1)
        log.info("opened %s in %.2f s, %s", self.name, seconds, model.traits.fingerprint())
        return model

    def watch_progress(self, watcher: Callable[[int, int], None]) -> None:
        """Tell `watcher` bytes done and in all while the model loads."""
        self._watcher = watcher

    def _note_progress(self, done_bytes: int, total_bytes: int) -> None:
        self.progress = (done_bytes, total_bytes)
        self._watcher(done_bytes, total_bytes)

    def _waiting_message(self) -> str:
        done, total = self.progress
        share = f" ({100 * done // total} % done)" if total else ""
        return f"{self.name} is being fetched or converted{share}; try again in a moment"

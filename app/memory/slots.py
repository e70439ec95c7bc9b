"""One model's life: closed, loading, ready, and closed again when idle.

Knows of a model only how to open it, how to give its memory back and how to close it. Lives on
the event loop; what blocks runs in threads. How many models may be open is resources.py's matter.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from time import monotonic, perf_counter
from typing import Generic, Protocol, TypeVar

from app.errors import CacheCorruptError, ModelLoadingError, PlimsollError
from app.telemetry import EvictionReason, Telemetry

log = logging.getLogger(__name__)

# A model that would not open is not tried again for every request that comes in.
RETRY_PAUSE_S = 5.0
RETRY_UNASKED_S = 30.0
# After this pause activations' memory goes back to the kernel; the weights stay mapped.
IDLE_RELEASE_S = 1.0
LOADING_RETRY_S = 5.0


class ModelState(Enum):
    """What `/health` says of a model."""

    CLOSED = "closed"  # opens at the next request
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # tried again at the next request after RETRY_PAUSE_S


class Releasable(Protocol):
    """What a slot holds; both methods block."""

    def release_memory(self) -> None:
        """Give back memory that only a run needs."""

    def close(self) -> None:
        """Give back everything."""


T = TypeVar("T", bound=Releasable)
T_co = TypeVar("T_co", bound=Releasable, covariant=True)


class Opener(Protocol[T_co]):
    """Opens the model that a slot holds."""

    def open(self, progress: Callable[[int, int], None]) -> T_co:
        """Fetch, convert and open; blocks. Raises PlimsollError."""


class ModelSlot(Generic[T]):
    """Owns one model; hands out leases on it, and opens it once however many ask."""

    def __init__(
        self,
        names: tuple[str, ...],
        opener: Opener[T],
        telemetry: Telemetry,
        *,
        idle_unload_s: float,
        on_open: Callable[[T], None] = lambda model: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`names`: what clients may call the model, its own first.

        `idle_unload_s` of 0 never closes. `on_open` is told of every model that has opened.
        """
        self.names = names
        self.error: PlimsollError | None = None
        self.progress = (0, 0)  # bytes done and in all, while loading
        self.last_used_s = clock()
        self._opener = opener
        self._telemetry = telemetry
        self._idle_unload_s = idle_unload_s
        self._on_open = on_open
        self._clock = clock
        self._model: T | None = None
        self._loading: asyncio.Task[T] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._leases = 0  # held or waited for
        self._failed_at_s = -RETRY_PAUSE_S
        self._damaged = False
        self._released = True
        self._on_progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None
        self._on_change: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.names[0]

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
        """Whether the model is open and nobody uses it."""
        return self._model is not None and not self._leases

    @property
    def is_due_for_retry(self) -> bool:
        """Whether the model would not open, and nobody has asked for it in a long while."""
        pause_s = self._clock() - self._failed_at_s
        return self.state is ModelState.FAILED and pause_s >= RETRY_UNASKED_S

    def watch_progress(self, watcher: Callable[[int, int], None]) -> None:
        """Tell `watcher` bytes done and in all while the model loads."""
        self._on_progress = watcher

    def watch_changes(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` when the model is free, or its memory is."""
        self._on_change = watcher

    @asynccontextmanager
    async def lease(self, wait_s: float | None = None) -> AsyncIterator[T]:
        """Hold the model open, opening it first where needed.

        Raises ModelLoadingError when it is not open within `wait_s` (None: as long as it takes),
        or the error that kept it from opening.
        """
        self._leases += 1  # from here on, so that nothing closes what has just opened
        try:
            model = await self._opened(wait_s)
            try:
                yield model
            except CacheCorruptError:
                self._damaged = True
                raise
            finally:
                self.last_used_s = self._clock()
                self._released = False
        finally:
            await self._end_lease()

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
            # Without the frames of those who met it before, which would pile up.
            raise self.error.with_traceback(None)

    async def check_idleness(self) -> None:
        """Do what the time since the last request calls for."""
        if self._model is None or self._leases:
            return
        idle_s = self._clock() - self.last_used_s
        if self._idle_unload_s and idle_s >= self._idle_unload_s:
            await self.evict("idle")
        elif idle_s >= IDLE_RELEASE_S and not self._released:
            self._released = True
            await self.release_memory()

    async def release_memory(self) -> None:
        """Give back what only a run needs, whoever holds the model; between two runs."""
        if self._model is None:
            return
        self._leases += 1  # so that nothing closes it meanwhile
        try:
            await asyncio.to_thread(self._model.release_memory)
        finally:
            await self._end_lease()

    async def evict(self, reason: EvictionReason) -> None:
        """Close the model for somebody else's sake; for one that is idle."""
        idle_s = self._clock() - self.last_used_s
        log.info("closing %s after %.0f s without a request (%s)", self.name, idle_s, reason)
        self._telemetry.model_evictions.labels(reason).inc()
        await self.close()

    async def close(self) -> None:
        """Close the model, waiting for an opening under way."""
        while self._loading is not None and not self._loading.done():
            await asyncio.wait([self._loading])
        # Without a pause where nothing is loading: nobody may lease the model in between.
        model, self._model, self._loading = self._model, None, None
        if model is not None:
            self._telemetry.models_open.dec()
            # A task of its own, which ends even when whoever asked for it has gone.
            self._closing = asyncio.create_task(asyncio.to_thread(model.close))
            self._closing.add_done_callback(self._note_end)
        if self._closing is not None and not self._closing.done():
            await asyncio.shield(self._closing)

    async def _end_lease(self) -> None:
        self._leases -= 1
        if self._leases:
            return
        if self._damaged:
            # The damaged sidecar has put itself aside: the next open builds it anew.
            self._damaged = False
            await self.close()
        self._on_change()

    async def _opened(self, wait_s: float | None) -> T:
        self.refuse_unusable()
        if self._model is not None:
            return self._model
        loading = self._loading
        if loading is None or loading.done():
            loading = self._loading = asyncio.create_task(self._open())
            loading.add_done_callback(self._note_end)
        done, _ = await asyncio.wait([loading], timeout=wait_s)
        if not done:
            raise ModelLoadingError(self._waiting_message(), retry_after_s=LOADING_RETRY_S)
        return loading.result()

    async def _open(self) -> T:
        if self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])  # two at once would need twice the memory
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
        log.info("opened %s in %.2f s", self.name, seconds)
        self._on_open(model)
        self.error, self._model = None, model
        self.last_used_s = self._clock()
        self._telemetry.model_loads.labels("ok").inc()
        self._telemetry.model_load_seconds.observe(seconds)
        self._telemetry.models_open.inc()
        return model

    def _note_end(self, task: asyncio.Task[T] | asyncio.Task[None]) -> None:
        self._on_change()

    def _note_progress(self, done_bytes: int, total_bytes: int) -> None:
        self.progress = (done_bytes, total_bytes)
        self._on_progress(done_bytes, total_bytes)

    def _waiting_message(self) -> str:
        done, total = self.progress
        share = f" ({100 * done // total} % done)" if total else ""
        return f"{self.name} is being fetched or converted{share}; try again in a moment"

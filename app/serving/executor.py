"""Engine work off the event loop: one thread that runs waves of whatever texts wait.

Texts of all requests stand in one queue, so a wave may serve several of them. A request
keeps only a window of texts in the queue, so a list of thousands does not starve a single
text. Owns the queue and the thread; results come back on the event loop, row by row.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from app.encoder.model import EmbeddingModel
from app.telemetry import Telemetry

# One pass over the weights serves a wave: more texts hardly help, and cost activations.
WAVE_TEXTS = 32
WAVE_TOKENS = 8192
# Two waves a request: one runs while the next one waits.
WINDOW_TEXTS = 2 * WAVE_TEXTS


@dataclass(eq=False)
class _Text:
    model: EmbeddingModel
    ids: np.ndarray
    row: "asyncio.Future[np.ndarray]"
    loop: asyncio.AbstractEventLoop
    drop_pages: bool
    queued_at: float = field(default_factory=perf_counter)


class WaveExecutor:
    """Owns the queue of texts and the thread that empties it."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._waiting: deque[_Text] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="waves", daemon=True)

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    async def encode(
        self, model: EmbeddingModel, texts: Sequence[np.ndarray], *, drop_pages: bool
    ) -> list[np.ndarray]:
        """Pooled vector of each text, float64 (hidden,); texts are int64 ids.

        When the caller is cancelled, what it has queued is dropped.
        """
        loop = asyncio.get_running_loop()
        rows: list[asyncio.Future[np.ndarray]] = []
        try:
            for ids in texts:
                if len(rows) >= WINDOW_TEXTS:
                    await rows[len(rows) - WINDOW_TEXTS]
                rows.append(loop.create_future())
                self._queue(_Text(model, ids, rows[-1], loop, drop_pages))
            return [await row for row in rows]
        finally:
            for row in rows:
                # Cancelled rows are skipped by the engine; failed ones count as looked at.
                if row.done() and not row.cancelled():
                    row.exception()
                row.cancel()

    def _queue(self, text: _Text) -> None:
        with self._changed:
            if self._stopping:
                raise asyncio.CancelledError("the server is stopping")
            self._waiting.append(text)
            self._telemetry.queue_tokens.inc(len(text.ids))
            self._changed.notify()

    def _run(self) -> None:
        while wave := self._next_wave():
            now = perf_counter()
            for text in wave:
                self._telemetry.observe_stage("queue", now - text.queued_at)
            try:
                with self._telemetry.stage("encode"):
                    vectors = wave[0].model.encode(
                        [text.ids for text in wave], drop_pages=wave[0].drop_pages
                    )
            except Exception as error:  # handed to whoever waits for these rows
                for text in wave:
                    text.loop.call_soon_threadsafe(_fail, text.row, error)
            else:
                for text, vector in zip(wave, vectors, strict=True):
                    text.loop.call_soon_threadsafe(_deliver, text.row, vector)
            del wave

    def _next_wave(self) -> list[_Text]:
        """Wait for texts; empty when the executor stops."""
        with self._changed:
            wave: list[_Text] = []
            n_tokens = 0
            while not wave:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return []
                while self._waiting and len(wave) < WAVE_TEXTS:
                    text = self._waiting[0]
                    if wave and n_tokens + len(text.ids) > WAVE_TOKENS:
                        break
                    if wave and text.model is not wave[0].model:
                        break
                    self._waiting.popleft()
                    self._telemetry.queue_tokens.dec(len(text.ids))
                    if not text.row.cancelled():
                        wave.append(text)
                        n_tokens += len(text.ids)
            return wave


def _deliver(row: "asyncio.Future[np.ndarray]", vector: np.ndarray) -> None:
    if not row.done():
        row.set_result(vector)


def _fail(row: "asyncio.Future[np.ndarray]", error: Exception) -> None:
    if not row.done():
        row.set_exception(error)

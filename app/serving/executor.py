"""Engine work off the event loop: one thread that gives the engine runs of whatever texts wait.

Texts of all requests stand in one queue, so a run may serve several of them; the engine spreads
it over its threads, longest unit first. A request keeps only a window of texts in the queue, so
a list of thousands does not starve a single text. Owns the queue and the thread; results come
back on the event loop, run by run.

A refused allocation is no failure yet: the run is halved and tried again after a pause. Only a
text that fails alone, several times, fails its request.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from time import perf_counter

import numpy as np

from app.current_request import CurrentRequest, Trace, current_request, serving, together
from app.encoder.model import EmbeddingModel
from app.errors import EncodeMemoryError, MemoryPressureError
from app.memory import allocator
from app.serving.runs import MOST_TEXTS, WINDOW_TEXTS, Predict, RunLimits, n_texts_of_run
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

# A text that finds no memory is tried this often, after the first time alone and with longer
# pauses each time.
ATTEMPTS = 4
FIRST_PAUSE_S = 0.05


@dataclass(eq=False)
class _Text:
    model: EmbeddingModel
    ids: np.ndarray
    row: "asyncio.Future[np.ndarray]"
    loop: asyncio.AbstractEventLoop
    queued_at: float
    request: CurrentRequest | None = field(default_factory=current_request)


class RunExecutor:
    """Owns the queue of texts and the thread that empties it.

    weights_stay: whether a model's weights may stay in memory beside everything else; where not,
        their pages are dropped as a run goes, but for those of the first `kept_layers`.
    room_timeout_s: how long a text waits for memory while nothing can run.
    on_begin, on_end: told a run's bytes before it, the tokens of its texts that got rows and its
        seconds after it, on the event loop of its first text.
    clock: seconds of perf_counter's kind.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        limits: RunLimits,
        *,
        weights_stay: Callable[[EmbeddingModel], bool],
        room_timeout_s: float,
        on_begin: Callable[[int], None] = lambda n_bytes: None,
        on_end: Callable[[int, float], None] = lambda n_tokens, seconds: None,
        kept_layers: Callable[[EmbeddingModel], int] = lambda model: 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._telemetry = telemetry
        self._limits = limits
        self._weights_stay = weights_stay
        self._kept_layers = kept_layers
        self._room_timeout_s = room_timeout_s
        self._on_begin = on_begin
        self._on_end = on_end
        self._clock = clock
        self._waiting: deque[_Text] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="runs", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def set_limits(self, limits: RunLimits) -> None:
        """What the next run has to keep; the one under way is not touched."""
        with self._changed:
            self._limits = limits
            self._changed.notify()

    async def encode(
        self,
        model: EmbeddingModel,
        texts: Sequence[np.ndarray],
        on_row: Callable[[int], None] = lambda n_tokens: None,
    ) -> list[np.ndarray]:
        """Pooled vector of each text, float64 (hidden,); texts are int64 ids.

        When the caller is cancelled, what it has queued is dropped. `on_row` is told the tokens
        of each text that has run. Raises MemoryPressureError and EncodeMemoryError.
        """
        loop = asyncio.get_running_loop()
        rows: list[asyncio.Future[np.ndarray]] = []
        try:
            for ids in texts:
                if len(rows) >= WINDOW_TEXTS:
                    await rows[len(rows) - WINDOW_TEXTS]
                row = loop.create_future()
                row.add_done_callback(partial(_report, on_row, len(ids)))
                rows.append(row)
                self._queue(_Text(model, ids, row, loop, self._clock()))
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

    def _work(self) -> None:
        while run := self._next_run():
            texts, limits = run
            now = self._clock()
            for text in texts:
                self._telemetry.observe_stage("queue", now - text.queued_at)
            for trace, queued_at in _traces(texts).items():
                trace.add_stage("queue", queued_at, now)
            n_tokens = sum(len(text.ids) for text in texts)
            self._telemetry.run_tokens.observe(n_tokens)
            predict = _predictor(texts[0].model, limits)
            loop, n_done = texts[0].loop, 0
            _tell(loop, self._on_begin, predict([len(text.ids) for text in texts]))
            try:
                n_done = self._run(texts, limits, attempt=1)
            except Exception as error:  # this thread must outlive whatever goes wrong once
                log.exception("a run ended unexpectedly")
                _fail(texts, error)
            _tell(loop, self._on_end, n_done, self._clock() - now)
            del run, texts

    def _run(self, texts: Sequence[_Text], limits: RunLimits, *, attempt: int) -> int:
        """Give texts to the engine; deliver their rows or what went wrong.

        Returns the tokens of those that got rows.
        """
        model = texts[0].model
        try:
            with self._telemetry.stage("encode", _traces(texts)):
                vectors = model.encode(
                    [text.ids for text in texts],
                    drop_pages=self._drops_pages(model, limits),
                    # A last try takes the least memory: one thread.
                    n_threads=1 if attempt == ATTEMPTS else limits.plan.engine_threads,
                    pack_tokens=limits.pack_tokens,
                    kept_layers=self._kept_layers(model),
                )
        except EncodeMemoryError as error:
            with serving(together(text.request for text in texts)):
                return self._recover(texts, limits, attempt, error)
        except Exception as error:  # handed to whoever waits for these rows
            _fail(texts, error)
            return 0
        if attempt > 1:
            self._telemetry.recoveries.labels("1", "recovered").inc()
        for text, vector in zip(texts, vectors, strict=True):
            _tell(text.loop, _deliver, text.row, vector)
        return sum(len(text.ids) for text in texts)

    def _recover(
        self, texts: Sequence[_Text], limits: RunLimits, attempt: int, error: EncodeMemoryError
    ) -> int:
        """Halve the run and try again after a pause; give up on a text that fails alone.

        Returns the tokens of the texts that got rows after all.
        """
        if len(texts) == 1 and attempt >= ATTEMPTS:
            self._telemetry.recoveries.labels("1", "failed").inc()
            log.error("a text of %d tokens found no memory: %s", len(texts[0].ids), error)
            _fail(texts, error)
            return 0
        log.warning("no memory for a run of %d texts; trying again with half", len(texts))
        self._telemetry.recoveries.labels("1", "retried").inc()
        with suppress(EncodeMemoryError):  # even that may find no memory
            texts[0].model.release_memory()
        allocator.release()
        with self._changed:  # a server that stops does not wait for this
            self._changed.wait_for(lambda: self._stopping, FIRST_PAUSE_S * 2 ** (attempt - 1))
        half = -(-len(texts) // 2)
        n_done = 0
        for part in (texts[:half], texts[half:]):
            # One text that fails fails its request, which then wants nothing of the others.
            wanted = [text for text in part if not text.row.cancelled()]
            if wanted:
                later = attempt + 1 if len(texts) == 1 else 2
                n_done += self._run(wanted, limits, attempt=later)
        return n_done

    def _drops_pages(self, model: EmbeddingModel, limits: RunLimits) -> bool:
        return limits.plan.step >= 2 or not self._weights_stay(model)

    def _next_run(self) -> tuple[list[_Text], RunLimits] | None:
        """Wait for texts, and for memory to run them in; None when the executor stops."""
        starved_since: float | None = None
        with self._changed:
            while True:
                self._drop_cancelled()
                if not self._waiting:
                    if self._stopping:
                        return None
                    starved_since = None
                    self._changed.wait()
                    continue
                limits = self._limits
                n_texts = 0 if limits.is_paused else self._n_texts(limits)
                if n_texts:
                    taken = [self._take() for _ in range(n_texts)]
                    # A client may have hung up since the head was looked at.
                    texts = [text for text in taken if not text.row.cancelled()]
                    if texts:
                        return texts, limits
                    continue
                now = self._clock()
                starved_since = now if starved_since is None else starved_since
                # Those behind the head have waited for the same, but no longer than they stand.
                waiting_since = max(starved_since, self._waiting[0].queued_at)
                left_s = waiting_since + self._room_timeout_s - now
                if left_s <= 0 or self._stopping:
                    self._refuse_head(limits)
                else:
                    self._changed.wait(left_s)

    def _n_texts(self, limits: RunLimits) -> int:
        model = self._waiting[0].model
        lengths = []
        for text in islice(self._waiting, MOST_TEXTS):
            if text.model is not model:
                break
            lengths.append(len(text.ids))
        return n_texts_of_run(
            lengths,
            limits,
            _predictor(model, limits),
            drops_pages=self._drops_pages(model, limits),
        )

    def _drop_cancelled(self) -> None:
        while self._waiting and self._waiting[0].row.cancelled():
            self._take()

    def _take(self) -> _Text:
        text = self._waiting.popleft()
        self._telemetry.queue_tokens.dec(len(text.ids))
        return text

    def _refuse_head(self, limits: RunLimits) -> None:
        text = self._take()
        error = MemoryPressureError(
            f"a text of {len(text.ids)} tokens waited {self._room_timeout_s:g} s for memory to run "
            f"in, and {limits.room_bytes >> 20} MiB are free for it",
            retry_after_s=self._room_timeout_s,
        )
        _fail([text], error)


def _traces(texts: Sequence[_Text]) -> dict[Trace, float]:
    """The traces of a run's requests, with when the first text of each was queued."""
    return {
        text.request.trace: text.queued_at
        for text in reversed(texts)
        if text.request is not None and text.request.trace is not None
    }


def _predictor(model: EmbeddingModel, limits: RunLimits) -> Predict:
    return partial(
        model.wave_bytes, n_threads=limits.plan.engine_threads, pack_tokens=limits.pack_tokens
    )


def _report(
    on_row: Callable[[int], None], n_tokens: int, row: "asyncio.Future[np.ndarray]"
) -> None:
    if not row.cancelled():
        on_row(n_tokens)


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[..., None], *what: object) -> None:
    """Call `tell` on its event loop; in one that has closed there is nobody left to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(tell, *what)


def _deliver(row: "asyncio.Future[np.ndarray]", vector: np.ndarray) -> None:
    if not row.done():
        row.set_result(vector)


def _fail(texts: Sequence[_Text], error: Exception) -> None:
    for text in texts:
        _tell(text.loop, _set_error, text.row, error)


def _set_error(row: "asyncio.Future[np.ndarray]", error: Exception) -> None:
    if not row.done():
        row.set_exception(error)

"""Engine work off the event loop: one thread that gives the engine runs of the texts that wait.

Texts of all requests stand in one queue, so a run may serve several of them; the engine spreads
it over its threads, longest unit first. A request keeps only a window of texts in the queue, so
that a list of thousands takes little of it. Owns the thread, which owns the queue; the event loop
hands texts over through an inbox and never waits for the thread. What a run is and who is told of
it stands in engine_runs.py; which texts are on their way already, in in_flight.py.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.pooling import RowForm
from plimsoll.errors import MemoryPressureError
from plimsoll.policy.costs import WINDOW_TEXTS
from plimsoll.policy.priority import Priority
from plimsoll.policy.runs import FIRST_PAUSE_S, RunLimits
from plimsoll.policy.text_queue import TextQueue
from plimsoll.serving.engine_runs import EngineRuns, RunObserver, run_bytes
from plimsoll.serving.in_flight import InFlight
from plimsoll.serving.rows import QueuedText, Row, digest_of, fail, report_row, run_together, tell
from plimsoll.telemetry.engine import EngineMetrics, Source
from plimsoll.telemetry.pressure import PressureMetrics
from plimsoll.telemetry.requests import RequestMetrics

log = logging.getLogger(__name__)

# Of the thread, for those who move threads between processors.
THREAD_NAME = "runs"


class RunExecutor:
    """Owns the thread that gives the engine its runs.

    room_timeout_s: how long a text waits for memory while nothing can run.
    clock: seconds of perf_counter's kind.
    """

    def __init__(
        self,
        metrics: EngineMetrics,
        stages: RequestMetrics,
        pressure: PressureMetrics,
        limits: RunLimits,
        *,
        room_timeout_s: float,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._metrics = metrics
        self._limits = limits
        self._room_timeout_s = room_timeout_s
        self._clock = clock
        self._inbox: SimpleQueue[QueuedText | None] = SimpleQueue()  # None: look again
        self._texts: TextQueue[QueuedText] = TextQueue(
            run_bytes=run_bytes,
            weights_bytes=lambda text: text.model.weights_bytes,
            n_layers=lambda text: text.model.sizes.n_layers,
            belong_together=run_together,
            room_timeout_s=room_timeout_s,
        )
        self._shown_tokens = 0  # of the texts that the thread has taken in
        self._taken: Sequence[QueuedText] = ()  # by the turn under way
        self._wants_limits = False  # while other limits might let a text run
        self._in_flight = InFlight()
        self._stopping = threading.Event()
        self._runs = EngineRuns(
            metrics,
            stages,
            pressure,
            clock=clock,
            pause=self._stopping.wait,  # a server that stops does not wait for this
        )
        self._release_asked = threading.Event()
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)

    @property
    def last_model(self) -> EmbeddingModel | None:
        """The model that ran last, while it is there."""
        return self._runs.last_model

    def start(self, observer: RunObserver) -> None:
        """Start the thread."""
        self._runs.watch(observer)
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()
        with suppress(Empty):  # what came in as the thread ended
            while True:
                if (text := self._inbox.get_nowait()) is not None:
                    tell(text.loop, text.row.cancel)

    def set_limits(self, limits: RunLimits) -> None:
        """What the next run has to keep; the one under way is not touched."""
        if limits != self._limits:
            self._limits = limits
            if self._wants_limits:  # waking the thread for nothing would take this one's time
                self._inbox.put(None)

    def release_memory(self) -> None:
        """Ask for what only runs need to be given back; done between two runs, not waited for."""
        self._release_asked.set()
        self._inbox.put(None)

    def let_in(
        self, passed_ratio: float, taken_bytes: int
    ) -> tuple[Sequence[QueuedText], RunLimits]:
        """Texts for the engine's runs, as `Others` says; for its own thread."""
        self._take_in(0.0)
        limits = self._limits.beside(taken_bytes)
        texts = self._texts.let_in(limits, passed_ratio)
        self._show_queue()
        return texts, limits

    def put_back(self, texts: Sequence[QueuedText]) -> None:
        """Let texts that were let in wait again."""
        self._texts.put_back(texts)
        self._show_queue()

    async def encode(
        self,
        model: EmbeddingModel,
        texts: Sequence[np.ndarray],
        dimensions: int,
        on_row: Callable[[int], None] = lambda n_tokens: None,
        priority: Priority = Priority.INTERACTIVE,
        form: RowForm = "unit",
    ) -> list[Row]:
        """Vector of each text, float32 (dimensions,), cut and normalised; texts are int64 ids.

        When the caller is cancelled, what it has queued is dropped. on_row: told the tokens of each
        text that has run. priority: of all these texts. form: what else the rows may be.
        Raises MemoryPressureError and EncodeMemoryError.
        """
        loop, call = asyncio.get_running_loop(), object()
        rows: list[asyncio.Future[Row]] = []
        try:
            for ids in texts:
                if len(rows) >= WINDOW_TEXTS:
                    await rows[len(rows) - WINDOW_TEXTS]
                row = loop.create_future()
                row.add_done_callback(partial(report_row, on_row, len(ids)))
                rows.append(row)
                text = (loop, model, dimensions, form, priority, digest_of(ids))

                def compute(row: asyncio.Future[Row], ids: np.ndarray = ids) -> None:
                    now_s = self._clock()
                    self._put(
                        QueuedText(model, ids, dimensions, row, loop, now_s, call, priority, form)
                    )

                was_there = self._in_flight.wait_for(text, row, compute)
                self._metrics.found(Source.IN_FLIGHT if was_there else Source.ENGINE)
            return [await row for row in rows]
        finally:
            for row in rows:
                # Cancelled rows are skipped by the engine; failed ones count as looked at.
                if row.done() and not row.cancelled():
                    row.exception()
                row.cancel()

    def _put(self, text: QueuedText) -> None:
        if self._stopping.is_set():
            raise asyncio.CancelledError("the server is stopping")
        self._metrics.queued(text.n_tokens)
        self._inbox.put(text)

    def _work(self) -> None:
        wait_s: float | None = None
        while wait_s is None or wait_s >= 0:
            try:
                wait_s = self._turn(wait_s)
            except Exception as error:  # this thread must outlive one turn that goes wrong
                log.exception("the engine's thread goes on after an error")
                self._runs.tell_ended()
                # Left in the queue, what it goes wrong with would go wrong for ever.
                fail(self._taken or self._texts.take_first(), error)
                self._show_queue()
                wait_s = FIRST_PAUSE_S
            self._taken = ()

    def _turn(self, wait_s: float | None) -> float | None:
        """Take in what has come, and run or refuse what is next.

        wait_s: for how long to wait where nothing comes; None: until something does. Returns it
        for the next turn, below 0 where there is none.
        """
        self._take_in(wait_s)
        if self._release_asked.is_set():
            self._release_asked.clear()
            self._runs.give_back()
        # Said before they are read: a change in between then wakes it again.
        self._wants_limits = len(self._texts) > 0
        limits, is_stopping = self._limits, self._stopping.is_set()
        found = self._texts.next(limits, self._clock(), is_stopping=is_stopping)
        self._show_queue()
        if found.texts:
            self._taken, self._wants_limits = found.texts, False
            self._runs.run(found.texts, limits, self if found.lets_in else None)
            return 0.0
        self._runs.tell_ended()
        if found.refused is not None:
            self._refuse(found.refused, limits)
            return 0.0
        is_over = is_stopping and not len(self._texts) and self._inbox.empty()
        return -1.0 if is_over else found.wait_s

    def _take_in(self, wait_s: float | None) -> None:
        """Take over what has come in; where nothing has, wait for it at most so long."""
        with suppress(Empty):
            message = self._inbox.get(timeout=wait_s) if wait_s != 0 else self._inbox.get_nowait()
            while True:
                if message is not None:
                    self._texts.put(message, message.priority)
                    self._shown_tokens += message.n_tokens
                message = self._inbox.get_nowait()

    def _show_queue(self) -> None:
        """Take out of the gauge what has left the queue since."""
        self._metrics.left_queue(self._shown_tokens - self._texts.n_tokens)
        self._shown_tokens = self._texts.n_tokens

    def _refuse(self, text: QueuedText, limits: RunLimits) -> None:
        error = MemoryPressureError(
            f"a text of {text.n_tokens} tokens waited {self._room_timeout_s:g} s for memory to run "
            f"in, and {limits.room_bytes >> 20} MiB are free for it",
            retry_after_s=self._room_timeout_s,
        )
        fail([text], error)

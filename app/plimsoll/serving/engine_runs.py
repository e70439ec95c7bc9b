"""One run after the other on the engine: what is tried for it, and who is told of it.

Between the layers of a long run others are let in; what becomes of them counts as the long run's.
A refused allocation is no failure yet: the run is halved and tried again after a pause. Only a
text that fails alone, several times, fails its request (policy/runs.py). Everything here happens
on the executor's thread; rows come back on the event loops that wait for them, once a run.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from plimsoll.encoder.layout import PACK_TOKENS
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.errors import EncodeMemoryError
from plimsoll.machine.memory import own_anonymous_bytes
from plimsoll.policy.runs import ATTEMPTS, RunEnded, RunLimits, retry_after_failure
from plimsoll.serving.rows import QueuedText, Row, deliver, fail, finish, requests_of, tell
from plimsoll.telemetry.current_request import serving, together
from plimsoll.telemetry.engine import EngineMetrics
from plimsoll.telemetry.pressure import PressureMetrics, Recovery
from plimsoll.telemetry.requests import RequestMetrics

log = logging.getLogger(__name__)


class Others(Protocol):
    """Who has texts that may run between two layers of the run under way."""

    def let_in(
        self, passed_ratio: float, taken_bytes: int
    ) -> tuple[Sequence[QueuedText], RunLimits]:
        """Texts that run now, and what they have to keep; none where none may.

        passed_ratio: the share of its layers that the run under way has behind it. taken_bytes:
        what it takes.
        """

    def put_back(self, texts: Sequence[QueuedText]) -> None:
        """Let texts wait again: there is no memory for them beside the run under way."""


@dataclass
class _Run:
    """A run under way: what it has to keep, and what came of it so far."""

    limits: RunLimits
    between_layers: Callable[[], None] | None = None
    is_let_in: bool = False
    began_s: float = 0.0
    refused: Sequence[QueuedText] = ()  # let in, and without memory
    n_texts: int = 0
    n_tokens: int = 0
    n_retries: int = 0

    def add(self, other: "_Run") -> None:
        """Count what came of another one as this one's."""
        self.n_texts += other.n_texts
        self.n_tokens += other.n_tokens
        self.n_retries += other.n_retries


class RunObserver(Protocol):
    """Who is told of the engine's runs, on the event loop of a run's first text."""

    def run_began(self, n_bytes: int) -> None:
        """A run that is predicted to take so much has started."""

    def run_takes(self, n_bytes: int) -> None:
        """The run under way takes so much now, with what was let in."""

    def run_ended(self, run: RunEnded) -> None:
        """It has ended; rows that it brought have been delivered."""

    def wake(self) -> None:
        """That was all for now."""


class EngineRuns:
    """Owns what is known of the engine's runs: which models ran, and the end not told of yet.

    clock: seconds of perf_counter's kind. pause: waits so many seconds before a new try.
    """

    def __init__(
        self,
        metrics: EngineMetrics,
        stages: RequestMetrics,
        pressure: PressureMetrics,
        *,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._metrics = metrics
        self._stages = stages
        self._pressure = pressure
        self._clock = clock
        self._pause = pause
        self._observer: RunObserver | None = None
        self._ended: tuple[asyncio.AbstractEventLoop, RunEnded] | None = None  # not told yet
        self._ran: weakref.WeakSet[EmbeddingModel] = weakref.WeakSet()
        self._last_ran: Callable[[], EmbeddingModel | None] = lambda: None

    @property
    def last_model(self) -> EmbeddingModel | None:
        """The model that ran last, while it is there."""
        return self._last_ran()

    def watch(self, observer: RunObserver) -> None:
        """Tell `observer` of every run from now on."""
        self._observer = observer

    def run(
        self, texts: Sequence[QueuedText], limits: RunLimits, others: Others | None = None
    ) -> None:
        """Give the engine one run, and tell what came of it.

        others: asked for texts between two layers; None: the run has the engine to itself.
        """
        began_s, model, loop = self._clock(), texts[0].model, texts[0].loop
        self._last_ran = weakref.ref(model)
        lengths = [text.n_tokens for text in texts]
        predicted_bytes = run_bytes(texts[0], lengths, limits)
        before_bytes = own_anonymous_bytes()
        self.tell_ended(loop, predicted_bytes)
        run = _Run(limits)
        if others is not None:
            n_passed, n_layers = count(1), model.sizes.n_layers

            def between_layers() -> None:
                ratio = min(1.0, next(n_passed) / n_layers)  # parts that are tried again have more
                self._run_others(run, others, ratio, loop, predicted_bytes)

            run.between_layers = between_layers
        self._begin(texts, run)
        self._ended = (
            loop,
            RunEnded(
                n_texts=run.n_texts,
                n_tokens=run.n_tokens,
                longest_tokens=max(lengths),
                n_threads=limits.plan.engine_threads,
                pack_tokens=_pack_tokens(limits),
                predicted_bytes=predicted_bytes,
                grown_bytes=own_anonymous_bytes() - before_bytes,
                seconds=self._clock() - began_s,
                n_retries=run.n_retries,
            ),
        )

    def tell_ended(
        self, next_loop: asyncio.AbstractEventLoop | None = None, next_bytes: int = 0
    ) -> None:
        """Tell the observer of the run that has ended, together with the one that begins.

        Between the two its memory would pass for memory that nothing accounts for.
        """
        ended, self._ended = self._ended, None
        loop = next_loop or (ended[0] if ended else None)
        if loop is not None:
            tell(loop, self._observe, ended[1] if ended else None, next_loop and next_bytes)

    def _observe(self, ended: RunEnded | None, next_bytes: int | None) -> None:
        if self._observer is None:
            return
        if ended is not None:
            self._observer.run_ended(ended)
        if next_bytes is not None:
            self._observer.run_began(next_bytes)
        self._observer.wake()

    def _begin(self, texts: Sequence[QueuedText], run: _Run) -> None:
        try:
            self._ran.add(texts[0].model)
            run.began_s = self._clock()
            if not run.is_let_in:  # which may yet be put back, to wait on
                self._note_queued(texts, run.began_s)
            self._try(texts, run, attempt=1)
        except Exception as error:  # this thread must outlive one run that goes wrong
            log.exception("a run ended unexpectedly")
            fail(texts, error)

    def _run_others(
        self,
        run: _Run,
        others: Others,
        passed_ratio: float,
        loop: asyncio.AbstractEventLoop,
        taken_bytes: int,
    ) -> None:
        """Run what is let in between two layers of `run`, and count it as its own."""
        while not run.refused:  # once one was, the memory that it lacks is held until the run ends
            try:
                texts, limits = others.let_in(passed_ratio, taken_bytes)
            except Exception:  # the run that they would be let in to has nothing to do with it
                log.exception("no text can be let in")
                return
            if not texts:
                return
            other = _Run(limits, is_let_in=True)
            n_bytes = run_bytes(texts[0], [text.n_tokens for text in texts], limits)
            self._tell_takes(loop, taken_bytes + n_bytes)
            self._begin(texts, other)
            self._tell_takes(loop, taken_bytes)
            run.add(other)
            if other.refused:
                run.refused = other.refused
                others.put_back(other.refused)

    def _tell_takes(self, loop: asyncio.AbstractEventLoop, n_bytes: int) -> None:
        if self._observer is not None:
            tell(loop, self._observer.run_takes, n_bytes)

    def _note_queued(self, texts: Sequence[QueuedText], now_s: float) -> None:
        for text in texts:
            self._stages.observe_stage("queue", now_s - text.queued_at_s)
        for request, queued_at_s in requests_of(texts).items():
            request.add_stage("queue", queued_at_s, now_s)
        self._metrics.took(sum(text.n_tokens for text in texts))

    def _note_let_in(self, texts: Sequence[QueuedText], run: _Run) -> None:
        if run.is_let_in:
            self._note_queued(texts, run.began_s)

    def _try(self, texts: Sequence[QueuedText], run: _Run, *, attempt: int) -> None:
        """Give texts to the engine; deliver their rows or what went wrong."""
        try:
            rows = self._rows(texts, run, attempt)
        except EncodeMemoryError as error:
            if run.is_let_in:
                run.refused = texts
                return
            with serving(together(text.measured for text in texts)):
                self._recover(texts, run, attempt, error)
            return
        except Exception as error:  # handed to those who wait for these rows
            self._note_let_in(texts, run)
            fail(texts, error)
            return
        self._note_let_in(texts, run)
        if attempt > 1:
            self._pressure.recovered(Recovery.RUN_RECOVERED)
        run.n_texts += len(texts)
        run.n_tokens += sum(text.n_tokens for text in texts)
        deliver(texts, rows)

    def _rows(self, texts: Sequence[QueuedText], run: _Run, attempt: int) -> Sequence[Row]:
        """What the engine computes for each text. Raises EncodeMemoryError."""
        model, limits = texts[0].model, run.limits
        ids = [text.ids for text in texts]
        how: dict[str, Any] = {
            "drop_pages": limits.drops_pages(model.weights_bytes),
            # A last try takes the least memory: one thread.
            "n_threads": 1 if attempt == ATTEMPTS else limits.plan.engine_threads,
            "pack_tokens": _pack_tokens(limits),
            "kept_layers": _kept_layers(model, limits),
            "between_layers": run.between_layers,
        }
        with self._stages.stage("encode", requests_of(texts)):
            if texts[0].form == "tokens":
                return model.token_states(ids, **how)
            vectors = model.encode(ids, **how)
        with self._stages.stage("pool", requests_of(texts)):
            return finish(model, vectors, texts)

    def _recover(
        self, texts: Sequence[QueuedText], run: _Run, attempt: int, error: EncodeMemoryError
    ) -> None:
        """Halve the run and try again after a pause; give up on a text that fails alone."""
        retry = retry_after_failure(len(texts), attempt)
        if retry is None:
            self._pressure.recovered(Recovery.RUN_FAILED)
            log.error("a text of %d tokens found no memory: %s", texts[0].n_tokens, error)
            fail(texts, error)
            return
        log.warning("no memory for a run of %d texts; trying again with half", len(texts))
        self._pressure.recovered(Recovery.RUN_RETRIED)
        run.n_retries += 1
        self.give_back()
        self._ran.add(texts[0].model)
        self._pause(retry.pause_s)
        for part in (texts[: retry.n_first], texts[retry.n_first :]):
            # One text that fails fails its request, which then wants nothing of the others.
            wanted = [text for text in part if not text.is_dropped]
            if wanted:
                self._try(wanted, run, attempt=retry.attempt)

    def give_back(self) -> None:
        """Let the models that have run give back what only runs need."""
        models, self._ran = list(self._ran), weakref.WeakSet()
        for model in models:
            try:
                model.release_memory()
            except EncodeMemoryError:
                log.warning("no memory to give memory back with")
            except Exception:  # this thread must outlive one model that cannot
                log.exception("cannot give memory back")


def run_bytes(text: QueuedText, lengths: Sequence[int], limits: RunLimits) -> int:
    """Bytes of a run of texts of these lengths on the model of `text`."""
    return text.model.run_bytes(
        lengths, n_threads=limits.plan.engine_threads, pack_tokens=_pack_tokens(limits)
    )


def _pack_tokens(limits: RunLimits) -> int:
    return round(PACK_TOKENS * limits.pack_ratio)


def _kept_layers(model: EmbeddingModel, limits: RunLimits) -> int | None:
    if not limits.evicts_pages(model.weights_bytes):
        return None
    return model.sizes.fitting_layers(limits.kept_bytes or 0)

"""The engine of a simulation.

It stands in for the executor and its thread: one queue of texts, one run at a time, chosen
by the executor's own rules, which also say what is let in between the layers of a run, and what is
tried where it finds no memory. What it runs takes as long as its tokens over a rate, by the cores
that are left for it, and as long as the weights take to be read where they do not stay in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from plimsoll.encoder.layout import PACK_TOKENS
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import Priority
from plimsoll.policy.reading import Reading
from plimsoll.policy.runs import RunEnded, RunLimits, retry_after_failure
from plimsoll.policy.text_queue import Next, TextQueue
from plimsoll.simulation.clock import Timeline
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.trace import Processors

PAGE_BYTES = 4096


class TextOwner(Protocol):
    """Whose text it is. has_ended: nothing more is wanted of its texts."""

    @property
    def has_ended(self) -> bool: ...  # noqa: D102


Owner = TypeVar("Owner", bound=TextOwner)


@dataclass(frozen=True, eq=False)
class SimulatedText(Generic[Owner]):
    """A text in the queue or in a run."""

    owner: Owner
    n_tokens: int
    queued_at_s: float

    @property
    def request(self) -> Owner:
        """Those of one owner came together."""
        return self.owner

    @property
    def client(self) -> object:
        """A trace names no clients: all requests are one's."""
        return None

    @property
    def is_dropped(self) -> bool:
        """Whether its owner wants nothing more of it."""
        return self.owner.has_ended


Texts = Sequence[SimulatedText[Owner]]


@dataclass(eq=False)
class _Run(Generic[Owner]):
    """The run under way. to_try: parts of it that are still to be tried, and how often they were.

    under_way: the part that computes; a token that only its own end knows. n_steps: layers between
    which others are let in, or 1. let_in_bytes: what these take.
    """

    texts: Texts[Owner]
    limits: RunLimits
    n_bytes: int
    began_s: float
    n_steps: int
    to_try: list[tuple[Texts[Owner], int]]
    n_texts_done: int = 0
    n_tokens_done: int = 0
    n_retries: int = 0
    trying: tuple[Texts[Owner], int] | None = None
    under_way: object = None
    let_in_bytes: int = 0

    def count(self, texts: Texts[Owner]) -> None:
        """Count texts that have vectors."""
        self.n_texts_done += len(texts)
        self.n_tokens_done += sum(text.n_tokens for text in texts)


class Listener(Protocol[Owner]):
    """What the engine tells of its runs."""

    def rows_came(self, texts: Texts[Owner], began_s: float) -> None:
        """These texts have vectors, from a run that began then."""

    def found_no_memory(self, text: SimulatedText[Owner]) -> None:
        """This text failed alone, as often as it may be tried."""

    def found_no_room(self, text: SimulatedText[Owner]) -> None:
        """This text stood first in the queue for as long as it may, and nothing could run."""


class SimulatedEngine(Generic[Owner]):
    """Owns the queue of texts and the run under way.

    processors, reread_s: as they are now. reading_ratio: of the latest run's time.
    rereads_per_s: how often it read the weights again.
    """

    def __init__(
        self,
        machine: SimulatedMachine,
        clock: Timeline,
        governor: Governor,
        listener: Listener[Owner],
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._governor = governor
        self._listener = listener
        self._queue: TextQueue[SimulatedText[Owner]] = TextQueue(
            run_bytes=lambda text, lengths, limits: machine.run_bytes(lengths, limits),
            weights_bytes=lambda text: machine.weights_bytes,
            n_layers=lambda text: machine.architecture.n_layers,
            belong_together=lambda first, text: True,
            room_timeout_s=machine.queue_timeout_s,
        )
        self._run: _Run[Owner] | None = None
        self._is_waiting = False
        self._fails_until_s = -1.0
        self.processors = Processors(0.0, machine.n_threads)
        self.reread_s = 0.0
        self.reading_ratio = 0.0
        self.rereads_per_s = 0.0

    @property
    def used_bytes(self) -> int:
        """What the run under way takes."""
        return self._run.n_bytes + self._run.let_in_bytes if self._run else 0

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return self._run is not None

    def reading(self, used_bytes: int) -> Reading:
        """What monitors would measure now, where so much memory is in use."""
        n_pages = self._machine.weights_bytes / PAGE_BYTES
        return Reading(
            used_bytes=used_bytes,
            budget_bytes=self._machine.limit_bytes,
            cores=self.processors.cores,
            others_ratio=self.processors.others_ratio,
            io_pressure_ratio=self.reading_ratio if self.is_busy else 0.0,
            refaults_per_s=self.rereads_per_s * n_pages if self.is_busy else 0.0,
        )

    def put(self, owner: Owner, n_tokens: int, priority: Priority) -> None:
        """Queue a text; `start` lets it run."""
        self._queue.put(SimulatedText(owner, n_tokens, self._clock()), priority)

    def start(self) -> None:
        """Begin a run if none is under way and there is room for one."""
        while self._run is None:
            limits = self._governor.limits()
            found = self._queue.next(limits, self._clock())
            if found.texts:
                self._begin(found, limits)
            elif found.refused is not None:
                self._listener.found_no_room(found.refused)
            else:
                self._look_again(found.wait_s)
                return

    def _look_again(self, wait_s: float | None) -> None:
        """Start once more after so long, unless that is planned already."""
        if wait_s is not None and not self._is_waiting:
            self._is_waiting = True
            self._clock.plan(self._clock() + wait_s, self._start_after_wait)

    def _start_after_wait(self) -> None:
        self._is_waiting = False
        self.start()

    def fail(self, for_s: float) -> None:
        """Refuse memory to the part under way, and to every part that is begun within `for_s`."""
        self._fails_until_s = self._clock() + for_s
        run = self._run
        if run is not None and run.trying is not None:
            self._fail_part(run, *run.trying)

    def _begin(self, found: Next[SimulatedText[Owner]], limits: RunLimits) -> None:
        texts = found.texts
        n_bytes = self._machine.run_bytes([text.n_tokens for text in texts], limits)
        n_steps = self._machine.architecture.n_layers if found.lets_in else 1
        self._run = _Run(texts, limits, n_bytes, self._clock(), n_steps, [(texts, 1)])
        self._governor.run_began(n_bytes)
        self._try_next(self._run)

    def _try_next(self, run: _Run[Owner]) -> None:
        """Compute the next part of the run, or end it."""
        run.trying = None
        while run.to_try:
            part, attempt = run.to_try.pop(0)
            wanted = [text for text in part if not text.is_dropped] if run.n_retries else part
            if not wanted:
                continue
            if self._clock() < self._fails_until_s:
                self._fail_part(run, wanted, attempt)
                return
            run.trying, run.under_way = (wanted, attempt), object()
            self._compute(run, run.under_way, n_passed=0)
            return
        self._end(run)

    def _compute(self, run: _Run[Owner], under_way: object, n_passed: int) -> None:
        """Take the next step of the part under way, or first what is let in before it."""
        if under_way is not run.under_way or run.trying is None:
            return  # it has failed in the time since
        if n_passed == run.n_steps:
            self._end_part(run, run.trying[0])
            return
        if n_passed and self._let_in(run, under_way, n_passed):
            return
        then = partial(self._compute, run, under_way, n_passed + 1)
        self._clock.plan(self._clock() + self._run_s(run, run.trying[0]) / run.n_steps, then)

    def _let_in(self, run: _Run[Owner], under_way: object, n_passed: int) -> bool:
        """Compute what is let in between two steps; whether there is anything."""
        limits = self._governor.limits().beside(run.n_bytes)
        others = self._queue.let_in(limits, n_passed / run.n_steps)
        if others:
            now_s = self._clock()
            self._note_let_in(run, self._machine.run_bytes([t.n_tokens for t in others], limits))
            then = partial(self._others_came, run, under_way, n_passed, others, now_s)
            self._clock.plan(now_s + self._run_s(run, others), then)
        return bool(others)

    def _run_s(self, run: _Run[Owner], texts: Texts[Owner]) -> float:
        n_tokens = sum(text.n_tokens for text in texts)
        compute_s = self._machine.compute_s(n_tokens, run.limits.plan, self.processors.left)
        seconds = compute_s + self.reread_s
        self.reading_ratio = self.reread_s / seconds
        self.rereads_per_s = 1 / seconds if self.reread_s else 0.0
        return seconds

    def _others_came(
        self,
        run: _Run[Owner],
        under_way: object,
        n_passed: int,
        others: Texts[Owner],
        began_s: float,
    ) -> None:
        run.count(others)
        self._note_let_in(run, 0)
        self._compute(run, under_way, n_passed)
        self._listener.rows_came(others, began_s)

    def _note_let_in(self, run: _Run[Owner], n_bytes: int) -> None:
        run.let_in_bytes = n_bytes
        if run is self._run:  # what failed meanwhile may have ended it
            self._governor.run_takes(run.n_bytes + n_bytes)

    def _end_part(self, run: _Run[Owner], texts: Texts[Owner]) -> None:
        run.count(texts)
        # The engine's thread goes on without waiting for the event loop to take the rows.
        self._try_next(run)
        self._listener.rows_came(texts, run.began_s)
        self.start()

    def _fail_part(self, run: _Run[Owner], texts: Texts[Owner], attempt: int) -> None:
        retry = retry_after_failure(len(texts), attempt)
        run.trying = None
        if retry is None:
            # As with rows: the engine goes on before the event loop hears of it.
            told = partial(self._listener.found_no_memory, texts[0])
            self._clock.plan(self._clock(), told)
            self._try_next(run)
            return
        run.n_retries += 1
        parts = (texts[: retry.n_first], texts[retry.n_first :])
        run.to_try[:0] = [(part, retry.attempt) for part in parts if part]
        self._clock.plan(self._clock() + retry.pause_s, partial(self._try_next, run))

    def _end(self, run: _Run[Owner]) -> None:
        self._run = None
        plan = run.limits.plan
        self._governor.run_ended(
            RunEnded(
                n_texts=run.n_texts_done,
                n_tokens=run.n_tokens_done,
                longest_tokens=max(text.n_tokens for text in run.texts),
                n_threads=plan.engine_threads,
                pack_tokens=round(PACK_TOKENS * run.limits.pack_ratio),
                predicted_bytes=run.n_bytes,
                grown_bytes=run.n_bytes,
                seconds=self._clock() - run.began_s,
                n_retries=run.n_retries,
            )
        )
        self.start()

"""The texts that wait for the engine: which run next, and how long the first one waits for room.

Interactive texts run first. Bulk texts run when none of those waits, and besides once so many
interactive tokens have passed them that their last run was no more than BULK_SHARE of all. So
neither class waits for the end of the other, and an interactive text is never passed by two runs
of bulk. A run has texts of one class: bulk does not make the run of an interactive text longer. One
that comes while a run of bulk is under way is let in between two of its layers, within the same
share, so that bulk may have long runs (policy/runs.py). Within a class clients are served in turn,
and the requests of each (policy/turns.py).

Pure: the clock's seconds are passed in, and no call waits. The live executor's thread and the
simulation both take their runs from here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic

from plimsoll.policy.priority import BULK_SHARE, Priority
from plimsoll.policy.runs import LEAST_RUN_TOKENS, MOST_TEXTS, RunLimits, n_texts_of_run
from plimsoll.policy.turns import T, Turns

RunBytes = Callable[[T, Sequence[int], RunLimits], int]
"""Bytes of a run of texts of these lengths on the model of the first text."""


@dataclass(frozen=True, slots=True)
class Next(Generic[T]):
    """What the engine does next: run `texts`, or refuse one of them, or wait.

    lets_in: whether interactive texts may run between the layers of these.
    refused: it has waited for room as long as it may. wait_s: at most so long, and not beyond the
    next change of limits or of the queue; None: for a change alone.
    """

    texts: Sequence[T] = ()
    lets_in: bool = False
    refused: T | None = None
    wait_s: float | None = None


class TextQueue(Generic[T]):
    """Owns the texts that wait. For one thread at a time.

    weights_bytes, n_layers: of the model of a text. belong_together: whether two texts may run
    together. room_timeout_s: how long the first text of a class waits for memory while nothing of
    its class can run.
    """

    def __init__(
        self,
        *,
        run_bytes: RunBytes[T],
        weights_bytes: Callable[[T], int],
        n_layers: Callable[[T], int],
        belong_together: Callable[[T, T], bool],
        room_timeout_s: float,
    ) -> None:
        self._run_bytes = run_bytes
        self._weights_bytes = weights_bytes
        self._n_layers = n_layers
        self._room_timeout_s = room_timeout_s
        self._interactive: Turns[T] = Turns(belong_together)
        self._bulk: Turns[T] = Turns(belong_together)
        self._asked = self._interactive  # whose run was looked for last
        self._passed_tokens = 0  # interactive ones, since bulk's last run began, while bulk waited
        self._bulk_tokens = LEAST_RUN_TOKENS  # of that run
        self.n_tokens = 0

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def put(self, text: T, priority: Priority) -> None:
        """Let a text wait."""
        turns = self._interactive if priority is Priority.INTERACTIVE else self._bulk
        turns.put(text)
        self.n_tokens += text.n_tokens

    def next(self, limits: RunLimits, now_s: float, *, is_stopping: bool = False) -> Next[T]:
        """Take the texts of the next run out of the queue, or one that is refused.

        is_stopping: no text waits for room any longer.
        """
        waits_s: list[float] = []
        for turns in self._by_urgency():
            self._asked = turns
            if texts := self._run_of(turns, limits):
                self._count(turns, texts)
                drops_pages = limits.drops_pages(self._weights_bytes(texts[0]))
                return Next(texts, lets_in=turns is self._bulk and not drops_pages)
            if turns:
                left_s = self._wait_left_s(turns, now_s)
                if left_s <= 0 or is_stopping:
                    return Next(refused=self._take(turns)[0])
                waits_s.append(left_s)
        return Next(wait_s=min(waits_s, default=None))

    def let_in(self, limits: RunLimits, passed_ratio: float) -> Sequence[T]:
        """Take out interactive texts that run now, between two layers of a run of bulk.

        passed_ratio: the share of its layers that the run has behind it.
        """
        owed_tokens = self._bulk_tokens * passed_ratio
        if BULK_SHARE * (self._passed_tokens + owed_tokens) >= owed_tokens:
            return ()
        turns = self._interactive
        if turns and limits.drops_pages(self._weights_bytes(turns.first)):
            return ()
        texts = self._run_of(turns, limits)
        self._passed_tokens += sum(text.n_tokens for text in texts)
        return texts

    def put_back(self, texts: Sequence[T]) -> None:
        """Let texts that were let in wait again, before all others."""
        self._interactive.put_back(texts)
        n_tokens = sum(text.n_tokens for text in texts)
        self._passed_tokens -= n_tokens
        self.n_tokens += n_tokens

    def take_first(self) -> Sequence[T]:
        """Take out the text that was looked at last, where there is one, also if it may not run."""
        return self._take(self._asked)

    def _by_urgency(self) -> Sequence[Turns[T]]:
        if BULK_SHARE * (self._passed_tokens + self._bulk_tokens) >= self._bulk_tokens:
            return self._bulk, self._interactive
        return self._interactive, self._bulk

    def _count(self, turns: Turns[T], texts: Sequence[T]) -> None:
        n_tokens = sum(text.n_tokens for text in texts)
        if turns is self._bulk:
            self._passed_tokens, self._bulk_tokens = 0, n_tokens
        elif self._bulk:
            self._passed_tokens += n_tokens
        else:
            self._passed_tokens = 0

    def _run_of(self, turns: Turns[T], limits: RunLimits) -> Sequence[T]:
        """Take out the texts of one class that run together now; none where there is no room."""
        while True:
            while turns and turns.first.is_dropped:
                self._take(turns)
            if not turns:
                turns.starved_since_s = None
                return ()
            n_texts = 0 if limits.is_paused else self._n_texts(turns, limits)
            if not n_texts:
                return ()
            turns.starved_since_s = None
            if texts := [t for t in self._take(turns, n_texts) if not t.is_dropped]:
                return texts

    def _wait_left_s(self, turns: Turns[T], now_s: float) -> float:
        if turns.starved_since_s is None:
            turns.starved_since_s = now_s
        # Those behind the first have waited for the same room, but no longer than they stand.
        since_s = max(turns.starved_since_s, turns.first.queued_at_s)
        return since_s + self._room_timeout_s - now_s

    def _n_texts(self, turns: Turns[T], limits: RunLimits) -> int:
        first = turns.first
        if turns is self._bulk:
            limits = limits.for_bulk(self._n_layers(first), is_own=first.client is None)
        lengths = [text.n_tokens for text in islice(turns.together(), MOST_TEXTS)]
        return n_texts_of_run(
            lengths,
            limits,
            lambda some: self._run_bytes(first, some, limits),
            drops_pages=limits.drops_pages(self._weights_bytes(first)),
        )

    def _take(self, turns: Turns[T], n_texts: int = 1) -> list[T]:
        texts = turns.take(n_texts)
        self.n_tokens -= sum(text.n_tokens for text in texts)
        return texts

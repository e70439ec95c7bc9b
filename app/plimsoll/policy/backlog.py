"""The work that waits for the engine, and the work that was refused and may come back.

Pure: no I/O, no waiting; the clock and measured runs come in. By the drain rate it says who gets
its turn in good time, and to those who would not, when to come back.
"""

from collections import Counter
from collections.abc import Callable

from plimsoll.policy.costs import Demand
from plimsoll.policy.priority import Priority, WaitingTokens, is_query
from plimsoll.policy.return_times import LEAST_TOLD_S, Place, ReturnTimes, wait_s
from plimsoll.policy.runs import short_run_tokens

# What the drain rate is taken for until runs have been measured.
FIRST_TOKENS_PER_S = 200.0
# A run of so many tokens counts as much as everything before it.
RATE_TOKENS = 4096
# A queue of so many tokens is no queue, at any rate.
LEAST_QUEUE_TOKENS = 8192
# Past the limit of the queue, up to so many times of it, comes what was told that there would be
# room for it now, the first request of a client, and a query, which lists are not to turn away.
STRETCH = 2
# Who is refused before any rate has been measured should ask again as soon as one is.
UNMEASURED_S = 5.0


class Backlog:
    """Owns the waiting tokens by class, the drain rate, and the places of refused work.

    queue_s: work that may wait, in seconds of the drain rate.
    """

    def __init__(self, clock: Callable[[], float], *, queue_s: float) -> None:
        self._queue_s = queue_s
        self._waiting = dict.fromkeys(Priority, 0)
        self._waiting_of: Counter[object] = Counter()  # tokens by client
        self._measured_tokens = 0
        self.tokens_per_s = FIRST_TOKENS_PER_S  # measured drain rate of the engine
        self.returns = ReturnTimes(clock)

    @property
    def waiting_tokens(self) -> WaitingTokens:
        """Tokens of admitted requests that wait for the engine."""
        return WaitingTokens(self._waiting[Priority.INTERACTIVE], self._waiting[Priority.BULK])

    @property
    def queue_tokens(self) -> int:
        """The same, of both classes."""
        return self.waiting_tokens.total

    @property
    def queue_limit_tokens(self) -> int:
        """Tokens that may run before one more request does; its own do not wait, they run."""
        return max(LEAST_QUEUE_TOKENS, round(self.tokens_per_s * self._queue_s))

    def add(self, priority: Priority, n_tokens: int, client: object = None) -> None:
        """So many more tokens of a class and a client wait, or fewer where it is below 0."""
        self._waiting[priority] += n_tokens
        if client is not None and n_tokens:
            self._waiting_of[client] += n_tokens
            if not self._waiting_of[client]:
                del self._waiting_of[client]

    def note_run(self, n_tokens: int, seconds: float) -> None:
        """Take the measured speed of a run into the drain rate."""
        if seconds <= 0:
            return
        # Small runs are slow for other reasons than the engine's capacity, so tokens give weight.
        weight = n_tokens / (n_tokens + RATE_TOKENS)
        self._measured_tokens += n_tokens
        self.tokens_per_s += weight * (n_tokens / seconds - self.tokens_per_s)

    def tokens_before(self, priority: Priority, n_tokens: int = 0) -> int:
        """Waiting tokens that run before the last of so many of a class that come now."""
        return self._before(self.waiting_tokens, priority, n_tokens)

    def predicted_s(self, demand: Demand) -> float:
        """Until a request's last token would have run."""
        before = self.tokens_before(demand.priority, demand.n_tokens)
        return (before + demand.n_tokens) / self.tokens_per_s

    def has_place(self, demand: Demand, place: Place | None = None, client: object = None) -> bool:
        """Whether a request would get its turn in good time, behind those that are to come back.

        place: its own among them. An idle engine waits for none of them. client: one that has
        nothing in the queue is served in turn, however much others have there.
        """
        if self._is_new(client) and self.tokens_before(demand.priority) <= self._stretched_tokens:
            return True
        is_due = place is not None and self.returns.is_due(place)
        return not self.queue_tokens or self._excess_tokens(demand, place, is_due=is_due) <= 0

    def room_s(self, demand: Demand, place: Place | None = None) -> float:
        """Until it would, without what is let in past the limit for a promise's sake."""
        return max(0, self._excess_tokens(demand, place, is_due=False)) / self.tokens_per_s

    def retry_after_s(
        self, demand: Demand, room_s: float, *, is_first: bool, keeps_place: bool
    ) -> float:
        """How long to wait before asking again, where the queue has room after `room_s`.

        is_first: it has not been refused before. keeps_place: it stands in line while it is away,
        so that it may come in two steps. Where the queue has room now, and only memory is short, it
        is until half of what stands before it is gone.
        """
        if room_s <= 0:
            before_s = self.tokens_before(demand.priority) / self.tokens_per_s
            return max(LEAST_TOLD_S, before_s / 2)
        is_guess = is_first and self._measured_tokens < RATE_TOKENS
        return (
            min(UNMEASURED_S, room_s)
            if is_guess
            else wait_s(room_s, in_two=is_first and keeps_place)
        )

    def _is_new(self, client: object) -> bool:
        return client is not None and not (self._waiting_of[client] or self.returns.has(client))

    def _excess_tokens(self, demand: Demand, place: Place | None, *, is_due: bool) -> int:
        """Tokens before a request that have to run until the queue has room for it.

        is_due: it was told that there would be by now.
        """
        of_query = is_query(demand.priority, demand.n_tokens)
        ahead = self.returns.ahead(place, of_queries=of_query)
        before = self._before(self.waiting_tokens.plus(ahead), demand.priority, 0)
        limit = self._stretched_tokens if of_query or is_due else self.queue_limit_tokens
        return before - limit

    @property
    def _stretched_tokens(self) -> int:
        return STRETCH * self.queue_limit_tokens

    def _before(self, waiting: WaitingTokens, priority: Priority, n_tokens: int) -> int:
        layer_tokens = short_run_tokens(self.tokens_per_s)
        return waiting.before(priority, n_tokens, layer_tokens=layer_tokens)

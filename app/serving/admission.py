"""Decide what may run: what a request will take at its peak, against what is free.

Pure: no I/O, no thread, no waiting; measurements and the clock come in. The server, `explain`
and `plimsoll simulate` ask the same functions.

The line is 0.70 of the budget: no predicted peak above it is admitted. What stands against it:

    floor      the server at rest, and whatever it holds that no admitted request accounts for
    held       what each admitted request keeps while it lives: ids, vectors, reply; its body
    run        the largest run of the engine among them, or the one under way, which may join
               many texts; runs follow each other, so one counts

Where the floor itself comes near the line, all of the budget above the floor is there to be used.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

LINE_RATIO = 0.70
# Memory at rest above this share leaves next to nothing below the line.
TIGHT_RATIO = 0.65
# The fallback has to answer while memory stands above the line; it takes little.
FALLBACK_LINE_RATIO = 0.85
# What the drain rate is taken for until runs have been measured.
FIRST_TOKENS_PER_S = 200.0
# A run of so many tokens counts as much as everything before it.
RATE_TOKENS = 4096
# A queue of so many tokens is no queue, whatever the rate.
LEAST_QUEUE_TOKENS = 8192
# How long evidence of memory that nothing accounts for is believed.
FLOOR_WINDOW_S = 10.0
# Memory at rest is the least of so long.
REST_WINDOW_S = 300.0
# After the last request: by then what runs used has been given back, and the floor can be read.
SETTLED_AFTER_S = 2.0

LEAST_RETRY_S, MOST_RETRY_S = 1.0, 60.0

# Texts whose rows wait for each other before they are cut and normalised.
BATCH_TEXTS = 256
ID_BYTES = 8
FLOAT32_BYTES, FLOAT64_BYTES = 4, 8
# A float32 with its comma, as short as it can be told from its neighbours.
JSON_NUMBER_BYTES = 12
# Arrays, futures and records of a text, whatever its length.
TEXT_BYTES = 1024
# A word of a sparse vector in a reply: its number and its value, and the arrays they come from.
SPARSE_TERM_BYTES = 64
# A distinct word while a text is counted.
STEM_BYTES = 200
# No text has more different words than this; the largest dictionaries do.
MOST_STEMS = 100_000
RANKING_CHARACTER_BYTES = 8


@dataclass(frozen=True)
class Demand:
    """What a request will take.

    n_tokens: of all its texts, as they run. waiting_tokens: of those that stand in the engine's
        queue at once; a long list has only a window of its texts there, and others pass it.
    held_bytes: kept from its admission to the end of its reply.
    run_bytes: peak of its largest single run, which is its longest text alone.
    is_fallback: it stands in for something larger that found no room, and may pass the line.
    """

    n_tokens: int
    held_bytes: int
    run_bytes: int = 0
    is_fallback: bool = False
    waiting_tokens: int | None = None  # None: all

    @property
    def peak_bytes(self) -> int:
        """The most that it takes at one moment."""
        return self.held_bytes + self.run_bytes


class Outcome(Enum):
    """What becomes of a request."""

    ADMIT = "admit"
    WAIT = "wait"  # no room at the moment; it may come
    QUEUE_FULL = "queue_full"  # more tokens wait than drain in good time
    TOO_LARGE = "too_large"  # no room even in an idle server


@dataclass(frozen=True)
class Decision:
    """What becomes of a request, with the numbers behind it.

    headroom_bytes: what it may take now. largest_bytes: what it might take in an idle server.
    predicted_s: until its last row, by the measured drain rate. retry_after_s: for a refusal.
    """

    outcome: Outcome
    demand: Demand
    headroom_bytes: int
    largest_bytes: int
    predicted_s: float
    retry_after_s: float


@dataclass(eq=False)
class Ticket:
    """An admitted request; given back when its reply has been sent or it was dropped."""

    demand: Demand
    tokens_left: int

    def note_done(self, n_tokens: int) -> None:
        """So many of its tokens have run."""
        self.tokens_left = max(0, self.tokens_left - n_tokens)

    @property
    def waiting_tokens(self) -> int:
        """Tokens of it that somebody who comes now has to wait for."""
        window = self.demand.waiting_tokens
        return self.tokens_left if window is None else min(window, self.tokens_left)


class Admission:
    """Owns the tickets of admitted requests, the drain rate and the floor.

    Lives on the event loop. `queue_s`: work that may wait, in seconds of the drain rate.
    """

    def __init__(self, clock: Callable[[], float], *, budget_bytes: int, queue_s: float) -> None:
        self._clock = clock
        self._budget_bytes = budget_bytes
        self._queue_s = queue_s
        self._tickets: set[Ticket] = set()
        self._used_bytes = 0
        self._idle_floor_bytes = 0
        self._at_rest: deque[tuple[float, int]] = deque()  # (seconds, bytes), rising
        self._unaccounted: deque[tuple[float, int]] = deque()  # (seconds, bytes), falling
        self._busy_at_s = clock() - SETTLED_AFTER_S
        self.tokens_per_s = FIRST_TOKENS_PER_S  # measured drain rate of the engine
        self._under_way_bytes = 0
        self.n_tokens = 0  # that have run since the start

    @property
    def queue_tokens(self) -> int:
        """Tokens of admitted requests that stand before one that comes now."""
        return sum(ticket.waiting_tokens for ticket in self._tickets)

    @property
    def queue_limit_tokens(self) -> int:
        """Tokens that may wait before one more request; its own do not wait, they run."""
        return max(LEAST_QUEUE_TOKENS, round(self.tokens_per_s * self._queue_s))

    @property
    def held_bytes(self) -> int:
        """What admitted requests keep."""
        return sum(ticket.demand.held_bytes for ticket in self._tickets)

    @property
    def run_bytes(self) -> int:
        """The largest run that an admitted request needs, or the one under way."""
        needed = (ticket.demand.run_bytes for ticket in self._tickets)
        return max([self._under_way_bytes, *needed])

    @property
    def floor_bytes(self) -> int:
        """Memory at rest, and what nothing accounts for."""
        newest = max((n_bytes for _, n_bytes in self._unaccounted), default=0)
        return max(self._idle_floor_bytes, newest)

    @property
    def idle_floor_bytes(self) -> int:
        """Memory at rest, as it was when nothing was admitted."""
        return self._idle_floor_bytes

    @property
    def predicted_bytes(self) -> int:
        """What is in use and promised, at its peak."""
        accounted = self.floor_bytes + self.held_bytes + self.run_bytes
        return max(accounted, self._used_bytes)

    @property
    def line_bytes(self) -> int:
        """What admission defends."""
        if self._idle_floor_bytes < TIGHT_RATIO * self._budget_bytes:
            return round(LINE_RATIO * self._budget_bytes)
        return self._budget_bytes

    def observe(self, used_bytes: int, budget_bytes: int) -> None:
        """Take a fresh measurement of memory."""
        now_s = self._clock()
        self._budget_bytes = budget_bytes
        self._used_bytes = used_bytes
        if not self._tickets:
            if now_s - self._busy_at_s >= SETTLED_AFTER_S:
                self._note_rest(now_s, used_bytes)
                self._unaccounted.clear()
            return
        self._busy_at_s = now_s
        # A server that is busy without a pause since it loaded its model has not rested yet.
        self._idle_floor_bytes = min(self._idle_floor_bytes, used_bytes)
        unaccounted = used_bytes - self.held_bytes - self.run_bytes
        while self._unaccounted and self._unaccounted[-1][1] <= unaccounted:
            self._unaccounted.pop()
        self._unaccounted.append((now_s, unaccounted))
        while self._unaccounted[0][0] < now_s - FLOOR_WINDOW_S:
            self._unaccounted.popleft()

    def _note_rest(self, now_s: float, used_bytes: int) -> None:
        """Take memory at rest: the least of some minutes, as an open breaker rests high too."""
        while self._at_rest and self._at_rest[-1][1] >= used_bytes:
            self._at_rest.pop()
        self._at_rest.append((now_s, used_bytes))
        while self._at_rest[0][0] < now_s - REST_WINDOW_S:
            self._at_rest.popleft()
        self._idle_floor_bytes = self._at_rest[0][1]

    def begin_run(self, n_bytes: int) -> None:
        """A run that takes so much starts; without this it would pass for memory of the floor."""
        self._under_way_bytes = n_bytes

    def note_run(self, n_tokens: int, seconds: float) -> None:
        """End a run, and take its measured speed into the drain rate."""
        self._under_way_bytes = 0
        self.n_tokens += n_tokens
        if seconds <= 0:
            return
        # Small runs are slow for other reasons than the engine's capacity, so tokens give weight.
        weight = n_tokens / (n_tokens + RATE_TOKENS)
        self.tokens_per_s += weight * (n_tokens / seconds - self.tokens_per_s)

    def decide(self, demand: Demand) -> Decision:
        """Say what would become of a request now; changes nothing."""
        largest_bytes = max(0, self._line_of(demand) - self._idle_floor_bytes)
        headroom_bytes = self._headroom_bytes(demand)
        waiting = self.queue_tokens
        if demand.peak_bytes > largest_bytes:
            outcome = Outcome.TOO_LARGE
        elif demand.n_tokens and waiting > self.queue_limit_tokens:
            outcome = Outcome.QUEUE_FULL
        elif demand.peak_bytes > headroom_bytes:
            outcome = Outcome.WAIT
        else:
            outcome = Outcome.ADMIT
        return Decision(
            outcome=outcome,
            demand=demand,
            headroom_bytes=headroom_bytes,
            largest_bytes=largest_bytes,
            predicted_s=(waiting + demand.n_tokens) / self.tokens_per_s,
            retry_after_s=self.retry_after_s(),
        )

    def admit(self, demand: Demand) -> Ticket:
        """Reserve what a request takes, after `decide` has said so."""
        ticket = Ticket(demand, demand.n_tokens)
        self._tickets.add(ticket)
        return ticket

    def renew(self, ticket: Ticket, demand: Demand) -> None:
        """Replace what a request reserves, once more of it is known."""
        ticket.demand = demand
        ticket.tokens_left = demand.n_tokens

    def release(self, ticket: Ticket) -> None:
        """End a request."""
        self._tickets.discard(ticket)
        self._busy_at_s = self._clock()

    def room_for_run_bytes(self) -> int:
        """What the next run may take beside everything that admitted requests keep."""
        return max(0, self.line_bytes - self.floor_bytes - self.held_bytes)

    def retry_after_s(self) -> float:
        """Until the queue has room again, or half of it has drained; the API rounds it."""
        excess = self.queue_tokens - self.queue_limit_tokens
        drained = excess if excess > 0 else self.queue_tokens / 2
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, drained / self.tokens_per_s))

    def _headroom_bytes(self, demand: Demand) -> int:
        """What `demand` may take at its peak now.

        Its run does not come on top of the largest one that is reserved already, and memory in
        use above everything that is accounted for counts as it stands.
        """
        spared_bytes = min(demand.run_bytes, self.run_bytes)
        return max(0, self._line_of(demand) - self.predicted_bytes + spared_bytes)

    def _line_of(self, demand: Demand) -> int:
        fallback_bytes = round(FALLBACK_LINE_RATIO * self._budget_bytes)
        return max(self.line_bytes, fallback_bytes) if demand.is_fallback else self.line_bytes


def held_bytes(lengths: Iterable[int], *, hidden: int, dimensions: int) -> int:
    """What a request keeps for texts of so many tokens, measured with 64-bit CPython and orjson.

    Ids, a float32 vector a text, the pooled rows of one batch in float64 and their copy, and a
    JSON reply whose buffer grows by doubling.
    """
    n_texts = n_tokens = 0
    for length in lengths:
        n_texts += 1
        n_tokens += length
    batch_bytes = min(n_texts, BATCH_TEXTS) * hidden * 2 * FLOAT64_BYTES
    text_bytes = TEXT_BYTES + dimensions * (FLOAT32_BYTES + 2 * JSON_NUMBER_BYTES)
    return n_tokens * ID_BYTES + batch_bytes + n_texts * text_bytes


def sparse_demand(texts: Sequence[str], *, is_fallback: bool) -> Demand:
    """What BM25 takes for these texts, by the most different words that so many letters hold.

    All of it counts beside the engine's runs: it is done in another thread.
    """
    most_terms = sum(min(len(text) // 2 + 1, MOST_STEMS) for text in texts)
    longest = max(map(len, texts), default=0)
    return Demand(
        n_tokens=0,
        held_bytes=most_terms * SPARSE_TERM_BYTES
        + len(texts) * TEXT_BYTES
        + min(longest // 2 + 1, MOST_STEMS) * STEM_BYTES,
        is_fallback=is_fallback,
    )


def ranking_demand(query: str, documents: Sequence[str], *, is_fallback: bool) -> Demand:
    """What rank-bm25 takes, likewise: counts of every document's words, as measured."""
    n_characters = len(query) + sum(map(len, documents))
    return Demand(
        n_tokens=0,
        held_bytes=len(documents) * TEXT_BYTES + RANKING_CHARACTER_BYTES * n_characters,
        is_fallback=is_fallback,
    )

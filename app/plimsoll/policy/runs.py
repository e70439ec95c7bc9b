"""Which waiting texts the engine takes in one run, and what is tried where one finds no memory.

A run never takes more memory than there is room for, nor more tokens than the parallelism stands
for. A run of interactive texts is kept short, because one that comes while it is under way waits
for its end. One of bulk is so long that each of its layers is as short: interactive texts are let
in between two of them (policy/text_queue.py). While pages of the weights are dropped a run is as
long as may be: one pass over them should serve many texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plimsoll.policy.costs import WINDOW_TEXTS
from plimsoll.policy.lines import (
    DROPPING_STEP,
    FULL_PARALLELISM,
    HIGH_PARALLELISM,
    SEQUENCE_TOKENS,
)
from plimsoll.policy.scheduler import Plan

# One pass over the weights serves these: more hardly help, and cost activations and time.
MOST_TEXTS = WINDOW_TEXTS // 2
GROWN_TOKENS = FULL_PARALLELISM * SEQUENCE_TOKENS

# By the measured drain rate a run of interactive texts, or a layer of bulk, takes so long. With it
# a short text beside a long list has its answer within 50 ms.
RUN_S = 0.03
# So long a layer of the server's own bulk takes, as of a migration's, where interactive texts came
# within LIVE_S: each that comes waits for its end. Longer layers cost less, and a client waits for
# its list: beside five queries a second that would run at 0.84 of its speed instead of 0.98.
LIVE_LAYER_S = 0.01
LIVE_S = 3.0
# Fewer tokens at once are slower still (on a model whose run of so many takes longer).
LEAST_RUN_TOKENS = 128
# The rate is never twice the same; the length of a run need not follow it that closely.
RUN_STEP_TOKENS = 32

# Texts that run together leave this share of the room to requests that come while they run.
SHARED_ROOM_RATIO = 0.5

# A text that finds no memory is tried this often, after the first time alone and with longer
# pauses each time.
ATTEMPTS = 4
FIRST_PAUSE_S = 0.05

Predict = Callable[[Sequence[int]], int]
"""Bytes of a run of texts of these lengths."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What the governor allows the engine at the moment.

    room_bytes: what a run may take. is_paused: nothing may run.
    resident_bytes: weights up to so many bytes may stay in memory beside everything else.
    kept_bytes: layers that fit so many bytes stay in memory while the pages of all others are
        dropped; None where the weights as a whole stay or go.
    is_hard: a control group's limit, against which file pages count too.
    short_tokens: of a run that ends soon enough for those who come while it is under way.
        A layer of a client's bulk has as many.
    own_layer_tokens: of a layer of the server's own bulk, which no client waits for.
    """

    plan: Plan
    room_bytes: int
    is_paused: bool = False
    resident_bytes: int = 1 << 60
    kept_bytes: int | None = None
    short_tokens: int = GROWN_TOKENS
    is_hard: bool = False
    own_layer_tokens: int = GROWN_TOKENS

    @property
    def pack_ratio(self) -> float:
        """Packs of short texts are filled up to this share of the engine's usual size."""
        return 0.5 if self.plan.parallelism <= HIGH_PARALLELISM else 1.0

    def drops_pages(self, weights_bytes: int) -> bool:
        """Whether a run gives back the pages of each layer of such weights after it."""
        is_told_to = self.plan.step >= DROPPING_STEP or self.kept_bytes is not None
        return is_told_to or weights_bytes > self.resident_bytes

    def evicts_pages(self, weights_bytes: int) -> bool:
        """Whether dropped pages leave the file cache at once: it has no room for all of them."""
        return self.kept_bytes is not None or (self.is_hard and weights_bytes > self.resident_bytes)

    def for_bulk(self, n_layers: int, *, is_own: bool) -> "RunLimits":
        """The same for a run, of the server's own or a client's, that lets others in."""
        layer_tokens = self.own_layer_tokens if is_own else self.short_tokens
        return replace(self, short_tokens=n_layers * layer_tokens)

    def beside(self, n_bytes: int) -> "RunLimits":
        """The same for a run between the layers of another one that takes so many bytes."""
        return replace(self, room_bytes=max(0, self.room_bytes - n_bytes))

    def most_tokens(self, *, drops_pages: bool) -> int:
        """Tokens of a run, but for a single text that is longer."""
        if drops_pages:
            return GROWN_TOKENS
        return min(self.plan.parallelism * SEQUENCE_TOKENS, self.short_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """One run of the engine, with everything that was tried for it.

    n_texts, n_tokens: of the texts that got vectors. longest_tokens: of all that were in it.
    pack_tokens: short texts were joined up to so many.
    predicted_bytes: its peak by the formula. grown_bytes: by how much the process's anonymous
        memory stood higher at its end; what the engine keeps from an earlier run is not in it.
    seconds: from its begin to its end, pauses included. n_retries: parts that were tried again.
    """

    n_texts: int
    n_tokens: int
    longest_tokens: int
    n_threads: int
    pack_tokens: int
    predicted_bytes: int
    grown_bytes: int
    seconds: float
    n_retries: int


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """The engine's work since the start.

    busy_s: with a run under way, this moment's included.
    n_runs, n_tokens, run_s: of runs that have ended.
    """

    busy_s: float = 0.0
    n_runs: int = 0
    n_tokens: int = 0
    run_s: float = 0.0


def short_run_tokens(tokens_per_s: float) -> int:
    """Tokens of a run that ends within RUN_S at this rate, as far as that is worth it."""
    return max(LEAST_RUN_TOKENS, _tokens_in(RUN_S, tokens_per_s))


def live_layer_tokens(tokens_per_s: float) -> int:
    """Tokens of a layer that ends within LIVE_LAYER_S; all layers together are a run."""
    return max(RUN_STEP_TOKENS, _tokens_in(LIVE_LAYER_S, tokens_per_s))


def _tokens_in(seconds: float, tokens_per_s: float) -> int:
    return int(tokens_per_s * seconds) // RUN_STEP_TOKENS * RUN_STEP_TOKENS


def n_texts_of_run(
    lengths: Sequence[int], limits: RunLimits, predict: Predict, *, drops_pages: bool
) -> int:
    """How many of the waiting texts, from the first, make up the next run; 0: not even one fits.

    lengths: tokens of each waiting text, in the order they wait. The first text runs at any length
    where memory allows; everything after it has to keep all limits.
    """
    most_tokens = limits.most_tokens(drops_pages=drops_pages)
    n_texts = n_tokens = 0
    for length in lengths[:MOST_TEXTS]:
        if n_texts and n_tokens + length > most_tokens:
            break
        n_texts += 1
        n_tokens += length
    # What a run takes hardly ever falls with one more text: so halve to the most that fits.
    least, most = 0, n_texts
    while least < most:
        middle = (least + most + 1) // 2
        room_bytes = limits.room_bytes * (1 if middle == 1 else SHARED_ROOM_RATIO)
        if predict(lengths[:middle]) <= room_bytes:
            least = middle
        else:
            most = middle - 1
    return least


@dataclass(frozen=True, slots=True)
class Retry:
    """What is tried after a run found no memory: two parts, or its one text, after a pause.

    n_first: texts of the first part. attempt: the number of either part's next try.
    """

    pause_s: float
    n_first: int
    attempt: int


def retry_after_failure(n_texts: int, attempt: int) -> Retry | None:
    """Say what to try after so many texts found no memory at their `attempt`, counted from 1.

    None: a text alone has been tried ATTEMPTS times, so it fails.
    """
    if n_texts == 1 and attempt >= ATTEMPTS:
        return None
    return Retry(
        pause_s=FIRST_PAUSE_S * 2 ** (attempt - 1),
        n_first=-(-n_texts // 2),
        attempt=attempt + 1 if n_texts == 1 else 2,
    )

"""Which waiting texts run together, and what is tried for a run that finds no memory."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.encoder.layout import PACK_TOKENS, run_bytes
from plimsoll.policy.lines import (
    DROPPING_STEP,
    FULL_PARALLELISM,
    HIGH_PARALLELISM,
    SEQUENCE_TOKENS,
)
from plimsoll.policy.runs import (
    ATTEMPTS,
    FIRST_PAUSE_S,
    GROWN_TOKENS,
    LEAST_RUN_TOKENS,
    MOST_TEXTS,
    RUN_S,
    RUN_STEP_TOKENS,
    SHARED_ROOM_RATIO,
    RunLimits,
    n_texts_of_run,
    retry_after_failure,
    short_run_tokens,
)
from plimsoll.policy.scheduler import Plan
from tests.encoder.test_layout import NOMIC

LENGTHS = st.lists(st.integers(1, 3000), max_size=100)
PARALLELISM = st.integers(1, FULL_PARALLELISM)
STEPS = st.integers(0, 2)
PLENTY = 1 << 40


def limits(
    *,
    parallelism: int = FULL_PARALLELISM,
    step: int = 0,
    room_bytes: int = PLENTY,
    resident_bytes: int = PLENTY,
    kept_bytes: int | None = None,
    is_hard: bool = False,
) -> RunLimits:
    return RunLimits(
        Plan(parallelism, 1, step, (), ()),
        room_bytes,
        resident_bytes=resident_bytes,
        kept_bytes=kept_bytes,
        is_hard=is_hard,
    )


def one_byte_a_token(lengths: Sequence[int]) -> int:
    return sum(lengths)


def nothing(lengths: Sequence[int]) -> int:
    return 0


@given(lengths=LENGTHS, parallelism=PARALLELISM, step=STEPS, drops_pages=st.booleans())
def test_a_run_never_has_more_tokens_than_the_plan_allows(
    lengths: list[int], parallelism: int, step: int, drops_pages: bool
):
    """Parallelism is the scheduler's lever on memory; only a single text may pass it."""
    allowed = limits(parallelism=parallelism, step=step)
    n_texts = n_texts_of_run(lengths, allowed, nothing, drops_pages=drops_pages)

    most_tokens = allowed.most_tokens(drops_pages=drops_pages)
    assert n_texts <= MOST_TEXTS
    assert n_texts <= 1 or sum(lengths[:n_texts]) <= most_tokens
    if n_texts < min(len(lengths), MOST_TEXTS):
        assert sum(lengths[: n_texts + 1]) > most_tokens  # and no text fewer than it might be


@given(tokens_per_s=st.floats(0.1, 1e6))
def test_a_run_ends_soon_by_the_measured_rate_unless_it_would_be_slow_for_being_short(
    tokens_per_s: float,
):
    """A query that comes while it is under way waits for its end."""
    n_tokens = short_run_tokens(tokens_per_s)

    assert n_tokens >= LEAST_RUN_TOKENS
    assert n_tokens == LEAST_RUN_TOKENS or n_tokens / tokens_per_s <= RUN_S
    assert (n_tokens + RUN_STEP_TOKENS) / tokens_per_s > RUN_S


@given(short_tokens=st.integers(1, GROWN_TOKENS), parallelism=PARALLELISM)
def test_runs_are_short_except_where_each_one_reads_the_weights_again(
    short_tokens: int, parallelism: int
):
    """There a pass over the weights costs more than all that waits for its end."""
    allowed = replace(limits(parallelism=parallelism), short_tokens=short_tokens)

    assert allowed.most_tokens(drops_pages=False) <= short_tokens
    assert allowed.most_tokens(drops_pages=True) == GROWN_TOKENS


@given(length=st.integers(1, 1 << 20), parallelism=PARALLELISM, step=STEPS)
def test_the_first_text_runs_at_any_length_where_memory_allows(
    length: int, parallelism: int, step: int
):
    """A text longer than the plan's tokens would otherwise wait for ever, and all behind it."""
    for room_bytes, n_texts in ((length, 1), (length - 1, 0)):
        allowed = limits(parallelism=parallelism, step=step, room_bytes=room_bytes)
        found = n_texts_of_run([length, 5], allowed, one_byte_a_token, drops_pages=False)
        assert min(found, 1) == n_texts


@given(
    lengths=LENGTHS,
    steps=st.lists(st.integers(0, 50), min_size=100, max_size=100),
    room_bytes=st.integers(0, 3000),
    parallelism=PARALLELISM,
    drops_pages=st.booleans(),
)
def test_halving_finds_what_trying_every_number_of_texts_finds(
    lengths: list[int],
    steps: list[int],
    room_bytes: int,
    parallelism: int,
    drops_pages: bool,
):
    """The oracle is the plain way: every prefix that keeps all limits, the longest of them."""
    totals = list(accumulate(steps, initial=0))
    allowed = limits(parallelism=parallelism, room_bytes=room_bytes)
    found = n_texts_of_run(
        lengths, allowed, lambda texts: totals[len(texts)], drops_pages=drops_pages
    )

    most_tokens = allowed.most_tokens(drops_pages=drops_pages)
    fitting = [
        n
        for n in range(1, min(len(lengths), MOST_TEXTS) + 1)
        if totals[n] <= room_bytes * (1 if n == 1 else SHARED_ROOM_RATIO)
        and (n == 1 or sum(lengths[:n]) <= most_tokens)
    ]
    assert found == max(fitting, default=0)


@given(
    lengths=LENGTHS,
    room_bytes=st.integers(0, 200 << 20),
    n_threads=st.integers(1, 8),
    step=STEPS,
    drops_pages=st.booleans(),
)
def test_a_run_never_takes_more_than_its_room(
    lengths: list[int], room_bytes: int, n_threads: int, step: int, drops_pages: bool
):
    """With the engine's real sizes, where a text more may once take less; and where the first
    text fits alone, something runs."""
    allowed = limits(step=step, room_bytes=room_bytes)

    def predict(texts: Sequence[int]) -> int:
        pack_tokens = round(PACK_TOKENS * allowed.pack_ratio)
        return run_bytes(NOMIC, texts, n_threads=n_threads, pack_tokens=pack_tokens)

    n_texts = n_texts_of_run(lengths, allowed, predict, drops_pages=drops_pages)
    assert predict(lengths[:n_texts]) <= room_bytes
    if lengths and predict(lengths[:1]) <= room_bytes:
        assert n_texts >= 1


def test_nothing_waits_nothing_runs():
    """The engine asks whenever something has changed."""
    assert n_texts_of_run([], limits(), one_byte_a_token, drops_pages=False) == 0


def test_texts_that_run_together_leave_room_to_those_that_come_while_they_run():
    """A list of thousands would otherwise fill all the room with each of its runs, and no other
    request would be let in until its end. A text alone may have it all: it was admitted so."""
    allowed = limits(room_bytes=100)

    def n_texts(lengths: list[int]) -> int:
        return n_texts_of_run(lengths, allowed, one_byte_a_token, drops_pages=False)

    assert n_texts([10] * 20) == 100 * SHARED_ROOM_RATIO / 10
    assert n_texts([100, 1]) == 1


def test_packs_are_smaller_while_memory_is_above_its_line():
    """And a run shrinks with the parallelism."""
    for parallelism in range(1, FULL_PARALLELISM + 1):
        allowed = limits(parallelism=parallelism)
        assert allowed.pack_ratio == (0.5 if parallelism <= HIGH_PARALLELISM else 1.0)
        assert allowed.most_tokens(drops_pages=False) == parallelism * SEQUENCE_TOKENS


def test_while_pages_are_dropped_a_pass_over_the_weights_serves_more_texts():
    """Reading them again is then what costs, and parallelism is no help against it."""
    for parallelism in (1, FULL_PARALLELISM):
        assert limits(parallelism=parallelism).most_tokens(drops_pages=True) == GROWN_TOKENS
    assert limits(parallelism=1).most_tokens(drops_pages=False) < GROWN_TOKENS


# --- which pages stay -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "drops_pages"),
    [
        (limits(), False),
        (limits(step=DROPPING_STEP - 1), False),
        (limits(step=DROPPING_STEP), True),
        (limits(resident_bytes=1000), False),
        (limits(resident_bytes=999), True),
        (limits(kept_bytes=0), True),
        (limits(kept_bytes=PLENTY), True),
    ],
    ids=["calm", "step 1", "step 2", "fits", "a byte too large", "keep none", "keep some"],
)
def test_pages_of_weights_go_at_step_2_or_where_they_cannot_stay(
    allowed: RunLimits, drops_pages: bool
):
    """Weights of 1000 bytes. Pages that are read again and again cost more than those that were
    given back in order; and to keep some layers is to drop the others."""
    assert allowed.drops_pages(1000) is drops_pages


@pytest.mark.parametrize(
    ("allowed", "evicts_pages"),
    [
        (limits(), False),
        (limits(step=DROPPING_STEP, is_hard=True), False),
        (limits(resident_bytes=999), False),
        (limits(resident_bytes=1000, is_hard=True), False),
        (limits(resident_bytes=999, is_hard=True), True),
        (limits(kept_bytes=PLENTY), True),
    ],
    ids=["calm", "step 2", "a setting's budget", "fits", "a byte too large", "keep some"],
)
def test_pages_leave_the_file_cache_where_it_cannot_hold_the_weights(
    allowed: RunLimits, evicts_pages: bool
):
    """Weights of 1000 bytes. Under a group's limit, used pages push out those read ahead; where
    only a setting is passed, the machine's cache holds them for the next run."""
    assert allowed.evicts_pages(1000) is evicts_pages


# --- no memory ------------------------------------------------------------------------------


@given(n_texts=st.integers(1, 64))
def test_a_run_is_halved_down_to_single_texts_and_each_is_tried_as_often(n_texts: int):
    """Nothing is left out, nothing is tried twice at once, and nothing for ever."""
    tries: dict[int, list[int]] = {text: [] for text in range(n_texts)}  # attempts made alone
    left = [(range(n_texts), 1)]
    while left:
        texts, attempt = left.pop()
        if len(texts) == 1:
            tries[texts[0]].append(attempt)
        retry = retry_after_failure(len(texts), attempt)
        if retry is not None:
            parts = texts[: retry.n_first], texts[retry.n_first :]
            assert len(texts) == 1 or abs(len(parts[0]) - len(parts[1])) <= 1
            left += [(part, retry.attempt) for part in parts if part]

    first = 1 if n_texts == 1 else 2
    assert all(each == list(range(first, ATTEMPTS + 1)) for each in tries.values())


def test_each_try_of_a_text_comes_after_a_longer_pause():
    """Others have to give their memory back first, and that takes the longer the less there is."""
    pauses = []
    for attempt in range(1, ATTEMPTS):
        retry = retry_after_failure(1, attempt)
        assert retry is not None
        pauses.append(retry.pause_s)

    assert pauses == [FIRST_PAUSE_S * 2**n for n in range(ATTEMPTS - 1)]
    assert retry_after_failure(1, ATTEMPTS) is None

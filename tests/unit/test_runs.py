"""Which waiting texts run together: as many as help, never more than there is memory for."""

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from app.encoder.layout import PACK_TOKENS, wave_bytes
from app.serving.runs import (
    GROWN_TOKENS,
    MOST_TEXTS,
    SEQUENCE_TOKENS,
    SHARED_ROOM_RATIO,
    SMALL_PACK_TOKENS,
    RunLimits,
    n_texts_of_run,
)
from app.serving.scheduler import FULL_PARALLELISM, MEMORY_PARALLELISM, Plan
from tests.unit.test_layout import NOMIC

LENGTHS = st.lists(st.integers(1, 3000), max_size=100)
PARALLELISM = st.integers(1, FULL_PARALLELISM)
STEPS = st.integers(0, 2)
PLENTY = 1 << 40


def limits(*, parallelism: int = FULL_PARALLELISM, step: int = 0, room_bytes: int = PLENTY):
    return RunLimits(Plan(parallelism, 1, step, (), ()), room_bytes)


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


@given(length=st.integers(1, 1 << 20), parallelism=PARALLELISM, step=STEPS)
def test_the_first_text_runs_whatever_its_length_where_memory_allows(
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
        return wave_bytes(NOMIC, texts, n_threads=n_threads, pack_tokens=allowed.pack_tokens)

    n_texts = n_texts_of_run(lengths, allowed, predict, drops_pages=drops_pages)
    assert predict(lengths[:n_texts]) <= room_bytes
    if lengths and predict(lengths[:1]) <= room_bytes:
        assert n_texts >= 1


def test_nothing_waits_nothing_runs():
    """The engine asks whenever something has changed."""
    assert n_texts_of_run([], limits(), one_byte_a_token, drops_pages=False) == 0


def test_texts_that_run_together_leave_room_to_those_who_come_meanwhile():
    """A list of thousands would otherwise fill all the room with each of its runs, and nobody else
    would be let in until its end. A text alone may have it all: it was admitted with that."""
    allowed = limits(room_bytes=100)

    def n_texts(lengths: list[int]) -> int:
        return n_texts_of_run(lengths, allowed, one_byte_a_token, drops_pages=False)

    assert n_texts([10] * 20) == 100 * SHARED_ROOM_RATIO / 10
    assert n_texts([100, 1]) == 1


def test_packs_are_smaller_while_memory_is_above_its_line():
    """And a run shrinks with the parallelism."""
    for parallelism in range(1, FULL_PARALLELISM + 1):
        allowed = limits(parallelism=parallelism)
        is_saving = parallelism <= MEMORY_PARALLELISM
        assert allowed.pack_tokens == (SMALL_PACK_TOKENS if is_saving else PACK_TOKENS)
        assert allowed.most_tokens(drops_pages=False) == parallelism * SEQUENCE_TOKENS


def test_while_pages_are_dropped_a_pass_over_the_weights_serves_more_texts():
    """Reading them again is then what costs, and parallelism is no help against it."""
    for parallelism in (1, FULL_PARALLELISM):
        assert limits(parallelism=parallelism).most_tokens(drops_pages=True) == GROWN_TOKENS
    assert limits(parallelism=1).most_tokens(drops_pages=False) < GROWN_TOKENS

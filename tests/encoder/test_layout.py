"""How a run is cut up, and what it is said to take: admission and engine go by the same plan."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.layout import (
    PACK_TOKENS,
    SLICE_TOKENS,
    largest_slice,
    n_shared_packs,
    pack_texts,
    run_bytes,
    slices,
)

NOMIC = SHAPES["nomic-embed-text-v1.5"]
LENGTHS = st.lists(st.integers(2, 3000), min_size=1, max_size=40)
MIB = 1 << 20


@given(start=st.integers(0, 10_000), n_rows=st.integers(2, 20_000))
def test_slices_cover_all_rows_never_grow_and_are_never_a_single_row(start: int, n_rows: int):
    """A lone row would change bits; a slice larger than those before it needs new memory."""
    cut = slices(slice(start, start + n_rows), SLICE_TOKENS)

    assert [row for part in cut for row in (part.start, part.stop)][:: len(cut) * 2 - 1] == [
        start,
        start + n_rows,
    ]
    assert all(a.stop == b.start for a, b in pairwise(cut))
    sizes = [part.stop - part.start for part in cut]
    assert sizes == sorted(sizes, reverse=True)
    assert 2 <= min(sizes) <= max(sizes) <= SLICE_TOKENS


@given(lengths=LENGTHS, n_threads=st.integers(1, 16))
def test_every_text_is_in_one_pack_and_packs_come_largest_slice_first(
    lengths: list[int], n_threads: int
):
    """A text that is left out has no vector; one that comes twice has two."""
    packs = pack_texts(lengths, n_threads=n_threads, context_tokens=2048)

    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    largest = [largest_slice(sum(lengths[index] for index in pack)) for pack in packs]
    assert largest == sorted(largest, reverse=True)


@given(lengths=LENGTHS, pack_tokens=st.sampled_from([128, 256, PACK_TOKENS]))
def test_a_text_that_fills_a_pack_or_passes_the_context_stands_alone(
    lengths: list[int], pack_tokens: int
):
    """Joining it would only make the run larger; or give its rotary tables to the others."""
    packs = pack_texts(lengths, n_threads=2, context_tokens=200, pack_tokens=pack_tokens)

    for pack in packs:
        longest = max(lengths[index] for index in pack)
        assert len(pack) == 1 or (longest < pack_tokens and longest <= 200)


def test_a_pack_that_is_most_of_the_work_is_shared_by_all_threads():
    """Otherwise one thread works on it while the others wait."""
    assert n_shared_packs([100], 2) == 1
    assert n_shared_packs([1000, 100, 100], 2) == 1
    assert n_shared_packs([100, 100, 100], 2) == 0
    assert n_shared_packs([100, 100, 100], 1) == 0
    # One token more is not most of the work.
    assert n_shared_packs([362, 361], 2) == 0


def test_nothing_takes_nothing():
    """An empty run is asked for when every text of a request was refused."""
    assert run_bytes(NOMIC, [], n_threads=2) == 0


@given(n_tokens=st.integers(2, 4096), n_threads=st.integers(1, 8))
def test_a_text_of_twice_the_length_takes_more(n_tokens: int, n_threads: int):
    """A refusal names the largest text that would fit, found by halving."""
    once, twice = (run_bytes(NOMIC, [n], n_threads=n_threads) for n in (n_tokens, 2 * n_tokens))

    assert twice > once


def test_memory_grows_with_the_length_and_not_with_its_square():
    """8192 tokens have to fit within 200 MB beside an idle engine."""
    long, longest = (run_bytes(NOMIC, [n], n_threads=2) for n in (4096, 8192))

    assert longest < 2 * long
    assert longest <= 200_000_000


@pytest.mark.parametrize("pack_tokens", [128, 256])
def test_smaller_packs_take_less(pack_tokens: int):
    """What the first step of the memory ladder relies on."""
    lengths = [40] * 64

    small = run_bytes(NOMIC, lengths, n_threads=2, pack_tokens=pack_tokens)

    assert small < run_bytes(NOMIC, lengths, n_threads=2)

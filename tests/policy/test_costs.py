"""What requests take, in bytes: never less than what their arrays and words need."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.costs import (
    SPARSE_RECORD_BYTES,
    TEXT_BYTES,
    WINDOW_TEXTS,
    Demand,
    TextSizes,
    dense_demand,
    held_bytes,
    ranking_demand,
    sparse_demand,
)


def test_a_peak_is_what_is_held_and_one_run():
    """That is what admission compares with the room there is."""
    assert Demand(10, held_bytes=3, run_bytes=4).peak_bytes == 7


@given(lengths=st.lists(st.integers(1, 8192), min_size=1, max_size=300))
def test_a_run_is_reserved_for_the_longest_text_alone(lengths: list[int]):
    """Runs follow each other, and a run of several texts is made only where there is room."""
    demand = dense_demand(
        TextSizes.of(lengths), lambda some: 1000 * sum(some), hidden=8, dimensions=4
    )

    assert demand.run_bytes == 1000 * max(lengths)
    assert demand.n_tokens == sum(lengths)
    assert demand.held_bytes == held_bytes(TextSizes.of(lengths), hidden=8, dimensions=4)
    assert not demand.is_fallback


def test_only_a_window_of_a_long_list_stands_in_the_queue():
    """Others pass the rest of it, so they do not wait for that."""
    lengths = [10] * WINDOW_TEXTS + [500] * 1000

    assert (
        dense_demand(TextSizes.of(lengths), sum, hidden=8, dimensions=4).waiting_tokens
        == 10 * WINDOW_TEXTS
    )


def test_a_request_without_a_text_that_runs_takes_nothing():
    """All its texts were refused; the engine's formula knows no run of none."""
    assert dense_demand(TextSizes(), len, hidden=8, dimensions=4) == Demand(0, 0, waiting_tokens=0)


@given(
    lengths=st.lists(st.integers(1, 8192), max_size=300),
    more=st.integers(1, 8192),
    dimensions=st.integers(1, 768),
)
def test_a_text_more_is_never_held_for_less(lengths: list[int], more: int, dimensions: int):
    """Reservations only grow while a request is tokenized."""
    fewer = held_bytes(TextSizes.of(lengths), hidden=768, dimensions=dimensions)

    assert held_bytes(TextSizes.of([*lengths, more]), hidden=768, dimensions=dimensions) > fewer
    assert fewer >= sum(lengths) * 8 + len(lengths) * dimensions * 4  # ids and vectors alone


def test_nothing_is_held_for_no_text():
    """A request whose texts were all refused."""
    assert held_bytes(TextSizes(), hidden=768, dimensions=768) == 0


@pytest.mark.parametrize("text", ["", "a", "a b", "a b c d e f", "word " * 1000])
def test_the_fallback_counts_more_words_than_a_text_can_hold(text: str):
    """Words have a letter and a blank at least."""
    n_words = len(set(text.split()))
    demand = sparse_demand([text] * 3)

    assert demand.n_tokens == 0
    assert demand.is_fallback
    assert demand.held_bytes >= 3 * n_words * 2 * sys.getsizeof(1)  # a number and a value each
    assert demand.held_bytes >= n_words * sys.getsizeof("word")
    assert demand.run_bytes == 0  # it is done beside the engine's runs


def test_a_text_of_megabytes_has_no_more_words_than_a_language():
    """Otherwise the fallback would refuse what it can do."""
    once, twice = (sparse_demand(["x" * n]) for n in (10**7, 2 * 10**7))

    assert once == twice


def test_words_take_more_where_they_stand_as_records():
    """Only a dialect that writes them so pays for it: the fallback takes less than the vectors."""
    text = "word " * 100
    plain = sparse_demand([text])
    records = sparse_demand([text], term_bytes=SPARSE_RECORD_BYTES)

    n_terms = len(text) // 2 + 1
    assert records.held_bytes - plain.held_bytes == n_terms * (176 - 64)


def test_ranking_takes_memory_for_every_word():
    """rank-bm25 keeps the words of all documents at once."""
    once = ranking_demand(["a b" * 100], 200)
    twice = ranking_demand(["a b" * 100] * 2, 400)

    assert twice.held_bytes - once.held_bytes == 288 * 200 + TEXT_BYTES
    assert once.held_bytes == 288 * 200 + TEXT_BYTES + 16 * 300
    assert once.run_bytes == 0  # it is done beside the engine's runs


@given(first=st.lists(st.integers(1, 8192), max_size=200), then=st.lists(st.integers(1, 8192)))
def test_sizes_are_the_same_whether_texts_come_at_once_or_one_after_the_other(
    first: list[int], then: list[int]
):
    """They are kept while a request is tokenized, so that each step costs what it brings."""
    grown = TextSizes.of(first)
    grown.add(then)

    assert grown == TextSizes.of([*first, *then])
    assert grown.n_tokens == sum(first) + sum(then)
    assert grown.window_tokens == sum([*first, *then][:WINDOW_TEXTS])

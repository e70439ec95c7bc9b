"""Orders of rows: the best of them, and several made one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.corpora.ranking import Ranked, best, fused, in_places

SCORES = st.lists(st.integers(-3, 3), max_size=30)


@settings(deadline=None)
@given(scores=SCORES, most=st.integers(1, 12), seed=st.integers(0, 5))
def test_the_best_are_those_of_a_full_sort(scores: list[int], most: int, seed: int):
    """However many are equal, and in whatever order the rows came."""
    rows = np.random.default_rng(seed).permutation(len(scores)).astype(np.int64)
    values = np.array(scores, np.float32)

    ranked = best(rows, values, most)

    pairs = sorted(zip(-values, rows, strict=True))[:most]
    assert ranked.rows.tolist() == [row for _, row in pairs]
    assert ranked.scores.tolist() == [-score for score, _ in pairs]


def order(*rows: int) -> Ranked:
    return Ranked(np.array(rows, np.int64), np.zeros(len(rows)))


def test_a_fused_score_is_the_sum_of_reciprocal_ranks():
    """By hand: 60 and the rank, from 1, under one."""
    ranked = fused([order(7, 5, 3), order(3, 9)], most=3)

    assert ranked.rows.tolist() == [3, 7, 5]
    np.testing.assert_allclose(ranked.scores, [1 / 63 + 1 / 61, 1 / 61, 1 / 62])


def test_orders_of_nothing_make_one_of_nothing():
    assert fused([Ranked.none(), Ranked.none()], most=3).rows.tolist() == []


def test_a_judge_fills_the_places_of_the_rows_that_it_knows():
    """By hand: 2, 4 and 6 stand where any of them stood, in the judge's order."""
    assert in_places([1, 2, 3, 4, 5, 6], {2, 4, 6}, [6, 2, 4], {2, 4, 6}, 10) == [1, 6, 3, 2, 5, 4]
    assert in_places([1, 2, 3, 4], {2, 4}, [4, 2], {2, 4}, 3) == [1, 4, 3]


def test_a_row_without_a_place_comes_along_with_the_next_that_has_one():
    assert in_places([1, 2, 3, 4], {2, 4}, [9, 4, 8, 2, 7], {2, 4}, 10) == [1, 9, 4, 3, 8, 2, 7]
    assert in_places([1, 3], set(), [9, 8], set(), 3) == [1, 3, 9]


@settings(deadline=None)
@given(
    whole=st.permutations(range(12)),
    order=st.permutations(range(12)),
    n_known=st.integers(0, 12),
    depth=st.integers(1, 12),
)
def test_the_first_of_a_merge_are_those_of_the_whole_merge(
    whole: list[int], order: list[int], n_known: int, depth: int
):
    """Both sides are only read as deep as the answer is to be."""
    known = {row for row in range(12) if row < n_known}
    judged = [row for row in order if row in known]

    deep = in_places(whole, known, judged, known, 12)
    shallow = in_places(whole[:depth], known, judged[:depth], known, depth)

    assert sorted(deep) == list(range(12))
    assert shallow == deep[:depth]

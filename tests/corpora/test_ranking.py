"""Orders of rows: the best of them, and two made one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.corpora.ranking import Ranked, best, fused

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

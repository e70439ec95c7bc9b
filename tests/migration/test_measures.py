"""Measures of searches, beside published and hand-counted values."""

from math import log2

import pytest

from plimsoll.migration.measures import mean_overlap, ndcg, recall, standard_error


def test_ndcg_is_that_of_the_textbook():
    """Grades 3, 2, 3, 0, 1, 2, ideal 3, 3, 2, 2, 1: Wikipedia's example, with its six documents."""
    grades = {"d1": 3.0, "d2": 2.0, "d3": 3.0, "d5": 1.0, "d6": 2.0}
    assert ndcg(["d1", "d2", "d3", "d4", "d5", "d6"], grades) == pytest.approx(
        6.861 / (3 + 3 / log2(3) + 2 / 2 + 2 / log2(5) + 1 / log2(6)), abs=1e-3
    )


def test_a_perfect_order_has_1_and_a_useless_one_0():
    grades = dict.fromkeys((f"d{n}" for n in range(15)), 1.0)
    assert ndcg([*grades], grades) == recall([*grades], grades) == 1
    assert ndcg(["x"] * 10, grades) == recall(["x"] * 10, grades) == 0


def test_what_stands_below_the_tenth_place_does_not_count():
    found = ["x"] * 10 + ["d1"]
    assert ndcg(found, {"d1": 1.0}) == recall(found, {"d1": 1.0}) == 0


def test_overlap_leaves_chance_out():
    """Of 20 documents, random lists of 10 share half of them: that is no agreement."""
    first, half = list(range(10)), [*range(5), *range(10, 15)]
    assert mean_overlap([first], [first], 20) == 1
    assert mean_overlap([first], [half], 20) == 0
    assert mean_overlap([first], [half], 1_000_000) == pytest.approx(0.5, abs=1e-4)
    assert mean_overlap([first], [first], 10) == 0  # every list would be that


def test_one_value_has_no_standard_error():
    assert standard_error([0.5]) == 0
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.6455, abs=1e-4)

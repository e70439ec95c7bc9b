"""Pooling, cut and norm, against the formulas written out another way."""

import math

import numpy as np
import pytest

from plimsoll.encoder.architecture import Pooling
from plimsoll.encoder.pooling import LAYER_NORM_EPS, finish, layer_norm, pool

STATES = np.array([[1, 2, 3], [4, 5, 6], [10, -7, 0]], np.float32)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [(Pooling.MEAN, [5, 0, 3]), (Pooling.CLS, [1, 2, 3]), (Pooling.LAST, [10, -7, 0])],
)
def test_each_pooling_makes_one_vector_of_a_text(pooling: Pooling, expected: list[float]):
    """The file says which; any other gives vectors that look right and are not."""
    vector = pool(STATES, pooling)

    assert vector.dtype == np.float64
    np.testing.assert_array_equal(vector, expected)


def test_the_mean_is_exact_where_float32_would_lose_digits():
    """One value among 2,048 that is 10^8 times the others must not swallow them."""
    states = np.full((2048, 1), 1.0, np.float32)
    states[0] = 1e8

    assert pool(states, Pooling.MEAN)[0] == (1e8 + 2047) / 2048


def test_the_mean_agrees_with_a_sum_that_rounds_once():
    """math.fsum is exact."""
    states = random(517, 8).astype(np.float32)

    exact = [math.fsum(column.tolist()) / 517 for column in states.T]

    np.testing.assert_allclose(pool(states, Pooling.MEAN), exact, rtol=1e-14)


def test_layer_norm_gives_mean_zero_and_variance_one():
    """Over each row by itself, divided by n: as torch's, which the model card calls."""
    rows = random(5, 768) * 3 + 2

    normed = layer_norm(rows)

    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-12)
    variance = rows.var(axis=1)
    np.testing.assert_allclose(normed.var(axis=1), variance / (variance + LAYER_NORM_EPS))


def test_layer_norm_of_a_constant_row_is_zero_and_not_nan():
    """The epsilon is what keeps it from dividing by zero."""
    np.testing.assert_array_equal(layer_norm(np.full((1, 16), 3.0)), np.zeros((1, 16)))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("dimensions", [1, 64, 767, 768])
def test_rows_leave_as_float32_units(dimensions: int, norm_first: bool):
    """A dot product is a cosine after any cut."""
    rows = finish(random(6, 768), dimensions, norm_first=norm_first)

    assert (rows.shape, rows.dtype) == ((6, dimensions), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)


def test_the_layer_norm_sees_all_values_before_the_cut():
    """Nomic v1.5 was trained so; norming the cut gives other vectors."""
    vectors = random(3, 768) + 0.5

    rows = finish(vectors, 64, norm_first=True)

    head = layer_norm(vectors)[:, :64]
    np.testing.assert_allclose(rows, head / np.linalg.norm(head, axis=1)[:, None], atol=1e-7)
    of_the_cut = layer_norm(vectors[:, :64])
    assert not np.allclose(
        rows, of_the_cut / np.linalg.norm(of_the_cut, axis=1)[:, None], atol=1e-3
    )


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_pooled_row_has_the_length_that_it_was_given(norm_first: bool):
    """Whoever asks for it wants the length too; the direction is that of the unit row."""
    vectors = random(3, 768) + 0.5

    rows = finish(vectors, 64, norm_first=norm_first, form="pooled")

    cut = (layer_norm(vectors) if norm_first else vectors)[:, :64]
    np.testing.assert_array_equal(rows, cut.astype(np.float32))
    units = finish(vectors, 64, norm_first=norm_first)
    np.testing.assert_allclose(rows / np.linalg.norm(rows, axis=1)[:, None], units, atol=1e-6)


def test_a_row_of_zeros_stays_zero():
    """NaN would be told as an error of the text; zero is what it is."""
    rows = finish(np.zeros((1, 8)), 8, norm_first=False)

    np.testing.assert_array_equal(rows, np.zeros((1, 8), np.float32))


def test_rows_do_not_depend_on_their_company():
    """Bits of a text's vector must not change with the list that it comes in."""
    vectors = random(9, 768)
    together = finish(vectors, 256, norm_first=True)

    for index in range(9):
        alone = finish(vectors[index : index + 1], 256, norm_first=True)
        assert alone.tobytes() == together[index].tobytes()


def test_what_is_not_finite_stays_so():
    """It is the caller's to refuse; hiding it here would answer with a wrong vector."""
    vectors = random(2, 8)
    vectors[1, 3] = np.nan

    rows = finish(vectors, 8, norm_first=False)

    assert np.isfinite(rows).all(axis=1).tolist() == [True, False]

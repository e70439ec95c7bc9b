"""Rounding that respects what weights are multiplied with."""

import numpy as np
import pytest

from plimsoll.encoder.quantization.gptq import (
    BLOCK_COLUMNS,
    CODE_MAX,
    DAMPING,
    Codes,
    SecondMoments,
    coupling,
    round_for_products,
    row_scales,
)
from tests.encoder.quantization.shapes import round_to_nearest

WIDTH = BLOCK_COLUMNS + 40  # more than a block, and not a multiple


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((24, WIDTH)).astype(np.float32)


@pytest.fixture
def inputs() -> np.ndarray:
    """Correlated, as activations are: that is what GPTQ lives on."""
    random = np.random.default_rng(1)
    mixing = random.standard_normal((12, WIDTH))
    mixed = random.standard_normal((1200, 12)) @ mixing
    return (mixed + 0.1 * random.standard_normal((1200, WIDTH))).astype(np.float32)


def product_error(weight: np.ndarray, codes: Codes, inputs: np.ndarray) -> float:
    rounded = codes.codes * codes.scales[:, np.newaxis]
    return float(np.linalg.norm(inputs @ (weight - rounded).T))


def moments_of(inputs: np.ndarray) -> np.ndarray:
    moments = SecondMoments(inputs.shape[1])
    for part in np.array_split(inputs, 7):
        moments.add(part)
    return moments.finish()


def test_moments_are_those_of_all_rows(inputs: np.ndarray):
    """They wait until they are many enough for one product."""
    np.testing.assert_allclose(moments_of(inputs), inputs.T @ inputs, rtol=1e-4, atol=1e-2)


def test_products_change_far_less_than_by_rounding_to_the_nearest(
    weight: np.ndarray, inputs: np.ndarray
):
    codes = round_for_products(weight, coupling(moments_of(inputs)))

    nearest = product_error(weight, round_to_nearest(weight), inputs)
    assert product_error(weight, codes, inputs) < 0.5 * nearest


def test_inputs_without_correlation_are_rounded_to_the_nearest(weight: np.ndarray):
    """With nothing to trade between columns the method must be the plain one."""
    codes = round_for_products(weight, coupling(np.eye(WIDTH, dtype=np.float32)))

    np.testing.assert_array_equal(codes.codes, round_to_nearest(weight).codes)


def test_the_factor_gives_the_moments_back(inputs: np.ndarray):
    """XᵀX = M D Mᵀ with M unit upper triangular: the source's definition."""
    moments = moments_of(inputs).astype(np.float64)
    damped = moments + DAMPING * moments.diagonal().mean() * np.eye(WIDTH)

    factor = coupling(moments.copy())

    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(np.diag(factor), 1)
    inverse = np.linalg.inv(factor)
    diagonal = inverse @ damped @ inverse.T
    np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-7 * damped.max())


def test_the_codes_are_those_of_the_published_algorithm(weight: np.ndarray, inputs: np.ndarray):
    """GPTQ as its paper has it: Cholesky's factor of the inverse, errors passed to the right."""
    moments = moments_of(inputs).astype(np.float64)
    damped = moments + DAMPING * moments.diagonal().mean() * np.eye(WIDTH)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, scales = weight.astype(np.float64), row_scales(weight)
    expected = np.empty(weight.shape, np.int8)
    for column in range(WIDTH):
        rounded = np.clip(np.rint(left[:, column] / scales), -CODE_MAX, CODE_MAX)
        expected[:, column] = rounded
        error = (left[:, column] - rounded * scales) / upper[column, column]
        left[:, column:] -= np.outer(error, upper[column, column:])

    codes = round_for_products(weight.astype(np.float64), coupling(moments.copy())).codes

    assert np.mean(codes != expected) < 0.01  # ties and the last bits of either way


def test_rows_and_inputs_of_zeros_are_no_trouble():
    """Weights are pruned, and some inputs are never other than zero."""
    weight = np.zeros((2, 8), np.float32)
    weight[1] = 1

    codes = round_for_products(weight, coupling(np.zeros((8, 8), np.float32)))

    assert codes.scales[0] == 1
    np.testing.assert_array_equal(codes.codes, [[0] * 8, [CODE_MAX] * 8])

"""Rotation: orthogonal, and undone by the weights that have absorbed it."""

import numpy as np
import pytest

from plimsoll.encoder.quantization.hadamard import LARGEST_BLOCK, block_size, hadamard, rotate
from plimsoll.encoder.quantization.linears import rotated_biases, rotated_weight
from tests.encoder.quantization.shapes import ARCHITECTURE, layer_arrays


@pytest.mark.parametrize("size", [1, 2, 4, 32, LARGEST_BLOCK])
def test_the_matrix_is_orthogonal_and_its_own_inverse(size: int):
    matrix = hadamard(size, np.float64)

    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-14)
    np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("size", [0, 3, 48])
def test_a_size_that_is_no_power_of_two_is_refused(size: int):
    """Sylvester's doubling would give another size in silence."""
    with pytest.raises(ValueError, match="not a power of two"):
        hadamard(size)


@pytest.mark.parametrize(("width", "size"), [(384, 64), (1536, 64), (96, 32), (48, 16), (7, 1)])
def test_blocks_divide_every_width(width: int, size: int):
    assert block_size(width) == size


def test_an_outlier_is_spread_over_its_block_alone():
    """What the rotation is for: one large value would take the range of all others."""
    rows = np.zeros((1, 16))
    rows[0, 3] = 8

    turned = rotate(rows, 8)

    np.testing.assert_allclose(np.abs(turned[0, :8]), 8 / np.sqrt(8))
    np.testing.assert_array_equal(turned[0, 8:], 0)


def test_products_are_what_they_were_once_both_sides_are_turned():
    """In float64 nothing is left of the rotation: it is absorbed exactly."""
    arrays = layer_arrays(np.float64)
    states = np.random.default_rng(0).standard_normal((5, ARCHITECTURE.hidden))
    weight = rotated_weight(ARCHITECTURE, "ffn_up", arrays)

    product = rotate(states, block_size(ARCHITECTURE.hidden)) @ weight.T

    np.testing.assert_allclose(product, states @ arrays["ffn_up.weight"].T, atol=1e-12)


def test_attention_passes_turned_values_on_to_the_output_weights():
    """Context is a sum of values: what V turns head by head, the output's columns turn back."""
    arrays = layer_arrays(np.float64)
    states = np.random.default_rng(1).standard_normal((5, ARCHITECTURE.hidden))
    shares = np.random.default_rng(2).random((ARCHITECTURE.n_heads, 5, 5))

    def attended(values: np.ndarray, output: np.ndarray) -> np.ndarray:
        heads = values.reshape(5, ARCHITECTURE.n_heads, -1).transpose(1, 0, 2)
        context = (shares @ heads).transpose(1, 0, 2).reshape(values.shape)
        return np.asarray(context @ output.T)

    plain = attended(
        states @ arrays["attn_v.weight"].T + arrays["attn_v.bias"], arrays["attn_output.weight"]
    )
    turned_states = rotate(states, block_size(ARCHITECTURE.hidden))
    bias = rotated_biases(ARCHITECTURE, arrays)["attn_v.bias"]
    turned = attended(
        turned_states @ rotated_weight(ARCHITECTURE, "attn_v", arrays).T + bias,
        rotated_weight(ARCHITECTURE, "attn_output", arrays),
    )

    np.testing.assert_allclose(turned, plain, atol=1e-12)

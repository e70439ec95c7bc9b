"""The int8 graphs compute what their codes stand for, by an independent reading in NumPy."""

import numpy as np
import pytest

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.quantization.gptq import CODE_MAX
from plimsoll.encoder.quantization.hadamard import rotate
from plimsoll.encoder.quantization.linears import (
    DOWN,
    input_blocks,
    linear_names,
    rotated_biases,
    rotated_weight,
)
from tests.encoder.numpy_backend import NumpyBackend
from tests.encoder.quantization.shapes import ARCHITECTURE, layer_arrays, round_to_nearest

NAMES = [name for names in linear_names(ARCHITECTURE).values() for name in names]
N_TOKENS = 9


def coded(architecture: Architecture, names: list[str]) -> dict[str, np.ndarray]:
    """The layer's arrays as a backend is given them, with codes for these linears."""
    arrays = layer_arrays()
    found = dict(arrays) | rotated_biases(architecture, arrays)
    for name in names:
        codes = round_to_nearest(rotated_weight(architecture, name, arrays))
        del found[f"{name}.weight"]
        found[f"{name}.codes"] = np.ascontiguousarray(codes.codes.T)
        found[f"{name}.scales"] = codes.scales
    return found


def expected_linear(name: str, states: np.ndarray, *, turned: bool) -> np.ndarray:
    """A product of rounded activations and rounded weights, in float64."""
    taken = next(taken for taken, names in linear_names(ARCHITECTURE).items() if name in names)
    arrays = coded(ARCHITECTURE, NAMES)
    rotated = states if turned else rotate(states, input_blocks(ARCHITECTURE)[taken])
    step = np.abs(rotated).max(axis=1, keepdims=True) / CODE_MAX
    rounded = np.rint(rotated / step) * step
    weight = arrays[f"{name}.codes"].astype(np.float64) * arrays[f"{name}.scales"]
    return np.asarray(rounded @ weight + arrays[f"{name}.bias"])


@pytest.fixture
def states() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((N_TOKENS, 64)).astype(np.float32)


def open_backend(names: list[str]) -> OnnxBackend:
    embedding = {
        "token_embd_norm.weight": np.ones(64, np.float32),
        "token_embd_norm.bias": np.zeros(64, np.float32),
    }
    return OnnxBackend(ARCHITECTURE, embedding, [coded(ARCHITECTURE, names)])


def test_projections_are_products_of_the_codes(states: np.ndarray):
    backend = open_backend(NAMES)
    outputs = np.empty((3, N_TOKENS, 64), np.float32)
    positions = np.arange(N_TOKENS, dtype=np.int64)
    runner = backend.open_runner(1)

    runner.project(0, states, positions, None, tuple(outputs))

    for name, found in zip(("attn_q", "attn_k", "attn_v"), outputs, strict=True):
        # A value at the edge between two codes may fall to either side: one step, of one input.
        np.testing.assert_allclose(found, expected_linear(name, states, turned=False), atol=0.2)
        near = found - expected_linear(name, states, turned=False)
        assert np.median(np.abs(near)) < 1e-3
    backend.close()


@pytest.mark.parametrize("names", [NAMES, [name for name in NAMES if name != DOWN]])
def test_a_layer_comes_near_the_float32_one(states: np.ndarray, names: list[str]):
    """The whole of it: turned values meet turned output weights, norms and biases in place."""
    backend = open_backend(names)
    exact = NumpyBackend(ARCHITECTURE, {}, [layer_arrays()])
    results = []
    for runner in (backend.open_runner(1), exact.open_runner(1)):
        passed = states.copy()
        block = np.empty((3, N_TOKENS, 64), np.float32)
        positions = np.arange(N_TOKENS, dtype=np.int64)
        runner.project(0, passed, positions, None, tuple(block))
        runner.attend(block[0], block[1], block[2])
        runner.transform(0, passed, block[0])
        results.append(passed.astype(np.float64))
    backend.close()

    found, expected = results
    cosine = np.sum(found * expected) / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.995


def test_a_row_has_the_same_bits_in_any_company(states: np.ndarray):
    """Products of integers are exact, and every scale is of one row."""
    backend = open_backend(NAMES)
    runner = backend.open_runner(1)
    alone, beside = states[:2].copy(), states.copy()
    for rows in (alone, beside):
        runner.transform(0, rows, rows.copy())
    backend.close()

    np.testing.assert_array_equal(alone, beside[:2])


def test_a_token_of_zeros_gives_the_biases(states: np.ndarray):
    """It has no largest value to divide by."""
    backend = open_backend(NAMES)
    states[0] = 0
    outputs = np.empty((3, N_TOKENS, 64), np.float32)
    runner = backend.open_runner(1)

    positions = np.arange(N_TOKENS, dtype=np.int64)
    runner.project(0, states, positions, None, tuple(outputs))

    np.testing.assert_array_equal(outputs[0, 0], layer_arrays()["attn_q.bias"])
    backend.close()

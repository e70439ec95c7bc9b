"""Vectors in the forms that clients may ask for, by NumPy's and sentence-transformers' rules."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.edge.json_rendering import render_json
from plimsoll.api.vector_encodings import VectorEncoding, vector_field

SIZES = st.sampled_from([8, 12, 64, 384, 768])


def unit_vectors(n: int, size: int, seed: int = 0) -> np.ndarray:
    """float32 (n, size)."""
    rows = np.random.default_rng(seed).normal(size=(n, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def sent(vector: np.ndarray, encoding: VectorEncoding) -> np.ndarray:
    """What a client reads of the reply."""
    read = json.loads(render_json(vector_field(vector, encoding)))
    if encoding == "base64":
        return np.frombuffer(base64.b64decode(read), "<f4")
    return np.array(read)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_floats_come_as_they_are(encoding: VectorEncoding):
    """Not a bit less, in either spelling."""
    (vector,) = unit_vectors(1, 384)
    np.testing.assert_array_equal(sent(vector, encoding).astype(np.float32), vector)


def test_float16_is_numpys_and_shorter():
    """pgvector's halfvec and others take it; the reply is shorter."""
    (vector,) = unit_vectors(1, 384)

    np.testing.assert_array_equal(sent(vector, "float16").astype(np.float16), vector.astype("f2"))
    lengths = {kind: len(render_json(vector_field(vector, kind))) for kind in ("float", "float16")}
    assert lengths["float16"] < 0.8 * lengths["float"]


@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=20))
def test_every_float16_is_read_back(values: list[float]):
    """Zero and the smallest ones too."""
    vector = np.array(values, np.float32)
    np.testing.assert_array_equal(sent(vector, "float16").astype(np.float16), vector.astype("f2"))


@given(size=SIZES, seed=st.integers(0, 1000))
def test_bits_are_those_of_sentence_transformers(size: int, seed: int):
    """Eight signs a byte, the first in the highest bit: signed bytes are 128 less."""
    (vector,) = unit_vectors(1, size, seed)

    ubinary, binary = sent(vector, "ubinary"), sent(vector, "binary")

    np.testing.assert_array_equal(ubinary, np.packbits(vector > 0))
    np.testing.assert_array_equal(binary, ubinary - 128)
    read = np.unpackbits(ubinary.astype(np.uint8))[:size]  # as Cohere's documentation reads them
    np.testing.assert_array_equal(read, vector >= 0)


@given(size=SIZES, seed=st.integers(0, 1000))
def test_whole_numbers_are_the_values_on_one_scale(size: int, seed: int):
    """The same for every vector of a size, so that products and distances keep their order."""
    (vector,) = unit_vectors(1, size, seed)

    int8, uint8 = sent(vector, "int8"), sent(vector, "uint8")

    step = 6 / (127 * np.sqrt(size))  # as docs/api.md has it
    np.testing.assert_allclose(int8 * step, vector, rtol=0, atol=0.51 * step)
    np.testing.assert_array_equal(uint8, int8 + 128)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beyond_the_scale_is_its_end_and_does_not_wrap_around(sign: int):
    """A wrapped byte would be the opposite of the value."""
    vector = np.zeros(384, np.float32)
    vector[7] = sign

    assert sent(vector, "int8")[7] == sign * 127
    assert sent(vector, "uint8")[7] == 128 + sign * 127


def test_zero_counts_as_positive():
    """As with Cohere's and vLLM's; a vector of zeros has all bits."""
    assert sent(np.zeros(16, np.float32), "ubinary").tolist() == [255, 255]

"""Expanded blocks compared with ggml's own C conversions, bit for bit.

The C code is the shared library that llama-cpp-python ships. Blocks are random bytes, so
scales include zeros, denormals, infinities and NaN; where the C code gives NaN so must we,
the payload is not compared.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plimsoll.gguf.dequantize import SUPPORTED, dequantize
from plimsoll.gguf.types import BLOCK_SHAPE, GGMLType

pytestmark = pytest.mark.oracles

N_BLOCKS = 4099  # prime: the last slice is a partial one
ROW_FUNCTIONS = {
    GGMLType.F16: "ggml_fp16_to_fp32_row",
    GGMLType.BF16: "ggml_bf16_to_fp32_row",
    GGMLType.Q4_0: "dequantize_row_q4_0",
    GGMLType.Q4_1: "dequantize_row_q4_1",
    GGMLType.Q5_0: "dequantize_row_q5_0",
    GGMLType.Q5_1: "dequantize_row_q5_1",
    GGMLType.Q8_0: "dequantize_row_q8_0",
    GGMLType.Q2_K: "dequantize_row_q2_K",
    GGMLType.Q3_K: "dequantize_row_q3_K",
    GGMLType.Q4_K: "dequantize_row_q4_K",
    GGMLType.Q5_K: "dequantize_row_q5_K",
    GGMLType.Q6_K: "dequantize_row_q6_K",
    GGMLType.IQ4_NL: "dequantize_row_iq4_nl",
    GGMLType.IQ4_XS: "dequantize_row_iq4_xs",
}
SCALE_OFFSETS = {  # bytes where a block holds float16 scales
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_NL: (0,),
    GGMLType.IQ4_XS: (0,),
}
ODD_SCALES = np.array(
    [
        0x0000,
        0x8000,
        0x0001,
        0x8001,
        0x03FF,
        0x0400,
        0x7BFF,
        0xFBFF,
        0x7C00,
        0xFC00,
        0x7E00,
        0x7C01,
    ],
    dtype="<u2",
)  # ±0, denormals, smallest normal, ±largest, ±infinity, quiet and signalling NaN


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed; it carries ggml's C conversions")
    library = Path(spec.origin).parent / "lib" / "libggml-base.so"
    if not library.exists():
        pytest.skip(f"llama-cpp-python ships no {library.name} on this platform")
    return ctypes.CDLL(str(library))


def convert_in_c(library: ctypes.CDLL, type_: GGMLType, blocks: np.ndarray) -> np.ndarray:
    """Blocks uint8 (n, block_bytes) → float32 (n * block_elements,) by ggml."""
    values = np.empty(len(blocks) * BLOCK_SHAPE[type_][0], dtype=np.float32)
    convert: Callable[..., None] = getattr(library, ROW_FUNCTIONS[type_])
    convert.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    convert.restype = None
    convert(blocks.ctypes.data, values.ctypes.data, values.size)
    return values


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours.view(np.uint32)[~nan], theirs.view(np.uint32)[~nan])


def random_blocks(type_: GGMLType, n: int) -> np.ndarray:
    rng = np.random.default_rng(int(type_))
    return rng.integers(0, 256, (n, BLOCK_SHAPE[type_][1]), dtype=np.uint8)


def test_every_type_but_float32_has_an_oracle():
    """A type added without one would go unchecked."""
    assert ROW_FUNCTIONS.keys() == SUPPORTED - {GGMLType.F32}


@pytest.mark.parametrize("type_", ROW_FUNCTIONS, ids=lambda type_: type_.name)
def test_random_blocks_expand_to_the_bits_of_the_reference(ggml: ctypes.CDLL, type_: GGMLType):
    """Order of operations and fused multiplies would show here and nowhere else."""
    blocks = random_blocks(type_, N_BLOCKS)
    assert_same_bits(dequantize(type_, blocks), convert_in_c(ggml, type_, blocks))


@pytest.mark.parametrize("type_", SCALE_OFFSETS, ids=lambda type_: type_.name)
def test_odd_scales_expand_to_the_bits_of_the_reference(ggml: ctypes.CDLL, type_: GGMLType):
    """Zeros, denormals and non-finite scales, every pair of them where a block has two."""
    offsets = SCALE_OFFSETS[type_]
    pairs = np.stack(np.meshgrid(ODD_SCALES, ODD_SCALES), axis=-1).reshape(-1, 2)
    blocks = random_blocks(type_, 8 * len(pairs))
    for column, offset in enumerate(offsets):
        scales = np.tile(pairs[:, column], 8)[:, None]
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    assert_same_bits(dequantize(type_, blocks), convert_in_c(ggml, type_, blocks))


@pytest.mark.parametrize("type_", [GGMLType.F16, GGMLType.BF16], ids=lambda type_: type_.name)
def test_every_16_bit_float_expands_to_the_bits_of_the_reference(
    ggml: ctypes.CDLL, type_: GGMLType
):
    """There are only 65,536 of them."""
    every = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    assert_same_bits(dequantize(type_, every), convert_in_c(ggml, type_, every))

"""Blocks worked out by hand from ggml-common.h, and how the expansion behaves around them.

The heavy comparison with ggml's own code is tests/gguf/test_dequantize_oracle.py.
"""

import tracemalloc

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as expand_by_gguf

from plimsoll.errors import GGUFTypeError
from plimsoll.gguf.dequantize import SLICE_ELEMENTS, SUPPORTED, dequantize
from plimsoll.gguf.types import BLOCK_SHAPE, GGMLType

by_name = pytest.mark.parametrize("type_", sorted(SUPPORTED), ids=lambda type_: type_.name)

# float16, little endian
QUARTER, HALF, ONE, TWO, THREE = (
    bytes.fromhex(word) for word in ("0034", "0038", "003c", "0040", "0042")
)
MINUS_ONE, INFINITY, NAN = (bytes.fromhex(word) for word in ("00bc", "007c", "007e"))

# Eight 6-bit scales and minima as Q4_K and Q5_K pack them:
# scales 1 2 3 4 17 34 51 5, minima 10 20 30 40 33 2 18 63
K_SCALES = bytes.fromhex("4182c304 8a145ee8 112223f5")


def with_bytes(block: bytes, changes: dict[int, int]) -> bytes:
    changed = bytearray(block)
    for position, value in changes.items():
        changed[position] = value
    return bytes(changed)


def with_values(values: list[float], changes: dict[int, float]) -> list[float]:
    return [changes.get(position, value) for position, value in enumerate(values)]


def runs(length: int, *values: float) -> list[float]:
    return [value for value in values for _ in range(length)]


def literal_blocks() -> dict[GGMLType, tuple[bytes, list[float]]]:
    blocks: dict[GGMLType, tuple[bytes, list[float]]] = {}
    blocks[GGMLType.F32] = (bytes.fromhex("0000803f 000000c0 000080ff"), [1.0, -2.0, -np.inf])
    blocks[GGMLType.F16] = (
        bytes.fromhex("003c 00c0 0100 ff7b 00fc"),
        [1.0, -2.0, 2.0**-24, 65504.0, -np.inf],
    )
    blocks[GGMLType.BF16] = (
        bytes.fromhex("803f 00c0 4940 0100 807f"),
        [1.0, -2.0, 3.140625, 2.0**-133, np.inf],
    )

    # Byte i: element i in the low nibble, element 16 + i in the high one.
    nibbles = bytes.fromhex("0f f0 80 08")
    blocks[GGMLType.Q4_0] = (
        HALF + nibbles + b"\x88" * 12,  # levels count from 8
        [3.5, -4.0, -4.0, 0.0, *runs(12, 0.0), -4.0, 3.5, 0.0, -4.0, *runs(12, 0.0)],
    )
    blocks[GGMLType.Q4_1] = (
        TWO + MINUS_ONE + nibbles + b"\x11" * 12,
        [29.0, -1.0, -1.0, 15.0, *runs(12, 1.0), -1.0, 29.0, 15.0, -1.0, *runs(12, 1.0)],
    )
    # Fifth bits of elements 0, 17 and 31.
    fifth_bits = bytes.fromhex("01 00 02 80")
    blocks[GGMLType.Q5_0] = (
        ONE + fifth_bits + bytes.fromhex("0f f0") + bytes(14),  # levels count from 16
        with_values(runs(32, -16.0), {0: 15.0, 17: 15.0, 31: 0.0}),
    )
    blocks[GGMLType.Q5_1] = (
        QUARTER + THREE + fifth_bits + bytes.fromhex("0f f0") + bytes(14),
        with_values(runs(32, 3.0), {0: 10.75, 17: 10.75, 31: 7.0}),
    )
    blocks[GGMLType.Q8_0] = (
        HALF + bytes.fromhex("7f 80 ff 01") + bytes(28),
        [63.5, -64.0, -0.5, 0.5, *runs(28, 0.0)],
    )

    # 0xe4 holds the pairs 0 1 2 3; run r of each half of a block reads pair r.
    pairs = b"\xe4" * 64
    # Group g: scale 15 - g, minimum g / 2.
    group_scales = bytes.fromhex("0f1e2d3c4b5a69788796a5b4c3d2e1f0")
    blocks[GGMLType.Q2_K] = (
        group_scales + with_bytes(pairs, {0: 0x1B, 33: 0x00}) + ONE + HALF,
        with_values(
            runs(
                16,
                *(0.0, -0.5, 12.0, 10.5, 20.0, 17.5, 24.0, 20.5),
                *(-4.0, -4.5, 0.0, -1.5, 0.0, -2.5, -4.0, -7.5),
            ),
            {0: 45.0, 32: 25.0, 64: 9.0, 96: -3.0}  # pairs 3 2 1 0 at the head of each run
            | {129: -4.0, 161: -5.0, 193: -6.0, 225: -7.0},
        ),
    )
    # Scales -8 -7 -6 +3 -4 -3 -2 -1 0 1 2 3 4 5 6 7, times one half. High bits set for the
    # first four runs: levels 0 1 2 3, then -4 -3 -2 -1; the other way round at element 2.
    blocks[GGMLType.Q3_K] = (
        with_bytes(b"\x0f" * 32, {2: 0xF0})
        + pairs
        + bytes.fromhex("08192a334c5d6e7f a5a5a5a6")
        + HALF,
        with_values(
            runs(
                16,
                *(0.0, 0.0, -3.0, 1.5, -4.0, -3.0, -3.0, -1.5),
                *(0.0, -2.0, -3.0, -4.5, -4.0, -5.0, -3.0, -3.5),
            ),
            {2: 16.0, 34: 9.0, 66: 4.0, 98: 1.0, 130: 0.0, 162: 1.0, 194: 4.0, 226: 9.0},
        ),
    )
    # 0x21: level 1 in runs 0 2 4 6, level 2 in runs 1 3 5 7.
    blocks[GGMLType.Q4_K] = (
        HALF + QUARTER + K_SCALES + with_bytes(b"\x21" * 128, {32: 0xF0}),
        with_values(
            runs(32, -2.0, -3.0, -6.0, -6.0, 0.25, 33.5, 21.0, -10.75), {64: -7.5, 96: 20.0}
        ),
    )
    # Fifth bits of the odd runs, at element 5 of the even ones.
    blocks[GGMLType.Q5_K] = (
        HALF + QUARTER + K_SCALES + with_bytes(b"\xaa" * 32, {5: 0x55}) + b"\x21" * 128,
        with_values(
            runs(32, -2.0, 13.0, -6.0, 26.0, 0.25, 305.5, 21.0, 29.25),
            {5: 6.0, 37: -3.0, 69: 18.0, 101: -6.0}
            | {133: 136.25, 165: 33.5, 197: 429.0, 229: -10.75},
        ),
    )
    # Levels 1, 17, 34, 50 less 32 in the runs of each half; scales -8 to 7, times one half.
    blocks[GGMLType.Q6_K] = (
        with_bytes(b"\x21" * 128, {0: 0xF0, 96: 0x0F})
        + with_bytes(pairs, {33: 0x00})
        + bytes.fromhex("f8f9fafbfcfdfeff 0001020304050607")
        + HALF,
        with_values(
            runs(
                16,
                *(124.0, 108.5, 45.0, 37.5, -4.0, -3.0, -18.0, -9.0),
                *(0.0, -15.5, -15.0, -22.5, 4.0, 5.0, 54.0, 63.0),
            ),
            {0: 128.0, 64: -30.0, 160: -1.0, 224: 48.0}
            | {129: 0.0, 161: -31.0, 193: -60.0, 225: -90.0},
        ),
    )
    # Nibble 15 stands for 113, 0 for -127, 8 for 1.
    blocks[GGMLType.IQ4_NL] = (
        HALF + nibbles + b"\x88" * 12,
        [56.5, -63.5, -63.5, 0.5, *runs(12, 0.5), -63.5, 56.5, 0.5, -63.5, *runs(12, 0.5)],
    )
    # Scales 33 34 36 16 0 63 32 31 less 32: low nibbles in the last four bytes of the six.
    blocks[GGMLType.IQ4_XS] = (
        HALF + bytes.fromhex("6a6c 2104f0f0") + with_bytes(b"\x88" * 128, {0: 0x0F}),
        with_values(runs(32, 0.5, 1.0, 2.0, -8.0, -16.0, 15.5, 0.0, -0.5), {0: 56.5, 16: -63.5}),
    )
    return blocks


LITERAL_BLOCKS = literal_blocks()


def random_blocks(type_: GGMLType, n: int) -> np.ndarray:
    rng = np.random.default_rng(int(type_))
    return rng.integers(0, 256, (n, BLOCK_SHAPE[type_][1]), dtype=np.uint8)


def n_blocks_past_two_slices(type_: GGMLType) -> int:
    return 2 * SLICE_ELEMENTS // BLOCK_SHAPE[type_][0] + 3


def test_every_supported_type_has_a_literal_block():
    """A type without one would rest on the heavy oracles alone."""
    assert LITERAL_BLOCKS.keys() == SUPPORTED


@by_name
def test_a_block_expands_to_the_values_worked_out_by_hand(type_: GGMLType):
    """The meaning of each bit, independent of any other program."""
    block, expected = LITERAL_BLOCKS[type_]
    np.testing.assert_array_equal(dequantize(type_, block), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("type_", [GGMLType.IQ4_NL, GGMLType.IQ4_XS], ids=lambda t: t.name)
def test_types_with_a_table_of_levels_expand_as_gguf_py_has_them(type_: GGMLType):
    """The table's sixteen numbers are typed in by hand, once in each program."""
    blocks = random_blocks(type_, 999)
    blocks[:, :2] = np.linspace(-2, 2, 999, dtype="<f2").view(np.uint8).reshape(-1, 2)

    expected = expand_by_gguf(blocks, gguf.GGMLQuantizationType[type_.name]).reshape(-1)

    np.testing.assert_array_equal(dequantize(type_, blocks), expected)


@by_name
def test_slices_equal_the_whole(type_: GGMLType):
    """The loader cuts tensors where it likes; the cut must not show."""
    blocks = random_blocks(type_, n_blocks_past_two_slices(type_))
    whole = dequantize(type_, blocks)
    one_by_one = [dequantize(type_, block) for block in blocks[:5]]
    rest = dequantize(type_, blocks[5:])
    np.testing.assert_array_equal(np.concatenate([*one_by_one, rest]), whole)


@by_name
def test_bytes_views_and_arrays_give_the_same_values(type_: GGMLType):
    """A map, a read buffer and an array are all the same bytes."""
    blocks = random_blocks(type_, 3)
    expected = dequantize(type_, blocks)
    np.testing.assert_array_equal(dequantize(type_, blocks.tobytes()), expected)
    np.testing.assert_array_equal(dequantize(type_, memoryview(blocks.tobytes())), expected)


@by_name
def test_values_are_written_where_the_caller_says(type_: GGMLType):
    """A tensor is expanded straight into its place."""
    blocks = random_blocks(type_, 4)
    place = np.zeros((2, 2 * BLOCK_SHAPE[type_][0]), dtype=np.float32)
    returned = dequantize(type_, blocks, out=place)
    assert np.shares_memory(returned, place)
    assert returned.shape == (place.size,)
    np.testing.assert_array_equal(place.reshape(-1), dequantize(type_, blocks))


@by_name
def test_the_result_is_not_a_view_of_the_source(type_: GGMLType):
    """The source may be a buffer that is read into again."""
    blocks = random_blocks(type_, 2)
    assert not np.shares_memory(dequantize(type_, blocks), blocks)


@by_name
def test_no_bytes_give_no_values(type_: GGMLType):
    """An empty tensor is legal."""
    assert dequantize(type_, b"").shape == (0,)


@by_name
def test_a_partial_block_is_refused(type_: GGMLType):
    """Reading half a block would invent values."""
    block = random_blocks(type_, 2).tobytes()[:-1]
    with pytest.raises(ValueError, match=f"{len(block)} bytes are not whole {type_.name} blocks"):
        dequantize(type_, block)


@pytest.mark.parametrize("type_", sorted(set(GGMLType) - SUPPORTED), ids=lambda type_: type_.name)
def test_other_types_are_refused_by_name(type_: GGMLType):
    """The user must learn which type to convert from."""
    with pytest.raises(GGUFTypeError, match=rf"tensor type {type_.name} is not expanded"):
        dequantize(type_, bytes(BLOCK_SHAPE[type_][1]))


@pytest.mark.parametrize(
    "out",
    [
        np.empty(31, dtype=np.float32),
        np.empty(32, dtype=np.float64),
        np.empty(64, dtype=np.float32)[::2],
    ],
    ids=["size", "type", "strided"],
)
def test_an_output_that_does_not_fit_is_refused(out: np.ndarray):
    """Writing into a copy, or past the end, would lose the values."""
    with pytest.raises(ValueError, match="out must be C-contiguous float32 of 32 elements"):
        dequantize(GGMLType.Q8_0, bytes(34), out=out)


@pytest.mark.parametrize("scale", [INFINITY, NAN], ids=["infinity", "nan"])
def test_non_finite_scales_pass_through_in_silence(scale: bytes):
    """Whether such a model may be served is decided elsewhere, from the values."""
    values = dequantize(GGMLType.Q8_0, scale + bytes.fromhex("01 ff 00") + bytes(29))
    expected = [np.inf, -np.inf, np.nan] if scale == INFINITY else [np.nan] * 3
    np.testing.assert_array_equal(values[:3], np.array(expected, dtype=np.float32))


@by_name
def test_temporaries_stay_small_whatever_the_size(type_: GGMLType):
    """A load may not need more memory than the line allows for it."""
    n_blocks = 4 * 2**20 // BLOCK_SHAPE[type_][0]  # 16 MiB of float32
    blocks = random_blocks(type_, n_blocks)
    out = np.empty(n_blocks * BLOCK_SHAPE[type_][0], dtype=np.float32)
    dequantize(type_, blocks[:1])
    tracemalloc.start()
    try:
        dequantize(type_, blocks, out=out)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 256 * 1024

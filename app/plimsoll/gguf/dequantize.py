"""Expand the blocks of GGUF tensors to float32.

Pure functions over bytes: no files, no threads, no ONNX. Quantizing is not done here.
Block layouts follow ggml-common.h, the order of float operations follows the reference
conversions of ggml-quants.c; tests compare every type with that C code, bit for bit.

Every quantized type is `level · scale + offset`: small integers, one to an element, and
float32 scales and offsets shared by groups of neighbouring elements. A type is described
by how its levels and its scales are unpacked; the arithmetic is written once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from plimsoll.errors import GGUFTypeError
from plimsoll.gguf.types import BLOCK_SHAPE, GGMLType

Blocks = npt.NDArray[np.uint8]  # (n, block_bytes)
Levels = npt.NDArray[Any]  # uint8 or int8 (n, ..., elements), 256 or 32 elements a block
Floats = npt.NDArray[np.float32]

# Elements expanded at a time: few enough for temporaries of 64 KiB each that stay in the
# second-level cache, enough for the cost of a NumPy call not to show.
SLICE_ELEMENTS: Final = 1 << 16

_NIBBLES: Final = np.array([[0], [4]], dtype=np.uint8)
_PAIRS: Final = np.array([[0], [2], [4], [6]], dtype=np.uint8)
_BITS: Final = np.arange(8, dtype=np.uint8)[:, None]
# What the sixteen nibbles of the IQ4 types stand for: finer near zero.
_IQ4_LEVELS: Final = (
    np.array(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int8
    )
    .tobytes()
    .ljust(256)
)  # a table for bytes.translate; NumPy would index with 8 bytes an element


def dequantize(
    type_: GGMLType,
    data: bytes | memoryview | npt.NDArray[np.uint8],
    out: Floats | None = None,
) -> Floats:
    """Expand whole blocks of one tensor type.

    data: contiguous bytes, a whole number of blocks as BLOCK_SHAPE has them.
    out: C-contiguous float32 with one place for each element; allocated when not given.
    Returns float32 (n_blocks * block elements,): `out` seen flat, never a view of `data`.
    Raises GGUFTypeError for a type outside SUPPORTED, ValueError for a partial block or an
    `out` that does not fit.
    """
    if type_ not in SUPPORTED:
        raise GGUFTypeError(f"tensor type {type_.name} is not expanded", offset=0)
    block_elements, block_bytes = BLOCK_SHAPE[type_]
    source = np.frombuffer(data, dtype=np.uint8)
    if source.size % block_bytes:
        raise ValueError(
            f"{source.size} bytes are not whole {type_.name} blocks of {block_bytes} bytes"
        )
    flat = _flat_output(out, source.size // block_bytes * block_elements)
    with np.errstate(invalid="ignore"):  # a block may hold NaN or infinity as its scale
        if type_ in _FORMATS:
            blocks = source.reshape(-1, block_bytes)
            _expand_blocks(_FORMATS[type_], blocks, flat.reshape(-1, block_elements))
        elif type_ is GGMLType.BF16:  # the upper half of a float32
            words = flat.view(np.uint32)
            np.copyto(words, source.view("<u2"))
            np.left_shift(words, 16, out=words)
        else:
            np.copyto(flat, source.view("<f4" if type_ is GGMLType.F32 else "<f2"))
    return flat


def _flat_output(out: Floats | None, n_elements: int) -> Floats:
    if out is None:
        return np.empty(n_elements, dtype=np.float32)
    if out.dtype != np.float32 or not out.flags.c_contiguous or out.size != n_elements:
        raise ValueError(
            f"out must be C-contiguous float32 of {n_elements} elements, "
            f"not {out.dtype} of {out.size}"
        )
    return out.reshape(-1)


@dataclass(frozen=True)
class _Format:
    """How one quantized type packs a block.

    levels: blocks (n, block_bytes) → integers, block_elements of them a block, in order.
    scales: blocks → float32 scale and offset (None: zero), (n, n_groups) each; a group is
    block_elements / n_groups neighbours.
    """

    levels: Callable[[Blocks], Levels]
    scales: Callable[[Blocks], tuple[Floats, Floats | None]]


def _expand_blocks(format_: _Format, blocks: Blocks, out: Floats) -> None:
    step = SLICE_ELEMENTS // out.shape[1]
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        values = out[start : start + step]  # (n, block_elements)
        np.copyto(values, format_.levels(part).reshape(values.shape))
        scale, offset = format_.scales(part)  # (n, n_groups)
        groups = values.reshape(*scale.shape, -1)
        np.multiply(groups, scale[..., None], out=groups)
        if offset is not None:
            np.add(groups, offset[..., None], out=groups)


def _halves(blocks: Blocks, start: int) -> Floats:
    """Read the float16 at byte `start` of each block as float32 (n, 1)."""
    return blocks[:, start : start + 2].view("<f2").astype(np.float32)


def _nibbles(packed: Blocks, run: int) -> Levels:
    """Split bytes into low and high nibbles: `run` low ones, then their `run` high ones."""
    split = packed.reshape(len(packed), -1, 1, run) >> _NIBBLES  # (n, runs, 2, run)
    np.bitwise_and(split, 0x0F, out=split)
    return split


def _bit_pairs(packed: Blocks) -> Levels:
    """Split runs of 32 bytes into their 4 × 32 two-bit fields, lowest first."""
    split = packed.reshape(len(packed), -1, 1, 32) >> _PAIRS  # (n, runs, 4, 32)
    np.bitwise_and(split, 0x03, out=split)
    return split


def _bit_planes(packed: Blocks, value: int) -> Levels:
    """Spread 32 bytes into 8 × 32 elements worth 0 or `value`; plane i holds bit i."""
    split = packed[:, None, :] >> _BITS  # (n, 8, 32)
    np.bitwise_and(split, 1, out=split)
    np.multiply(split, np.uint8(value), out=split)
    return split


def _join(low: Levels, high: Levels) -> Levels:
    """Put bit fields of the same elements together, in the memory of `high`."""
    np.bitwise_or(high, low.reshape(high.shape), out=high)
    return high


def _centred(levels: Levels, zero: int) -> Levels:
    """Read unsigned levels as signed ones around `zero`, in place."""
    signed = levels.view(np.int8)
    np.subtract(signed, np.int8(zero), out=signed)
    return signed


def _fifth_bits(blocks: Blocks, start: int) -> Levels:
    """Read 32 bits from byte `start`, bit e belonging to element e, worth 0 or 16."""
    bits = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")  # (n, 32)
    np.left_shift(bits, 4, out=bits)
    return bits


def _levels_q4_0(blocks: Blocks) -> Levels:
    return _centred(_nibbles(blocks[:, 2:], 16), 8)


def _levels_q4_1(blocks: Blocks) -> Levels:
    return _nibbles(blocks[:, 4:], 16)


def _levels_q5_0(blocks: Blocks) -> Levels:
    return _centred(_join(_nibbles(blocks[:, 6:], 16), _fifth_bits(blocks, 2)), 16)


def _levels_q5_1(blocks: Blocks) -> Levels:
    return _join(_nibbles(blocks[:, 8:], 16), _fifth_bits(blocks, 4))


def _levels_q8_0(blocks: Blocks) -> Levels:
    return blocks[:, 2:].view(np.int8)


def _levels_q2_k(blocks: Blocks) -> Levels:
    return _bit_pairs(blocks[:, 16:80])


def _levels_q3_k(blocks: Blocks) -> Levels:
    # A bit that is *not* set takes 4 away.
    return _centred(_join(_bit_pairs(blocks[:, 32:96]), _bit_planes(blocks[:, :32], 4)), 4)


def _levels_q4_k(blocks: Blocks) -> Levels:
    return _nibbles(blocks[:, 16:], 32)


def _levels_q5_k(blocks: Blocks) -> Levels:
    return _join(_nibbles(blocks[:, 48:], 32), _bit_planes(blocks[:, 16:48], 16))


def _levels_q6_k(blocks: Blocks) -> Levels:
    high = _bit_pairs(blocks[:, 128:192])
    np.left_shift(high, 4, out=high)
    return _centred(_join(_nibbles(blocks[:, :128], 64), high), 32)


def _levels_iq4_nl(blocks: Blocks) -> Levels:
    return _from_table(_nibbles(blocks[:, 2:], 16))


def _levels_iq4_xs(blocks: Blocks) -> Levels:
    return _from_table(_nibbles(blocks[:, 8:], 16))


def _from_table(nibbles: Levels) -> Levels:
    return np.frombuffer(nibbles.tobytes().translate(_IQ4_LEVELS), dtype=np.int8)


def _scale_alone(blocks: Blocks) -> tuple[Floats, None]:
    return _halves(blocks, 0), None


def _scale_and_minimum(blocks: Blocks) -> tuple[Floats, Floats]:
    return _halves(blocks, 0), _halves(blocks, 2)


def _scales_q2_k(blocks: Blocks) -> tuple[Floats, Floats]:
    packed = blocks[:, :16]  # low nibble: scale, high nibble: minimum
    scale = _halves(blocks, 80) * (packed & 0x0F)
    return scale, -(_halves(blocks, 82) * (packed >> 4))


def _scales_q3_k(blocks: Blocks) -> tuple[Floats, None]:
    # Sixteen 6-bit scales: low four bits in 8 bytes of nibbles, high two in 4 bytes of pairs.
    low = _nibbles(blocks[:, 96:104], 8)
    high = (blocks[:, None, 104:108] >> _PAIRS & 3) << 4  # (n, 4, 4)
    scale = _centred(_join(low, high), 32).reshape(-1, 16)
    return _halves(blocks, 108) * scale, None


def _scales_q4_k(blocks: Blocks) -> tuple[Floats, Floats]:
    # Eight 6-bit scales and minima: the first four whole, the last four with their low
    # nibbles in the third word and their high bits above the first ones.
    words = blocks[:, 4:16].reshape(-1, 3, 4)
    first, low = words[:, :2], words[:, 2:]  # (n, 2, 4): scales, minima; (n, 1, 4)
    last = (low >> _NIBBLES & 0x0F) | (first >> 6) << 4  # (n, 2, 4)
    both = np.concatenate([first & 0x3F, last], axis=2)  # (n, 2, 8)
    return _halves(blocks, 0) * both[:, 0], -(_halves(blocks, 2) * both[:, 1])


def _scales_q6_k(blocks: Blocks) -> tuple[Floats, None]:
    return _halves(blocks, 208) * blocks[:, 192:208].view(np.int8), None


def _scales_iq4_xs(blocks: Blocks) -> tuple[Floats, None]:
    # Eight 6-bit scales: low nibbles in four bytes, high pairs in two bytes before them.
    low = _nibbles(blocks[:, 4:8], 1)  # (n, 4, 2, 1)
    high = (blocks[:, 2:4, None] >> _PAIRS[:, 0] & 3) << 4  # (n, 2, 4)
    scale = _centred(_join(low, high), 32).reshape(-1, 8)
    return _halves(blocks, 0) * scale, None


_FORMATS: Final[Mapping[GGMLType, _Format]] = MappingProxyType(
    {
        GGMLType.Q4_0: _Format(_levels_q4_0, _scale_alone),
        GGMLType.Q4_1: _Format(_levels_q4_1, _scale_and_minimum),
        GGMLType.Q5_0: _Format(_levels_q5_0, _scale_alone),
        GGMLType.Q5_1: _Format(_levels_q5_1, _scale_and_minimum),
        GGMLType.Q8_0: _Format(_levels_q8_0, _scale_alone),
        GGMLType.Q2_K: _Format(_levels_q2_k, _scales_q2_k),
        GGMLType.Q3_K: _Format(_levels_q3_k, _scales_q3_k),
        GGMLType.Q4_K: _Format(_levels_q4_k, _scales_q4_k),
        GGMLType.Q5_K: _Format(_levels_q5_k, _scales_q4_k),
        GGMLType.Q6_K: _Format(_levels_q6_k, _scales_q6_k),
        GGMLType.IQ4_NL: _Format(_levels_iq4_nl, _scale_alone),
        GGMLType.IQ4_XS: _Format(_levels_iq4_xs, _scales_iq4_xs),
    }
)

SUPPORTED: Final = frozenset({GGMLType.F32, GGMLType.F16, GGMLType.BF16, *_FORMATS})

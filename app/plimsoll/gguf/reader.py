"""Read the header of a GGUF file: metadata, and where each tensor lies.

The file is not trusted. Each count, length, offset, type and shape is checked before memory
is taken or a byte is read on its word; tensor data is never touched. Layout follows GGUF's
specification (gguf.md in ggml), versions 2 and 3, little-endian. What the metadata mean is not
judged here: a file that is one part of a split model is read like any other.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from plimsoll.errors import GGUFTruncatedError, GGUFTypeError
from plimsoll.gguf.cursor import HeaderCursor, shown
from plimsoll.gguf.sources import ByteSource
from plimsoll.gguf.types import BLOCK_SHAPE, WITHDRAWN_TYPES, GGMLType

MetadataValue: TypeAlias = int | float | bool | str | list[str] | NDArray[Any]

# Limits keep what a hostile file can cost near 100 MB; see also cursor.py.
MAX_KEYS: Final = 16_384  # real files: some 50
MAX_TENSORS: Final = 16_384  # real files: some 100 to 2,000
MAX_KEY_BYTES: Final = 65_535  # the specification's
MAX_NAME_BYTES: Final = 64  # the specification's
MAX_DIMENSIONS: Final = 4  # the specification's
MIN_ALIGNMENT: Final = 8  # the specification's
MAX_ALIGNMENT: Final = 1024 * 1024
DEFAULT_ALIGNMENT: Final = 32

_MAGIC = b"GGUF"
_OTHER_MAGICS = {
    b"vers": "it looks like a Git LFS pointer: fetch the file itself with `git lfs pull`",
    b"<!DO": "it looks like a web page: check the address it was downloaded from",
    b"<!do": "it looks like a web page: check the address it was downloaded from",
    b"<htm": "it looks like a web page: check the address it was downloaded from",
    b"PK\x03\x04": "it looks like a PyTorch checkpoint: convert it to GGUF first",
    b"lmgg": "it is in a format older than GGUF: convert it anew",
    b"fmgg": "it is in a format older than GGUF: convert it anew",
    b"tjgg": "it is in a format older than GGUF: convert it anew",
}
_ALIGNMENT_KEY = "general.alignment"
_MAX_TENSOR_END = 2**62  # within what pread and ggml can address, at any start of the data
_UINT32 = struct.Struct("<I")
_MIN_KEY_BYTES = 8 + 1 + 4 + 1  # length, key, type, value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8  # length, name, dimension count, type, offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: Mapping[int, tuple[struct.Struct, np.dtype[Any]]] = {
    code: (struct.Struct("<" + struct_code), np.dtype("<" + dtype_code))
    for code, struct_code, dtype_code in (
        (0, "B", "u1"),
        (1, "b", "i1"),
        (2, "H", "u2"),
        (3, "h", "i2"),
        (4, "I", "u4"),
        (5, "i", "i4"),
        (6, "f", "f4"),
        (10, "Q", "u8"),
        (11, "q", "i8"),
        (12, "d", "f8"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: what it is and which bytes of the file hold it."""

    name: str
    shape: tuple[int, ...]  # NumPy order: GGUF's dimensions reversed; rows run along the last
    type: GGMLType
    offset: int  # from the start of the file
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """Everything that stands before the tensor data."""

    version: int
    alignment: int
    metadata: Mapping[str, MetadataValue]  # arrays of numbers and bools are read-only
    tensors: tuple[TensorInfo, ...]  # in the order of the file's list
    data_offset: int  # where the tensor data begins

    @property
    def n_bytes(self) -> int:
        """Where the last tensor ends: the least size that the file must have."""
        return max((t.offset + t.n_bytes for t in self.tensors), default=self.data_offset)


def read_header(source: ByteSource) -> GGUFHeader:
    """Read and check the header.

    From a source of unknown size exactly the header is read, and whether the tensors lie
    inside the file is not checked.
    Raises GGUFTruncatedError, GGUFFormatError, GGUFTypeError with the byte where it went
    wrong, or the GGUFError that the source raises.
    """
    cursor = HeaderCursor(source)
    version = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensors", MAX_TENSORS)
    n_keys = _read_count(cursor, "metadata keys", MAX_KEYS)
    tensors_min_bytes = n_tensors * _MIN_TENSOR_BYTES
    cursor.expect(
        n_keys * _MIN_KEY_BYTES + tensors_min_bytes,
        f"the header with its {n_keys} metadata keys and {n_tensors} tensors",
    )
    metadata = _read_metadata(cursor, n_keys, tensors_min_bytes)
    alignment = int(metadata.get(_ALIGNMENT_KEY, DEFAULT_ALIGNMENT))  # type: ignore[arg-type]
    tensors = _read_tensors(cursor, n_tensors, alignment)
    data_offset = -(-cursor.offset // alignment) * alignment
    return GGUFHeader(
        version=version,
        alignment=alignment,
        metadata=MappingProxyType(metadata),
        tensors=_place(cursor, tensors, data_offset),
        data_offset=data_offset,
    )


def _read_version(cursor: HeaderCursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != _MAGIC:
        hint = _OTHER_MAGICS.get(magic, "it may be damaged or in another format")
        raise cursor.error(f"not a GGUF file, it begins with {magic!r}; {hint}", 0)
    version = cursor.count("the version", _UINT32)
    if version and version & 0xFFFF == 0:
        raise cursor.error(
            "the file is big-endian, written for another kind of machine; "
            "use a little-endian file or convert it",
            4,
        )
    if version not in (2, 3):
        raise cursor.error(f"GGUF version {version} is not supported; versions 2 and 3 are", 4)
    return version


def _read_count(cursor: HeaderCursor, what: str, limit: int) -> int:
    start = cursor.offset
    count = cursor.count(f"the number of {what}")
    if count > limit:
        raise cursor.error(f"{count} {what} announced; at most {limit} are accepted", start)
    return count


def _read_metadata(
    cursor: HeaderCursor, n_keys: int, tensors_min_bytes: int
) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for n_left in range(n_keys - 1, -1, -1):
        cursor.promised_bytes = n_left * _MIN_KEY_BYTES + tensors_min_bytes
        start = cursor.offset
        key = cursor.string(f"metadata key {len(metadata)}", MAX_KEY_BYTES)
        if not key:
            raise cursor.error(f"metadata key {len(metadata)} is empty", start)
        if key in metadata:
            raise cursor.error(f"metadata key {shown(key)} appears twice", start)
        value = _read_value(cursor, key)
        if key == _ALIGNMENT_KEY:
            _check_alignment(cursor, value, start)
        metadata[key] = value
    return metadata


def _read_value(cursor: HeaderCursor, key: str) -> MetadataValue:
    what = f"the value of {shown(key)}"
    start = cursor.offset
    code = cursor.count(f"the type of {what}", _UINT32)
    if code == _STRING:
        return cursor.string(what)
    if code == _ARRAY:
        return _read_array(cursor, what)
    if code == _BOOL:
        number = cursor.take(1, what)[0]
        if number > 1:
            raise cursor.error(f"{what} is a bool of value {number}", cursor.offset - 1)
        return bool(number)
    if code not in _NUMBERS:
        raise cursor.error(f"{what} has type {code}; types 0 to 12 are known", start)
    return cursor.number(_NUMBERS[code][0], what)


def _read_array(cursor: HeaderCursor, what: str) -> list[str] | NDArray[Any]:
    start = cursor.offset
    code = cursor.count(f"the element type of {what}", _UINT32)
    n_elements = cursor.count(f"the length of {what}")
    if code == _STRING:
        return cursor.strings(n_elements, what)
    if code == _ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which is not supported", start)
    if code != _BOOL and code not in _NUMBERS:
        raise cursor.error(f"{what} has elements of type {code}; types 0 to 12 are known", start)
    dtype = np.dtype("u1") if code == _BOOL else _NUMBERS[code][1]
    n_bytes = n_elements * dtype.itemsize
    cursor.expect(n_bytes, f"{what} ({n_elements} elements)")
    cursor.charge(n_bytes)
    values = np.frombuffer(cursor.take(n_bytes, what), dtype)
    if code != _BOOL:
        return values
    if n_elements and values.max() > 1:
        raise cursor.error(f"{what} holds a bool of value {values.max()}", start)
    return values.view(np.bool_)


def _check_alignment(cursor: HeaderCursor, value: MetadataValue, offset: int) -> None:
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT
        or value & (value - 1)
    ):
        given = value if isinstance(value, int | float) else type(value).__name__
        raise cursor.error(
            f"{_ALIGNMENT_KEY} is {given}, not a power of two from {MIN_ALIGNMENT} "
            f"to {MAX_ALIGNMENT}",
            offset,
        )


def _read_tensors(cursor: HeaderCursor, n_tensors: int, alignment: int) -> list[TensorInfo]:
    """Read the list of tensors, their offsets still relative to the tensor data."""
    tensors: dict[str, TensorInfo] = {}
    for n_left in range(n_tensors - 1, -1, -1):
        cursor.promised_bytes = n_left * _MIN_TENSOR_BYTES
        start = cursor.offset
        name = cursor.string(f"the name of tensor {len(tensors)}", MAX_NAME_BYTES)
        if not name:
            raise cursor.error(f"tensor {len(tensors)} has an empty name", start)
        if name in tensors:
            raise cursor.error(f"tensor {shown(name)} appears twice", start)
        tensors[name] = _read_tensor(cursor, name, alignment, start)
    return list(tensors.values())


def _read_tensor(cursor: HeaderCursor, name: str, alignment: int, start: int) -> TensorInfo:
    what = f"tensor {shown(name)}"
    n_dimensions = cursor.count(f"the dimension count of {what}", _UINT32)
    if n_dimensions > MAX_DIMENSIONS:
        raise cursor.error(
            f"{what} has {n_dimensions} dimensions; at most {MAX_DIMENSIONS} are accepted", start
        )
    layout = struct.Struct(f"<{n_dimensions}QIQ")
    *dimensions, code, offset = layout.unpack(cursor.take(layout.size, what))
    if 0 in dimensions:
        raise cursor.error(f"{what} has no elements: its dimensions are {dimensions}", start)
    kind = _tensor_type(cursor, what, code, start)
    row_elements = dimensions[0] if dimensions else 1
    block_elements, block_bytes = BLOCK_SHAPE[kind]
    if row_elements % block_elements:
        raise cursor.error(
            f"{what} has rows of {row_elements} values, which {kind.name} cannot store in "
            f"blocks of {block_elements}",
            start,
        )
    n_bytes = math.prod(dimensions) // block_elements * block_bytes
    if offset % alignment:
        raise cursor.error(f"{what} lies at {offset}, not a multiple of {alignment}", start)
    if max(offset + n_bytes, math.prod(dimensions)) > _MAX_TENSOR_END:
        raise cursor.error(
            f"{what} of dimensions {dimensions} at {offset} is larger than any file", start
        )
    return TensorInfo(name, tuple(reversed(dimensions)), kind, offset, n_bytes)


def _tensor_type(cursor: HeaderCursor, what: str, code: int, offset: int) -> GGMLType:
    try:
        return GGMLType(code)
    except ValueError as error:
        known = (
            f"{WITHDRAWN_TYPES[code]}, which ggml has withdrawn; convert the model anew"
            if code in WITHDRAWN_TYPES
            else "unknown here; the file is damaged or newer than this reader"
        )
        raise GGUFTypeError(
            f"{cursor.source.name}: {what} has type {code}, {known}", offset=offset
        ) from error


def _place(
    cursor: HeaderCursor, tensors: Sequence[TensorInfo], data_offset: int
) -> tuple[TensorInfo, ...]:
    """Make offsets absolute, and check that tensors lie in the file and apart."""
    name, size = cursor.source.name, cursor.source.size
    placed = tuple(replace(tensor, offset=data_offset + tensor.offset) for tensor in tensors)
    for tensor in placed:
        end = tensor.offset + tensor.n_bytes
        if size is not None and end > size:
            raise GGUFTruncatedError(
                f"{name}: the file has {size} bytes, but tensor {shown(tensor.name)} would end "
                f"at byte {end}; the download may be incomplete",
                offset=min(tensor.offset, size),
            )
    for first, second in pairwise(sorted(placed, key=lambda tensor: tensor.offset)):
        if first.offset + first.n_bytes > second.offset:
            raise cursor.error(
                f"tensors {shown(first.name)} and {shown(second.name)} overlap", second.offset
            )
    return placed

"""Write GGUF bytes field by field, so that a test can make any one of them wrong.

Shares an error with the reader and nothing else: numbers of types stand here as GGUF's
specification has them.
"""

import struct
from collections.abc import Sequence

from plimsoll.errors import GGUFTruncatedError

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32 = range(7)
BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(7, 13)

STRUCT_CODES = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "B",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}

F32, F16, Q4_0, Q8_0, Q4_K, Q6_K = 0, 1, 2, 8, 12, 14


def string(text: str | bytes, n_bytes: int | None = None) -> bytes:
    """A length and its bytes; `n_bytes` makes the length a lie."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if n_bytes is None else n_bytes) + data


def number(kind: int, value: float) -> bytes:
    return struct.pack("<" + STRUCT_CODES[kind], value)


def payload(kind: int, value: object) -> bytes:
    """A value without its type."""
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    assert isinstance(value, int | float)
    return number(kind, value)


def key_value(key: str | bytes, kind: int, value: object) -> bytes:
    """A metadata entry; bytes as the value stand for the payload as it is, but for strings."""
    body = value if isinstance(value, bytes) and kind != STRING else payload(kind, value)
    assert isinstance(body, bytes)
    return string(key) + struct.pack("<I", kind) + body


def array(kind: int, values: Sequence[object], n_elements: int | None = None) -> bytes:
    """The payload of an array; `n_elements` makes its length a lie."""
    n_said = len(values) if n_elements is None else n_elements
    body = b"".join(payload(kind, value) for value in values)
    return struct.pack("<IQ", kind, n_said) + body


def tensor_info(
    name: str | bytes,
    dimensions: Sequence[int],
    kind: int,
    offset: int,
    n_dimensions: int | None = None,
) -> bytes:
    """An entry in the list of tensors: `dimensions` in GGUF's order, rows' length first."""
    n_said = len(dimensions) if n_dimensions is None else n_dimensions
    return (
        string(name)
        + struct.pack(f"<I{len(dimensions)}Q", n_said, *dimensions)
        + struct.pack("<IQ", kind, offset)
    )


def gguf_file(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file, the header padded to `alignment`; counts may be lies."""
    header = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_keys is None else n_keys,
    )
    header += b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data


class MemorySource:
    """A byte source in memory that counts its reads."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self.name = name
        self.data = data
        self.size: int | None = len(data)
        self.n_reads = 0

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        assert 0 <= offset <= offset + n_bytes <= len(self.data), "the reader went past the end"
        self.n_reads += 1
        return self.data[offset : offset + n_bytes]


class UnsizedSource(MemorySource):
    """A byte source that does not tell its size; notes how far it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = None
        self.read_bytes = 0

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        end = offset + n_bytes
        if end > len(self.data):
            raise GGUFTruncatedError(f"{self.name} ends early", offset=min(offset, len(self.data)))
        self.read_bytes = max(self.read_bytes, end)
        return super().read_at(offset, n_bytes)

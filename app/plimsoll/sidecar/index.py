"""What a sidecar's index.json holds: its source, and where each tensor lies, with checksums.

Pure: bytes and numbers in, descriptions out; no files. The document is

    {"format_version": …, "checksum": XXH3-64 of the index, "index": {…}}

so that a damaged index is found, and a version read before anything else is believed.
Checksums are XXH3-64 of 256 KiB chunks: they find damage, not malice, at memory speed,
and chunk by chunk, so a vocabulary table need not be read whole to be trusted.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import xxhash

from plimsoll.errors import CacheCorruptError, CacheError
from plimsoll.gguf.reader import TensorInfo

FORMAT_VERSION = 1
CHUNK_BYTES = 256 * 1024
CHECKSUM_BYTES = 8
TENSOR_ALIGNMENT = 64
LAYER_ALIGNMENT = 4096

Index = TypeVar("Index")


class WeightsPlace(StrEnum):
    """Which file is mapped."""

    COPY = "copy"  # one in the sidecar's own folder
    BUILT = "built"  # the source, which Plimsoll wrote itself
    IN_PLACE = "in place"  # the source, which is the user's


@dataclass(frozen=True)
class SourceRecord:
    """The GGUF file that a sidecar was made from, as it was then."""

    path: str
    size: int
    mtime_ns: int
    inode: int


class Place(Protocol):
    """Some bytes of a file, with checksums of its chunks one after another."""

    @property
    def name(self) -> str:
        """What lies there."""

    @property
    def offset(self) -> int:
        """First byte in the file."""

    @property
    def n_bytes(self) -> int:
        """How many."""

    @property
    def checksums(self) -> bytes:
        """As `chunk_checksums` gives them."""


@dataclass(frozen=True)
class TensorPlace:
    """Where a float32 tensor lies in the weights file, and how to know it is whole."""

    name: str
    shape: tuple[int, ...]
    offset: int
    checksums: bytes

    @property
    def n_bytes(self) -> int:
        """Bytes as float32."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class SidecarIndex:
    """Everything about a sidecar but its weights and its source's header."""

    compute: str
    source: SourceRecord
    content_sha256: str  # of names, types, shapes and source bytes, see loader.py
    header_checksum: str
    weights: WeightsPlace
    weights_bytes: int
    tensors: Mapping[str, TensorPlace]

    def to_json(self) -> str:
        """Serialize; checksums as hexadecimal."""
        tensors = [
            asdict(place) | {"checksums": place.checksums.hex()} for place in self.tensors.values()
        ]
        return sealed(asdict(self) | {"tensors": tensors}, FORMAT_VERSION)


def sealed(index: dict[str, Any], version: int) -> str:
    """The document of an index: with its version and its own checksum."""
    document = {"format_version": version, "checksum": _checksum_of(index), "index": index}
    return json.dumps(document, indent=1)


def parse_index(text: str | bytes, name: str) -> SidecarIndex:
    """Read and check an index; `name` is the sidecar's, for messages.

    Raises CacheCorruptError for one that is damaged or of an older format, both of which are
    built again, and CacheError for one of a newer format, which is left alone.
    """
    return unsealed(text, FORMAT_VERSION, f"sidecar {name}", _index)


def unsealed(
    text: str | bytes, version: int, name: str, read: Callable[[dict[str, Any]], Index]
) -> Index:
    """What `read` makes of a sealed index of this version. Raises as `parse_index` does."""
    try:
        document: dict[str, Any] = json.loads(text)
        found: int = document["format_version"]
        if found > version:
            raise CacheError(
                f"{name} was written by a newer Plimsoll (format {found}, this one "
                f"reads {version}): run that one, remove it with `plimsoll cache evict`, "
                "or set PLIMSOLL_CACHE_DIR to another folder"
            )
        if found < version:
            raise CacheCorruptError(f"{name} is of the older format {found}")
        fields = document["index"]
        if document["checksum"] != _checksum_of(fields):
            raise CacheCorruptError(f"the index of {name} is damaged")
        return read(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheCorruptError(f"{name} has no readable index: {error!r}") from error


def _index(fields: dict[str, Any]) -> SidecarIndex:
    places = (
        TensorPlace(
            name=entry["name"],
            shape=tuple(entry["shape"]),
            offset=entry["offset"],
            checksums=bytes.fromhex(entry["checksums"]),
        )
        for entry in fields["tensors"]
    )
    given = fields | {
        "source": SourceRecord(**fields["source"]),
        "weights": WeightsPlace(fields["weights"]),
        "tensors": {place.name: place for place in places},
    }
    return SidecarIndex(**given)


def _checksum_of(index: dict[str, Any]) -> str:
    return checksum(json.dumps(index, sort_keys=True).encode()).hex()


def checksum(data: bytes | bytearray | memoryview) -> bytes:
    """XXH3-64 of a buffer."""
    return xxhash.xxh3_64_digest(data)


def n_chunks(n_bytes: int) -> int:
    """Number of checksummed chunks in `n_bytes`."""
    return -(-n_bytes // CHUNK_BYTES)


def chunk_bounds(place: Place, chunk: int) -> tuple[int, int]:
    """First byte of a chunk in the file, and the one after its last; the last may be short."""
    start = chunk * CHUNK_BYTES
    return place.offset + start, place.offset + min(start + CHUNK_BYTES, place.n_bytes)


def chunk_checksum(place: Place, chunk: int) -> bytes:
    """What the chunk's bytes must give."""
    return place.checksums[CHECKSUM_BYTES * chunk : CHECKSUM_BYTES * (chunk + 1)]


def chunk_checksums(data: memoryview) -> Iterator[bytes]:
    """Checksum of each chunk of `data`, a buffer of bytes that starts on a chunk's bound."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield checksum(data[start : start + CHUNK_BYTES])


def lay_out(tensors: Sequence[TensorInfo]) -> tuple[list[tuple[TensorInfo, int]], int]:
    """Offset of each tensor in a weights file, and the file's size.

    Layer by layer, each layer from a page of its own on, so that its pages are dropped alone.
    """
    placed: list[tuple[TensorInfo, int]] = []
    position, layer = 0, None
    for tensor in sorted(tensors, key=lambda tensor: (_layer_of(tensor.name), tensor.name)):
        alignment = TENSOR_ALIGNMENT if _layer_of(tensor.name) == layer else LAYER_ALIGNMENT
        layer = _layer_of(tensor.name)
        position += -position % alignment
        placed.append((tensor, position))
        position += 4 * tensor.n_elements
    return placed, position + -position % LAYER_ALIGNMENT


def _layer_of(name: str) -> int:
    """Block number of `blk.N.…`, and -1 for tensors outside the blocks."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdecimal() else -1

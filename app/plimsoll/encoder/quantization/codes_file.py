"""The codes of a model, beside its sidecar: portable, the same on every machine.

Two files in the sidecar's own folder:

    int8.codes     codes and scales, layer by layer, each layer from a page of its own on
    int8.json      which linears they stand for, where each array lies, how near the vectors are

The index appears last, in one rename. The hash in it names the space: it covers the codes, the
scales and what stays in float32. A layer is compared with its checksums before its first use. To
make codes takes minutes, so only what is damaged or of an older format is put aside.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll import files
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.encoder.quantization.linears import LayerCodes
from plimsoll.sidecar.cache import Damage, verify_file
from plimsoll.sidecar.index import (
    LAYER_ALIGNMENT,
    TENSOR_ALIGNMENT,
    chunk_checksums,
    sealed,
    unsealed,
)
from plimsoll.sidecar.indexed_file import IndexedFile
from plimsoll.sidecar.sinks import FileSink

FORMAT_VERSION = 2
CODES_NAME = "int8.codes"
INDEX_NAME = "int8.json"
SCRATCH_NAME = "int8.tmp"


@dataclass(frozen=True)
class CodesPlace:
    """Where the codes of one linear lie, int8 (n_in, n_out), and its float32 scales (n_out,)."""

    layer: int
    name: str
    shape: tuple[int, int]
    codes_offset: int
    scales_offset: int


@dataclass(frozen=True)
class LayerPlace:
    """Where all codes and scales of a layer lie."""

    name: str
    offset: int
    n_bytes: int
    checksums: bytes


@dataclass(frozen=True)
class CodesIndex:
    """What the file of codes holds.

    content_sha256: of the tensors that it was made of. sha256: of codes and scales, and of what
    they are used for. places: of the layers, in their order. linears: of what is in them.
    """

    choice: Choice
    content_sha256: str
    sha256: str = ""
    n_bytes: int = 0
    places: tuple[LayerPlace, ...] = ()
    linears: tuple[CodesPlace, ...] = ()

    def to_json(self) -> str:
        """Serialize; checksums as hexadecimal."""
        places = [asdict(place) | {"checksums": place.checksums.hex()} for place in self.places]
        return sealed(asdict(self) | {"places": places}, FORMAT_VERSION)


class CodesFile:
    """Open codes, mapped read-only. Arrays must be dropped before `close`."""

    def __init__(self, folder: Path) -> None:
        """Open. Raises CacheError as `IndexedFile` does."""
        self._file = open_file(folder)
        self._data = self._file.data
        self.index = self._file.contents

    def arrays(self, layer: int) -> dict[str, np.ndarray]:
        """Views of a layer's codes and scales, by the names of the graphs' inputs; not verified."""
        found: dict[str, np.ndarray] = {}
        for place in self.index.linears:
            if place.layer == layer:
                n_in, n_out = place.shape
                codes = np.frombuffer(self._data.map, np.int8, n_in * n_out, place.codes_offset)
                found[f"{place.name}.codes"] = codes.reshape(place.shape)
                scales = np.frombuffer(self._data.map, np.float32, n_out, place.scales_offset)
                found[f"{place.name}.scales"] = scales
        return found

    @property
    def path(self) -> Path:
        """The file of codes."""
        return self._data.path

    def offset_of(self, array: np.ndarray) -> int | None:
        """Where in the file a view of its map begins; None for an array that is none."""
        start = np.frombuffer(self._data.map, np.uint8, 1).ctypes.data
        offset = int(array.ctypes.data - start)
        return offset if 0 <= offset < self.n_bytes else None

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.index.n_bytes

    def verify(self, layer: int) -> None:
        """Compare a layer with its checksums, once. Raises CacheCorruptError."""
        self._data.verify(self.index.places[layer].name)

    def check_unchanged(self) -> None:
        """Raises CacheCorruptError where the file is written to or cut; see `CheckedFile`."""
        self._data.check_unchanged()

    def check_at_path(self) -> None:
        """Raises CacheCorruptError where the file is not at its path; see `CheckedFile`."""
        self._data.check_at_path()

    def advise(self, layer: int, advice: int) -> None:
        """madvise the pages of a layer's codes."""
        self._data.advise([self.index.places[layer].name], advice)

    def evict(self, layer: int) -> None:
        """Take a layer's pages out of the file cache, where no process has them mapped."""
        self._data.evict([self.index.places[layer].name])

    def close(self) -> None:
        """Unmap. Raises BufferError when arrays are still alive."""
        self._file.close()


class CodesWriter:
    """Writes layers of codes into a file, and reads them back; owned by what makes the codes."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._sink = FileSink(self._fd)
        self._end = 0
        self._digest = hashlib.sha256()
        self._places: list[LayerPlace] = []
        self._linears: list[CodesPlace] = []

    @property
    def n_layers(self) -> int:
        """How many have been written."""
        return len(self._places)

    def add(self, codes: LayerCodes) -> None:
        """Write the codes of the next layer."""
        layer, data = len(self._places), bytearray()

        def place(array: np.ndarray) -> int:
            data.extend(bytes(-len(data) % TENSOR_ALIGNMENT))
            offset = self._end + len(data)
            data.extend(array.data.cast("B"))
            return offset

        for name, found in codes.items():
            n_out, n_in = found.codes.shape
            offsets = place(np.ascontiguousarray(found.codes.T)), place(found.scales)
            self._linears.append(CodesPlace(layer, name, (n_in, n_out), *offsets))
        self._sink.write_at(self._end, memoryview(data))
        self._digest.update(data)
        checksums = b"".join(chunk_checksums(memoryview(data)))
        self._places.append(LayerPlace(f"layer {layer}", self._end, len(data), checksums))
        self._end += len(data) + -len(data) % LAYER_ALIGNMENT

    def layer(self, layer: int, names: tuple[str, ...]) -> dict[str, Codes]:
        """Codes of these linears of a layer that has been written."""
        found = {}
        for place in self._linears:
            if place.layer == layer and place.name in names:
                n_in, n_out = place.shape
                data = os.pread(self._fd, n_in * n_out, place.codes_offset)
                codes = np.frombuffer(data, np.int8).reshape(place.shape).T
                scales = np.frombuffer(os.pread(self._fd, 4 * n_out, place.scales_offset), "<f4")
                found[place.name] = Codes(codes, scales)
        return found

    def finish(self, index: Path, choice: Choice, content_sha256: str) -> None:
        """Make the file durable, and write its index, which makes it count."""
        os.truncate(self._fd, self._end)
        os.fsync(self._fd)
        self._digest.update(json.dumps([choice.linears, choice.short_tokens]).encode())
        contents = CodesIndex(
            choice=choice,
            content_sha256=content_sha256,
            sha256=self._digest.hexdigest(),
            n_bytes=self._end,
            places=tuple(self._places),
            linears=tuple(self._linears),
        )
        write_index(index, contents)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def has_codes(folder: Path) -> bool:
    """Whether there are finished codes beside a sidecar."""
    return (folder / INDEX_NAME).exists()


def open_file(folder: Path) -> IndexedFile[CodesIndex]:
    """The file of a folder, as bytes. Raises CacheError as `IndexedFile` does."""
    index, data = folder / INDEX_NAME, folder / CODES_NAME
    return IndexedFile(index, data, FORMAT_VERSION, _index, is_cheap=False)


def verify_codes(folder: Path) -> list[Damage]:
    """Compare every byte of a folder's codes with their index; what is damaged is put aside."""
    return verify_file(CODES_NAME, partial(open_file, folder)) if has_codes(folder) else []


def write_index(path: Path, index: CodesIndex) -> None:
    """Write an index in place of an older one."""
    temporary = files.temporary_of(path)
    temporary.unlink(missing_ok=True)
    files.write_durably(temporary, index.to_json().encode())
    files.publish(temporary, path)


def read_index(path: Path) -> CodesIndex:
    """Read an index. Raises OSError, CacheCorruptError for what is damaged or of an older format,
    and CacheError for a newer one.
    """
    return unsealed(path.read_bytes(), FORMAT_VERSION, str(path), _index)


def _index(fields: dict[str, Any]) -> CodesIndex:
    choice = fields["choice"]
    places = (
        LayerPlace(**(entry | {"checksums": bytes.fromhex(entry["checksums"])}))
        for entry in fields["places"]
    )
    linears = (
        CodesPlace(**(entry | {"shape": tuple(entry["shape"])})) for entry in fields["linears"]
    )
    given = fields | {
        "choice": Choice(
            tuple(choice["linears"]), choice["short_tokens"], Verdict(**choice["verdict"])
        ),
        "places": tuple(places),
        "linears": tuple(linears),
    }
    return CodesIndex(**given)

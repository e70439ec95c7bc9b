"""The codes of a model, beside its sidecar: portable, the same on every machine.

Two files in the sidecar's own folder:

    int8.codes     codes and scales, layer by layer, each layer from a page of its own on
    int8.json      which linears they stand for, where each array lies, how near the vectors are

The index appears last, in one rename. The hash in it names the space: it covers the codes, the
scales and what stays in float32, and a damaged file is found by it when it is opened.
"""

import hashlib
import json
import mmap
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plimsoll import files
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.encoder.quantization.linears import LayerCodes
from plimsoll.errors import CacheCorruptError

FORMAT_VERSION = 1
CODES_NAME = "int8.codes"
INDEX_NAME = "int8.json"
SCRATCH_NAME = "int8.tmp"
ALIGNMENT = 64
LAYER_ALIGNMENT = 4096
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class CodesPlace:
    """Where the codes of one linear lie, int8 (n_in, n_out), and its float32 scales (n_out,)."""

    layer: int
    name: str
    shape: tuple[int, int]
    codes_offset: int
    scales_offset: int


@dataclass(frozen=True)
class CodesIndex:
    """What the file of codes holds.

    content_sha256: of the tensors that it was made of. sha256: of the file, and of what it is
    used for.
    """

    choice: Choice
    content_sha256: str
    sha256: str = ""
    places: tuple[CodesPlace, ...] = ()


class CodesFile:
    """Open codes, mapped read-only. Arrays must be dropped before `close`."""

    def __init__(self, folder: Path) -> None:
        """Open. Raises CacheCorruptError for what is damaged, after it has been put aside."""
        self._path = folder / CODES_NAME
        try:
            self.index = read_index(folder / INDEX_NAME)
            with self._path.open("rb") as file:
                if _space_sha256(file.fileno(), self.index.choice) != self.index.sha256:
                    raise ValueError("its hash is not the one in the index")
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError, KeyError, TypeError) as error:
            with suppress(OSError):  # a folder that is only read
                (folder / INDEX_NAME).unlink(missing_ok=True)
            raise CacheCorruptError(f"{self._path} is damaged: {error}") from error

    def arrays(self, layer: int) -> dict[str, np.ndarray]:
        """Views of a layer's codes and scales, by the names of the graphs' inputs."""
        found: dict[str, np.ndarray] = {}
        for place in self.index.places:
            if place.layer == layer:
                n_in, n_out = place.shape
                codes = np.frombuffer(self._map, np.int8, n_in * n_out, place.codes_offset)
                found[f"{place.name}.codes"] = codes.reshape(place.shape)
                scales = np.frombuffer(self._map, np.float32, n_out, place.scales_offset)
                found[f"{place.name}.scales"] = scales
        return found

    @property
    def path(self) -> Path:
        """The file of codes."""
        return self._path

    def offset_of(self, array: np.ndarray) -> int | None:
        """Where in the file a view of its map begins; None for an array that is none."""
        start = np.frombuffer(self._map, np.uint8, 1).ctypes.data
        offset = int(array.ctypes.data - start)
        return offset if 0 <= offset < len(self._map) else None

    @property
    def n_bytes(self) -> int:
        """Bytes of codes and scales."""
        return len(self._map)

    def advise(self, layer: int, advice: int) -> None:
        """madvise the pages of a layer's codes."""
        start, stop = self._range(layer)
        self._map.madvise(advice, start, stop - start)

    def evict(self, layer: int) -> None:
        """Take a layer's pages out of the file cache, where no process has them mapped."""
        if hasattr(os, "posix_fadvise"):
            start, stop = self._range(layer)
            with self._path.open("rb") as file:
                os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)

    def _range(self, layer: int) -> tuple[int, int]:
        """First byte of a layer, and the last before the next one's first, on whole pages."""
        starts = [p.codes_offset for p in self.index.places if p.layer == layer]
        following = [p.codes_offset for p in self.index.places if p.layer > layer]
        stop = min(following, default=len(self._map))
        start = min(starts)
        return start - start % mmap.PAGESIZE, stop - stop % mmap.PAGESIZE

    def close(self) -> None:
        """Unmap. Raises BufferError when arrays are still alive."""
        self._map.close()


class CodesWriter:
    """Writes layers of codes into a file, and reads them back; owned by what makes the codes."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._end = 0
        self.places: list[CodesPlace] = []

    def add(self, layer: int, codes: LayerCodes) -> None:
        """Write the codes of one layer."""
        self._align(LAYER_ALIGNMENT)
        for name, found in codes.items():
            n_out, n_in = found.codes.shape
            codes_offset = self._write(np.ascontiguousarray(found.codes.T))
            scales_offset = self._write(found.scales)
            place = CodesPlace(layer, name, (n_in, n_out), codes_offset, scales_offset)
            self.places.append(place)

    def layer(self, layer: int, names: tuple[str, ...]) -> dict[str, Codes]:
        """Codes of these linears of a layer that has been written."""
        found = {}
        for place in self.places:
            if place.layer == layer and place.name in names:
                n_in, n_out = place.shape
                data = os.pread(self._fd, n_in * n_out, place.codes_offset)
                codes = np.frombuffer(data, np.int8).reshape(place.shape).T
                scales = np.frombuffer(os.pread(self._fd, 4 * n_out, place.scales_offset), "<f4")
                found[place.name] = Codes(codes, scales)
        return found

    def finish(self, index: Path, choice: Choice, content_sha256: str) -> None:
        """Make the file durable, and write its index, which makes it count."""
        os.fsync(self._fd)
        sha256 = _space_sha256(self._fd, choice)
        write_index(index, CodesIndex(choice, content_sha256, sha256, tuple(self.places)))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, array: np.ndarray) -> int:
        self._align(ALIGNMENT)
        offset = self._end
        data = array.data.cast("B")
        while data:
            written = os.pwrite(self._fd, data, self._end)
            data, self._end = data[written:], self._end + written
        return offset

    def _align(self, alignment: int) -> None:
        self._end += -self._end % alignment


def has_codes(folder: Path) -> bool:
    """Whether there are finished codes beside a sidecar."""
    return (folder / INDEX_NAME).exists()


def write_index(path: Path, index: CodesIndex) -> None:
    """Write an index in place of an older one."""
    document = {"format_version": FORMAT_VERSION, **asdict(index)}
    temporary = files.temporary_of(path)
    temporary.unlink(missing_ok=True)
    files.write_durably(temporary, json.dumps(document, indent=1).encode())
    files.publish(temporary, path)


def read_index(path: Path) -> CodesIndex:
    """Read an index. Raises OSError, ValueError, KeyError or TypeError for one that is damaged."""
    document = json.loads(path.read_bytes())
    if document["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format is {document['format_version']}")
    choice = document["choice"]
    return CodesIndex(
        choice=Choice(
            tuple(choice["linears"]), choice["short_tokens"], Verdict(**choice["verdict"])
        ),
        content_sha256=document["content_sha256"],
        sha256=document["sha256"],
        places=tuple(
            CodesPlace(**(place | {"shape": tuple(place["shape"])})) for place in document["places"]
        ),
    )


def _space_sha256(fd: int, choice: Choice) -> str:
    """Hash of the codes and scales, and of what they are used for."""
    digest = hashlib.sha256(json.dumps([choice.linears, choice.short_tokens]).encode())
    offset = 0
    while data := os.pread(fd, READ_BYTES, offset):
        digest.update(data)
        offset += len(data)
    return digest.hexdigest()

"""Damaged and hostile GGUF files by the thousand: refused, or read as what they say.

Each file follows from its kind of damage and its index alone, both in the failure's notes.
PLIMSOLL_FUZZ_FILES raises the number of files.
"""

import faulthandler
import itertools
import math
import os
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.errors import GGUFError
from plimsoll.gguf.dequantize import dequantize
from plimsoll.gguf.reader import GGUFHeader, read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.gguf.types import BLOCK_SHAPE, GGMLType
from tests.gguf_files import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    Q4_0,
    Q4_K,
    Q6_K,
    Q8_0,
    STRING,
    STRUCT_CODES,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    MemorySource,
    UnsizedSource,
    array,
    gguf_file,
    key_value,
    tensor_info,
)

N_FILES = int(os.environ.get("PLIMSOLL_FUZZ_FILES", "6000"))
FILE_LIMIT_CPU_S = 1.0  # of this process: other load on the machine does not count
RUN_LIMIT_S = 600.0
MEMORY_LIMIT_BYTES = 100e6
EXPANDED_LIMIT_BYTES = 64 * 1024

INTERESTING = sorted(
    {0, 1, 2, 3, 7, 8, 9, 12, 13, 31, 32, 255, 256, 2**16, 2**20, 10**9}
    | {2**bits + more for bits in (31, 32, 33, 62, 63, 64) for more in (-32, -1, 0, 1)}
)


class Hang(BaseException):
    """Raised by the watchdog: no `except Exception` can take it for an error of the file."""


# --- an independent reading -----------------------------------------------------------------


@dataclass
class Naive:
    """A GGUF header read without a single check; `fields` are (offset, width) of its numbers."""

    metadata: dict[str, object]
    tensors: list[tuple[str, tuple[int, ...], int, int, int]]
    list_range: tuple[int, int]  # of the list of tensors
    data_offset: int
    fields: list[tuple[int, int]]


def naive_read(data: bytes) -> Naive:
    position = 8
    fields = [(4, 4)]

    def take(code: str) -> int | float:
        nonlocal position
        layout = struct.Struct("<" + code)
        fields.append((position, layout.size))
        position += layout.size
        return layout.unpack_from(data, position - layout.size)[0]

    def text() -> str:
        nonlocal position
        n_bytes = int(take("Q"))
        position += n_bytes
        return data[position - n_bytes : position].decode()

    def value(kind: int) -> object:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            element = int(take("I"))
            return [value(element) for _ in range(int(take("Q")))]
        return take(STRUCT_CODES[kind])

    n_tensors, n_keys = int(take("Q")), int(take("Q"))
    metadata = {text(): value(int(take("I"))) for _ in range(n_keys)}
    tensors, list_start = [], position
    for _ in range(n_tensors):
        name = text()
        dimensions = [int(take("Q")) for _ in range(int(take("I")))]
        kind, offset = int(take("I")), int(take("Q"))
        block_elements, block_bytes = BLOCK_SHAPE[GGMLType(kind)]
        n_elements = 1
        for length in dimensions:
            n_elements *= length
        n_bytes = n_elements // block_elements * block_bytes
        tensors.append((name, tuple(dimensions[::-1]), kind, offset, n_bytes))
    alignment = metadata.get("general.alignment", 32)
    assert isinstance(alignment, int)
    start = position + -position % alignment
    placed = [(name, shape, kind, start + at, n) for name, shape, kind, at, n in tensors]
    return Naive(metadata, placed, (list_start, position), start, fields)


def plain(value: object) -> object:
    """Comparable, with NaN equal to itself."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return repr(value).replace("True", "1").replace("False", "0")


def assert_says_what_the_bytes_say(header: GGUFHeader, data: bytes) -> None:
    naive = naive_read(data)
    assert list(header.metadata) == list(naive.metadata)
    for key, value in header.metadata.items():
        assert plain(value) == plain(naive.metadata[key])
    assert header.data_offset == naive.data_offset
    assert [(t.name, t.shape, t.type, t.offset, t.n_bytes) for t in header.tensors] == naive.tensors


def assert_tensors_lie_in_the_file_and_apart(header: GGUFHeader, n_file_bytes: int) -> None:
    ranges = sorted((t.offset, t.offset + t.n_bytes) for t in header.tensors)
    assert all(start < end <= n_file_bytes for start, end in ranges)
    assert all(start % header.alignment == 0 for start, _ in ranges)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))


# --- good files to start from ---------------------------------------------------------------


def every_value() -> bytes:
    scalars = {UINT8: 200, INT8: -5, UINT16: 60_000, INT16: -300, UINT32: 768, INT32: -1}
    scalars |= {FLOAT32: 0.5, FLOAT64: 1e-12, UINT64: 2**63, INT64: -(2**40), BOOL: 1}
    entries = [key_value(f"scalar.{kind}", kind, value) for kind, value in scalars.items()]
    for kind, value in scalars.items():
        entries.append(key_value(f"array.{kind}", ARRAY, array(kind, [value] * 3)))
    entries.append(key_value("text", STRING, "nomic-bert, 中文"))
    entries.append(key_value("texts", ARRAY, array(STRING, ["", "a", "ñ🚢"])))
    tensors = [tensor_info("scalar", [], F32, 0), tensor_info("cube", [2, 3, 2, 2], F16, 32)]
    return gguf_file(entries, tensors, bytes(range(96)))


def version_2_aligned() -> bytes:
    entries = [key_value("general.alignment", UINT32, 64), key_value("a", STRING, "b")]
    tensors = [tensor_info(f"blk.{i}.weight", [16], F32, 64 * i) for i in range(8)]
    return gguf_file(entries, tensors, bytes(64 * 8), version=2, alignment=64)


def quantized() -> bytes:
    tensors, data = [], b""
    for index, kind in enumerate([F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, *list(GGMLType)[::3]]):
        block_elements, block_bytes = BLOCK_SHAPE[GGMLType(kind)]
        n_blocks = 512 // block_elements
        tensors.append(tensor_info(f"t{index}", [256, 2], kind, len(data)))
        data += Random(index).randbytes(n_blocks * block_bytes)
        data += bytes(-len(data) % 32)
    return gguf_file([key_value("general.architecture", STRING, "bert")], tensors, data)


def vocabulary() -> bytes:
    words = [f"##word{i}" for i in range(60)]
    entries = [
        key_value("tokenizer.ggml.tokens", ARRAY, array(STRING, words)),
        key_value("tokenizer.ggml.scores", ARRAY, array(FLOAT32, [-1.0] * 60)),
        key_value("tokenizer.ggml.token_type", ARRAY, array(INT32, [1] * 60)),
    ]
    return gguf_file(entries, [tensor_info("w", [32, 4], Q8_0, 0)], bytes(range(136)))


GOOD_FILES = [every_value(), version_2_aligned(), quantized(), vocabulary()]
NAIVE = [naive_read(data) for data in GOOD_FILES]

# --- damage ---------------------------------------------------------------------------------

Damage = Callable[[Random, bytes, Naive], bytes]


def flip_bits(random: Random, data: bytes, naive: Naive) -> bytes:
    damaged = bytearray(data)
    end = min(random.choice([naive.data_offset, len(data)]), len(data))
    for _ in range(random.choice([1, 1, 2, 8])):
        damaged[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(damaged)


def truncate(random: Random, data: bytes, naive: Naive) -> bytes:
    return data[: random.randrange(min(random.choice([naive.data_offset, len(data)]), len(data)))]


def set_numbers(random: Random, data: bytes, naive: Naive) -> bytes:
    """Absurd counts, lengths, types, dimensions and offsets, where such numbers stand."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 1, 2])):
        offset, width = random.choice(naive.fields)
        value = random.choice(INTERESTING) % 256**width
        damaged[offset : offset + width] = value.to_bytes(width, "little")
    return bytes(damaged)


def move_tensors(random: Random, data: bytes, naive: Naive) -> bytes:
    """Other dimensions, types and offsets: overlaps, gaps and the end of the file."""
    infos = []
    for name, shape, kind, offset, _ in naive.tensors:
        relative = offset - naive.data_offset
        dimensions = list(shape[::-1])
        match random.randrange(5):
            case 0:
                relative = 32 * random.randrange(0, 1 + (len(data) - naive.data_offset) // 32)
            case 1 if dimensions:
                index = random.randrange(len(dimensions))
                dimensions[index] = random.choice([1, 32, 64, 256, *INTERESTING[:-1]])
                dimensions[index] %= 2**64
            case 2:
                kind = random.choice(list(GGMLType))
        infos.append(tensor_info(name, dimensions, kind, relative))
    start, end = naive.list_range
    return data[:start] + b"".join(infos) + data[end:]


def lengthen_strings(random: Random, data: bytes, naive: Naive) -> bytes:
    """Strings of up to 2 MB, and lengths that promise more."""
    text = random.choice([b"x", b"\xff", "🚢".encode()]) * random.randrange(500_000)
    length = random.choice([len(text), len(text) + 1, *INTERESTING]) % 2**64
    entry = b"\x01" + bytes(7) + b"k" + struct.pack("<IQ", STRING, length) + text
    if random.random() < 0.5:
        entry = (
            b"\x01" + bytes(7) + b"k" + struct.pack("<IIQ", ARRAY, STRING, random.choice([1, 3]))
        )
        entry += struct.pack("<Q", length) + text
    n_keys = struct.unpack_from("<Q", data, 16)[0] + 1
    return data[:16] + struct.pack("<Q", n_keys) + entry + data[24:]


def splice(random: Random, data: bytes, naive: Naive) -> bytes:
    """Sections cut out, doubled, moved, or taken from another file."""
    other = random.choice(GOOD_FILES)
    start, end = sorted(random.randrange(naive.data_offset) for _ in range(2))
    other_start, other_end = sorted(random.randrange(len(other)) for _ in range(2))
    return random.choice(
        [
            data[:start] + data[end:],
            data[:end] + data[start:],
            data[:start] + other[other_start:other_end] + data[start:],
            data[:start] + other[other_start:other_end] + data[end:],
            data[:start] + other[start:],
            data[:start] + random.randbytes(end - start) + data[end:],
        ]
    )


def damage_twice(random: Random, data: bytes, naive: Naive) -> bytes:
    kinds = [flip_bits, set_numbers, move_tensors, splice]
    first = random.choice(kinds)(random, data, naive)
    return random.choice([flip_bits, set_numbers, truncate])(random, first + bytes(8), naive)


def leave_alone(random: Random, data: bytes, naive: Naive) -> bytes:
    return data + bytes(random.randrange(3))


SHARES: dict[Damage, float] = {
    flip_bits: 0.2,
    truncate: 0.1,
    set_numbers: 0.2,
    move_tensors: 0.15,
    lengthen_strings: 0.1,
    splice: 0.14,
    damage_twice: 0.1,
    leave_alone: 0.01,
}

# --- limits ---------------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[None]:
    """Fail a file that takes more than its time or memory, even in an endless loop."""
    signal.setitimer(signal.ITIMER_PROF, FILE_LIMIT_CPU_S)
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert peak_bytes < MEMORY_LIMIT_BYTES


@pytest.fixture
def watchdogs() -> Iterator[None]:
    def raise_hang(_signal: int, _frame: FrameType | None) -> None:
        raise Hang(f"one file took more than {FILE_LIMIT_CPU_S} s of CPU time")

    previous = signal.signal(signal.SIGPROF, raise_hang)
    faulthandler.dump_traceback_later(RUN_LIMIT_S, exit=True)  # a hang outside Python's code
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, previous)


# --- the tests ------------------------------------------------------------------------------


def read_or_refuse(source: MemorySource | FileSource) -> GGUFHeader | GGUFError:
    try:
        return read_header(source)
    except GGUFError as error:
        return error


def expand_tensors(header: GGUFHeader, source: MemorySource) -> None:
    """What the file says is now weights: expanding them may refuse, and nothing else."""
    for tensor in header.tensors:
        if tensor.n_bytes > EXPANDED_LIMIT_BYTES:
            continue
        try:
            values = dequantize(tensor.type, source.read_at(tensor.offset, tensor.n_bytes))
        except GGUFError:
            continue
        assert values.dtype == np.float32
        assert values.size == tensor.n_elements


def check_file(data: bytes, file: FileSource, fd: int) -> GGUFHeader | GGUFError:
    """Read from memory, from disk and without a size; all must say the same, and the truth."""
    source = MemorySource(data)
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)
    file.name, file.size = source.name, len(data)
    with watched():
        outcome = read_or_refuse(source)
        if isinstance(outcome, GGUFHeader):
            expand_tensors(outcome, source)
        from_disk = read_or_refuse(file)
        unsized = read_or_refuse(UnsizedSource(data))
    if isinstance(outcome, GGUFError):
        assert str(from_disk) == str(outcome)
        assert type(from_disk) is type(outcome)
        assert 0 <= outcome.offset <= len(data)
        return outcome
    assert_says_what_the_bytes_say(outcome, data)
    assert_tensors_lie_in_the_file_and_apart(outcome, len(data))
    assert isinstance(from_disk, GGUFHeader)
    assert isinstance(unsized, GGUFHeader)
    assert from_disk.tensors == unsized.tensors == outcome.tensors
    return outcome


@pytest.mark.usefixtures("watchdogs")
@pytest.mark.parametrize("damage", SHARES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused_or_read_as_what_it_says(damage: Damage, tmp_path: Path):
    """A model file comes from anywhere; the worst it may do is not to load."""
    path = tmp_path / "damaged.gguf"
    path.touch()
    fd = os.open(path, os.O_WRONLY)
    with FileSource(path) as file:
        for index in range(math.ceil(N_FILES * SHARES[damage])):
            which = index % len(GOOD_FILES)
            good, naive = GOOD_FILES[which], NAIVE[which]
            data = damage(Random(f"{damage.__name__} {index}"), good, naive)
            try:
                outcome = check_file(data, file, fd)
                if data[: naive.data_offset] == good[: naive.data_offset] and len(data) >= len(
                    good
                ):
                    assert isinstance(outcome, GGUFHeader)
            except BaseException as error:
                error.add_note(f"damage {damage.__name__}, index {index}, {len(data)} bytes")
                raise
    os.close(fd)


@pytest.mark.parametrize("data", GOOD_FILES, ids=["values", "version 2", "quantized", "words"])
def test_the_files_that_are_damaged_are_good_ones(data: bytes):
    """Damage to a file that is refused anyway tests nothing."""
    assert_says_what_the_bytes_say(read_header(MemorySource(data)), data)


@pytest.mark.parametrize("damage", [move_tensors, set_numbers, flip_bits])
def test_damage_is_sometimes_survived_and_mostly_refused(damage: Damage):
    """If all were refused at the first field, nothing behind it would be tested."""
    outcomes = []
    for index in range(200):
        which = index % len(GOOD_FILES)
        data = damage(Random(f"survey {index}"), GOOD_FILES[which], NAIVE[which])
        outcomes.append(read_or_refuse(MemorySource(data)))

    n_read = sum(isinstance(outcome, GGUFHeader) for outcome in outcomes)
    reasons = {type(outcome).__name__ for outcome in outcomes}
    assert 5 < n_read < 195
    assert len(reasons) >= 3


@settings(max_examples=300)
@given(version=st.integers(2, 3), n_tensors=st.integers(0, 3), rest=st.binary(max_size=300))
def test_anything_behind_a_good_start_is_refused_or_read(version: int, n_tensors: int, rest: bytes):
    """Bytes from nowhere reach states that damage to good files does not."""
    data = b"GGUF" + struct.pack("<IQ", version, n_tensors) + rest

    outcome = read_or_refuse(MemorySource(data))

    if isinstance(outcome, GGUFHeader):
        assert_says_what_the_bytes_say(outcome, data)

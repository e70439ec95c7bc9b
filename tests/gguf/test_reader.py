"""The header reader: good files as gguf-py sees them, bad ones refused in words."""

import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.errors import GGUFError, GGUFFormatError, GGUFTruncatedError, GGUFTypeError
from plimsoll.gguf import cursor, reader
from plimsoll.gguf.reader import TensorInfo, read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.gguf.types import BLOCK_SHAPE, WITHDRAWN_TYPES, GGMLType
from tests import gguf_files
from tests.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT32,
    Q4_0,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    MemorySource,
    UnsizedSource,
    array,
    gguf_file,
    key_value,
    string,
    tensor_info,
)

TWO_TENSORS = [
    tensor_info("first", [8, 2], F32, 0),
    tensor_info("second", [32, 3], Q8_0, 64),
]
TWO_TENSORS_DATA = bytes(64 + 3 * 34)


def read(data: bytes) -> reader.GGUFHeader:
    return read_header(MemorySource(data))


def written_by_gguf_py(path: Path, n_words: int = 1000) -> Path:
    """A file such as convert_hf_to_gguf.py makes, with every kind of value."""
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "nomic-bert")
    writer.add_custom_alignment(64)
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"test.uint{bits}", 2**bits - 1)
        getattr(writer, f"add_int{bits}")(f"test.int{bits}", -(2 ** (bits - 1)))
    writer.add_float32("test.float32", 1e-12)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_string("test.empty", "")
    writer.add_string("test.text", "Plimsoll, 中文, ñ, 🚢")
    writer.add_array("test.bools", [True, False, True])
    writer.add_array("test.ints", [-1, 0, 2**31 - 1])
    writer.add_token_list([f"word{i}é" for i in range(n_words)])
    writer.add_token_scores([-0.5 * i for i in range(n_words)])
    writer.add_token_types([1] * n_words)
    plain = random.standard_normal((3, 5, 256)).astype(np.float32)
    writer.add_tensor("plain", plain)
    writer.add_tensor("half", plain[0].astype(np.float16))
    writer.add_tensor("vector", plain[0, 0])
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        quantized = gguf.quants.quantize(plain[0], kind)
        writer.add_tensor(f"quantized.{name}", quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_by_gguf_py(tmp_path_factory.mktemp("gguf") / "good.gguf")


def test_metadata_reads_as_gguf_py_reads_it(good_path: Path):
    """The reference reader is what every published file was checked with."""
    with FileSource(good_path) as source:
        header = read_header(source)

    reference = gguf.GGUFReader(good_path)

    fields = {name: f for name, f in reference.fields.items() if not name.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for name, field in fields.items():
        value = header.metadata[name]
        expected = field.contents()
        if isinstance(value, np.ndarray):
            assert value.tolist() == expected
            assert not value.flags.writeable
        else:
            assert value == expected
            assert type(value) is type(expected)
    assert header.version == reference.fields["GGUF.version"].contents() == 3
    assert header.alignment == 64


def test_tensors_lie_where_gguf_py_finds_them(good_path: Path):
    """A wrong offset or shape would compute with the wrong weights and say nothing."""
    with FileSource(good_path) as source:
        header = read_header(source)

    reference = gguf.GGUFReader(good_path)

    assert [
        (t.name, t.type.value, t.shape[::-1], t.offset, t.n_bytes, t.n_elements)
        for t in header.tensors
    ] == [
        (t.name, t.tensor_type.value, tuple(t.shape), t.data_offset, t.n_bytes, t.n_elements)
        for t in reference.tensors
    ]
    assert header.data_offset == reference.data_offset
    assert header.n_bytes == max(t.data_offset + t.n_bytes for t in reference.tensors)
    assert header.n_bytes <= good_path.stat().st_size


def test_bytes_at_a_tensor_s_offset_are_the_tensor_that_was_written(tmp_path: Path):
    """Shape is NumPy's order, so that reshaping the bytes gives the array back."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.add_tensor("first", np.ones(7, np.float32))
    writer.add_tensor("values", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with FileSource(tmp_path / "m.gguf") as source:
        tensor = read_header(source).tensors[1]
        data = source.read_at(tensor.offset, tensor.n_bytes)

    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(tensor.shape), values)


@pytest.mark.parametrize("kind", list(gguf.GGMLQuantizationType), ids=lambda kind: kind.name)
def test_types_have_the_numbers_and_block_sizes_of_gguf_py(kind: gguf.GGMLQuantizationType):
    """One wrong size would shift every row of a tensor."""
    expected = gguf.GGML_QUANT_SIZES[kind]
    if kind == gguf.GGMLQuantizationType.Q8_1:
        expected = (32, 2 + 2 + 32)  # gguf-py counts float32; ggml-common.h asserts two halves

    assert GGMLType[kind.name].value == kind.value
    assert BLOCK_SHAPE[GGMLType(kind.value)] == expected


def test_every_type_has_a_block_size_and_none_is_withdrawn():
    """The tables are indexed without a check."""
    assert set(BLOCK_SHAPE) == set(GGMLType)
    assert not set(WITHDRAWN_TYPES) & set(GGMLType)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_in_use_are_read(version: int):
    """Version 2 differs from 3 in nothing but its number on little-endian machines."""
    data = gguf_file([key_value("a", UINT32, 7)], TWO_TENSORS, TWO_TENSORS_DATA, version=version)

    header = read(data)

    assert (header.version, dict(header.metadata)) == (version, {"a": 7})
    start = len(data) - len(TWO_TENSORS_DATA)
    assert header.tensors == (
        TensorInfo("first", (2, 8), GGMLType.F32, start, 64),
        TensorInfo("second", (3, 32), GGMLType.Q8_0, start + 64, 102),
    )


def test_a_file_without_tensors_or_metadata_is_read():
    """Vocabulary-only files exist, and the header alone is what a sidecar keeps."""
    header = read(gguf_file())

    assert header.tensors == ()
    assert header.metadata == {}
    assert header.n_bytes == header.data_offset == 32


def test_empty_arrays_are_read():
    """general.tags is often empty."""
    header = read(
        gguf_file(
            [
                key_value("strings", ARRAY, array(STRING, [])),
                key_value("floats", ARRAY, array(FLOAT32, [])),
                key_value("bools", ARRAY, array(BOOL, [])),
            ]
        )
    )

    assert header.metadata["strings"] == []
    assert [header.metadata[k].dtype.kind for k in ("floats", "bools")] == ["f", "b"]
    assert [len(header.metadata[k]) for k in ("floats", "bools")] == [0, 0]


def test_a_tensor_without_dimensions_is_one_value():
    """ggml writes scalars so."""
    header = read(gguf_file([], [tensor_info("scalar", [], F32, 0)], bytes(4)))

    assert header.tensors[0].shape == ()
    assert (header.tensors[0].n_elements, header.tensors[0].n_bytes) == (1, 4)


def test_alignment_from_the_metadata_places_the_tensors():
    """Ignoring it would read padding as weights."""
    tensors = [tensor_info("a", [1], F32, 0), tensor_info("b", [1], F32, 4096)]
    entries = [key_value("general.alignment", UINT32, 4096)]

    header = read(gguf_file(entries, tensors, bytes(4100), alignment=4096))

    assert header.alignment == 4096
    assert [t.offset for t in header.tensors] == [4096, 8192]


def test_tensors_may_stand_in_any_order_with_gaps():
    """The specification asks for alignment, not for an order."""
    tensors = [tensor_info("late", [8], F32, 128), tensor_info("early", [8], F32, 0)]

    header = read(gguf_file([], tensors, bytes(160)))

    assert [t.name for t in header.tensors] == ["late", "early"]


def test_a_source_of_unknown_size_is_read_up_to_the_header_and_not_a_byte_further(good_path: Path):
    """A sidecar keeps the header alone in a file, which ends right behind it."""
    data = good_path.read_bytes()
    with FileSource(good_path) as source:
        expected = read_header(source)
    source = UnsizedSource(data[: expected.data_offset])

    header = read_header(source)

    assert header.tensors == expected.tensors
    assert expected.data_offset - 64 < source.read_bytes <= expected.data_offset
    assert list(header.metadata) == list(expected.metadata)


def test_the_smallest_entries_come_out_of_a_source_of_unknown_size():
    """What is certain to follow must not be overrated: the source would seem to end too early."""
    entries = [key_value(chr(ord("a") + i), UINT8, i) for i in range(20)]
    tensors = [tensor_info(chr(ord("a") + i), [], F32, 32 * i) for i in range(20)]
    data = gguf_file(entries, tensors, alignment=1)

    header = read_header(UnsizedSource(data))

    assert len(header.metadata) == len(header.tensors) == 20


def test_a_source_without_a_size_is_not_asked_for_its_tensors(good_path: Path):
    """A header kept by itself is read again long after its data has gone elsewhere."""
    assert len(read_header(UnsizedSource(gguf_file([], TWO_TENSORS))).tensors) == 2


def vocabulary_file(n_words: int) -> bytes:
    words = [f"w{i}" for i in range(n_words)]
    return gguf_file(
        [
            key_value("tokenizer.ggml.tokens", ARRAY, array(STRING, words)),
            key_value("tokenizer.ggml.scores", ARRAY, array(FLOAT32, [0.5] * n_words)),
            key_value("tokenizer.ggml.token_type", ARRAY, array(INT32, [1] * n_words)),
        ],
        TWO_TENSORS,
        TWO_TENSORS_DATA,
    )


@pytest.mark.parametrize("n_words", [1, 16_383, 16_384, 30_528, 60_000])
def test_arrays_across_block_borders_are_whole(n_words: int):
    """A vocabulary is cut by the borders of 256 KiB wherever they fall."""
    header = read(vocabulary_file(n_words))

    assert header.metadata["tokenizer.ggml.tokens"] == [f"w{i}" for i in range(n_words)]
    assert header.metadata["tokenizer.ggml.scores"].tolist() == [0.5] * n_words
    assert header.metadata["tokenizer.ggml.token_type"].tolist() == [1] * n_words


@pytest.mark.parametrize("shift", range(30))  # a word and its length take 30 bytes
def test_a_string_cut_anywhere_by_a_block_border_is_whole(shift: int):
    """The border may fall into a length, a character or between two strings."""
    words = ["é" * 11] * 20_000
    entries = [
        key_value("pad", STRING, "x" * shift),
        key_value("words", ARRAY, array(STRING, words)),
    ]

    assert read(gguf_file(entries)).metadata["words"] == words


def test_the_header_is_read_in_large_blocks():
    """A read per field would be a request per field over HTTP."""
    data = vocabulary_file(30_528)
    source = MemorySource(data)

    read_header(source)

    assert source.n_reads <= len(data) / cursor.BLOCK_BYTES + 1


JSON_LIKE_VALUES = st.one_of(
    st.tuples(st.just(UINT8), st.integers(0, 255)),
    st.tuples(st.just(INT32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(UINT64), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(BOOL), st.booleans()),
    st.tuples(st.just(FLOAT32), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just(STRING), st.text(st.characters(exclude_categories=["Cs"]))),
)


@settings(max_examples=150)
@given(
    values=st.dictionaries(
        st.text("abc._é", min_size=1).filter(lambda key: key != "general.alignment"),
        JSON_LIKE_VALUES,
    ),
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    shapes=st.lists(st.lists(st.integers(1, 5), max_size=4), max_size=6),
)
def test_whatever_is_written_is_read_back(values, words, shapes):
    """Names, values and shapes of every kind, not only those of the files at hand."""
    entries = [key_value(key, kind, value) for key, (kind, value) in values.items()]
    entries.append(key_value("WORDS", ARRAY, array(STRING, words)))
    tensors, offset = [], 0
    for index, dimensions in enumerate(shapes):
        tensors.append(tensor_info(str(index), dimensions, F32, offset))
        offset += -(-4 * int(np.prod(dimensions, dtype=int)) // 32) * 32

    header = read(gguf_file(entries, tensors, bytes(offset)))

    expected = {key: value for key, (_, value) in values.items()}
    assert dict(header.metadata) == {**expected, "WORDS": words}
    assert [t.shape for t in header.tensors] == [tuple(d[::-1]) for d in shapes]


# --- refusals -------------------------------------------------------------------------------

HUGE = 2**64 - 1
TINY = [tensor_info("t", [8], F32, 0)]


def one_tensor(*fields: object, **lies: object) -> bytes:
    return gguf_file([], [tensor_info(*fields, **lies)], bytes(4096))


def one_value(kind: int, body: object) -> bytes:
    return gguf_file([key_value("key", kind, body)], TINY, bytes(4096))


BAD_FILES = {
    "empty": (b"", GGUFTruncatedError, "magic number", 0),
    "three bytes": (b"GGU", GGUFTruncatedError, "magic number", 0),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        GGUFFormatError,
        "Git LFS",
        0,
    ),
    "web page": (b"<!DOCTYPE html>", GGUFFormatError, "web page", 0),
    "checkpoint": (b"PK\x03\x04" + bytes(60), GGUFFormatError, "PyTorch", 0),
    "older format": (b"tjgg" + bytes(60), GGUFFormatError, "older than GGUF", 0),
    "other magic": (bytes(64), GGUFFormatError, "not a GGUF file", 0),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), GGUFFormatError, "big-endian", 4),
    "version 0": (gguf_file(version=0), GGUFFormatError, "version 0", 4),
    "version 1": (gguf_file(version=1), GGUFFormatError, "version 1", 4),
    "version 4": (gguf_file(version=4), GGUFFormatError, "version 4", 4),
    "cut after version": (gguf_file()[:8], GGUFTruncatedError, "number of tensors", 8),
    "huge tensor count": (gguf_file(n_tensors=HUGE), GGUFFormatError, "tensors announced", 8),
    "huge key count": (gguf_file(n_keys=HUGE), GGUFFormatError, "keys announced", 16),
    "tensors that do not fit": (
        gguf_file(n_tensors=16_000),
        GGUFTruncatedError,
        "16000 tensors",
        24,
    ),
    "keys that do not fit": (gguf_file(n_keys=16_000), GGUFTruncatedError, "16000 metadata", 24),
    "key past the end": (
        gguf_file([string(b"k" * 20, 60_000)]),
        GGUFTruncatedError,
        "metadata key 0",
        32,
    ),
    "giant key": (gguf_file([string(b"k" * 20, HUGE)]), GGUFFormatError, "at most 65535", 24),
    "empty key": (gguf_file([key_value("", UINT8, 1)]), GGUFFormatError, "key 0 is empty", 24),
    "key not UTF-8": (
        gguf_file([key_value(b"ab\xff", UINT8, 1)]),
        GGUFFormatError,
        "not valid UTF-8",
        34,
    ),
    "key twice": (
        gguf_file([key_value("k", UINT8, 1), key_value("k", UINT8, 2)]),
        GGUFFormatError,
        "'k' appears twice",
        38,
    ),
    "unknown value type": (one_value(13, b"\x00"), GGUFFormatError, "type 13", 35),
    "bool of 2": (one_value(BOOL, b"\x02"), GGUFFormatError, "bool of value 2", 39),
    "giant string": (
        one_value(ARRAY, b"")[:35] + struct.pack("<I", STRING) + string(b"x" * 90, HUGE),
        GGUFFormatError,
        "at most 1048576",
        39,
    ),
    "string past the end": (
        gguf_file([string("key") + struct.pack("<I", STRING) + string("x" * 90, 5000)]),
        GGUFTruncatedError,
        "value of 'key'",
        47,
    ),
    "string not UTF-8": (one_value(STRING, b"a\xc3("), GGUFFormatError, "not valid UTF-8", 48),
    "surrogate in a string": (
        one_value(STRING, b"\xed\xa0\x80"),
        GGUFFormatError,
        "not valid UTF-8",
        47,
    ),
    "array of arrays": (
        one_value(ARRAY, struct.pack("<IQ", ARRAY, 1) + array(UINT8, [1])),
        GGUFFormatError,
        "array of arrays",
        39,
    ),
    "unknown element type": (
        one_value(ARRAY, struct.pack("<IQ", 99, 1)),
        GGUFFormatError,
        "type 99",
        39,
    ),
    "huge array of numbers": (
        one_value(ARRAY, array(UINT64, [1], HUGE)),
        GGUFTruncatedError,
        f"{HUGE} elements",
        51,
    ),
    "huge array of strings": (
        one_value(ARRAY, array(STRING, ["a"], HUGE)),
        GGUFTruncatedError,
        f"{HUGE} strings",
        51,
    ),
    "giant string in an array": (
        one_value(ARRAY, struct.pack("<IQ", STRING, 2) + string("ab") + string("c", HUGE)),
        GGUFFormatError,
        "string 1 of the value of 'key'",
        61,
    ),
    "array string not UTF-8": (
        one_value(ARRAY, array(STRING, ["ok", b"a\xff"])),
        GGUFFormatError,
        "not valid UTF-8",
        70,
    ),
    "array with a bool of 3": (
        one_value(ARRAY, array(BOOL, [1, 3])),
        GGUFFormatError,
        "bool of value 3",
        39,
    ),
    "tensor name too long": (
        one_tensor("n" * 65, [8], F32, 0),
        GGUFFormatError,
        "at most 64",
        24,
    ),
    "tensor name empty": (one_tensor("", [8], F32, 0), GGUFFormatError, "empty name", 24),
    "tensor name not UTF-8": (
        one_tensor(b"\xff", [8], F32, 0),
        GGUFFormatError,
        "not valid UTF-8",
        32,
    ),
    "tensor twice": (
        gguf_file([], [*TINY, tensor_info("t", [8], F32, 32)], bytes(64)),
        GGUFFormatError,
        "'t' appears twice",
        57,
    ),
    "five dimensions": (
        one_tensor("t", [1] * 5, F32, 0),
        GGUFFormatError,
        "5 dimensions",
        24,
    ),
    "huge dimension count": (
        one_tensor("t", [1], F32, 0, n_dimensions=2**32 - 1),
        GGUFFormatError,
        "4294967295 dimensions",
        24,
    ),
    "zero dimension": (one_tensor("t", [8, 0], F32, 0), GGUFFormatError, "no elements", 24),
    "elements past 64 bits": (
        one_tensor("t", [2**40, 2**40], F32, 0),
        GGUFFormatError,
        "larger than any file",
        24,
    ),
    "elements that wrap to a small number": (
        one_tensor("t", [2**63, 2, 1, 8], F32, 0),
        GGUFFormatError,
        "larger than any file",
        24,
    ),
    "row not of whole blocks": (
        one_tensor("t", [48, 2], Q4_0, 0),
        GGUFFormatError,
        "blocks of 32",
        24,
    ),
    "scalar in blocks": (one_tensor("t", [], Q8_0, 0), GGUFFormatError, "rows of 1", 24),
    "unknown tensor type": (one_tensor("t", [8], 1000, 0), GGUFTypeError, "type 1000", 24),
    "withdrawn tensor type": (one_tensor("t", [8], 31, 0), GGUFTypeError, "Q4_0_4_4", 24),
    "offset not aligned": (
        one_tensor("t", [8], F32, 16),
        GGUFFormatError,
        "not a multiple of 32",
        24,
    ),
    "offset past 64 bits": (
        one_tensor("t", [8], F32, 2**64 - 32),
        GGUFFormatError,
        "larger than any file",
        24,
    ),
    "tensor past the end": (
        gguf_file([], [tensor_info("t", [9], F32, 0)], bytes(35)),
        GGUFTruncatedError,
        "would end at byte 100",
        64,
    ),
    "tensors that overlap": (
        gguf_file([], [*TINY, tensor_info("u", [8], F32, 0)], bytes(64)),
        GGUFFormatError,
        "'t' and 'u' overlap",
        96,
    ),
    "tensor inside another": (
        gguf_file(
            [], [tensor_info("u", [8], F32, 32), tensor_info("t", [64], F32, 0)], bytes(256)
        ),
        GGUFFormatError,
        "'t' and 'u' overlap",
        128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_the_place_and_the_reason(case: str):
    """The reader of the message must know what to fix, and where."""
    data, kind, words, offset = BAD_FILES[case]

    with pytest.raises(GGUFError) as raised:
        read(data)

    assert type(raised.value) is kind
    assert words in str(raised.value)
    assert raised.value.offset == offset
    assert str(raised.value).startswith("memory: ")
    assert f"(at byte {offset})" in str(raised.value)


@pytest.mark.parametrize("case", [case for case in BAD_FILES if case != "tensor past the end"])
def test_a_bad_source_of_unknown_size_is_refused_too(case: str):
    """There is no size to check against: it must end in an error, never in a giant read."""
    data, kind, _, _ = BAD_FILES[case]

    with pytest.raises(GGUFError) as raised:
        read_header(UnsizedSource(data))

    assert type(raised.value) in (kind, GGUFTruncatedError, GGUFFormatError)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (UINT32, 0),
        (UINT32, 4),
        (UINT32, 24),
        (UINT32, 2**31),
        (UINT64, 2**63),
        (INT32, -32),
        (FLOAT32, 32.0),
        (BOOL, 1),
        (STRING, "32"),
        (ARRAY, array(UINT32, [32])),
    ],
)
def test_an_alignment_that_cannot_be_is_refused(kind: int, value: object):
    """Zero would divide by zero, others would read weights from the wrong place."""
    data = gguf_file([key_value("general.alignment", kind, value)], TINY, bytes(64))

    with pytest.raises(GGUFFormatError, match=r"general\.alignment is .*power of two") as raised:
        read(data)

    assert raised.value.offset == 24


def test_every_truncation_of_a_good_file_is_a_truncation():
    """A download that stopped must say so, at any byte."""
    data = gguf_file(
        [
            key_value("text", STRING, "some text"),
            key_value("words", ARRAY, array(STRING, ["a", "bc"])),
            key_value("numbers", ARRAY, array(INT32, [1, 2, 3])),
            key_value("flag", BOOL, 1),
        ],
        TWO_TENSORS,
        TWO_TENSORS_DATA,
    )
    read(data)

    for n_bytes in range(len(data)):
        with pytest.raises(GGUFTruncatedError):
            read(data[:n_bytes])
        cut = UnsizedSource(data[:n_bytes])
        if n_bytes < len(data) - len(TWO_TENSORS_DATA) - 31:
            with pytest.raises(GGUFTruncatedError):
                read_header(cut)


def test_control_characters_from_the_file_do_not_reach_the_message():
    """A message is printed on terminals and in logs."""
    data = one_tensor("\x1b[31m\n" + "x" * 50, [0], F32, 0)

    with pytest.raises(GGUFFormatError) as raised:
        read(data)

    assert "\x1b" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_long_name_is_shortened_in_the_message():
    """A key of 65,535 bytes would bury the rest of the message."""
    data = gguf_file([key_value("k" * 60_000, 99, b"")])

    with pytest.raises(GGUFFormatError) as raised:
        read(data)

    assert len(str(raised.value)) < 300


def many_strings(n_strings: int, text: str) -> bytes:
    body = struct.pack("<IQ", STRING, n_strings) + string(text) * n_strings
    return gguf_file([key_value("words", ARRAY, body)])


def many_numbers_and_strings(n_words: int) -> bytes:
    words = struct.pack("<IQ", STRING, n_words) + string("🚢bcdefgh") * n_words
    numbers = struct.pack("<IQ", UINT64, 3_000_000) + bytes(24_000_000)
    return gguf_file([key_value("words", ARRAY, words), key_value("numbers", ARRAY, numbers)])


# tracemalloc takes ten seconds for a million strings, so the kernel's count in a fresh process.
PEAK_OF_READING = """
import pathlib, sys
from plimsoll.errors import GGUFFormatError
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

with FileSource(sys.argv[1]) as source:
    before = status("VmRSS")
    try:
        read_header(source)
        outcome = "read"
    except GGUFFormatError as error:
        outcome = str(error)
print(status("VmHWM") - before)
print(outcome)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: many_strings(3_000_000, "ab"), "bytes of memory"),
        (lambda: many_strings(1_000_000, "🚢bcdefghijklmnop"), "bytes of memory"),
        (lambda: many_strings(31, "🚢" + "x" * 1_000_000), "bytes of memory"),
        (lambda: many_strings(31, "x" * 1_000_000), "read"),
        (lambda: many_strings(34, "x" * 1_000_000), "that a header may have"),
        (lambda: many_numbers_and_strings(260_000), "read"),
        (lambda: many_numbers_and_strings(400_000), "bytes of memory"),
    ],
    ids=["short", "wide", "long and wide", "long", "too long", "mixed", "mixed and too much"],
)
def test_no_header_takes_more_than_100_mb(make: Callable[[], bytes], outcome: str, tmp_path: Path):
    """A file of 32 MB must not take 200: the server's budget is often smaller than that."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(make())

    run = subprocess.run(
        [sys.executable, "-c", PEAK_OF_READING, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(reader.__file__).parents[2],
    )

    peak_bytes, said = run.stdout.splitlines()
    assert outcome in said
    assert int(peak_bytes) < 100e6


def test_a_vocabulary_of_half_a_million_words_is_read():
    """The limits must not refuse the largest vocabularies that models have."""
    data = many_strings(520_000, "▁wordpiece")

    assert len(read(data).metadata["words"]) == 520_000


def test_a_source_of_unknown_size_that_lies_about_its_counts_is_not_believed():
    """Without a size to check against, memory must follow the bytes that really come."""
    entry = key_value("words", ARRAY, array(STRING, ["a"], 4_000_000))
    data = gguf_file([entry], alignment=1)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFTruncatedError):
            read_header(UnsizedSource(data))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 5e6


def test_the_builder_s_numbers_are_gguf_py_s():
    """The builder is an oracle only as long as it is right itself."""
    for name in ("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL"):
        assert getattr(gguf_files, name) == gguf.GGUFValueType[name]
    for name in ("STRING", "ARRAY", "UINT64", "INT64", "FLOAT64"):
        assert getattr(gguf_files, name) == gguf.GGUFValueType[name]
    for name in ("F32", "F16", "Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        assert getattr(gguf_files, name) == gguf.GGMLQuantizationType[name]

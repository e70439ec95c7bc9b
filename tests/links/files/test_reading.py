"""Rows of files: nothing is lost, what is wrong says where, and memory is bounded."""

import gzip
import json
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.files.parquet import BATCH_BYTES, PAGE_BUFFER_BYTES
from plimsoll.links.files.paths import files_of
from plimsoll.links.files.reading import is_in, n_rows_of, read_rows
from plimsoll.links.files.rows import BadRow, Columns, FileRow, Place, Row
from plimsoll.policy.costs import MOST_LINE_BYTES

COLUMNS = Columns(vector="embedding")
N = 100
MIB = 1 << 20


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    """What is no text is written as JSON; gzip by the name."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def records(n: int = N) -> list[dict[str, Any]]:
    return [
        {"id": f"r{k}", "text": f"text {k}", "year": 1800 + k, "embedding": [k, 0.5, -k]}
        for k in range(n)
    ]


def write(path: Path, n: int = N) -> Path:
    """The records, as what the name says."""
    if path.suffix != ".parquet":
        return write_lines(path, records(n))
    table = pa.Table.from_pylist(records(n))
    parquet.write_table(table, path, row_group_size=30)
    return path


def read(*names: Path, columns: Columns = COLUMNS, after: Place | None = None) -> list[Row]:
    return list(read_rows(files_of(*map(str, names)), columns, after))


def good(rows: Sequence[Row]) -> list[FileRow]:
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, FileRow)]


def whys(rows: Sequence[Row]) -> dict[int, str]:
    """By the number of the row, why it is none."""
    return {row.place.n_rows: row.why for row in rows if isinstance(row, BadRow)}


KINDS = ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"]


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_a_document_with_its_vector_and_the_rest_as_metadata(tmp_path: Path, name: str):
    rows = good(read(write(tmp_path / name)))

    assert [row.document.id for row in rows] == [f"r{k}" for k in range(N)]
    assert rows[7].document.text == "text 7"
    assert rows[7].document.metadata == {"year": 1807}
    assert rows[7].vector is not None
    assert rows[7].vector.dtype == np.float32
    assert rows[7].vector.tolist() == [7, 0.5, -7]


@pytest.mark.parametrize("name", KINDS)
def test_reading_goes_on_behind_any_row(tmp_path: Path, name: str):
    """Each row once, wherever a process was killed: between groups of rows, and inside them."""
    file = write(tmp_path / name)
    whole = read(file)

    for n in (1, 29, 30, 31, 32, 33, 64, N):
        place = whole[n - 1].place
        assert is_in(files_of(str(file)), place)
        assert [row.id for row in read(file, after=place)] == [row.id for row in whole[n:]]


def test_parts_of_a_folder_are_read_by_name_and_gone_on_with(tmp_path: Path):
    """As Spark writes them: with an empty file beside that says it has done."""
    for number in (2, 0, 1):
        lines = [{"id": f"{number}-{k}", "text": "t"} for k in range(3)]
        write_lines(tmp_path / f"part-{number}.jsonl", lines)
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-9.jsonl").write_text("hidden")
    (tmp_path / "part-9.jsonl.tmp").write_text("not whole")

    rows = good(read(tmp_path))
    by_pattern = good(read(tmp_path / "part-*.jsonl"))

    assert [row.id for row in rows] == [f"{n}-{k}" for n in range(3) for k in range(3)]
    assert [row.id for row in by_pattern] == [row.id for row in rows]
    assert [row.id for row in read(tmp_path, after=rows[3].place)] == [r.id for r in rows[4:]]


def test_a_place_is_none_any_more_once_a_file_before_it_is_another(tmp_path: Path):
    """Rows that came into it would be passed over."""
    first, last = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    place = read(tmp_path)[-1].place
    (tmp_path / "c.jsonl").touch()
    assert is_in(files_of(str(tmp_path)), place)

    write(first, N + 1)

    assert not is_in(files_of(str(tmp_path)), place)
    assert not is_in(files_of(str(last)), place)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_replaced_while_it_is_read_is_told(tmp_path: Path, name: str):
    """The rows that were read are whole; that others may be lacking must not stay unsaid."""
    file, other = write(tmp_path / name), write(tmp_path / f"other-{name}", N + 1)
    files = files_of(str(file))
    rows = list[Row]()

    def take() -> None:
        for row in read_rows(files, COLUMNS):
            rows.append(row)
            if len(rows) == 1:
                other.replace(file)

    with pytest.raises(OutsideUnavailableError, match="has changed while it was read"):
        take()
    assert [row.id for row in good(rows)] == [f"r{k}" for k in range(N)]


def test_a_bad_line_is_left_out_alone_and_says_why(tmp_path: Path):
    deep = '{"id": "deep", "text": "t", "m": ' + "[" * 600 + "]" * 600 + "}"
    file = write_lines(
        tmp_path / "rows.jsonl",
        [
            {"id": "a", "text": "first"},
            "no JSON",
            "",
            [1, 2],
            {"text": "without id"},
            {"id": True, "text": "t"},
            {"id": "", "text": "t"},
            {"id": "b"},
            {"id": "c", "text": None},
            {"id": "d", "text": 5},
            {"id": "long", "text": "x" * (2 * MOST_LINE_BYTES)},
            deep,
            '{"id": "half", "text": "\\ud800"}',
            {"id": 12, "text": "whole numbers are ids"},
            {"id": 13.0, "text": "so are these"},
            {"id": 13.5, "text": "and these are none"},
            {"id": "z", "text": "last"},
        ],
    )

    rows = read(file)

    assert [row.id for row in rows if isinstance(row, FileRow)] == ["a", "12", "13", "z"]
    told = whys(rows)
    assert sorted(told) == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16]
    assert "no JSON" in told[2]
    assert "no object" in told[4]
    assert "id is missing" in told[5]
    assert "id is empty" in told[7]
    assert told[8] == told[9] == "text is missing, and has to be a text"
    assert "text is of type int" in told[10]
    assert f"longer than {MOST_LINE_BYTES} bytes" in told[11]
    assert {row.id for row in rows if row.place.n_rows in (9, 10)} == {"c", "d"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("vector", "fault"),
    [
        ([1.0, None, 2.0], "embedding[1] is no finite float32 number"),
        ([1.0, float("inf")], "embedding[1] is no finite float32 number"),
        ([1e300], "embedding[0] is no finite float32 number"),
        ([], "embedding is no list of numbers"),
        (None, None),
    ],
)
def test_a_vector_that_is_none_leaves_the_document(
    tmp_path: Path, name: str, vector: list[Any] | None, fault: str | None
):
    """Its text can still be embedded; that its vector was left out is told."""
    if name == "rows.parquet":
        table = pa.table({"id": ["a"], "text": ["t"], "embedding": pa.array([vector], VECTORS[0])})
        parquet.write_table(table, tmp_path / name)
    else:  # Python's own writer writes NaN and Infinity, which JSON has not
        write_lines(tmp_path / name, [{"id": "a", "text": "t", "embedding": vector}])

    (row,) = good(read(tmp_path / name))

    assert row.vector is None
    assert row.fault == fault


VECTORS = [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16()),
           pa.list_(pa.int8())]  # fmt: skip


@pytest.mark.parametrize("kind", VECTORS, ids=str)
def test_vectors_of_any_kind_of_list_and_number_are_read(tmp_path: Path, kind: pa.DataType):
    values = [np.array([number, -1], np.float16) for number in range(40)]
    if pa.types.is_integer(kind.value_type) or pa.types.is_float64(kind.value_type):
        values = [value.tolist() for value in values]
    given = pa.array([*values, None], kind)
    table = pa.table({"id": range(41), "text": ["t"] * 41, "embedding": given})
    parquet.write_table(table, tmp_path / "rows.parquet")

    rows = good(read(tmp_path / "rows.parquet"))

    assert [row.vector.tolist() for row in rows[:40]] == [[number, -1] for number in range(40)]
    assert (rows[40].vector, rows[40].fault) == (None, None)
    assert [row.id for row in rows[:2]] == ["0", "1"]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_texts_of_every_type_that_others_write_are_read(tmp_path: Path, kind: pa.DataType):
    """Polars writes large or view strings, pandas categories as dictionaries."""
    column = pa.array(["b", "a", "b"]).cast(kind)
    parquet.write_table(pa.table({"id": range(3), "text": column}), tmp_path / "rows.parquet")

    rows = good(read(tmp_path / "rows.parquet", columns=Columns()))

    assert [row.document.text for row in rows] == ["b", "a", "b"]


def test_metadata_of_parquet_become_what_json_has(tmp_path: Path):
    """Nested ones too; times as ISO 8601 has them, those with a zone in UTC."""
    zone = timezone(timedelta(hours=2))
    row = {
        "id": "a",
        "text": "t",
        "when": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=zone),
        "day": date(2026, 1, 2),
        "price": Decimal("1.50"),
        "tags": [{"name": "x", "weights": [1, 2]}],
        "missing": None,
        "no_number": float("nan"),
    }
    table = pa.Table.from_pylist([row])
    stamps = pa.array([1_000_000_001], pa.timestamp("ns"))
    words = pa.array(["red"]).dictionary_encode()
    pairs = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    for name, column in {"nanoseconds": stamps, "word": words, "pairs": pairs}.items():
        table = table.append_column(name, column)
    parquet.write_table(table, tmp_path / "rows.parquet")

    (read_row,) = good(read(tmp_path / "rows.parquet", columns=Columns()))

    assert read_row.document.metadata == {
        "when": "2026-01-02T01:04:05.678901+00:00",
        "day": "2026-01-02",
        "price": 1.5,
        "tags": [{"name": "x", "weights": [1, 2]}],
        "missing": None,
        "no_number": None,
        "nanoseconds": "1970-01-01T00:00:01",
        "word": "red",
        "pairs": {"k": 1},
    }


def test_metadata_may_be_named_and_may_be_one_column_of_objects(tmp_path: Path):
    """As exports have them: an object in JSON lines, its JSON in Parquet."""
    inner = {"year": 1876, "port": "Hull"}
    lines = write_lines(
        tmp_path / "rows.jsonl",
        [{"id": "a", "text": "t", "metadata": inner, "other": 1}, {"id": "b", "text": "t"}],
    )
    table = pa.table({"id": ["a"], "text": ["t"], "metadata": [json.dumps(inner)], "other": [1]})
    parquet.write_table(table, tmp_path / "rows.parquet")

    for file in (lines, tmp_path / "rows.parquet"):
        assert good(read(file, columns=Columns()))[0].document.metadata == {**inner, "other": 1}
        named = Columns(metadata=("metadata",))
        assert good(read(file, columns=named))[0].document.metadata == inner
        assert good(read(file, columns=Columns(metadata=())))[0].document.metadata == {}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (Columns(id="key"), "has no column 'key'; it has id, text, blob, embedding"),
        (Columns(), "the column 'blob' of"),
        (Columns(text="blob"), "is no text"),
        (Columns(vector="text", metadata=()), "is no vector"),
        (Columns(metadata=("colour",)), "has no column 'colour'"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, columns: Columns, told: str):
    table = pa.table({"id": ["a"], "text": ["t"], "blob": [b"x"], "embedding": [[1.0]]})
    parquet.write_table(table, tmp_path / "rows.parquet")

    with pytest.raises(OutsideMismatchError, match=told):
        read(tmp_path / "rows.parquet", columns=columns)


def test_a_text_in_parquet_that_is_no_utf_8_is_left_out(tmp_path: Path):
    raw = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    parquet.write_table(pa.table({"id": ["a", "b"], "text": raw}), tmp_path / "rows.parquet")

    rows = read(tmp_path / "rows.parquet", columns=Columns())

    assert [row.id for row in rows if isinstance(row, FileRow)] == ["a"]
    assert "utf-8" in whys(rows)[2]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rows.jsonl", r"rows.jsonl ends in the midst of line \d+"),
        ("rows.jsonl.gz", r"rows.jsonl.gz, behind line \d+: the gzip is cut off"),
        ("rows.parquet", "rows.parquet: cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_cut_off_is_told_behind_its_last_row(tmp_path: Path, name: str, told: str):
    """The rows before are given first. A Parquet file has its list of columns at its end."""
    file = write(tmp_path / name)
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    rows = list[Row]()

    with pytest.raises(OutsideMismatchError, match=told):
        rows.extend(read_rows(files_of(str(file)), COLUMNS))
    assert [row.id for row in good(rows)] == [f"r{k}" for k in range(len(rows))]


def test_a_damaged_group_of_rows_is_named_by_its_rows(tmp_path: Path):
    file = write(tmp_path / "rows.parquet")
    chunk = parquet.read_metadata(file).row_group(1).column(0)
    content = bytearray(file.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    file.write_bytes(content)
    rows = list[Row]()

    with pytest.raises(OutsideMismatchError, match="rows 31 to 60"):
        rows.extend(read_rows(files_of(str(file)), COLUMNS))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rows.jsonl", b'[{"id": "a", "text": "t"}]\n', "one array of JSON"),
        ("rows.csv", b"id,text\n", "of no kind that is read"),
        ("rows.parquet.gz", b"", "of no kind that is read"),
        ("rows.jsonl.gz", b"no gzip", "cut off or damaged"),
        ("rows.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str, content: bytes, told: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OutsideMismatchError, match=told):
        read(tmp_path / name)


def test_names_that_mean_nothing_are_told(tmp_path: Path):
    for name, told in (("none.jsonl", "No such file"), ("*.jsonl", "no file is called like")):
        with pytest.raises(OutsideMismatchError, match=told):
            files_of(str(tmp_path / name))
    with pytest.raises(OutsideMismatchError, match="holds no files"):
        files_of(str(tmp_path))
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.parquet")
    with pytest.raises(OutsideMismatchError, match="of two kinds"):
        files_of(str(tmp_path))


def test_how_many_rows_there_are_is_known_of_parquet_alone(tmp_path: Path):
    assert n_rows_of(files_of(str(write(tmp_path / "a.parquet")))) == N
    assert n_rows_of(files_of(str(write(tmp_path / "a.jsonl")))) is None


def test_one_huge_group_of_rows_takes_a_few_pages_of_memory(tmp_path: Path):
    """A group of 40 MiB of vectors, beside a long text that stands in its dictionary once."""
    n, dimensions = 20_000, 512
    numbers = np.random.default_rng(7).standard_normal(n * dimensions).astype(np.float32)
    long = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["x" * 100_000]))
    table = pa.table(
        {
            "id": pa.array(range(n)),
            "text": [f"a text of some length, number {number}" for number in range(n)],
            "long": long.cast(pa.string()) if n < 100 else long,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(numbers), dimensions),
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=n)
    first, last = numbers[:dimensions].tolist(), numbers[-dimensions:].tolist()
    del table, numbers, long
    before, most_bytes, seen = pa.total_allocated_bytes(), 0, 0

    for row in read_rows(files_of(str(tmp_path / "rows.parquet")), COLUMNS):
        assert isinstance(row, FileRow)
        assert row.vector is not None
        if seen in (0, n - 1):
            assert row.vector.tolist() == (last if seen else first)
        seen += 1
        if seen % 32 == 0:
            most_bytes = max(most_bytes, pa.total_allocated_bytes() - before)

    assert seen == n
    assert 0 < most_bytes < 2 * BATCH_BYTES + 4 * (PAGE_BUFFER_BYTES + 2 * MIB)


def test_a_line_of_a_hundred_megabytes_is_passed_over_in_pieces(tmp_path: Path):
    """And the one behind it is read; what is kept of it is no more than a line may have."""
    import tracemalloc

    file = tmp_path / "rows.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"id": "long", "text": "')
        for _ in range(100):
            stream.write(b"x" * MIB)
        stream.write(b'"}\n{"id": "next", "text": "t"}\n')
    tracemalloc.start()
    try:
        long, following = read(file)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert isinstance(long, BadRow)
    assert following.id == "next"
    assert read(file, after=long.place)[0].id == "next"
    assert most_bytes < 6 * MOST_LINE_BYTES

"""Read Parquet a few rows at a time, from groups of rows of any size.

A page is read whole, as its writer made it: about 1 MiB by default. It may name a long text often
that stands in its column's dictionary once, so few rows are spelled out at a time. Needs pyarrow,
the extra `parquet`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import IO, Any

import numpy as np

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.files.paths import SourceFile
from plimsoll.links.files.rows import BadRow, Columns, Place, Row, row_of

BATCH_BYTES = 4 << 20
MOST_BATCH_ROWS = 32
PAGE_BUFFER_BYTES = 256 << 10  # of each column


def arrow() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`. Raises OutsideMismatchError where they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as missing:
        raise OutsideMismatchError(
            "a Parquet file needs pyarrow, which is not installed: pip install pyarrow, or "
            "'.[parquet]' in a checkout"
        ) from missing
    return pyarrow, parquet


def n_parquet_rows(file: SourceFile) -> int:
    """How many rows a file says it has. Raises OutsideMismatchError."""
    _, parquet = arrow()
    with _told(str(file.path)):
        return int(parquet.read_metadata(file.path).num_rows)


def read_parquet(
    stream: IO[bytes], file: SourceFile, columns: Columns, start: Place | None = None
) -> Iterator[Row]:
    """The rows behind `start`.

    Raises OutsideMismatchError for columns that are not there or hold what is no document's, and,
    naming the rows, for a file that is cut off or damaged.
    """
    pa, parquet = arrow()
    name = str(file.path)
    with _told(name):
        metadata = parquet.read_metadata(stream)
        schema = metadata.schema.to_arrow_schema()
        fields = _fields(pa, schema, columns, name)
        opened = parquet.ParquetFile(
            stream,
            metadata=metadata,
            buffer_size=PAGE_BUFFER_BYTES,
            pre_buffer=False,
        )
    n_before, n_read = 0, start.n_rows if start else 0
    for group in range(metadata.num_row_groups):
        n_rows = metadata.row_group(group).num_rows
        if n_before + n_rows > n_read:
            where = f"{name}, rows {n_before + 1} to {n_before + n_rows}"
            for number, batch in _batches(opened, group, [field.name for field in fields], where):
                with _told(where):
                    plain = {f.name: _plain(pa, batch.column(f.name)) for f in fields}
                for row in range(max(0, n_read - n_before - number), batch.num_rows):
                    place = Place(name, file.stamp, n_before + number + row + 1)
                    yield _row(plain, row, columns, place)
        n_before += n_rows


def _batches(opened: Any, group: int, names: list[str], where: str) -> Iterator[tuple[int, Any]]:
    """Batches of a group's rows, each with how many rows of it are before."""
    chunks = opened.metadata.row_group(group)
    n_bytes = sum(
        chunk.total_uncompressed_size
        for chunk in map(chunks.column, range(chunks.num_columns))
        if chunk.path_in_schema.split(".")[0] in names
    )
    most_rows = BATCH_BYTES * chunks.num_rows // max(n_bytes, 1)
    n_before = 0
    with _told(where):
        for batch in opened.iter_batches(
            min(max(most_rows, 1), MOST_BATCH_ROWS), [group], names, use_threads=False
        ):
            yield n_before, batch
            n_before += batch.num_rows


def _row(plain: dict[str, Any], row: int, columns: Columns, place: Place) -> Row:
    try:
        values = {
            name: _vector(column[row]) if name == columns.vector else column[row].as_py()
            for name, column in plain.items()
        }
    except (ValueError, UnicodeDecodeError) as error:
        return BadRow(place, None, str(error))
    return row_of(values, columns, place)


def _vector(scalar: Any) -> np.ndarray | None:
    """A list's numbers; one that is missing is NaN. What is no list of numbers stays as it is."""
    if not scalar.is_valid:
        return None
    found: np.ndarray = scalar.values.to_numpy(zero_copy_only=False)
    return found


def _plain(pa: Any, column: Any) -> Any:
    """Times as Python has them: in microseconds, and those with a time zone in UTC."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz and "UTC"), safe=False)
    return column.cast(pa.time64("us"), safe=False) if pa.types.is_time64(kind) else column


def _fields(pa: Any, schema: Any, columns: Columns, name: str) -> list[Any]:
    """The columns that are read. Raises OutsideMismatchError."""
    named = [columns.id, columns.text, *([columns.vector] if columns.vector else [])]
    wanted = [*named, *(schema.names if columns.metadata is None else columns.metadata)]
    fields = []
    for column in dict.fromkeys(wanted):
        if schema.names.count(column) != 1:
            how_often = "no column" if column not in schema.names else "several columns called"
            raise OutsideMismatchError(
                f"{name} has {how_often} {column!r}; it has {', '.join(schema.names)}"
            )
        field = schema.field(column)
        if column == columns.vector:
            fits = _is_vector(pa, field.type)
        elif column in named:
            fits = _is_text(pa, field.type) or (column == columns.id and _is_number(pa, field.type))
        else:
            fits = _is_metadata(pa, field.type)
        if not fits:
            what = "vector" if column == columns.vector else "text"
            what = what if column in named else "metadata; name the columns that are to be"
            raise OutsideMismatchError(
                f"the column {column!r} of {name}, {field.type}, is no {what}"
            )
        fields.append(field)
    return fields


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _is_number(pa: Any, kind: Any) -> bool:
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating))


def _is_list(pa: Any, kind: Any) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _is_vector(pa: Any, kind: Any) -> bool:
    return _is_list(pa, kind) and _is_number(pa, kind.value_type)


def _is_metadata(pa: Any, kind: Any) -> bool:
    """Whether all of a type has a form in JSON."""
    types = pa.types
    if types.is_dictionary(kind) or _is_list(pa, kind):
        return _is_metadata(pa, kind.value_type)
    if types.is_struct(kind):
        return all(_is_metadata(pa, field.type) for field in kind)
    if types.is_map(kind):
        return _is_text(pa, kind.key_type) and _is_metadata(pa, kind.item_type)
    tests = (types.is_null, types.is_boolean, types.is_decimal, types.is_date, types.is_time)
    return (
        _is_text(pa, kind)
        or _is_number(pa, kind)
        or types.is_timestamp(kind)
        or any(test(kind) for test in tests)
    )


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Say of what Arrow refuses where it was."""
    pa, _ = arrow()
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutsideMismatchError(
            f"{where}: cannot be read as Parquet: {reason}; write the file anew"
        ) from error

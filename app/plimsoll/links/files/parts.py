"""Write documents and vectors to files: JSON lines, plain or in gzip, and Parquet.

A file appears under its name when it is whole and on the disk; until then it lies beside it with
".tmp" at its end. The same rows give the same bytes.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import orjson

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.files import is_disk_full, publish, temporary_of
from plimsoll.links.files.parquet import arrow
from plimsoll.links.files.paths import GZIP, kind_of
from plimsoll.links.files.rows import METADATA, Columns

GROUP_ROWS = 1024  # of a Parquet file
FULL_RETRY_S = 30.0
GZIP_BITS = 16 + zlib.MAX_WBITS  # of zlib: with gzip's head and end


@dataclass(frozen=True)
class PartRow:
    """What a row of a part holds. vector: float32 (dimensions,); metadata_json: an object."""

    id: str
    text: str
    metadata_json: str
    vector: np.ndarray | None


class RowWriter(Protocol):
    """Takes rows in order."""

    def write(self, rows: Sequence[PartRow]) -> None:
        """Add rows."""

    def finish(self) -> None:
        """Write what makes the file whole."""

    def abandon(self) -> None:
        """Write nothing more, not even when it is thrown away."""


@dataclass(frozen=True)
class Layout:
    """What parts are made of: columns by name, and which of text and metadata are there.

    dimensions: of every vector; None where there are no vectors.
    """

    columns: Columns
    dimensions: int | None
    has_text: bool = True
    has_metadata: bool = True

    def record(self, row: PartRow) -> dict[str, Any]:
        """A row's values by column; metadata as the JSON that they are."""
        record: dict[str, Any] = {self.columns.id: row.id}
        if self.has_text:
            record[self.columns.text] = row.text
        if self.has_metadata:
            record[METADATA] = row.metadata_json
        if self.columns.vector is not None:
            record[self.columns.vector] = row.vector
        return record


@contextmanager
def part(path: Path, layout: Layout) -> Iterator[RowWriter]:
    """A file that is there, whole, at the end of the `with` block, and not at all after an error.

    Raises OutsideUnavailableError where the disk is full, OutsideMismatchError where the folder
    cannot be written to.
    """
    temporary = temporary_of(path)
    with disk_refusals(path):
        try:
            with temporary.open("wb") as stream:
                rows = writer(stream, path, layout)
                try:
                    yield rows
                    rows.finish()
                except BaseException:
                    rows.abandon()
                    raise
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def writer(stream: IO[bytes], path: Path, layout: Layout) -> RowWriter:
    """Writes rows to a stream, of the kind that the ending of `path` says."""
    if kind_of(path) == "parquet":
        return ParquetGroups(stream, schema_of(layout), layout.record)
    return JsonLines(stream, layout, is_compressed=path.suffix == GZIP)


@contextmanager
def disk_refusals(path: Path) -> Iterator[None]:
    """Say which file the disk does not take, and what to do."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise OutsideUnavailableError(
                f"the disk filled up while {path} was written, which has been removed; files "
                "before it stay: make room and go on",
                retry_after_s=FULL_RETRY_S,
            ) from error
        raise OutsideMismatchError(f"cannot write {path}: {error.strerror or error}") from error


class JsonLines:
    """An object a line; numbers as short as float32 allows."""

    def __init__(self, stream: IO[bytes], layout: Layout, *, is_compressed: bool = False) -> None:
        """Write nothing yet."""
        self._layout = layout
        self._stream = stream
        # Its head has no time, which would make other bytes of the same rows.
        self._gzip = zlib.compressobj(wbits=GZIP_BITS) if is_compressed else None

    def write(self, rows: Sequence[PartRow]) -> None:
        """Write a line a row."""
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        for row in rows:
            record = self._layout.record(row)
            if METADATA in record and self._layout.has_metadata:
                record[METADATA] = orjson.Fragment(row.metadata_json)
            line = orjson.dumps(record, option=options)
            self._stream.write(self._gzip.compress(line) if self._gzip else line)

    def finish(self) -> None:
        """End the gzip."""
        if self._gzip is not None:
            self._stream.write(self._gzip.flush())

    def abandon(self) -> None:
        """Nothing is left to write."""


class ParquetGroups:
    """Records as Parquet, a group of rows at a time. Owns the rows of the next group."""

    def __init__(self, stream: IO[bytes], schema: Any, record: Any) -> None:
        """Write nothing yet. record: makes the values by column of what `write` is given."""
        self._record = record
        self._schema = schema
        self._rows = list[Mapping[str, Any]]()
        self._pyarrow, parquet = arrow()
        self._writer = parquet.ParquetWriter(stream, schema)

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in; a group is written once it is full."""
        for row in rows:
            self._rows.append(self._record(row))
            if len(self._rows) == GROUP_ROWS:
                self._write_group()

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Keep pyarrow from writing a footer to a file that may be closed by then."""
        self._writer.is_open = False

    def _write_group(self) -> None:
        if self._rows:
            table = self._pyarrow.Table.from_pylist(self._rows, schema=self._schema)
            self._writer.write_table(table)
            self._rows.clear()


def schema_of(layout: Layout) -> Any:
    """The columns of a layout as Arrow has them."""
    pa, _ = arrow()
    fields = [pa.field(layout.columns.id, pa.string(), nullable=False)]
    if layout.has_text:
        fields.append(pa.field(layout.columns.text, pa.string(), nullable=False))
    if layout.has_metadata:
        fields.append(pa.field(METADATA, pa.string(), nullable=False))
    if layout.columns.vector is not None:
        fields.append(
            pa.field(layout.columns.vector, pa.list_(pa.float32(), layout.dimensions or -1))
        )
    return pa.schema(fields)

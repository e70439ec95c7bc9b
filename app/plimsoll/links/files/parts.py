"""Write documents and vectors to files: JSON lines, plain or in gzip, and Parquet.

A file appears under its name when it is whole and on the disk; until then it lies beside it with
".tmp" at its end. The same rows give the same bytes.
"""

import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import orjson

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.files import is_disk_full, publish
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
def part(path: Path, layout: Layout, temporary: Path) -> Iterator[RowWriter]:
    """A file that is there, whole, at the end of the `with` block, and not at all after an error.

    temporary: where it lies until then, in the same folder. Raises OutsideUnavailableError where
    the disk is full, OutsideMismatchError where the folder cannot be written to.
    """
    with disk_refusals(path):
        try:
            with temporary.open("wb") as stream:
                rows = writer(stream, path, layout)
                yield rows
                rows.finish()
            publish(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def writer(stream: IO[bytes], path: Path, layout: Layout) -> RowWriter:
    """Writes rows to a stream, of the kind that the ending of `path` says."""
    if kind_of(path) == "parquet":
        return _ParquetPart(ParquetGroups(stream, schema_of(layout)), layout)
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


class ParquetGroups:
    """Records as Parquet, a group of rows at a time. Owns the records of the next group."""

    def __init__(self, stream: IO[bytes], schema: Any) -> None:
        """Write nothing yet. schema: of Arrow."""
        self._schema = schema
        self._records = list[Mapping[str, Any]]()
        self._pyarrow, parquet = arrow()
        self._writer = parquet.ParquetWriter(_UntilClosed(stream), schema)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in values by column; a group is written once it is full."""
        for record in records:
            self._records.append(record)
            if len(self._records) == GROUP_ROWS:
                self._write_group()

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        if self._records:
            table = self._pyarrow.Table.from_pylist(self._records, schema=self._schema)
            self._writer.write_table(table)
            self._records.clear()


class _ParquetPart:
    """Rows of a layout as Parquet."""

    def __init__(self, groups: ParquetGroups, layout: Layout) -> None:
        self._groups = groups
        self._layout = layout

    def write(self, rows: Sequence[PartRow]) -> None:
        self._groups.write(map(self._layout.record, rows))

    def finish(self) -> None:
        self._groups.finish()


class _UntilClosed(io.RawIOBase):
    """A stream that takes what comes once it is closed, and does nothing with it.

    A writer of pyarrow that is thrown away after an error still writes a footer.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data) if self._stream.closed else self._stream.write(data)


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

"""Where the rows of `plimsoll embed` go: JSON lines, a NumPy file or a Parquet file.

Each is written as rows come, in bounded memory. A file appears under its name when it is whole;
until then it lies beside it with ".tmp" at its end, under a name of its own: of two commands that
write one file at once the last one's stays, whole.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import click
import numpy as np

from plimsoll.cli.standard_output import STANDARD_OUTPUT, CannotWriteError, standard_output
from plimsoll.embedder import Row
from plimsoll.files import own_temporary_of
from plimsoll.links.files.parquet import arrow
from plimsoll.links.files.parts import ParquetGroups


class RowFile(Protocol):
    """Takes rows in order."""

    def write(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        """Add the rows of these texts."""

    def finish(self) -> None:
        """Write what makes it whole."""


@contextmanager
def row_file(output: str, dimensions: Callable[[], int]) -> Iterator[RowFile]:
    """What `--output` names, whole at the end of the `with` block; nothing of it after an error.

    dimensions: of every vector; asked once the first row is there.
    Raises click.UsageError for an ending that is not known, ClickException where it cannot write.
    """
    if output == STANDARD_OUTPUT:
        if sys.stdout is None:
            raise click.UsageError("standard output is closed: name a file with --output")
        yield JsonLines()
        return
    path = Path(output)
    kinds: dict[str, Callable[[IO[bytes], Callable[[], int]], RowFile]]
    kinds = {".npy": NumpyFile, ".parquet": ParquetFile}
    if path.suffix not in kinds:
        raise click.UsageError(f"--output {output}: write x.npy, x.parquet or -")
    temporary = own_temporary_of(path)
    with _failures_named(output):
        stream = temporary.open("wb")
    try:
        with stream:
            rows = _Named(output, kinds[path.suffix](stream, dimensions))
            yield rows
            rows.finish()
        with _failures_named(output):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class _Named:
    """Another one, whose failures name the file."""

    def __init__(self, name: str, rows: RowFile) -> None:
        self._name = name
        self._rows = rows

    def write(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        with _failures_named(self._name):
            self._rows.write(texts, rows)

    def finish(self) -> None:
        with _failures_named(self._name):
            self._rows.finish()


class JsonLines:
    """A line a row on standard output, which is flushed after every list."""

    def write(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        """Print the rows."""
        with standard_output() as output:
            for row in rows:
                output.write(json.dumps(_record(row), ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Nothing is left to write."""


class NumpyFile:
    """float32 (rows, dimensions); the row of a text without a vector is NaN."""

    def __init__(self, stream: IO[bytes], dimensions: Callable[[], int]) -> None:
        """Write nothing yet."""
        self._stream = stream
        self._dimensions = dimensions
        self._n_rows = 0

    def write(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        """Append the rows; the header that counts them is written again at the end."""
        if not self._n_rows:
            self._write_header()
        missing = np.full(self._dimensions(), np.nan, np.float32)
        for row in rows:
            vector = missing if row.vector is None else row.vector
            self._stream.write(vector.astype("<f4", copy=False).tobytes())
        self._n_rows += len(rows)

    def finish(self) -> None:
        """Write the header with the number of rows; NumPy leaves room for it to grow."""
        self._stream.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._n_rows, self._dimensions())
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)


class ParquetFile:
    """Columns index, text, embedding, error, truncated; a group of rows at a time."""

    def __init__(self, stream: IO[bytes], dimensions: Callable[[], int]) -> None:
        """Write nothing yet. Raises OutsideMismatchError without pyarrow."""
        arrow()
        self._stream = stream
        self._dimensions = dimensions
        self._groups: ParquetGroups | None = None

    def write(self, texts: Sequence[str], rows: Sequence[Row]) -> None:
        """Take the rows in; written once there are enough for a group."""
        self._opened().write(
            [
                {
                    "index": row.index,
                    "text": text,
                    "embedding": row.vector,
                    "error": row.error,
                    "truncated": row.truncated is not None,
                }
                for text, row in zip(texts, rows, strict=True)
            ]
        )

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._opened().finish()

    def _opened(self) -> ParquetGroups:
        if self._groups is None:
            pa, _ = arrow()
            schema = pa.schema(
                [
                    pa.field("index", pa.int64(), nullable=False),
                    pa.field("text", pa.string(), nullable=False),
                    pa.field("embedding", pa.list_(pa.float32(), self._dimensions())),
                    pa.field("error", pa.string()),
                    pa.field("truncated", pa.bool_(), nullable=False),
                ]
            )
            self._groups = ParquetGroups(self._stream, schema)
        return self._groups


def _record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"index": row.index}
    if row.vector is None:
        record["error"] = row.error
    else:
        record["embedding"] = [float(f"{value:.9g}") for value in row.vector]
    if row.truncated is not None:
        record["truncated"] = {"tokens": row.truncated.tokens, "kept": row.truncated.kept}
    return record


@contextmanager
def _failures_named(name: str) -> Iterator[None]:
    """Turn what the disk or the device refuses into one line."""
    try:
        yield
    except OSError as error:
        raise CannotWriteError(f"cannot write {name}: {error.strerror}") from error

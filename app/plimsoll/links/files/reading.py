"""Read rows of files one after another, from their beginning or from a place that was noted.

Memory is bounded, however large a file, a group of rows or a line is.
"""

from collections.abc import Iterator, Sequence

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.files.json_lines import read_json_lines
from plimsoll.links.files.parquet import n_parquet_rows, read_parquet
from plimsoll.links.files.paths import SourceFile
from plimsoll.links.files.rows import Columns, Place, Row


def read_rows(
    files: Sequence[SourceFile], columns: Columns, after: Place | None = None
) -> Iterator[Row]:
    """The rows in their order, each with the place behind it.

    after: a place in these files, see `is_in`. Raises OutsideUnavailableError where a file changes
    while it is read, and OutsideMismatchError where one cannot be read on; the rows before it have
    been given.
    """
    first = 0 if after is None else [str(file.path) for file in files].index(after.file)
    for file in files[first:]:
        start = after if after is not None and after.file == str(file.path) else None
        yield from _rows(file, columns, start)


def is_in(files: Sequence[SourceFile], place: Place) -> bool:
    """Whether a place is in one of these files, which are as they were up to this one."""
    return any((str(file.path), file.stamp) == (place.file, place.stamp) for file in files)


def n_rows_of(files: Sequence[SourceFile]) -> int | None:
    """How many rows there are, where the files say so themselves. Raises OutsideMismatchError."""
    if any(file.kind != "parquet" for file in files):
        return None
    return sum(n_parquet_rows(file) for file in files)


def _rows(file: SourceFile, columns: Columns, start: Place | None) -> Iterator[Row]:
    try:
        with file.path.open("rb") as stream:
            file.check_unchanged(file.path.stat())
            if file.kind == "parquet":
                yield from read_parquet(stream, file, columns, start)
            else:
                name = str(file.path)
                yield from read_json_lines(
                    stream, name, columns, start, file.stamp, is_compressed=file.is_compressed
                )
            file.check_unchanged(file.path.stat())
    except OSError as error:
        raise OutsideMismatchError(f"cannot read {file.path}: {error.strerror or error}") from error

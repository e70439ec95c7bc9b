"""Read JSON lines, plain or in gzip: an object a line, of which one that is wrong fails alone."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import orjson

from plimsoll.errors import OutsideMismatchError
from plimsoll.links.files.rows import BadRow, Columns, Place, Row, row_of
from plimsoll.policy.costs import MOST_LINE_BYTES

SKIPPED_BYTES = 64 << 10  # of a line that is too long, at a time
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json_lines(
    stream: IO[bytes],
    name: str,
    columns: Columns,
    start: Place | None = None,
    stamp: str = "",
    *,
    is_compressed: bool = False,
) -> Iterator[Row]:
    """The rows behind `start`; blank lines count and are none.

    Raises OutsideMismatchError, which names the line, for a file that ends in the midst of one, for
    damaged gzip, and for one whole array of JSON.
    """
    lines: IO[bytes] = gzip.GzipFile(fileobj=stream) if is_compressed else stream  # type: ignore[assignment]
    n_lines, offset = (start.n_rows, start.offset) if start else (0, 0)
    try:
        if offset:
            lines.seek(offset)
        while line := lines.readline(MOST_LINE_BYTES + 1):
            n_lines, offset = n_lines + 1, offset + len(line)
            if len(line) > MOST_LINE_BYTES and not line.endswith(b"\n"):
                offset += _skip_rest(lines)
                why = f"the line is longer than {MOST_LINE_BYTES} bytes"
                yield BadRow(Place(name, stamp, n_lines, offset), None, why)
            elif not line.isspace():
                yield _row(line, columns, Place(name, stamp, n_lines, offset))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OutsideMismatchError(
            f"{name}, behind line {n_lines}: the gzip is cut off or damaged ({error}); the lines "
            "before it have been read"
        ) from error


def _row(line: bytes, columns: Columns, place: Place) -> Row:
    if place.n_rows == 1:
        line = line.removeprefix(BYTE_ORDER_MARK)
        if line.lstrip().startswith(b"["):
            raise OutsideMismatchError(
                f"{place.file} is one array of JSON; write an object a line, as `jq -c '.[]'` does"
            )
    try:
        values = _parsed(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n"):
            raise OutsideMismatchError(
                f"{place.file} ends in the midst of line {place.n_rows}; the lines before it have "
                "been read: write the file whole and begin again"
            ) from error
        return BadRow(place, None, f"no JSON: {error}")
    if not isinstance(values, Mapping):
        return BadRow(place, None, f"no object of JSON, but {type(values).__name__}")
    return row_of(values, columns, place)


def _parsed(line: bytes) -> Any:
    """A line's value; NaN and Infinity too, which Python's own writer puts where JSON has none."""
    try:
        return orjson.loads(line)
    except ValueError:
        if b"NaN" in line or b"Infinity" in line:
            return json.loads(line)
        raise


def _skip_rest(lines: IO[Any]) -> int:
    """Read to the end of a line; returns how many bytes that were."""
    n_bytes = 0
    while piece := lines.readline(SKIPPED_BYTES):
        n_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return n_bytes

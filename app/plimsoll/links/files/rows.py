"""A row of a file as a document with its vector, or why it is none.

What a row's values mean is decided here, alike for every kind of file. A row that is wrong is left
out alone, and says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import orjson

from plimsoll.corpora.records import Document
from plimsoll.policy.costs import MOST_LINE_BYTES

METADATA = "metadata"
"""A column of this name that holds an object, or JSON of one, gives the object's own fields."""

# Whole numbers beyond may not be what was written before they became floating point.
MOST_WHOLE_FLOAT = 2.0**53


@dataclass(frozen=True)
class Columns:
    """Which columns a row's parts are in.

    vector: None where vectors are not wanted. metadata: those kept, None for all that are left.
    """

    id: str = "id"
    text: str = "text"
    vector: str | None = None
    metadata: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Place:
    """Where reading goes on: behind `n_rows` rows of a file.

    n_rows: of JSON lines every line counts. offset: of the next line, in bytes of what the file
    decompresses to. stamp: tells whether this file and those before it are as they were.
    """

    file: str
    stamp: str
    n_rows: int
    offset: int = 0

    @property
    def words(self) -> str:
        """The row that it is behind, for people."""
        return f"{self.file} row {self.n_rows}"


@dataclass(frozen=True)
class FileRow:
    """A document, and its vector, float32 (dimensions,), where it has one.

    place: behind the row. fault: what is wrong with a vector that was left out for it.
    """

    place: Place
    document: Document
    vector: np.ndarray | None
    fault: str | None = None

    @property
    def id(self) -> str:
        """The document's."""
        return self.document.id


@dataclass(frozen=True)
class BadRow:
    """A row that is left out. id: where it has one."""

    place: Place
    id: str | None
    why: str


Row: TypeAlias = FileRow | BadRow


class _ValueRefusedError(ValueError):
    """Ends in a BadRow, or in the fault of a vector."""


def row_of(values: Mapping[str, Any], columns: Columns, place: Place) -> Row:
    """The row of these values by column; a vector may be a list or an array."""
    row_id = None
    try:
        row_id = _id(values.get(columns.id), columns.id)
        text = _text(values.get(columns.text), columns.text)
        document = Document(row_id, text, _metadata(values, columns))
        _check_size(document)
    except _ValueRefusedError as error:
        return BadRow(place, row_id, str(error))
    except RecursionError:
        return BadRow(place, row_id, "the metadata are nested too deeply")
    if columns.vector is None:
        return FileRow(place, document, None)
    try:
        return FileRow(place, document, _vector(values.get(columns.vector), columns.vector))
    except _ValueRefusedError as error:
        return FileRow(place, document, None, str(error))


def _id(value: Any, column: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # Whole numbers beside one that is missing are floating point to many writers.
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_WHOLE_FLOAT:
        return str(int(value))
    raise _ValueRefusedError(f"{column} is {_told(value)}, and has to be a text or a whole number")


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _ValueRefusedError(f"{column} is {_told(value)}, and has to be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _ValueRefusedError(f"{column} is not UTF-8") from None
    return value


def _vector(value: Any, column: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        with np.errstate(over="ignore"):
            vector = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise _ValueRefusedError(f"{column} is no list of numbers") from None
    if vector.ndim != 1 or not len(vector) or isinstance(value, str):
        raise _ValueRefusedError(f"{column} is no list of numbers")
    if not np.isfinite(vector).all():
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise _ValueRefusedError(f"{column}[{at}] is no finite float32 number")
    return vector


def _metadata(values: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    used = {columns.id, columns.text, columns.vector}
    names = columns.metadata
    if names is None:
        names = tuple(name for name in values if name not in used)
    found = dict[str, Any]()
    for name in names:
        value = values.get(name)
        inner = _object_of(value) if name == METADATA else None
        if inner is None:
            found[name] = as_json_value(value)
        else:
            found |= {key: as_json_value(each) for key, each in inner.items()}
    if columns.metadata is None and found.get(METADATA, 0) is None:
        del found[METADATA]  # a document without any
    return found


def _object_of(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def as_json_value(value: Any) -> Any:
    """A value as JSON has it: times in ISO 8601, decimals as numbers, no NaN."""
    match value:
        case float() if not math.isfinite(value):
            return None  # which is how many writers write a value that is missing
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return float(value) if value.is_finite() else None
        case dict():
            return {str(key): as_json_value(each) for key, each in value.items()}
        case [tuple(), *_]:  # a map, as Arrow gives it
            return {str(key): as_json_value(each) for key, each in value}
        case list():
            return [as_json_value(each) for each in value]
        case None | bool() | int() | float() | str():
            return value
    raise _ValueRefusedError(f"a value of type {type(value).__name__} is no metadata")


def _check_size(document: Document) -> None:
    try:
        n_bytes = len(document.text.encode()) + len(orjson.dumps(document.metadata))
    except (TypeError, ValueError) as error:  # deeper, or a number larger, than JSON is read here
        raise _ValueRefusedError(f"the metadata cannot be written as JSON: {error}") from None
    if n_bytes > MOST_LINE_BYTES:
        raise _ValueRefusedError(
            f"the document takes {n_bytes} bytes, and may take {MOST_LINE_BYTES}"
        )


def _told(value: Any) -> str:
    if value is None:
        return "missing"
    return "empty" if value == "" else f"of type {type(value).__name__}"

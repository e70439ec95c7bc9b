"""Conditions on a document's metadata: parsed from JSON, turned into SQL with bound values.

    {"year": 1876}                                  equal: a text, number, true, false or null
    {"year": {"$gte": 1870, "$lt": 1880}}           all of $eq $ne $gt $gte $lt $lte $in
    {"$or": [{"year": 1876}, {"port": {"$in": ["Hull", "Leith"]}}]}        or $and

A field is a key of the metadata itself; what is inside lists and objects is not looked at. Values
compare with their own kind alone, texts by their code points; true and false are no numbers. A
field that is not there equals null. Fields next to each other must all fit. Nothing that a client
sends stands in the SQL: names of fields and values are parameters.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plimsoll.errors import InvalidRequestError

# Each reads the metadata of every document.
MOST_COMPARISONS = 32
# Far below what SQLite takes: a million characters, a tree of a thousand floors.
MOST_SQL_CHARACTERS = 50_000
MOST_VALUES = 1000  # of one $in
MOST_VALUE_BYTES = 128 << 10  # of all together: SQLite keeps those of statements that it may repeat
MOST_DEPTH = 8
# SQLite takes a key in a path as it stands in the JSON, so what JSON escapes is found nowhere.
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_MOST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Condition:
    """A condition as SQL over the column `metadata`, which is 0 or 1, and the values it binds."""

    sql: str
    values: tuple[str | int | float, ...] = ()
    n_comparisons: int = 1


def parse_filter(filter_: Mapping[str, Any]) -> Condition:
    """What a filter means. Raises InvalidRequestError, which says where it is wrong."""
    condition = _all_of(filter_, depth=1)
    if len(condition.sql) > MOST_SQL_CHARACTERS:
        raise _refusal("it has too many values")
    if sum(map(_n_bytes, condition.values)) > MOST_VALUE_BYTES:
        raise _refusal(f"its names and values are longer than {MOST_VALUE_BYTES >> 10} KiB")
    return condition


def _all_of(filter_: object, depth: int) -> Condition:
    if not isinstance(filter_, Mapping):
        raise _refusal("each condition is an object")
    if depth > MOST_DEPTH:
        raise _refusal(f"more than {MOST_DEPTH} conditions inside each other")
    _check_number(len(filter_))
    parts = [_part(key, value, depth) for key, value in filter_.items()]
    return _joined(" AND ", parts)


def _part(key: str, value: object, depth: int) -> Condition:
    if key in ("$and", "$or"):
        if not isinstance(value, list) or not value:
            raise _refusal(f"{key} takes a list of conditions")
        _check_number(len(value))
        parts = [_all_of(part, depth + 1) for part in value]
        return _joined(" AND " if key == "$and" else " OR ", parts)
    if key.startswith("$"):
        raise _refusal(f"there is no {key}; between conditions stand $and and $or")
    if not key or _ESCAPED.search(key):
        raise _refusal("a field's name is empty, or holds a quote, a backslash or a line's end")
    path = f'$."{key}"'
    if isinstance(value, Mapping):
        if not value:
            raise _refusal(f"{key}: an object of operators is empty")
        parts = [_compared(path, key, operator, operand) for operator, operand in value.items()]
        return _joined(" AND ", parts)
    return _equal(path, key, value)


def _compared(path: str, key: str, operator: str, operand: object) -> Condition:
    if operator == "$eq":
        return _equal(path, key, operand)
    if operator == "$ne":
        return _negated(_equal(path, key, operand))
    if operator == "$in":
        return _in(path, key, operand)
    sign = _COMPARISONS.get(operator)
    if sign is None:
        known = ", ".join(("$eq", "$ne", *_COMPARISONS, "$in"))
        raise _refusal(f"{key}: there is no {operator}; there are {known}")
    if isinstance(operand, bool) or not isinstance(operand, (str, int, float)):
        raise _refusal(f"{key}: {operator} compares with a text or a number")
    return _of_kind(path, sign, [operand])


def _equal(path: str, key: str, value: object) -> Condition:
    if value is None:
        return Condition("coalesce(json_type(metadata, ?), 'null') = 'null'", (path,))
    if isinstance(value, bool):
        kind = "true" if value else "false"
        return Condition(f"coalesce(json_type(metadata, ?), '') = '{kind}'", (path,))
    if not isinstance(value, (str, int, float)):
        raise _refusal(f"{key}: lists and objects are not compared; see $in")
    return _of_kind(path, "=", [value])


def _in(path: str, key: str, values: object) -> Condition:
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
        raise _refusal(f"{key}: $in takes a list of 1 to {MOST_VALUES} values")
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if _is_number(value)]
    parts = [_of_kind(path, "IN", same) for same in (texts, numbers) if same]
    others = [value for value in values if not isinstance(value, str) and not _is_number(value)]
    parts += [_equal(path, key, value) for value in others]
    return _joined(" OR ", parts)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_kind(path: str, sign: str, values: Sequence[str | int | float]) -> Condition:
    """A comparison with values of one kind, which is 0 where the field is of another or missing."""
    kinds = "('text')" if isinstance(values[0], str) else "('integer', 'real')"
    places = ", ".join("?" * len(values))
    return Condition(
        f"coalesce(json_type(metadata, ?) IN {kinds}"
        f" AND json_extract(metadata, ?) {sign} ({places}), 0)",
        (path, path, *map(_as_stored, values)),
    )


def _as_stored(value: str | int | float) -> str | int | float:
    """A whole number that is too large for SQLite's is what it reads out of JSON: a real one."""
    return float(value) if isinstance(value, int) and abs(value) > _MOST_INTEGER else value


def _negated(condition: Condition) -> Condition:
    return replace(condition, sql=f"NOT ({condition.sql})")


def _joined(word: str, parts: Sequence[Condition]) -> Condition:
    if not parts:
        return Condition("1")
    n_comparisons = sum(part.n_comparisons for part in parts)
    _check_number(n_comparisons)
    sql = word.join(f"({part.sql})" for part in parts)
    return Condition(sql, tuple(value for part in parts for value in part.values), n_comparisons)


def _check_number(n_comparisons: int) -> None:
    """Refuse too many as soon as they are known, before they are looked at."""
    if n_comparisons > MOST_COMPARISONS:
        raise _refusal(f"it has more than {MOST_COMPARISONS} comparisons")


def _n_bytes(value: str | int | float) -> int:
    return len(value.encode()) if isinstance(value, str) else 8


def _refusal(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"filter: {problem}", param="filter")

"""Filters: what they mean, compared with a reading in Python, and what is refused."""

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.corpora.documents import as_json
from plimsoll.corpora.filters import (
    MOST_COMPARISONS,
    MOST_DEPTH,
    MOST_VALUE_BYTES,
    MOST_VALUES,
    parse_filter,
)
from plimsoll.errors import InvalidRequestError

KEYS = st.sampled_from(["year", "port", "a.b", "ß", "'; DROP TABLE x; --", "no such"])
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers(-2, 2) | st.text(max_size=3)
METADATA = st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=2), max_size=4)
OPERATORS = st.dictionaries(
    st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBERS | st.text(max_size=3), min_size=1
) | st.fixed_dictionaries(
    {}, optional={"$eq": SCALARS, "$ne": SCALARS, "$in": st.lists(SCALARS, min_size=1, max_size=4)}
).filter(bool)


def n_scalars(filter_: object) -> int:
    """Of a filter, an empty one counted too: no fewer than its comparisons."""
    if isinstance(filter_, dict):
        return max(1, sum(map(n_scalars, filter_.values())))
    return sum(map(n_scalars, filter_)) if isinstance(filter_, list) else 1


FILTERS = st.recursive(
    st.dictionaries(KEYS, SCALARS | OPERATORS, max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3), min_size=1
    ),
    max_leaves=6,
).filter(lambda filter_: n_scalars(filter_) <= MOST_COMPARISONS)


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    yield connection
    connection.close()


def fits(connection: sqlite3.Connection, filter_: dict[str, Any], metadata: dict[str, Any]) -> bool:
    condition = parse_filter(filter_)
    query = f"SELECT {condition.sql} FROM (SELECT ? AS metadata)"
    # The values of the condition come first in the text.
    (answer,) = connection.execute(query, (*condition.values, as_json(metadata))).fetchone()
    assert answer in (0, 1)
    return bool(answer)


# --- an independent reading -----------------------------------------------------------------


def kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "text", type(None): "null"}.get(type(value), "other")


def as_sqlite(value: Any) -> Any:
    return float(value) if kind(value) == "number" and abs(value) > 2**63 - 1 else value


def compares(value: object, operator: str, operand: object) -> bool:
    value, operand = as_sqlite(value), as_sqlite(operand)
    if operator == "$in":
        return any(compares(value, "$eq", one) for one in operand)
    if operator == "$ne":
        return not compares(value, "$eq", operand)
    if kind(value) != kind(operand) or kind(value) == "other":
        return False
    if operator == "$eq":
        return value == operand
    if kind(value) == "text":  # by code points, which is the order of UTF-8
        value, operand = value.encode(), operand.encode()
    return {
        "$gt": value > operand,
        "$gte": value >= operand,
        "$lt": value < operand,
        "$lte": value <= operand,
    }[operator]


def reads(filter_: dict[str, Any], metadata: dict[str, Any]) -> bool:
    for key, wanted in filter_.items():
        if key == "$and":
            good = all(reads(part, metadata) for part in wanted)
        elif key == "$or":
            good = any(reads(part, metadata) for part in wanted)
        else:
            operators = wanted if isinstance(wanted, dict) else {"$eq": wanted}
            value = metadata.get(key)
            good = all(compares(value, sign, operand) for sign, operand in operators.items())
        if not good:
            return False
    return True


@settings(deadline=None)
@given(filter_=FILTERS, metadata=METADATA)
def test_a_filter_means_what_it_reads(
    connection: sqlite3.Connection, filter_: dict[str, Any], metadata: dict[str, Any]
):
    """Kinds, missing fields, numbers past 64 bits, names that look like SQL."""
    stored = json.loads(as_json(metadata))
    assert fits(connection, filter_, metadata) == reads(filter_, stored)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({}, True),
        ({"year": 1876}, True),
        ({"year": 1876.0}, True),
        ({"year": "1876"}, False),
        ({"year": True}, False),
        ({"lost": True}, True),
        ({"lost": 1}, False),
        ({"owner": None}, True),
        ({"none": None}, True),
        ({"none": {"$ne": 5}}, True),
        ({"none": {"$gt": 5}}, False),
        ({"port": {"$gte": "H", "$lt": "I"}}, True),
        ({"port": {"$in": ["Leith", None, "Hull"]}}, True),
        ({"year": 1876, "port": "Leith"}, False),
        ({"$or": [{"year": 1}, {"port": "Hull"}]}, True),
        ({"$and": [{"year": 1876}, {"port": "Hull"}], "lost": False}, False),
    ],
)
def test_examples(connection: sqlite3.Connection, filter_: dict[str, Any], expected: bool):
    metadata = {"year": 1876, "port": "Hull", "lost": True, "owner": None, "crew": [1]}
    assert fits(connection, filter_, metadata) == expected


@pytest.mark.parametrize(
    ("filter_", "said"),
    [
        ({"year": {"$near": 5}}, r"\$near"),
        ({"$not": []}, r"\$not"),
        ({"$or": []}, "list of conditions"),
        ({"$or": {"a": 1}}, "list of conditions"),
        ({"$and": [5]}, "object"),
        ({"year": {}}, "empty"),
        ({"year": [1]}, "lists and objects"),
        ({"year": {"$eq": {}}}, "lists and objects"),
        ({"year": {"$gt": None}}, "text or a number"),
        ({"year": {"$gt": True}}, "text or a number"),
        ({"year": {"$in": []}}, "1 to"),
        ({"year": {"$in": 5}}, "1 to"),
        ({"year": {"$in": list(range(MOST_VALUES + 1))}}, "1 to"),
        ({'a"b': 1}, "quote"),
        ({"": 1}, "empty"),
        ({str(n): n for n in range(MOST_COMPARISONS + 1)}, "comparisons"),
        ({"$or": [{"year": n} for n in range(MOST_COMPARISONS + 1)]}, "comparisons"),
        ({"$and": [{"$or": [{"year": 1}, {"year": 2}]}] * (MOST_COMPARISONS // 2 + 1)}, "comparis"),
        ({"port": "ä" * (MOST_VALUE_BYTES // 2)}, "KiB"),
        ({"ä" * (MOST_VALUE_BYTES // 4): "a"}, "KiB"),
    ],
)
def test_what_cannot_be_meant_is_refused(filter_: dict[str, Any], said: str):
    with pytest.raises(InvalidRequestError, match=said) as refusal:
        parse_filter(filter_)
    assert refusal.value.param == "filter"


def test_the_largest_filters_are_answered_and_larger_ones_refused(connection: sqlite3.Connection):
    """SQLite has limits of its own on a statement, which a client never meets."""
    deep: dict[str, Any] = {"year": 1}
    for _ in range(MOST_DEPTH - 1):
        deep = {"$or": [deep]}
    many = {"$or": [{"year": n} for n in range(MOST_COMPARISONS)]}
    wide = {"$or": [{"year": {"$in": list(range(MOST_VALUES))}} for _ in range(10)]}
    wider = {"$and": [wide] * 3}

    assert fits(connection, many, {"year": MOST_COMPARISONS - 1})
    assert not fits(connection, wide, {"year": -1})
    assert fits(connection, deep, {"year": 1})
    with pytest.raises(InvalidRequestError, match="inside each other"):
        parse_filter({"$or": [deep]})
    with pytest.raises(InvalidRequestError, match="too many"):
        parse_filter(wider)

"""JSON rendered a few items at a time is the JSON of one call."""

import json
import tracemalloc
from dataclasses import dataclass

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.edge.json_rendering import ITEMS_AT_ONCE, LongList, render_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(width=64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A record, as use cases give them."""

    index: int
    score: float


@given(
    before=VALUES,
    first=st.lists(VALUES, max_size=3 * ITEMS_AT_ONCE),
    between=VALUES,
    second=st.lists(VALUES, max_size=3),
)
def test_long_lists_render_as_plain_ones(
    before: object, first: list, between: object, second: list
):
    """Clients must not see how it was made: no other comma, no NUL of a text taken for a place."""
    plain = {"a": before, "b": first, "c": [between, {"d": second}], "e": []}
    long = {
        "a": before,
        "b": LongList(iter(first)),
        "c": [between, {"d": LongList(second)}],
        "e": LongList([]),
    }

    assert render_json(long) == orjson.dumps(plain)


@pytest.mark.parametrize("n", [0, 1, ITEMS_AT_ONCE, ITEMS_AT_ONCE + 1, 1000])
def test_vectors_and_records_render_wherever_the_cuts_are(n: int):
    """An item lost or doubled at a cut would shift all that come after it."""
    vectors = np.random.default_rng(0).standard_normal((n, 5)).astype(np.float32)
    rows = [Row(index, index / 3) for index in range(n)]

    found = json.loads(render_json({"vectors": LongList(vectors), "rows": LongList(rows)}))

    np.testing.assert_array_equal(np.array(found["vectors"], np.float32).reshape(n, 5), vectors)
    assert found["rows"] == [{"index": row.index, "score": row.score} for row in rows]


def test_what_json_does_not_have_is_no_answer():
    """A bug must not leave as something that looks like one."""
    with pytest.raises(TypeError):
        render_json({"a": object()})


@pytest.mark.parametrize("kind", ["vectors", "records"])
def test_rendering_takes_little_over_twice_its_result(kind: str):
    """Admission reserves that; what orjson returns for one record would keep 1 KiB of its own."""
    items = {
        "vectors": np.random.default_rng(0).standard_normal((1000, 384)).astype(np.float32),
        "records": [Row(index, index / 3) for index in range(100_000)],
    }[kind]
    tracemalloc.start()
    try:
        n_bytes = len(render_json(LongList(items)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 2.3 * n_bytes

"""What JSON costs: counted and predicted as the parsed tree has it, at little cost of its own."""

import json
import random
import sys
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.api.edge.json_cost import JSONCost, json_cost

MIB = 1 << 20
NO_LIMIT = 1 << 62

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.text(alphabet='\\"u[]{},: é東🚢'),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=30,
)


def n_values(tree: Any) -> int:
    if isinstance(tree, dict):
        return 1 + sum(1 + n_values(value) for value in tree.values())
    return 1 + sum(map(n_values, tree)) if isinstance(tree, list) else 1


def depth(tree: Any) -> int:
    if isinstance(tree, dict | list):
        items = tree.values() if isinstance(tree, dict) else tree
        return 1 + max(map(depth, items), default=0)
    return 0


def object_bytes(tree: Any) -> int:
    """What Python says of each object; none is thought of as shared."""
    inside = [*tree, *tree.values()] if isinstance(tree, dict) else tree
    items = inside if isinstance(tree, dict | list) else []
    return sys.getsizeof(tree) + sum(map(object_bytes, items))


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 9) | st.just(1 << 16))
def test_values_and_depth_are_those_of_the_parsed_tree(
    tree: Any, ascii_only: bool, indent: int | None, block_bytes: int
):
    """A bracket in a text is no list, also where a block ends in the text."""
    text = json.dumps(tree, ensure_ascii=ascii_only, indent=indent).encode()

    cost = json_cost(text, block_bytes=block_bytes)

    assert (cost.n_values, cost.depth) == (n_values(tree), depth(tree))


@given(VALUES, st.booleans(), st.integers(1, 9) | st.just(1 << 16))
def test_the_predicted_memory_is_never_below_what_the_objects_take(
    tree: Any, ascii_only: bool, block_bytes: int
):
    """Memory that was not foreseen is not reserved, and the kernel kills the server for it."""
    text = json.dumps(tree, ensure_ascii=ascii_only).encode()

    cost = json_cost(text, block_bytes=block_bytes)

    assert cost.parsed_bytes >= object_bytes(tree) + 16 * n_values(tree) + len(text)


@given(st.binary() | st.text(alphabet='\\"u[]{},:1 ').map(str.encode), st.integers(1, 5))
def test_text_that_is_no_json_has_a_cost_too(text: bytes, block_bytes: int):
    """The scan comes before the parser, so anything may come."""
    cost = json_cost(text, block_bytes=block_bytes)

    assert cost.parsed_bytes >= len(text)


def listed(*items: str, n_bytes: int = MIB) -> bytes:
    """A list of about `n_bytes`: the items, over and over."""
    text = ",".join(items)
    return f"[{','.join([text] * (n_bytes // len(text.encode())))}]".encode()


def traced_peak(work: Any, *arguments: Any) -> tuple[Any, int, int]:
    """Result, what it takes, and the most that was taken on the way."""
    tracemalloc.start()
    try:
        result = work(*arguments)
        return result, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


NUMBERS = random.Random(0)
SENTENCE = "The quick, brown fox: [jumps] over the lazy dog. " * 4
SHAPES = {
    "empty objects": (listed("{}"), 1.1),
    "empty lists": (listed("[]"), 1.1),
    "lists of lists": (listed("[[]]"), 1.25),
    "objects": (listed('{"a":"ship"}'), 2),  # orjson shares a key that it has seen
    "documents": (listed(f'{{"id":12345,"title":"{SENTENCE[:20]}","text":"{SENTENCE}"}}'), 1.6),
    "numbers": (listed(*(str(NUMBERS.randrange(10**6)) for _ in range(99))), 1.3),
    "long numbers": (listed("1234567890123456789", "-9.123456789012345e-99"), 1.4),
    "words": (listed('"ship"', '"harbour"', '"sea"'), 1.25),
    "texts": (listed(f'"{SENTENCE}"'), 1.1),
    "lines": (listed(json.dumps('some\nlines\t\\ of "text"\n' * 9)), 1.2),
    "one text": (f'["{SENTENCE * 5000}"]'.encode(), 1.01),
    "one text, one accent": (f'["{SENTENCE * 5000}é"]'.encode(), 1.01),
    "one text, one kanji": (f'["{SENTENCE * 5000}東"]'.encode(), 1.01),
    "one text, one emoji": (f'["{SENTENCE * 5000}🚢"]'.encode(), 1.01),
    "one text, one emoji at its start": (f'["🚢{SENTENCE * 5000}"]'.encode(), 1.01),
    "one text, one escaped emoji": (rf'["{SENTENCE * 5000}\ud83d\udea2"]'.encode(), 1.01),
    "one emoji among texts": (listed(f'"{SENTENCE}"', f'"{SENTENCE}"', '"🚢"'), 1.2),
    "Japanese": (listed('"東京は日本の首都です。"'), 1.2),
    "Japanese, escaped": (listed(json.dumps("東京は日本の首都です。" * 9)), 1.2),
    "many keys": (json.dumps({f"{i:x}": None for i in range(90_000)}).encode(), 1.6),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_prediction_is_what_the_parser_takes(shape: str):
    """Too little kills the server, too much turns clients away: tracemalloc is the judge."""
    text, most_ratio = SHAPES[shape]
    tree, tree_bytes, _ = traced_peak(orjson.loads, text)
    # orjson's own copy and notes, which it allocates larger than it ever touches.
    taken_bytes = tree_bytes + 16 * n_values(tree) + len(text)

    cost = json_cost(text)

    assert 0.99 <= cost.parsed_bytes / taken_bytes < most_ratio


@pytest.mark.parametrize(
    ("limits", "figure"),
    [
        (JSONCost(1000, NO_LIMIT, NO_LIMIT), "n_values"),
        (JSONCost(NO_LIMIT, 1, NO_LIMIT), "depth"),
        (JSONCost(NO_LIMIT, NO_LIMIT, 5 * MIB), "parsed_bytes"),
    ],
)
def test_a_scan_ends_where_a_limit_is_passed(limits: JSONCost, figure: str):
    """What is refused anyway must not take the time of the whole."""
    text = listed("{}", n_bytes=4 * MIB)

    cost = json_cost(text, limits)

    assert cost.exceeds(limits)
    assert getattr(cost, figure) > getattr(limits, figure)
    assert cost.n_values < 0.1 * json_cost(text).n_values


@pytest.mark.parametrize(
    "text",
    [listed("{}", n_bytes=4 * MIB), listed('""', n_bytes=4 * MIB), b'["' + b"\\" * 4 * MIB],
    ids=["objects", "texts", "backslashes"],
)  # fmt: skip
def test_a_scan_takes_no_memory_to_speak_of(text: bytes):
    """It comes before anything has been reserved for it."""
    _, _, peak_bytes = traced_peak(json_cost, text)

    assert peak_bytes < 4 * MIB

"""Whether two lists of judged queries ask the same."""

from typing import Any

import pytest

from plimsoll.migration.judged import judged_sha256

QUERIES = [
    {"query": "tea", "relevant": {"a": 2, "b": 1}, "old_vector": [1, 0.5]},
    {"query": "iron", "relevant": {"c": 1.0}},
]


def test_the_same_queries_are_the_same_however_they_are_written():
    """The server keeps them as it read them, with every field and numbers as it likes."""
    stored: list[dict[str, Any]] = [
        {"relevant": {"c": 1}, "old_vector": None, "query": "iron"},
        {"old_vector": [1.0, 0.5], "relevant": {"b": 1.0, "a": 2.0}, "query": "tea"},
    ]
    assert judged_sha256(stored) == judged_sha256(QUERIES)


@pytest.mark.parametrize(
    "changed",
    [
        {"query": "Tea"},
        {"relevant": {"a": 2, "b": 1.5}},
        {"relevant": {"a": 2, "c": 1}},
        {"old_vector": [1, 0.25]},
        {"old_vector": None},
    ],
)
def test_a_text_a_grade_or_a_vector_makes_another(changed: dict[str, Any]):
    """Going on by the wrong ones would give a verdict on what was not asked."""
    assert judged_sha256([{**QUERIES[0], **changed}, QUERIES[1]]) != judged_sha256(QUERIES)
    assert judged_sha256([*QUERIES, QUERIES[1]]) != judged_sha256(QUERIES)

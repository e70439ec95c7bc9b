"""Which requests are waited for."""

import pytest

from plimsoll.policy.priority import INTERACTIVE_TOKENS, Priority, priority_of


@pytest.mark.parametrize(
    ("n_tokens", "priority"),
    [
        (0, Priority.INTERACTIVE),
        (INTERACTIVE_TOKENS, Priority.INTERACTIVE),
        (INTERACTIVE_TOKENS + 1, Priority.BULK),
    ],
)
def test_a_request_is_bulk_above_what_one_sequence_takes(n_tokens: int, priority: Priority):
    """The documentation says the number, and clients that send no header rely on it."""
    assert priority_of(n_tokens) is priority


@pytest.mark.parametrize("asked", Priority)
def test_a_class_that_is_asked_for_counts_whatever_the_size(asked: Priority):
    assert {priority_of(n_tokens, asked) for n_tokens in (0, 10**6)} == {asked}

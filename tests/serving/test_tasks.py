"""A request that fails for one of its texts."""

import pytest

from plimsoll.errors import EmptyTextError, NonFiniteError, PlimsollError, TextTooLongError
from plimsoll.serving.tasks import TextFailure, raise_first


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("empty_text", EmptyTextError),
        ("too_long", TextTooLongError),
        ("non_finite", NonFiniteError),
    ],
)
def test_the_first_text_that_failed_is_named_by_an_error_of_its_kind(
    code: str, kind: type[PlimsollError]
):
    """A client branches by the code, and looks at the place."""
    failures = [TextFailure(7, "empty_text", "later"), TextFailure(2, code, "why")]

    with pytest.raises(kind, match=r"^documents\[2\]: why$") as failed:
        raise_first(failures, lambda index: f"documents[{index}]", param="documents")
    assert getattr(failed.value, "param", "documents") == "documents"


def test_without_failures_nothing_is_raised():
    """The common case."""
    raise_first([], lambda index: f"input[{index}]", param="input")

"""Requests of one class are served in turn, one text at a time."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.turns import Turns


@dataclass(eq=False)
class Text:
    request: object
    n_tokens: int = 1
    queued_at_s: float = 0.0
    is_dropped: bool = False


REQUESTS = st.lists(st.integers(0, 5), max_size=60)


def turns_of(requests: list[int]) -> Turns[Text]:
    turns: Turns[Text] = Turns(lambda first, text: True)
    for request in requests:
        turns.put(Text(request))
    return turns


@given(requests=REQUESTS, n_taken=st.integers(0, 60))
def test_texts_are_taken_in_the_order_in_which_they_are_looked_at(
    requests: list[int], n_taken: int
):
    """A run is cut by what was looked at, and then taken: the two must be the same texts."""
    turns = turns_of(requests)
    for _ in range(min(n_taken, len(requests))):
        turns.take()
    seen = list(turns.together())

    assert len(turns) == len(seen)
    assert not seen or turns.first is seen[0]
    assert turns.take(len(seen) // 2) == seen[: len(seen) // 2]
    assert [text for _ in seen for text in turns.take()] == seen[len(seen) // 2 :]
    assert not turns


@given(requests=REQUESTS)
def test_no_request_is_served_twice_while_another_one_waits(requests: list[int]):
    """A list of thousands beside a list of three must not make it wait for thousands."""
    turns, left = turns_of(requests), Counter(requests)
    since: dict[object, set[object]] = {}  # served since a request was
    while turns:
        request = turns.take()[0].request
        left[request] -= 1
        others = {other for other, n in left.items() if n and other != request}
        assert others <= since.get(request, others)
        since[request] = set()
        for served in since.values():
            served.add(request)

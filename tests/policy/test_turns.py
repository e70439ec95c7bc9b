"""Clients of one class are served in turn, and the requests of each, one text at a time."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.turns import Turns


@dataclass(eq=False)
class Text:
    request: object
    client: object = None
    n_tokens: int = 1
    queued_at_s: float = 0.0
    is_dropped: bool = False


REQUESTS = st.lists(st.integers(0, 5), max_size=60)
CLIENTS = st.integers(1, 3)  # whose requests they are, one after the other


def turns_of(requests: list[int], n_clients: int = 1) -> Turns[Text]:
    turns: Turns[Text] = Turns(lambda first, text: True)
    for request in requests:
        turns.put(Text(request, request % n_clients))
    return turns


@given(requests=REQUESTS, n_clients=CLIENTS, n_taken=st.integers(0, 60))
def test_texts_are_taken_in_the_order_in_which_they_are_looked_at(
    requests: list[int], n_clients: int, n_taken: int
):
    """A run is cut by what was looked at, and then taken: the two must be the same texts."""
    turns = turns_of(requests, n_clients)
    for _ in range(min(n_taken, len(requests))):
        turns.take()
    seen = list(turns.together())

    assert len(turns) == len(seen)
    assert not seen or turns.first is seen[0]
    assert turns.take(len(seen) // 2) == seen[: len(seen) // 2]
    assert [text for _ in seen for text in turns.take()] == seen[len(seen) // 2 :]
    assert not turns


@given(requests=REQUESTS, n_clients=CLIENTS, n_taken=st.integers(1, 60))
def test_texts_that_are_put_back_have_their_turns_again(
    requests: list[int], n_clients: int, n_taken: int
):
    """They were let in beside a run that found no memory for them, and have lost nothing by it."""
    turns = turns_of(requests, n_clients)
    seen = list(turns.together())
    taken = turns.take(n_taken)
    turns.put_back(taken)

    assert len(turns) == len(seen)
    first = turns.take(len({text.client for text in taken}))
    assert {text.client for text in first} == {text.client for text in taken}


@given(requests=REQUESTS, n_clients=CLIENTS)
def test_nothing_is_served_twice_while_another_of_its_kind_waits(
    requests: list[int], n_clients: int
):
    """A list of thousands beside a list of three must not make it wait for thousands, and a client
    of many lists not one of a single list."""
    served = list(iter_taken(turns_of(requests, n_clients)))

    check_turns([text.client for text in served])
    for client in range(n_clients):
        check_turns([text.request for text in served if text.client == client])


def iter_taken(turns: Turns[Text]) -> Iterator[Text]:
    while turns:
        yield from turns.take()


def check_turns(served: list[object]) -> None:
    """Between two turns of one, each of the others that still waits has had one."""
    left = Counter(served)
    since: dict[object, set[object]] = {}  # served since one was
    for one in served:
        left[one] -= 1
        others = {other for other, n in left.items() if n and other != one}
        assert others <= since.get(one, others)
        since[one] = set()
        for seen in since.values():
            seen.add(one)

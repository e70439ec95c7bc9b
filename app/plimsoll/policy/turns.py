"""Texts of one class, whose clients are served in turn, and the requests of each in turn. Pure."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeAlias, TypeVar


class WaitingText(Protocol):
    """A text in the queue.

    request: names those that came together. client: names those of one client, None: the server's
    own. is_dropped: its client wants nothing more of it.
    """

    @property
    def n_tokens(self) -> int: ...  # noqa: D102

    @property
    def queued_at_s(self) -> float: ...  # noqa: D102

    @property
    def request(self) -> object: ...  # noqa: D102

    @property
    def client(self) -> object: ...  # noqa: D102

    @property
    def is_dropped(self) -> bool: ...  # noqa: D102


T = TypeVar("T", bound=WaitingText)
Item = TypeVar("Item")
Part = TypeVar("Part", bound=Sized)

_Requests: TypeAlias = OrderedDict[object, deque[T]]


class Turns(Generic[T]):
    """Owns the texts of one class.

    Each client gives one text, then it is the next one's turn, however many requests each has;
    likewise each of its requests when the client's turn comes.

    belong_together: whether two texts may run together.
    starved_since_s: for how long the first text has found no room; None where it has not asked.
    """

    def __init__(self, belong_together: Callable[[T, T], bool]) -> None:
        self._belong_together = belong_together
        # None of them empty.
        self._by_client: OrderedDict[object, _Requests[T]] = OrderedDict()
        self._n_texts = 0
        self.starved_since_s: float | None = None

    def __len__(self) -> int:
        return self._n_texts

    @property
    def first(self) -> T:
        """The text whose turn it is."""
        requests = next(iter(self._by_client.values()))
        return next(iter(requests.values()))[0]

    def put(self, text: T) -> None:
        """Let a text wait behind those of its request."""
        self._requests_of(text).setdefault(text.request, deque()).append(text)
        self._n_texts += 1

    def put_back(self, texts: Sequence[T]) -> None:
        """Let texts that were taken wait again, first of their requests and of all."""
        for text in reversed(texts):
            requests = self._requests_of(text)
            requests.setdefault(text.request, deque()).appendleft(text)
            requests.move_to_end(text.request, last=False)
            self._by_client.move_to_end(text.client, last=False)
        self._n_texts += len(texts)

    def together(self) -> Iterator[T]:
        """Texts that may run with the first one, and that one, in the order of their turns."""
        if not self._by_client:
            return iter(())
        first = self.first

        def fitting(texts: Iterable[T]) -> Iterator[T]:
            return takewhile(lambda text: self._belong_together(first, text), texts)

        return _in_turn(
            _in_turn(fitting(texts) for texts in requests.values())
            for requests in self._by_client.values()
        )

    def take(self, n_texts: int = 1) -> list[T]:
        """Take so many of `together` out; what is left behind has its turn sooner."""
        taken = list(islice(self.together(), n_texts))
        for text in taken:
            requests = self._by_client[text.client]
            requests[text.request].popleft()
            _pass_on(requests, text.request)
            _pass_on(self._by_client, text.client)
        self._n_texts -= len(taken)
        return taken

    def _requests_of(self, text: T) -> _Requests[T]:
        return self._by_client.setdefault(text.client, OrderedDict())


def _in_turn(sources: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """An item of each source, then the next one of each, until all have ended."""
    waiting = deque(sources)
    while waiting:
        source = waiting.popleft()
        for item in islice(source, 1):
            yield item
            waiting.append(source)


def _pass_on(turns: OrderedDict[object, Part], name: object) -> None:
    """It is the next one's turn; what has nothing left has none."""
    if turns[name]:
        turns.move_to_end(name)
    else:
        del turns[name]

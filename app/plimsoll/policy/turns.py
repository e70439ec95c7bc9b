"""Texts of one class, with the requests that they belong to served in turn. Pure."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Generic, Protocol, TypeVar


class WaitingText(Protocol):
    """A text in the queue.

    request: names those that came together. is_dropped: its client wants nothing more of it.
    """

    @property
    def n_tokens(self) -> int: ...  # noqa: D102

    @property
    def queued_at_s(self) -> float: ...  # noqa: D102

    @property
    def request(self) -> object: ...  # noqa: D102

    @property
    def is_dropped(self) -> bool: ...  # noqa: D102


T = TypeVar("T", bound=WaitingText)


class Turns(Generic[T]):
    """Owns the texts of one class. Each request gives one text, then it is the next one's turn.

    belong_together: whether two texts may run together.
    starved_since_s: for how long the first text has found no room; None where it has not asked.
    """

    def __init__(self, belong_together: Callable[[T, T], bool]) -> None:
        self._belong_together = belong_together
        self._by_request: OrderedDict[object, deque[T]] = OrderedDict()  # none of them empty
        self._n_texts = 0
        self.starved_since_s: float | None = None

    def __len__(self) -> int:
        return self._n_texts

    @property
    def first(self) -> T:
        """The text whose turn it is."""
        return next(iter(self._by_request.values()))[0]

    def put(self, text: T) -> None:
        """Let a text wait behind those of its request."""
        self._by_request.setdefault(text.request, deque()).append(text)
        self._n_texts += 1

    def put_back(self, texts: Sequence[T]) -> None:
        """Let texts that were taken wait again, first of their requests and of all."""
        for text in reversed(texts):
            self._by_request.setdefault(text.request, deque()).appendleft(text)
            self._by_request.move_to_end(text.request, last=False)
        self._n_texts += len(texts)

    def together(self) -> Iterator[T]:
        """Texts that may run with the first one, and that one, in the order of their turns."""
        waiting = list(self._by_request.values())
        for place in count():
            waiting = [
                texts
                for texts in waiting
                if place < len(texts) and self._belong_together(self.first, texts[place])
            ]
            if not waiting:
                return
            yield from [texts[place] for texts in waiting]

    def take(self, n_texts: int = 1) -> list[T]:
        """Take so many of `together` out; requests that are left behind have their turn sooner."""
        taken = list(islice(self.together(), n_texts))
        for text in taken:
            texts = self._by_request[text.request]
            texts.popleft()
            if texts:
                self._by_request.move_to_end(text.request)
            else:
                del self._by_request[text.request]
        self._n_texts -= len(taken)
        return taken

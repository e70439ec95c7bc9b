"""Render JSON of plain values and float32 arrays, long lists a few items at a time.

orjson holds the interpreter's lock for the length of a call, 90 ms for 4,000 vectors of 768, and in
a thread no less. Between two calls the event loop can run, and `bytes.join` gives the lock up.
"""

from collections.abc import Iterable
from itertools import islice

import orjson

# Stands where a long list belongs. JSON escapes it in strings, so it is found nowhere else.
PLACE = b"\0"
ITEMS_AT_ONCE = 32  # vectors of 768: 0.8 ms; of small records, enough to be worth a piece


class LongList:
    """A list of any length. Its items are made as they are rendered; they hold no LongList.

    Not a dataclass: orjson would render one by itself.
    """

    def __init__(self, items: Iterable[object]) -> None:
        self.items = items


def render_json(content: object) -> bytes:
    """JSON of `content`, each number as short as its type allows.

    Takes little over twice its result at its peak. Raises TypeError for what JSON does not have.
    """
    long_lists: list[LongList] = []

    def leave_place(value: object) -> orjson.Fragment:
        if not isinstance(value, LongList):
            raise TypeError
        long_lists.append(value)
        return orjson.Fragment(PLACE)

    options = orjson.OPT_SERIALIZE_NUMPY
    head, *rest = orjson.dumps(content, default=leave_place, option=options).split(PLACE)
    pieces = [head]
    for long_list, after in zip(long_lists, rest, strict=True):
        items = iter(long_list.items)
        pieces.append(b"[")
        while some := list(islice(items, ITEMS_AT_ONCE)):
            # A copy without the brackets, and of the right size: what orjson returns keeps 1 KiB
            # for an item of 30 bytes.
            pieces += (orjson.dumps(some, option=options)[1:-1], b",")
        if pieces[-1] == b",":
            pieces.pop()
        pieces += (b"]", after)
    return b"".join(pieces)

"""What a switch between two collections of an alias has to carry along, before it and behind it.

And the ids of points that were seen to change on the way, which are still to be taken in.
"""

from collections.abc import Callable, Iterator, Sequence

from qdrant_client import QdrantClient, models

from plimsoll.links.qdrant.catalog import Place, StoredCollection, find
from plimsoll.links.qdrant.copies import Copies
from plimsoll.links.qdrant.noted import NotedPoints
from plimsoll.links.qdrant.points import PointId
from plimsoll.links.records import Changes

MOST_CHANGED = 10_000
"""Ids that are kept as changed: beyond that all points are to be read again."""


class Carrying:
    """Owns the changed ids, what was copied for a switch, and what is to follow behind one.

    between_pages: called between two pages; may raise, and then all of it can be done again.
    """

    def __init__(self, place: Place, between_pages: Callable[[], None]) -> None:
        self._place = place
        self._between_pages = between_pages
        self._changed = dict[str, int]()  # id → mark, in the order in which they were seen
        self._last_mark = 0
        self._copied: Copies | None = None
        self._left: Copies | None = None

    @property
    def n_changed(self) -> int:
        """Points that were seen to change, and are not taken in yet."""
        return len(self._changed)

    def changes(self, most: int) -> Changes:
        """Up to so many of them."""
        some = dict(list(self._changed.items())[:most])
        return Changes([*some], [*some.values()])

    def forget(self, changes: Changes) -> None:
        """These have been taken in, unless they were seen to change again."""
        for each, mark in zip(changes.ids, changes.marks, strict=False):
            if self._changed.get(each) == mark:
                del self._changed[each]

    def forget_all(self) -> None:
        """All points are read again."""
        self._changed.clear()

    def copy(
        self, client: QdrantClient, source: StoredCollection, target: StoredCollection
    ) -> None:
        """Make the target like the source."""
        self.bring_late(client)
        if self._copied is not None:
            self._copied.noted.close()
        self._copied = Copies(self._place, source, target, NotedPoints())
        self._take_note(self._copied.copy_all(client))

    def note_pushed(self, source: str, target: str, records: Sequence[models.Record]) -> None:
        """These points of the source have been stored in the target as they are."""
        if self._copied is not None and self._copied.is_between(source, target):
            self._copied.note(records)

    def switched(self, source: str, target: str) -> None:
        """Others read and write the target from now on."""
        if self._copied is not None and self._copied.is_between(source, target):
            self._left, self._copied = self._copied, None

    def bring_late(self, client: QdrantClient) -> str | None:
        """Bring over what others wrote into the source while it was left; says what was done."""
        left = self._left
        if left is None:
            return None
        is_there = all(find(client, each.name) is not None for each in (left.source, left.target))
        n = self._take_note(left.copy_late(client)) if is_there else 0
        self._left = None
        left.noted.close()
        if not n:
            return None
        return (
            f"{n} points that others changed in {left.source.name} around the switch are in "
            f"{left.target.name} too"
        )

    def _take_note(self, seen: Iterator[Sequence[PointId]]) -> int:
        n = 0
        for ids in seen:
            for each in ids:
                self._last_mark += 1
                self._changed[str(each)] = self._last_mark
            n += len(ids)
            self._between_pages()
        return n

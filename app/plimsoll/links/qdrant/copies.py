"""Make one collection of an alias like another, but for our vector.

What others are to read after a switch has every point, with payload and other vectors, of what they
read until then. Points are compared by their ids, page by page, in no assumed order; a point
may be written again. A switch stops no writes, so what came into the collection that is
left while they were copied is brought over behind it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qdrant_client import QdrantClient, models

from plimsoll.links.qdrant.catalog import Place, StoredCollection
from plimsoll.links.qdrant.noted import NotedPoints
from plimsoll.links.qdrant.points import (
    PointId,
    asking_for,
    delete,
    digest_of,
    key_of,
    pages,
    retrieve,
    upsert,
    vector_of,
    with_vector,
)


@dataclass(frozen=True)
class Copies:
    """From one collection into another. noted: what the points of `source` were like when copied.

    Both methods yield after each page, so that they may be left: the ids of points that the target
    had otherwise until then.
    """

    place: Place
    source: StoredCollection
    target: StoredCollection
    noted: NotedPoints

    def is_between(self, source: str, target: str) -> bool:
        """Whether these are its collections."""
        return (self.source.name, self.target.name) == (source, target)

    def note(self, records: Iterable[models.Record]) -> None:
        """The target has these points of the source as they are."""
        for record in records:
            self.noted.put(key_of(record), digest_of(record, self.place.vector))

    def copy_all(self, client: QdrantClient) -> Iterator[list[PointId]]:
        """Give the target all points of the source, and leave none there that the source has not.

        A point of the target keeps our vector.
        """
        for page in self._pages(client):
            self.note(page)
            yield self._copy(client, page)
        for page in pages(client, self.target.name, payload=False, vectors=False):
            asked = [key_of(record) for record in page]
            there = retrieve(client, self.source.name, asked, payload=False)
            delete(client, self.target.name, [each for each in asked if each not in there])
            yield []

    def copy_late(self, client: QdrantClient) -> Iterator[list[PointId]]:
        """Bring over what others have written into the source since it was copied.

        What they have written into the target since is newer, and stays.
        """
        for page in self._pages(client):
            before = {key_of(record): self.noted.see(key_of(record)) for record in page}
            changed = [
                record
                for record in page
                if digest_of(record, self.place.vector) != before[key_of(record)]
            ]
            now = self._digests(client, [key_of(record) for record in changed])
            late = [
                record for record in changed if now.get(key_of(record)) == before[key_of(record)]
            ]
            yield self._copy(client, late)
        for gone in self.noted.unseen():
            there = self._digests(client, list(gone))
            late_ids = [each for each, digest in gone.items() if there.get(each) == digest]
            delete(client, self.target.name, late_ids)
            yield late_ids

    def _pages(self, client: QdrantClient) -> Iterator[list[models.Record]]:
        others = self.source.other_vectors(self.place.vector)
        return pages(client, self.source.name, payload=True, vectors=others or False)

    def _digests(self, client: QdrantClient, ids: list[PointId]) -> dict[PointId, bytes]:
        """Of points of the target, by id."""
        others = self.target.other_vectors(self.place.vector)
        there = retrieve(client, self.target.name, ids, vectors=others or False)
        return {each: digest_of(record, self.place.vector) for each, record in there.items()}

    def _copy(self, client: QdrantClient, page: list[models.Record]) -> list[PointId]:
        """Write what differs; returns the ids of that."""
        name = self.place.vector
        others = self.target.other_vectors(name)
        there = retrieve(client, self.target.name, map(key_of, page), vectors=others or False)
        differing = {key_of(record): record for record in page}
        for each, old in there.items():
            if digest_of(old, name) == digest_of(differing[each], name):
                del differing[each]
        self._write(client, differing)
        return [*differing]

    def _write(self, client: QdrantClient, records: dict[PointId, models.Record]) -> None:
        """Store records in the target, with the vector that it has of them."""
        name, dimensions = self.place.vector, self.target.vector(self.place).size
        asked = asking_for(name, self.target.other_vectors(name))
        there = retrieve(client, self.target.name, records, payload=False, vectors=asked)
        ours = {each: vector_of(old, name, dimensions) for each, old in there.items()}
        upsert(
            client,
            self.target.name,
            (with_vector(record, name, ours.get(each)) for each, record in records.items()),
        )

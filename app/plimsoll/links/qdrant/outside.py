"""A collection of Qdrant that an alias leads to, as the outside home of documents.

Vectors of another space go into a second collection, which Plimsoll makes beside the first; a
switch lets the alias lead there, at one moment for all that ask for the alias. Until then the
second has copies of the first one's points, and afterwards the other way round.

Qdrant tells no client of changes: all points are read again at times (see looks.py), and what
others wrote while a switch was prepared is brought over behind it (see copies.py).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Event
from time import monotonic

from qdrant_client import QdrantClient, models

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.outside import Having
from plimsoll.links.qdrant import catalog, survey, switching
from plimsoll.links.qdrant.carrying import MOST_CHANGED, Carrying
from plimsoll.links.qdrant.catalog import Place, StoredCollection
from plimsoll.links.qdrant.connection import QdrantConnection
from plimsoll.links.qdrant.looks import Looks
from plimsoll.links.qdrant.points import (
    id_of,
    retrieve,
    text_of,
    upsert,
    with_vector,
)
from plimsoll.links.qdrant.reading import PointReader
from plimsoll.links.records import Changes, OutgoingRow, OutsideRows, Pushed, Survey

INTERRUPTED_RETRY_S = 1.0


class QdrantOutside:
    """Owns what was seen to change, and what was copied for a switch. url, api_key: secrets."""

    def __init__(
        self,
        place: Place,
        url: str,
        api_key: str | None,
        every_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Open nothing yet. every_s: between two readings of all points, if they are quick."""
        self._place = place
        self._server = QdrantConnection(url, api_key, place.variable)
        self._surveying = QdrantConnection(url, api_key, place.variable)
        self._switching = QdrantConnection(url, api_key, place.variable, is_short=True)
        self._clock = clock
        self._looks = Looks(every_s, clock)
        self._reader = PointReader(place)
        self._interrupted = Event()
        self._carrying = Carrying(place, lambda: self._pause(0))

    def survey(self) -> Survey:
        """Read every point, and change nothing. See Outside."""
        with closing(self._surveying), self._surveying.client() as client:
            return survey.survey(
                client,
                self._place,
                self._carrying.n_changed,
                sends_key_in_the_clear=self._surveying.sends_key_in_the_clear,
            )

    def follow(self, active: Space, *, is_first: bool = False) -> None:
        """Note the space of the vectors with their collection. See Outside."""
        with self._look() as (client, found):
            survey.check(client, self._place, found)
            if is_first:
                self._check_alone(client, found)
            if found.fingerprint not in (None, active.fingerprint):
                raise OutsideMismatchError(
                    f"the vectors of the collection {found.name!r} are of {found.fingerprint!r}, "
                    f"as its metadata say, not of {active.fingerprint!r}"
                )
            size = found.vector(self._place).size
            if size != active.dimensions:
                raise OutsideMismatchError(
                    f"the collection {found.name!r} has vectors of {size} values, not vectors of "
                    f"{active.dimensions} values"
                )
            if found.fingerprint is None or found.alias != self._place.alias:
                catalog.note(client, self._place, found, active.fingerprint)

    def unfollow(self) -> None:
        """Nothing was done there but the note, which stays."""

    def claim(self, known: Collection[str], *, begins_anew: bool = False) -> bool:
        """Qdrant has no lock and no write under a condition, so a second server is not told."""
        return True

    def keep_claim(self) -> None:
        """There is none."""

    def active(self) -> str | None:
        """As the metadata of the collection say to which the alias leads."""
        with self._look() as (_, found):
            return found.fingerprint

    def page(self, position: str | None) -> OutsideRows:
        """The next points in the order of their ids; a position is the last id. See Outside."""
        with self._look() as (client, found):
            if position is None:
                self._looks.begin(_n_points(found))
            page = self._reader.behind(client, found, position)
            if page.position is None:
                self._looks.end()
            return page

    def changes(self, most: int) -> Changes:
        """Everything, when it is time to read it again; or what was seen while copying."""
        with self._look() as (_, found):
            is_too_much = self._carrying.n_changed > MOST_CHANGED
            if is_too_much or self._looks.is_due(_n_points(found)):
                self._carrying.forget_all()
                return Changes(marks=(0,), is_everything=True)
        return self._carrying.changes(most)

    def rows(self, ids: Sequence[str]) -> OutsideRows:
        """Points by their ids."""
        with self._look() as (client, found):
            return self._reader.of_ids(client, found, ids)

    def forget(self, changes: Changes) -> None:
        """These have been taken in, unless they were seen to change again."""
        self._carrying.forget(changes)

    def has_place(self, space: Space) -> bool:
        """Whether a collection is of this space, as its metadata say."""
        with self._look() as (client, found):
            there = catalog.of_space(client, self._place, found, space.fingerprint)
            return found.fingerprint == space.fingerprint or there is not None

    def prepare(self, space: Space) -> None:
        """Have a collection for the space, with the settings of the one that others read."""
        with self._look() as (client, found):
            if found.fingerprint != space.fingerprint:
                switching.make(client, self._place, found, space)

    def push(self, space: Space, rows: Sequence[OutgoingRow]) -> Pushed:
        """Store vectors of texts that are still the same. See Outside.

        In another collection than the one that others read, the payload goes along.
        """
        place = self._place
        with self._look() as (client, found):
            target = switching.existing(client, place, found, space)
            others = found.other_vectors(place.vector)
            asked = [id_of(row.id) for row in rows]
            now = retrieve(client, found.name, asked, vectors=others or False)
            fitting = [
                (row, now[id_of(row.id)])
                for row in rows
                if id_of(row.id) in now and text_of(now[id_of(row.id)], place.text) == row.text
            ]
            points = [with_vector(record, place.vector, row.vector) for row, record in fitting]
            if target.name != found.name:
                upsert(client, target.name, points)
                self._carrying.note_pushed(
                    found.name, target.name, [record for _, record in fitting]
                )
            elif points:
                ours = [
                    with_vector(_bare(record), place.vector, row.vector) for row, record in fitting
                ]
                client.update_vectors(
                    found.name,
                    [models.PointVectors(id=each.id, vector=each.vector) for each in ours],
                    wait=True,
                )
        stored = frozenset(row.id for row, _ in fitting)
        return Pushed(stored, frozenset(row.id for row in rows) - stored)

    def finish(self, space: Space, having: Having) -> None:
        """Make the collection of the space like the one that others read, and have it indexed.

        What changed meanwhile is told by `changes`. `having` is not asked: points without a
        document stay, and points that are gone are left out.
        """
        self._interrupted.clear()
        with self._look() as (client, found):
            target = switching.existing(client, self._place, found, space)
            if target.name == found.name:
                return
            self._carrying.copy(client, found, target)
            switching.wait_until_indexed(client, target.name, self._pause, self._clock)

    def switch(self, space: Space) -> str:
        """Let the alias lead to the collection of the space. See Outside.

        A server that hangs is found by the looks, which are given up soon. The change itself is
        given as long as any request: one that is done all the same would be ahead of the pointer.
        """
        with closing(self._switching), self._switching.client() as client:
            found = catalog.look(client, self._place)
            target = switching.existing(client, self._place, found, space)
        if target.name == found.name:
            return f"{self._place.words} led to {target.name}, of {space.fingerprint}, already"
        try:
            with self._server.client() as client:
                switching.point_to(client, self._place, target.name)
        except OutsideUnavailableError:  # the answer may be lost, and not the change
            with closing(self._switching), self._switching.client() as client:
                if catalog.look(client, self._place).fingerprint != space.fingerprint:
                    raise
        self._carrying.switched(found.name, target.name)
        return (
            f"{self._place.words} leads to {target.name}, of {space.fingerprint}, and {found.name} "
            "is kept"
        )

    def settle(self, having: Having) -> str | None:
        """Bring over what others wrote into the collection that a switch left. See Outside."""
        self._interrupted.clear()
        with self._server.client() as client:
            return self._carrying.bring_late(client)

    def drop_all_but(self, kept: Collection[str]) -> Sequence[str]:
        """Delete collections that are needed no more. See Outside.

        What others wrote there around a switch is brought over before.
        """
        self._interrupted.clear()
        with self._look() as (client, found):
            self._carrying.bring_late(client)
            return switching.drop_all_but(client, self._place, found, kept)

    def interrupt(self) -> None:
        """Have what reads many points end at the next page; a request ends at its timeout."""
        self._interrupted.set()

    def close(self) -> None:
        """Let go of the connection."""
        self._server.close()

    @contextmanager
    def _look(self) -> Iterator[tuple[QdrantClient, StoredCollection]]:
        """The client, and the collection that others read."""
        with self._server.client() as client:
            yield client, catalog.look(client, self._place)

    def _check_alone(self, client: QdrantClient, found: StoredCollection) -> None:
        for each in catalog.beside(client, self._place, found):
            raise OutsideMismatchError(
                f"{self._place.words} has a collection {each.name!r} beside it with vectors of "
                f"{each.fingerprint!r} from another server, or from before a data folder was lost: "
                "end the migration there, or put the folder back; if you need them no more, delete "
                "the collection"
            )

    def _pause(self, seconds: float) -> None:
        if self._interrupted.wait(seconds):
            raise OutsideUnavailableError(
                "reading Qdrant was interrupted: the server ends",
                retry_after_s=INTERRUPTED_RETRY_S,
            )


def _n_points(found: StoredCollection) -> int:
    return found.info.points_count or 0


def _bare(record: models.Record) -> models.Record:
    """A point without its other vectors."""
    return models.Record(id=record.id)

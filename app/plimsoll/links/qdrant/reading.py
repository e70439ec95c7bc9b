"""Points read as rows of a link: a page behind a position, or those of some ids."""

from collections.abc import Sequence

from qdrant_client import QdrantClient, models

from plimsoll.links.outside import PAGE_BYTES, PAGE_ROWS
from plimsoll.links.qdrant.catalog import Place, StoredCollection
from plimsoll.links.qdrant.points import (
    asking_for,
    id_of,
    key_of,
    retrieve,
    text_of,
    vector_of,
)
from plimsoll.links.records import OutsideRow, OutsideRows

FIRST_PAGE_ROWS = 32  # until it is known how long the texts are

# Of a vector's largest value. Qdrant itself brings vectors of a cosine collection to length 1.
ROUNDING_OF_COSINE = 1e-5
ROUNDING_OF_FLOAT16 = 2e-3


class PointReader:
    """Owns of how many points a page is: as many as their texts allow, as far as they were read."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._page_rows = FIRST_PAGE_ROWS
        self._last: str | None = None  # behind it there was nothing when it was read

    def behind(
        self, client: QdrantClient, collection: StoredCollection, position: str | None
    ) -> OutsideRows:
        """The next points in the order of their ids; a position is the last id.

        What comes behind the last point once that was read is left for the next pass: this one
        would have no end where others go on writing there.
        """
        if position is not None and position == self._last:
            return self._rows(collection, ())
        last = None if position is None else id_of(position)
        found, following = client.scroll(
            collection.name,
            limit=self._page_rows + 1,  # the first of them is the last that was read
            offset=last,
            with_payload=[self._place.text],
            with_vectors=self._asked(collection),
        )
        records = [record for record in found if key_of(record) != last][: self._page_rows]
        rows = self._fitting(collection, records)
        self._last = rows[-1].id if following is None and len(rows) == len(records) > 0 else None
        return self._rows(collection, rows, position=rows[-1].id if rows else None)

    def of_ids(
        self, client: QdrantClient, collection: StoredCollection, ids: Sequence[str]
    ) -> OutsideRows:
        """Points by their ids, of as many of the first ids as make a page."""
        asked = [id_of(each) for each in ids[: self._page_rows]]
        there = retrieve(
            client,
            collection.name,
            asked,
            payload=[self._place.text],
            vectors=self._asked(collection),
        )
        records = [there[each] for each in asked if each in there]
        rows = self._fitting(collection, records)
        n_looked_at = len(asked)
        if len(rows) < len(records):
            n_looked_at = asked.index(key_of(records[len(rows)]))
        return self._rows(collection, rows, left=ids[n_looked_at:])

    def _asked(self, collection: StoredCollection) -> bool | list[str]:
        return asking_for(self._place.vector, collection.other_vectors(self._place.vector))

    def _fitting(
        self, collection: StoredCollection, records: Sequence[models.Record]
    ) -> list[OutsideRow]:
        """Rows of the first records, as many as make a page, one at least."""
        rows, n_bytes = list[OutsideRow](), 0
        dimensions = collection.vector(self._place).size
        for record in records:
            text = text_of(record, self._place.text)
            n_bytes += len(text.encode()) if text is not None else 0
            if rows and n_bytes > PAGE_BYTES:
                self._page_rows = len(rows)
                return rows
            vector = vector_of(record, self._place.vector, dimensions)
            rows.append(OutsideRow(str(record.id), text, vector))
        self._page_rows = min(2 * self._page_rows, PAGE_ROWS)
        return rows

    def _rows(
        self,
        collection: StoredCollection,
        rows: Sequence[OutsideRow],
        position: str | None = None,
        left: Sequence[str] = (),
    ) -> OutsideRows:
        vector = collection.vector(self._place)
        rounding = 0.0
        if vector.datatype is models.Datatype.FLOAT16:
            rounding = ROUNDING_OF_FLOAT16
        elif vector.distance is models.Distance.COSINE:
            rounding = ROUNDING_OF_COSINE
        return OutsideRows(rows, collection.fingerprint, position, left, rounding)

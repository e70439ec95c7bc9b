"""A reading of files that is under way, page after page: it can go on behind a position.

A process that starts anew, or another one, goes on there too, unless the files have changed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import orjson

from plimsoll.errors import OutsideError
from plimsoll.links.files.paths import SourceFile
from plimsoll.links.files.reading import is_in, read_rows
from plimsoll.links.files.rows import Columns, Place, Row
from plimsoll.links.files.seen import SeenIds

log = logging.getLogger(__name__)


class OngoingReading:
    """Rows from a position on, each id once. Owns the open file and which ids have come.

    position: a place as JSON; None before the first row.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        columns: Columns,
        position: str | None,
        uninterrupted: Callable[[Iterator[Row]], Iterator[Row]],
    ) -> None:
        """Go on behind a position. uninterrupted: lets rows through until it is to end."""
        self.position = position
        self._seen = SeenIds()
        self._back = list[Row]()
        place = None if position is None else Place(**orjson.loads(position))
        if place is not None and not is_in(files, place):
            log.warning("%s or a file before it has changed: read from the first on", place.file)
            place = None
        if place is not None:
            ids_alone = Columns(columns.id, columns.text, metadata=())
            try:
                self._see_again(uninterrupted(read_rows(files, ids_alone)), place)
            except OutsideError:
                self._seen.close()
                raise
        self._rows = self._seen.once(uninterrupted(read_rows(files, columns, place)))

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        return self._back.pop() if self._back else next(self._rows)

    def passed(self, row: Row) -> None:
        """A row has been given on: behind it is the position now."""
        self.position = orjson.dumps(row.place).decode()

    def put_back(self, row: Row) -> None:
        """Give a row once more, next."""
        self._back.append(row)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
        self._seen.close()

    def _see_again(self, rows: Iterator[Row], place: Place) -> None:
        """Note the ids before a place."""
        for row in rows:
            if row.id is not None:
                self._seen.add(row.id)
            if row.place == place:
                return

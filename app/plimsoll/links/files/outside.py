"""Files as a collection's home: read where they lie, and written with new vectors in a folder.

The files themselves are never changed. The folder gets a set of parts for each space, with the rows
of the files in their order, and `current.json`, the pointer to the set that others read; without it
they read the files. Vectors on their way lie in the folder too, until they are all there.
`home.json` notes which space the vectors in the files are of, which files have been looked at, and
which server follows: where other files are there, all are read once more, and others get a set of
them.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from threading import Event

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideError, OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.configuration import FileLink
from plimsoll.links.files import manifest
from plimsoll.links.files.home import HomeNote
from plimsoll.links.files.inspection import survey_of
from plimsoll.links.files.ongoing import OngoingReading
from plimsoll.links.files.parts import disk_refusals
from plimsoll.links.files.paths import SourceFile, files_of
from plimsoll.links.files.reading import read_rows
from plimsoll.links.files.rows import Columns, FileRow, Row
from plimsoll.links.files.seen import SeenIds
from plimsoll.links.files.sets import SpaceFolder, folders_of_spaces, remove_space
from plimsoll.links.outside import PAGE_BYTES, PAGE_ROWS, Having
from plimsoll.links.records import Changes, OutgoingRow, OutsideRow, OutsideRows, Pushed, Survey
from plimsoll.links.server import ServerIdentity

INTERRUPTED_RETRY_S = 1.0
MOST_IDLE_S = 10.0
"""Between two looks where nothing changes: each asks for every file."""


class FileOutside:
    """Owns the reading that is under way, and the vectors on their way."""

    def __init__(self, link: FileLink, server: ServerIdentity) -> None:
        """Open nothing yet."""
        self._link = link
        self._home = HomeNote(link.folder, server)
        self._columns = Columns(link.id, link.text, link.vector, metadata=())
        self._reading: OngoingReading | None = None
        self._looked_at: str | None = None  # stamp of the files, when changes were asked for
        self._interrupted = Event()
        self._spaces = dict[str, SpaceFolder]()  # by fingerprint

    def survey(self) -> Survey:
        """Read all of the files. See Outside."""
        return survey_of(self._link, self._files, self._whole_columns, self.active())

    def follow(self, active: Space, *, is_first: bool = False) -> None:
        """Note the space of the files' vectors, and the files. See Outside.

        What the folder has of others was made here, and can be made again.
        """
        files = self._files()
        self._home.lock()
        noted = self.active()
        if noted not in (None, active.fingerprint):
            raise OutsideMismatchError(
                f"what others read of {self._link.folder} is of {noted}, as {manifest.POINTER} and "
                f"{manifest.HOME} there say, and not of {active.fingerprint}"
            )
        self._home.note(self._home.space or active.fingerprint, _stamp(files))

    def unfollow(self) -> None:
        """Nothing was done."""

    def claim(self, known: Collection[str], *, begins_anew: bool = False) -> bool:
        """Hold the folder's lock. See Outside."""
        space, active = self._home.space, self.active()
        if space is None:
            raise OutsideMismatchError(
                f"{self._link.folder} has no {manifest.HOME} any more: pull it again"
            )
        self._home.lock()
        if not self._home.is_anothers:
            return True
        if active not in known:
            raise OutsideMismatchError(
                f"others read vectors of {active!r} in {self._link.folder}, of which there are "
                "none here: another server has moved it. Unlink it here, and pull it under another "
                "name"
            )
        if begins_anew:
            self._home.note(space, _stamp(self._files()), takes_over=True)
        return begins_anew

    def keep_claim(self) -> None:
        """A lock lasts by itself."""

    def active(self) -> str | None:
        """What `current.json` says, or else the space of the files. See Outside."""
        pointer = manifest.read(self._link.folder / manifest.POINTER)
        return self._home.space if pointer is None else str(pointer["space"])

    def page(self, position: str | None) -> OutsideRows:
        """Rows of the files; see Outside. Those of files that have changed begin anew."""
        home, reading = self._home.space, self._reading
        if reading is None or position is None or reading.position != position:
            self._end_reading()
            self._interrupted.clear()
            reading = self._reading = OngoingReading(
                self._files(), self._columns, position, self._uninterrupted
            )
        rows, n_bytes = list[OutsideRow](), 0
        try:
            for row in reading:
                text = row.document.text if isinstance(row, FileRow) else None
                n_bytes += len(text.encode()) if text else 0
                if rows and n_bytes > PAGE_BYTES:
                    reading.put_back(row)
                    break
                reading.passed(row)
                if (found := self._outside_row(row)) is not None:
                    rows.append(found)
                if len(rows) == PAGE_ROWS:
                    break
        except OutsideError:
            self._end_reading()
            if not rows:
                raise  # else the next page comes here again, behind the rows of this one
        return OutsideRows(rows, home, reading.position if rows else None)

    def changes(self, most: int) -> Changes:
        """Everything, once one of the files is another than before."""
        self._looked_at = _stamp(self._files())
        if self._looked_at == self._home.files:
            return Changes()
        return Changes(marks=(0,), is_everything=True)

    def rows(self, ids: Sequence[str]) -> OutsideRows:
        """Never asked: no change of files names its rows."""
        raise NotImplementedError("files do not say which rows have changed")

    def forget(self, changes: Changes) -> None:
        """Note the files that were looked at."""
        space = self._home.space
        if changes.is_everything and space is not None and self._looked_at is not None:
            self._home.note(space, self._looked_at)

    def has_place(self, space: Space) -> bool:
        """Whether the space has a folder."""
        return space.fingerprint == self._home.space or self._space(space).is_there

    def prepare(self, space: Space) -> None:
        """Make the folder of a space. See Outside."""
        if space.fingerprint != self._home.space:
            self._space(space).make()

    def push(self, space: Space, rows: Sequence[OutgoingRow]) -> Pushed:
        """Keep vectors until all are there. See Outside.

        Those of the files' own space stay as they are there.
        """
        if space.fingerprint != self._home.space:
            self._space(space).pushed.put(rows)
        return Pushed(frozenset(row.id for row in rows))

    def finish(self, space: Space, having: Having) -> None:
        """Write the set of a space; see Outside.

        A row whose text is none that a vector was pushed of has none there.
        """
        if space.fingerprint != self._home.space:
            files = self._files()
            with closing(SeenIds()) as seen:
                self._interrupted.clear()
                rows = seen.once(self._uninterrupted(read_rows(files, self._whole_columns)))
                self._space(space).write(_stamp(files), rows, having)

    def switch(self, space: Space) -> str:
        """Change the pointer. See Outside."""
        folder = self._link.folder
        if space.fingerprint == self._home.space:
            with disk_refusals(folder / manifest.POINTER):
                manifest.point_to(folder, None)
            return f"{manifest.POINTER} removed from {folder}: the files themselves are read"
        chosen = self._space(space).latest()
        with disk_refusals(folder / manifest.POINTER):
            manifest.point_to(folder, chosen)
        return f"{folder / manifest.POINTER} points to {chosen}"

    def settle(self, having: Having) -> str | None:
        """Let others read a new set, where theirs lacks what came since. See Outside."""
        folder = self._link.folder
        pointer = manifest.read(folder / manifest.POINTER)
        if pointer is None:
            return None
        space = Space(pointer["space"], pointer["dimensions"], pointer["model"])
        self.finish(space, having)
        return None if self._space(space).latest() == pointer["set"] else self.switch(space)

    def drop_all_but(self, kept: Collection[str]) -> Sequence[str]:
        """Remove folders of spaces; the files stay. See Outside."""
        if self._home.is_anothers:
            return ()
        spared, done = {*kept, self.active()}, list[str]()
        for fingerprint, folder in folders_of_spaces(self._link.folder):
            if fingerprint not in spared:
                if (space := self._spaces.pop(fingerprint, None)) is not None:
                    space.close()
                with disk_refusals(folder):
                    remove_space(folder)
                done.append(f"{folder} removed")
        return done

    def interrupt(self) -> None:
        """Have what reads many rows end at the next one."""
        self._interrupted.set()

    def close(self) -> None:
        """Close every file."""
        self._end_reading()
        for space in self._spaces.values():
            space.close()
        self._home.close()

    def _uninterrupted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if self._interrupted.is_set():
                raise OutsideUnavailableError(
                    "the reading of files was interrupted: the server ends",
                    retry_after_s=INTERRUPTED_RETRY_S,
                )
            yield row

    @property
    def _whole_columns(self) -> Columns:
        return Columns(self._link.id, self._link.text, self._link.vector)

    def _files(self) -> list[SourceFile]:
        files = files_of(*self._link.files)
        kind = "parquet" if self._link.kind == "parquet" else "json"
        if files[0].kind != kind:
            raise OutsideMismatchError(f"{files[0].path} is not of the kind {self._link.kind}")
        folder = self._link.folder.resolve()
        for place in {file.path.parent for file in files}:
            if place.resolve().is_relative_to(folder):
                raise OutsideMismatchError(
                    f"{place} has files that are read, and lies in the folder of vectors, {folder}:"
                    " what is written there would be read again; name another folder"
                )
        return files

    def _outside_row(self, row: Row) -> OutsideRow | None:
        if not isinstance(row, FileRow):
            return None if row.id is None else OutsideRow(row.id, None, None)  # it is no document
        vector = row.vector
        if vector is not None and self._link.dimensions not in (None, len(vector)):
            vector = None
        return OutsideRow(row.id, row.document.text, vector)

    def _space(self, space: Space) -> SpaceFolder:
        if space.fingerprint not in self._spaces:
            self._spaces[space.fingerprint] = SpaceFolder(self._link, space)
        return self._spaces[space.fingerprint]

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None


def _stamp(files: Sequence[SourceFile]) -> str:
    """Tells whether all of them are as they were."""
    return files[-1].stamp

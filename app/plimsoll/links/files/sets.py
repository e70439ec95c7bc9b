"""The folder of one space: vectors on their way, and the sets of parts that are made of them.

There are two sets at most, of which readers may have the one while the other is written. A set that
was left in its midst is gone on with, part by part; the same rows and vectors give the same bytes.
"""

import hashlib
import logging
import re
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from plimsoll.corpora.documents import as_json
from plimsoll.corpora.records import Space, text_sha256
from plimsoll.errors import OutsideMismatchError
from plimsoll.files import sync, temporary_of
from plimsoll.links.configuration import FileLink
from plimsoll.links.files import manifest
from plimsoll.links.files.parts import Layout, PartRow, disk_refusals, part
from plimsoll.links.files.pushed import FILE_NAME, PushedVectors
from plimsoll.links.files.rows import Columns, FileRow, Row
from plimsoll.links.outside import PAGE_ROWS, Having

log = logging.getLogger(__name__)

PART_ROWS = 10_000
SET_NAMES = ("a", "b")
SPACE = "space.json"
ENDINGS = {"jsonl": ".jsonl", "parquet": ".parquet"}
MOST_NAME_CHARACTERS = 40


class SpaceFolder:
    """Owns the file of vectors that are on their way."""

    def __init__(self, link: FileLink, space: Space) -> None:
        """Open nothing yet."""
        self._home = link.folder
        self._space = space
        self._layout = Layout(Columns(link.id, link.text, link.vector), space.dimensions)
        self._ending = ENDINGS[link.kind]
        self.folder = link.folder / _name_of(space.fingerprint)
        self.pushed = PushedVectors(self.folder / FILE_NAME)

    @property
    def is_there(self) -> bool:
        """Whether the folder has been made."""
        return (self.folder / SPACE).exists()

    def make(self) -> None:
        """Have the folder. Raises OutsideMismatchError where that cannot be."""
        with disk_refusals(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            manifest.write(self.folder / SPACE, {"space": self._space.fingerprint})
            sync(self._home)

    def write(self, stamp: str, rows: Iterable[Row], having: Having) -> None:
        """Write a set of these rows, as far as it is not there. stamp: of the files they are from.

        Raises OutsideUnavailableError where the disk is full; parts that are there stay.
        """
        content = {
            "space": self._space.fingerprint,
            "model": self._space.model,
            "dimensions": self._space.dimensions,
            "files": stamp,
            "pushed": self.pushed.n_changes(),
        }
        target = self._set_of(content) or self._begin_set(content)
        if (target / manifest.MANIFEST).exists():
            return
        counted = _Counted(self._part_rows(rows, having))
        names = list[str]()
        for first in counted:
            names.append(f"part-{len(names):05d}{self._ending}")
            part_rows = chain((first,), islice(counted, PART_ROWS - 1))
            self._write_part(target / names[-1], part_rows)
            log.info("%s: %d rows in %d parts are there", target, counted.n_rows, len(names))
        described = manifest.read(target / manifest.DESCRIPTION) or content
        told = {"parts": names, "rows": counted.n_rows, "without_vector": counted.n_without}
        with disk_refusals(target):
            manifest.write(target / manifest.MANIFEST, described | told)
        if counted.n_without:
            log.warning(
                "%d of %d rows in %s have no vector", counted.n_without, counted.n_rows, target
            )

    def latest(self) -> str:
        """The newest whole set, as seen from the folder of all. Raises OutsideMismatchError."""
        whole = self._numbers(manifest.MANIFEST)
        if not whole:
            raise OutsideMismatchError(
                f"{self.folder} has no whole set: push the vectors of {self._space.fingerprint} "
                "first"
            )
        return f"{self.folder.name}/{whole[max(whole)]}"

    def close(self) -> None:
        """Let go of the file."""
        self.pushed.close()

    def _write_part(self, path: Path, rows: Iterator[PartRow]) -> None:
        """Write a part, unless it is there from an earlier try; the rows are used up either way."""
        if path.exists():
            deque(rows, maxlen=0)
            return
        with part(path, self._layout, temporary_of(path)) as writing:
            while some := list(islice(rows, PAGE_ROWS)):
                writing.write(some)

    def _set_of(self, content: dict[str, Any]) -> Path | None:
        """The newest set, as far as it is written, where it is of this content."""
        begun = self._numbers(manifest.DESCRIPTION)
        if not begun:
            return None
        newest = self.folder / begun[max(begun)]
        found = manifest.read(newest / manifest.DESCRIPTION) or {}
        return newest if content.items() <= found.items() else None

    def _numbers(self, file: str) -> dict[int, str]:
        """Names of the sets that have this file, by their numbers, which grow."""
        found = {name: manifest.read(self.folder / name / file) for name in SET_NAMES}
        return {each["number"]: name for name, each in found.items() if each is not None}

    def _begin_set(self, content: dict[str, Any]) -> Path:
        """Begin a set of this content in the place of the one that others do not read."""
        number = 1 + max(self._numbers(manifest.DESCRIPTION), default=0)
        pointed = manifest.current(self._home)
        free = next(n for n in SET_NAMES if f"{self.folder.name}/{n}" != pointed)
        target = self.folder / free
        with disk_refusals(target):
            # First, so that it is whole no more.
            (target / manifest.MANIFEST).unlink(missing_ok=True)
            if target.exists():
                shutil.rmtree(target)
            target.mkdir()
            manifest.write(target / manifest.DESCRIPTION, content | {"number": number})
        return target

    def _part_rows(self, rows: Iterable[Row], having: Having) -> Iterator[PartRow]:
        documents = (row.document for row in rows if isinstance(row, FileRow))
        while some := list(islice(documents, PAGE_ROWS)):
            there = having([document.id for document in some])
            for document in some:
                found = self.pushed.get(document.id) if document.id in there else None
                is_of_this = found is not None and found[0] == text_sha256(document.text)
                yield PartRow(
                    document.id,
                    document.text,
                    as_json(document.metadata),
                    found[1] if found is not None and is_of_this else None,
                )


def folders_of_spaces(home: Path) -> Iterator[tuple[str, Path]]:
    """Fingerprint and folder of every space that a folder was made for."""
    for described in sorted(home.glob(f"*/{SPACE}")):
        found = manifest.read(described)
        if found is not None:
            yield str(found["space"]), described.parent


def remove_space(folder: Path) -> None:
    """Remove such a folder; what says whose it is goes last, so that it is found again."""
    for each in sorted(folder.iterdir(), key=lambda path: path.name == SPACE):
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    folder.rmdir()


class _Counted:
    """Rows as they come. Owns how many there were, and how many without a vector."""

    def __init__(self, rows: Iterator[PartRow]) -> None:
        self._rows = rows
        self.n_rows = self.n_without = 0

    def __iter__(self) -> Iterator[PartRow]:
        return self

    def __next__(self) -> PartRow:
        row = next(self._rows)
        self.n_rows += 1
        self.n_without += row.vector is None
        return row


def _name_of(fingerprint: str) -> str:
    """A folder's name, different for every fingerprint."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", fingerprint)[:MOST_NAME_CHARACTERS].strip(".-")
    return f"{readable}-{hashlib.blake2b(fingerprint.encode(), digest_size=4).hexdigest()}"

"""Rows of files into a collection of a running server, in lists that may be sent again."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import click
import orjson

from plimsoll import Client
from plimsoll.cli import INTERRUPTED
from plimsoll.cli.collections import path_of
from plimsoll.cli.progress import progress_of
from plimsoll.corpora.records import FOREIGN_PREFIX
from plimsoll.errors import OutsideError, RefusedError, ServerError
from plimsoll.links.files.json_lines import read_json_lines
from plimsoll.links.files.paths import files_of
from plimsoll.links.files.reading import n_rows_of, read_rows
from plimsoll.links.files.rows import BadRow, Columns, FileRow, Place, Row
from plimsoll.links.files.seen import SeenIds

STANDARD_INPUT = "-"
LIST_DOCUMENTS = 128
LIST_BYTES = 4 << 20
NAMED_ROWS = 20  # of those left out
NOT_FOUND = 404
COUNTS = ("added", "updated", "unchanged")
FINGERPRINT_PREFIX = "v1:"


@dataclass(frozen=True)
class Target:
    """The collection that rows go to. space: of the vectors that come along."""

    client: Client
    collection: str
    space: str | None
    model: str | None

    def ensure(self, dimensions: int | None) -> None:
        """Have the collection. dimensions: of the vectors. Raises ServerError, UsageError."""
        path = path_of(self.collection)
        if self.model is not None:
            self.client.request("PUT", path, {"model": self.model})
            return
        try:
            self.client.request("GET", path)
        except RefusedError as refused:
            if refused.status != NOT_FOUND:
                raise
            self.client.request("PUT", path, self._wanted(dimensions))

    def send(self, lines: bytes) -> dict[str, Any]:
        """Store documents; waits for as long as the server has no room."""
        space = {} if self.space is None else {"space": self.space}
        path = path_of(self.collection, "/documents")
        return dict(self.client.request("POST", path, lines=lines, parameters=space))

    def _wanted(self, dimensions: int | None) -> dict[str, Any]:
        if self.space is None:
            return {}
        if self.space.startswith(FINGERPRINT_PREFIX):
            raise click.UsageError(
                f"{self.space} is the fingerprint of a model: name the --model that the collection "
                "is to be of"
            )
        if dimensions is None:
            raise click.UsageError(
                f"none of the first rows has a vector, so the size of {self.space!r} is not known: "
                "PUT the collection with its space and dimensions first"
            )
        return {"space": self.space.removeprefix(FOREIGN_PREFIX), "dimensions": dimensions}


class FileImport:
    """Owns the list that is made, and the counts of one command."""

    def __init__(self, target: Target, columns: Columns) -> None:
        """Read and send nothing yet."""
        self._target = target
        self._columns = columns
        self._places = list[Place]()
        self._lines = bytearray()
        self._dimensions: int | None = None
        self._has_collection = False
        self._counts = dict.fromkeys((*COUNTS, "left_out"), 0)
        self._named = list[str]()

    def run(self, names: Sequence[str], *, as_json: bool) -> None:
        """Send every row, say what became of them, and exit as that says."""
        rows, total = self._rows(names)
        is_interrupted = False
        try:
            with progress_of(self._target.collection, "documents") as progress:
                for row in rows:
                    self._take(row)
                    progress(sum(self._counts.values()), total, "import")
                self._send()
                progress(sum(self._counts.values()), total, "import")
        except OutsideError:  # the rows before it are whole
            self._send()
            self._tell(as_json)
            raise
        except ServerError:
            self._tell(as_json)
            raise
        except KeyboardInterrupt:
            is_interrupted = True
        self._tell(as_json)
        if is_interrupted:
            click.echo("plimsoll: interrupted; the same command goes on", err=True)
            sys.exit(INTERRUPTED)
        if self._counts["left_out"]:
            sys.exit(1)

    def _rows(self, names: Sequence[str]) -> tuple[Iterator[Row], int | None]:
        if STANDARD_INPUT not in names:
            files = files_of(*names)
            return _once(read_rows(files, self._columns)), n_rows_of(files)
        if len(names) > 1 or sys.stdin is None:
            raise click.UsageError('"-", standard input, stands alone, and has to be open')
        return _once(read_json_lines(sys.stdin.buffer, "standard input", self._columns)), None

    def _take(self, row: Row) -> None:
        if isinstance(row, BadRow):
            self._leave_out(row.place, row.why)
            return
        if row.fault is not None:
            self._leave_out(row.place, row.fault)
            return
        line = _line(row)
        if self._lines and len(self._lines) + len(line) > LIST_BYTES:
            self._send()
        self._places.append(row.place)
        self._lines += line
        if row.vector is not None:
            self._dimensions = self._dimensions or len(row.vector)
        if len(self._places) == LIST_DOCUMENTS:
            self._send()

    def _send(self) -> None:
        if not self._places:
            return
        if not self._has_collection:
            self._target.ensure(self._dimensions)
            self._has_collection = True
        answer = self._target.send(bytes(self._lines))
        for name in COUNTS:
            self._counts[name] += answer[name]
        for error in answer["errors"]:
            self._leave_out(self._places[error["line"] - 1], error["message"])
        self._places.clear()
        self._lines.clear()

    def _leave_out(self, place: Place, why: str) -> None:
        self._counts["left_out"] += 1
        if len(self._named) < NAMED_ROWS:
            self._named.append(f"{place.words}: {why}")

    def _tell(self, as_json: bool) -> None:
        for told in self._named:
            click.echo(f"plimsoll: left out: {told}", err=True)
        n_more = self._counts["left_out"] - len(self._named)
        if n_more > 0:
            click.echo(f"plimsoll: left out: {n_more} more", err=True)
        if as_json:
            click.echo(json.dumps(self._counts))
        else:
            told = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self._counts.items())
            click.echo(f"{self._target.collection}: {told}")


def _once(rows: Iterator[Row]) -> Iterator[Row]:
    with closing(SeenIds()) as seen:
        yield from seen.once(rows)


def _line(row: FileRow) -> bytes:
    record: dict[str, Any] = {
        "id": row.document.id,
        "text": row.document.text,
        "metadata": row.document.metadata,
    }
    if row.vector is not None:
        record["vector"] = row.vector
    return orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)

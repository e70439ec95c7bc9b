"""A collection of a running server into files: read page after page, written in parts."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from plimsoll import Client
from plimsoll.cli.collections import path_of
from plimsoll.cli.progress import PhaseProgress, progress_of
from plimsoll.cli.standard_output import STANDARD_OUTPUT, standard_output
from plimsoll.corpora.documents import as_json
from plimsoll.files import own_temporary_of
from plimsoll.links.files import manifest
from plimsoll.links.files.parts import Layout, PartRow, RowWriter, disk_refusals, part, writer
from plimsoll.links.files.paths import kind_of
from plimsoll.links.files.rows import Columns
from plimsoll.links.files.sets import ENDINGS, PART_ROWS

PAGE_DOCUMENTS = 1000


def export_collection(
    client: Client,
    collection: str,
    target: str,
    columns: Columns,
    *,
    version: int | None,
    has_text: bool,
    kind: str,
    writes_over: bool,
    tells_json: bool,
) -> None:
    """Write every document to `target`, and say how many there were.

    writes_over: also a file that is there. Raises ClickException.
    """
    path = Path(target)
    if path.is_file() and not writes_over and target != STANDARD_OUTPUT:
        raise click.UsageError(f"{target} is there already: --force writes over it")
    state = client.request("GET", path_of(collection))
    chosen = _version_of(state, version)
    dimensions = None if columns.vector is None else chosen["dimensions"]
    layout = Layout(columns, dimensions, has_text, has_text)
    with progress_of(collection, "documents") as progress:
        documents = _Documents(client, state, chosen, progress, has_vectors=dimensions is not None)
        if target == STANDARD_OUTPUT:
            _write_output(documents, layout)
        elif kind_of(path) is not None and not path.is_dir():
            with part(path, layout, own_temporary_of(path)) as rows:
                documents.write(rows)
        elif path.suffix and not path.is_dir() and not target.endswith("/"):
            raise click.UsageError(
                f"{target}: write x.jsonl, x.jsonl.gz, x.parquet, -, or a folder with / at its end"
            )
        else:
            _write_folder(documents, path, layout, ENDINGS[kind])
    _tell(documents, collection, target, tells_json=tells_json)


class _Documents:
    """The documents of a collection. Owns how far they have been read.

    after: where the next page begins, None behind the last one.
    """

    def __init__(
        self,
        client: Client,
        state: dict[str, Any],
        version: dict[str, Any],
        progress: PhaseProgress,
        *,
        has_vectors: bool,
    ) -> None:
        """Begin at the first."""
        self._client = client
        self._path = path_of(state["name"], "/documents")
        self._total = state["documents"]
        self._progress = progress
        self._has_vectors = has_vectors
        self.version = version
        self.content = {
            "collection": state["name"],
            "version": version["id"],
            "space": version["fingerprint"],
            "model": version["model"],
            "dimensions": version["dimensions"],
        }
        self.after: int | None = 0
        self.n_rows = self.n_without_vector = 0

    def write(self, rows: RowWriter, most: int | None = None) -> None:
        """Give `rows` the next documents, up to so many or all that are left."""
        end = None if most is None else self.n_rows + most
        while self.after is not None and self.n_rows != end:
            most_now = PAGE_DOCUMENTS if end is None else min(PAGE_DOCUMENTS, end - self.n_rows)
            asked = {
                "after": self.after,
                "limit": most_now,
                "version": self.version["id"],
                "vectors": self._has_vectors,
            }
            page = self._client.request("GET", self._path, parameters=asked)
            some = list(_rows(page))
            rows.write(some)
            self.n_rows += len(some)
            if self._has_vectors:
                self.n_without_vector += sum(row.vector is None for row in some)
            self.after = page["after"]
            self._progress(self.n_rows, self._total, "export")


def _write_folder(documents: _Documents, folder: Path, layout: Layout, ending: str) -> None:
    """Write parts, going on behind those that an earlier command has left."""
    columns = sorted(layout.record(PartRow("", "", "", None)))
    content = documents.content | {"columns": columns, "ending": ending}
    found = _begun(folder, content)
    parts = list(found["parts"])
    documents.n_rows, documents.after = found["rows"], found["after"]
    documents.n_without_vector = found["without_vector"]
    while documents.after is not None:
        name = f"part-{len(parts):05d}{ending}"
        path = folder / name
        with part(path, layout, own_temporary_of(path)) as rows:
            documents.write(rows, PART_ROWS)
        parts.append(name)
        _write_progress(folder, content, documents, parts)
    with disk_refusals(folder / manifest.MANIFEST):
        told = {"rows": documents.n_rows, "without_vector": documents.n_without_vector}
        manifest.write(folder / manifest.MANIFEST, content | told | {"parts": parts})


def _begun(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """How far the export into a folder is. Raises click.UsageError for one that is another's."""
    with disk_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    if manifest.read(folder / manifest.MANIFEST) is not None:
        raise click.UsageError(f"{folder} holds a whole export already; name another folder")
    found = manifest.read(folder / manifest.DESCRIPTION)
    if found is None and is_empty:
        begun = content | {"parts": [], "rows": 0, "without_vector": 0, "after": 0}
        with disk_refusals(folder / manifest.DESCRIPTION):
            manifest.write(folder / manifest.DESCRIPTION, begun)
        return begun
    if found is None or {name: found.get(name) for name in content} != content:
        raise click.UsageError(
            f"{folder} holds other files, or another export that has not come to its end; name an "
            "empty folder"
        )
    return found


def _write_progress(
    folder: Path, content: dict[str, Any], documents: _Documents, parts: list[str]
) -> None:
    """Note the parts that are there; one that is not noted is written again."""
    told = {
        "parts": parts,
        "rows": documents.n_rows,
        "without_vector": documents.n_without_vector,
        "after": documents.after,
    }
    with disk_refusals(folder / manifest.DESCRIPTION):
        manifest.write(folder / manifest.DESCRIPTION, content | told)


def _write_output(documents: _Documents, layout: Layout) -> None:
    if sys.stdout is None:
        raise click.UsageError("standard output is closed: name a file")
    with standard_output() as output:
        documents.write(writer(output.buffer, Path("-.jsonl"), layout))


def _version_of(state: dict[str, Any], wanted: int | None) -> dict[str, Any]:
    for version in state["versions"]:
        if version["id"] == wanted or (wanted is None and version["active"]):
            return dict(version)
    numbers = ", ".join(str(version["id"]) for version in state["versions"])
    raise click.UsageError(f"{state['name']} has no version {wanted}; it has {numbers}")


def _rows(page: dict[str, Any]) -> Iterator[PartRow]:
    for found in page["documents"]:
        vector = None if found["vector"] is None else np.array(found["vector"], np.float32)
        yield PartRow(found["id"], found["text"], as_json(found["metadata"]), vector)


def _tell(documents: _Documents, collection: str, target: str, *, tells_json: bool) -> None:
    """Say what was written, where that is not standard output itself."""
    n_lacking = documents.n_without_vector
    told = f"{collection}: {documents.n_rows} documents written to {target}"
    if n_lacking:
        told += f", {n_lacking} of them without a vector"
    if tells_json:
        told = json.dumps({"documents": documents.n_rows, "without_vector": n_lacking})
    click.echo(told, err=target == STANDARD_OUTPUT)

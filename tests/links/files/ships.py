"""Parquet files of ships with vectors of a small model, and a server that is linked to them."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from plimsoll.corpora.listing import DocumentPage
from plimsoll.corpora.records import Document
from plimsoll.links.links import LinkStatus
from tests.links.linked import begin_pull
from tests.migration.conftest import write_models
from tests.migration.models import CHECK_S, OLD, Inside, inside, settings_of, texts

DEADLINE_S = 120.0


async def make_ships(folder: Path, n: int) -> Path:
    """Models, and two files of `n` documents together with vectors of the old one."""
    write_models(folder)
    rows = list[dict[str, Any]]()
    settings = settings_of(folder).model_copy(update={"data_dir": folder / "seed"})
    async with inside(settings) as server:
        await server.ensure("seed", model=OLD)
        given = [Document(f"d{number}", text) for number, text in enumerate(texts(n))]
        await server.put("seed", given)
        async for page in _pages(server):
            for found in page.documents:
                vector = page.vectors[found.row]
                rows.append({"id": found.id, "text": found.text, "embedding": vector})
    shutil.rmtree(folder / "seed")
    (folder / "source").mkdir()
    for number, some in enumerate((rows[: n // 3], rows[n // 3 :])):
        write(folder / "source" / f"part-{number}.parquet", some)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of ships, from one moment to the next."""
    beside = path.with_suffix(".tmp")
    parquet.write_table(pa.Table.from_pylist(rows), beside, row_group_size=100)
    beside.replace(path)


def copy_of(made: Path, folder: Path, source: Path | None = None) -> Path:
    """The same files, to be moved once more. source: where they are, if not in the folder."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / "links.toml").write_text(
        f"""[links.ships]
        kind = "parquet"
        files = ["{source or folder / "source"}/*.parquet"]
        folder = "{folder}/moved"
        vector = "embedding"
        model = "{OLD}"
        """
    )
    return folder


@asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[Inside]:
    """A server that is linked to the files of `copy_of`."""
    settings = settings_of(folder).model_copy(update={"links": folder / "links.toml"})
    async with inside(settings) as server:
        yield server


async def pulled(server: Inside) -> LinkStatus:
    """Pull the link unless that was begun before, and wait until every row was read."""
    if (await server.links.status("ships")).state is None:
        await begin_pull(server)
    deadline = monotonic() + DEADLINE_S
    while True:
        status = await server.links.status("ships")
        assert status.state is not None
        if not status.state.is_pulling:
            return status
        assert monotonic() < deadline, status
        await asyncio.sleep(CHECK_S)


async def _pages(server: Inside) -> AsyncIterator[DocumentPage]:
    after: int | None = 0
    while after is not None:
        permit = server.core.gate.permit()
        page = await server.corpora.catalog.page(
            "seed", permit, after=after, most=1000, version=None, has_vectors=True
        )
        permit.leave()
        yield page
        after = page.after

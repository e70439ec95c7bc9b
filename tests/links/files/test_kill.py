"""A move from Parquet to Parquet killed at any moment: it ends as one that was not.

Equal means rows, vectors, order, pointers and states here, and every byte of the parts outside.
"""

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from plimsoll.corpora.database import FILE_NAME
from plimsoll.corpora.listing import DocumentPage
from plimsoll.corpora.records import Document
from plimsoll.links.files.manifest import POINTER
from tests.killing import kill_at_random, work
from tests.links.files.worker import LINKS, STAGES
from tests.migration.conftest import write_models
from tests.migration.models import OLD, Inside, inside, settings_of, texts

WORKER = "tests.links.files.worker"
N_DOCUMENTS, N_KILLS, KILLS_A_STAGE = 500, 6, 1  # kills at random, then in each stage
SOAK_DOCUMENTS, SOAK_KILLS, SOAK_KILLS_A_STAGE = 5000, 100, 10
QUERIES = {
    "documents": "SELECT row, id, text, text_sha256 FROM documents_1 ORDER BY row",
    "old": "SELECT row, vector FROM vectors_1 ORDER BY row",
    "new": "SELECT row, vector FROM vectors_2 ORDER BY row",
    "n_vectors": "SELECT version, sum(n_vectors) FROM segments GROUP BY version",
    "pointer": "SELECT name, active_version FROM collections",
    "versions": "SELECT id, fingerprint, state, takes_writes FROM versions ORDER BY id",
    "migrations": "SELECT id, state, n_embedded, n_skipped FROM migrations",
}


async def old_vectors(server: Inside) -> AsyncIterator[DocumentPage]:
    """Documents with the vectors of the old model."""
    after: int | None = 0
    while after is not None:
        permit = server.core.gate.permit()
        page = await server.corpora.catalog.page(
            "seed", permit, after=after, most=1000, version=None, has_vectors=True
        )
        permit.leave()
        yield page
        after = page.after


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, is_soak: bool) -> Path:
    """Models, and two Parquet files of documents with vectors of the old one."""
    folder = tmp_path_factory.mktemp("begun")
    write_models(folder)
    n = SOAK_DOCUMENTS if is_soak else N_DOCUMENTS
    rows = list[dict[str, Any]]()

    async def embed() -> None:
        settings = settings_of(folder).model_copy(update={"data_dir": folder / "seed"})
        async with inside(settings) as server:
            await server.ensure("seed", model=OLD)
            given = [Document(f"d{number}", text) for number, text in enumerate(texts(n))]
            await server.put("seed", given)
            async for page in old_vectors(server):
                for found in page.documents:
                    vector = page.vectors[found.row]
                    rows.append({"id": found.id, "text": found.text, "embedding": vector})

    asyncio.run(embed())
    shutil.rmtree(folder / "seed")
    (folder / "source").mkdir()
    for number, some in enumerate((rows[: n // 3], rows[n // 3 :])):
        path = folder / "source" / f"part-{number}.parquet"
        parquet.write_table(pa.Table.from_pylist(some), path, row_group_size=100)
    return folder


def copy_of(begun: Path, folder: Path) -> Path:
    """The same files, to be moved once more."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    (folder / LINKS).write_text(
        f"""[links.ships]
        kind = "parquet"
        files = ["{folder}/source/*.parquet"]
        folder = "{folder}/moved"
        vector = "embedding"
        model = "{OLD}"
        """
    )
    return folder


def content(folder: Path) -> dict[str, Any]:
    """Everything here and outside that is no moment and no layout."""
    with closing(sqlite3.connect(folder / "data" / FILE_NAME)) as connection:
        found = {name: connection.execute(query).fetchall() for name, query in QUERIES.items()}
    pointer = orjson.loads((folder / "moved" / POINTER).read_bytes())
    del pointer["files"]  # a stamp, of moments
    found["outside"] = pointer
    found["parts"] = [(folder / "moved" / part).read_bytes() for part in pointer["parts"]]
    return found


def test_killed_at_any_moment_it_ends_as_one_that_was_not(
    begun: Path, tmp_path: Path, is_soak: bool
):
    """Nothing twice and nothing missing, here and in the files."""
    quiet, folder = copy_of(begun, tmp_path / "quiet"), copy_of(begun, tmp_path / "killed")
    began_s = monotonic()
    assert work(WORKER, quiet) == 0
    whole_s = monotonic() - began_s
    uninterrupted = content(quiet)

    def begin_anew() -> None:
        assert content(folder) == uninterrupted
        shutil.rmtree(folder)
        copy_of(begun, folder)

    for number in range(SOAK_KILLS_A_STAGE if is_soak else KILLS_A_STAGE):
        for stage in STAGES:
            assert work(WORKER, folder, stage, str(1 + number % 2)) == -signal.SIGKILL
            if stage == "pointer":
                assert work(WORKER, folder) == 0
                begin_anew()
    kill_at_random(
        lambda after_s: work(WORKER, folder, kill_after_s=after_s),
        SOAK_KILLS if is_soak else N_KILLS,
        whole_s / 2,
        begin_anew,
    )

    assert work(WORKER, folder) == 0
    assert content(folder) == uninterrupted
    n = SOAK_DOCUMENTS if is_soak else N_DOCUMENTS
    assert len(uninterrupted["new"]) == n
    assert (uninterrupted["outside"]["rows"], uninterrupted["outside"]["without_vector"]) == (n, 0)

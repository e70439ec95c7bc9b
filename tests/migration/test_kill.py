"""A server killed at any moment: the migration then goes on, and ends as if nothing had been.

Equal means rows, vectors, order, pointer, quarantine and state; moments and pages are not compared.
"""

import asyncio
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from plimsoll.corpora.database import FILE_NAME
from plimsoll.corpora.records import Document
from tests.killing import kill_at_random, work
from tests.migration.conftest import write_models
from tests.migration.models import inside, settings_of, texts

STAGES = ("reader", "encoder", "validator", "writer")
N_DOCUMENTS, N_KILLS, KILLS_A_STAGE = 500, 6, 1  # kills at random, then in each stage
SOAK_DOCUMENTS, SOAK_KILLS, SOAK_KILLS_A_STAGE = 5000, 100, 10


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, is_soak: bool) -> Path:
    """A folder with a collection and a migration that has only just begun."""
    folder = tmp_path_factory.mktemp("begun")
    write_models(folder)
    n = SOAK_DOCUMENTS if is_soak else N_DOCUMENTS

    async def begin() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model="old")
            given = [Document(f"d{number}", text) for number, text in enumerate(texts(n))]
            await server.put("ships", given)
            number = await server.begin("ships", "new", starts=False)
            await server.migrations.resume(number, "test", "")

    asyncio.run(begin())
    return folder


def copy_of(begun: Path, folder: Path) -> Path:
    """The same collection, to be moved once more."""
    return shutil.copytree(begun, folder, dirs_exist_ok=True)


WORKER = "tests.migration.worker"


def content(folder: Path) -> dict[str, Any]:
    """Everything of the file that is no moment and no layout."""
    queries = {
        "documents": "SELECT row, id, text, text_sha256 FROM documents_1 ORDER BY row",
        "old": "SELECT row, vector FROM vectors_1 ORDER BY row",
        "new": "SELECT row, vector FROM vectors_2 ORDER BY row",
        "n_vectors": "SELECT version, sum(n_vectors) FROM segments GROUP BY version",
        "pointer": "SELECT name, active_version FROM collections",
        "versions": "SELECT id, fingerprint, state, takes_writes FROM versions ORDER BY id",
        "quarantine": "SELECT * FROM quarantine ORDER BY row",
        "migrations": "SELECT id, state, n_embedded, n_skipped, n_tokens FROM migrations",
    }
    with closing(sqlite3.connect(folder / "data" / FILE_NAME)) as connection:
        return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def test_killed_at_any_moment_it_ends_as_one_that_was_not(
    begun: Path, tmp_path: Path, is_soak: bool
):
    """Nothing twice and nothing missing: at random moments, and in the midst of each stage.

    The writer dies between its vectors and the commit, the others with batches in hand.
    """
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
    kill_at_random(
        lambda after_s: work(WORKER, folder, kill_after_s=after_s),
        SOAK_KILLS if is_soak else N_KILLS,
        whole_s / 2,
        begin_anew,
    )

    assert work(WORKER, folder) == 0
    assert content(folder) == uninterrupted
    assert len(uninterrupted["new"]) == (SOAK_DOCUMENTS if is_soak else N_DOCUMENTS)

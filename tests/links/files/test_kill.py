"""A move from Parquet to Parquet killed at any moment: it ends as one that was not.

Equal means rows, vectors, order, pointers and states here, and every byte of the parts outside.
"""

import asyncio
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import pytest

from plimsoll.corpora.database import FILE_NAME
from plimsoll.links.files.manifest import POINTER
from tests.killing import kill_at_random, work
from tests.links.files.ships import copy_of, make_ships
from tests.links.files.worker import STAGES

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


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, is_soak: bool) -> Path:
    """Files of ships that have not been moved."""
    n = SOAK_DOCUMENTS if is_soak else N_DOCUMENTS
    return asyncio.run(make_ships(tmp_path_factory.mktemp("begun"), n))


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
            is_last = stage == "pointer"  # which a move comes to once
            call = "1" if is_last else str(1 + number % 2)
            assert work(WORKER, folder, stage, call) == -signal.SIGKILL
            if is_last:
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

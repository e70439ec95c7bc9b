"""A server killed at any moment: the migration then goes on, and ends as if nothing had been.

Equal means rows, vectors, order, pointer, quarantine and state; moments and pages are not compared.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from plimsoll.corpora.records import Document
from tests.killing import QUERIES, SOAK, USUAL, Extent, killed_and_not, stored
from tests.migration.conftest import write_models
from tests.migration.models import inside, settings_of, texts

STAGES = ("reader", "encoder", "validator", "writer")


@pytest.fixture
def extent(is_soak: bool) -> Extent:
    return SOAK if is_soak else USUAL


@pytest.fixture
def begun(tmp_path: Path, extent: Extent) -> Path:
    """A folder with a collection and a migration that has only just begun."""
    folder = tmp_path / "begun"
    folder.mkdir()
    write_models(folder)

    async def begin() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model="old")
            given = [Document(f"d{n}", text) for n, text in enumerate(texts(extent.n_documents))]
            await server.put("ships", given)
            number = await server.begin("ships", "new", starts=False)
            await server.migrations.resume(number, "test", "")

    asyncio.run(begin())
    return folder


def content(folder: Path) -> dict[str, Any]:
    """Everything of the file that is no moment and no layout."""
    more = {
        "quarantine": "SELECT * FROM quarantine ORDER BY row",
        "n_tokens": "SELECT n_tokens FROM migrations",
    }
    return stored(folder, QUERIES | more)


def test_killed_at_any_moment_it_ends_as_one_that_was_not(
    begun: Path, tmp_path: Path, extent: Extent
):
    """Nothing twice and nothing missing: at random moments, and in the midst of each stage.

    The writer dies between its vectors and the commit, the others with batches in hand.
    """
    found = killed_and_not(
        "tests.migration.worker",
        lambda folder: shutil.copytree(begun, folder),
        tmp_path,
        content,
        STAGES,
        extent,
    )

    assert len(found["new"]) == extent.n_documents

"""A server killed at any moment: the migration then goes on, and ends as if nothing had been.

Equal means rows, vectors, order, pointer, quarantine and state; moments and pages are not compared.
"""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plimsoll.corpora.records import Document
from tests.killing import QUERIES, SOAK, USUAL, Extent, killed_and_not, stored
from tests.migration.conftest import write_models
from tests.migration.models import inside, settings_of, texts

STAGES = ("reader", "encoder", "validator", "writer")
N_BRIDGED = 260
# Those of a bridge: work comes to the last three once.
BRIDGE_STAGES = ("sampler", "fitter", "bridger", "dropper")


def begin_in(folder: Path, n: int, **options: Any) -> Path:
    """Begin a migration of so many documents in a new folder."""
    folder.mkdir()
    write_models(folder)

    async def begin() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model="old")
            await server.put("ships", [Document(f"d{n}", text) for n, text in enumerate(texts(n))])
            number = await server.begin("ships", "new", starts=False, **options)
            await server.migrations.resume(number, "test", "")

    asyncio.run(begin())
    return folder


@pytest.fixture
def extent(is_soak: bool) -> Extent:
    return SOAK if is_soak else USUAL


@pytest.fixture
def begun(tmp_path: Path, extent: Extent) -> Path:
    """A folder with a collection and a migration that has only just begun."""
    return begin_in(tmp_path / "begun", extent.n_documents)


@pytest.fixture
def begun_with_bridge(tmp_path: Path) -> Path:
    """Likewise, of one that is to have a bridge."""
    return begin_in(tmp_path / "bridged", N_BRIDGED, bridge="forced")


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


def test_killed_while_it_has_a_bridge_it_ends_as_one_that_was_not(
    begun_with_bridge: Path, tmp_path: Path, extent: Extent
):
    """No text of the sample is embedded twice, nothing bridged is left, and its worth is told."""
    figures = "json_remove(figures, '$.fit_s', '$.row_s')"
    more = {
        "bridge": f"SELECT state, version, map, reason, {figures} FROM bridges",
        "triggers": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    }
    found = killed_and_not(
        "tests.migration.worker",
        lambda folder: shutil.copytree(begun_with_bridge, folder),
        tmp_path,
        lambda folder: content(folder) | stored(folder, more),
        BRIDGE_STAGES,
        replace(extent, n_kills=extent.n_kills // 3),
        final_stages=BRIDGE_STAGES[1:],
    )

    ((state, version, kept, _, figures),) = found["bridge"]
    assert (state, version, kept) == ("dropped", None, None)
    assert f'"documents":{N_BRIDGED // 2}' in figures
    assert [row for row, _ in found["new"]] == [*range(1, N_BRIDGED + 1)]
    assert found["triggers"] == []

"""A move from Parquet to Parquet killed at any moment: it ends as one that was not.

Equal means rows, vectors, order, pointers and states here, and every byte of the parts outside.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from plimsoll.links.files.manifest import POINTER
from tests.killing import SOAK, USUAL, Extent, killed_and_not, stored
from tests.links.files.ships import copy_of, make_ships
from tests.links.files.worker import STAGES


@pytest.fixture
def extent(is_soak: bool) -> Extent:
    return SOAK if is_soak else USUAL


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Where the files of ships are."""
    return tmp_path / "source"


@pytest.fixture
def begun(tmp_path: Path, source: Path, extent: Extent) -> Path:
    """Models, and nothing that has been moved."""
    folder = tmp_path / "begun"
    folder.mkdir()
    asyncio.run(make_ships(folder, extent.n_documents))
    (folder / "source").rename(source)
    return folder


@contextmanager
def lost_and_back(source: Path) -> Iterator[None]:
    """The folder of files is away now and then, as a disk is that others mount."""
    chance, ended = random.Random(11), threading.Event()
    away = source.with_name("away")

    def lose() -> None:
        while not ended.wait(chance.uniform(1, 6)):
            source.rename(away)
            ended.wait(chance.uniform(0, 2))
            away.rename(source)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def content(folder: Path) -> dict[str, Any]:
    """Everything here and outside that is no moment and no layout."""
    pointer = orjson.loads((folder / "moved" / POINTER).read_bytes())
    del pointer["files"]  # a stamp, of moments
    parts = [(folder / "moved" / part).read_bytes() for part in pointer["parts"]]
    return stored(folder) | {"outside": pointer, "parts": parts}


def test_killed_at_any_moment_it_ends_as_one_that_was_not(
    begun: Path, source: Path, tmp_path: Path, extent: Extent
):
    """Nothing twice and nothing missing, here and in the files, which are not always there."""
    found = killed_and_not(
        "tests.links.files.worker",
        lambda folder: copy_of(begun, folder, source),
        tmp_path,
        content,
        tuple(STAGES),
        extent,
        final_stages=("pointer",),
        trouble=lambda: lost_and_back(source),
    )

    n = extent.n_documents
    assert len(found["new"]) == n
    assert (found["outside"]["rows"], found["outside"]["without_vector"]) == (n, 0)

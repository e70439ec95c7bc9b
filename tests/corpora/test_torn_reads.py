"""A score stands with the text that it was made of, whatever is written during the search."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.corpora.records import Document
from plimsoll.corpora.search import MOST_RANKINGS
from plimsoll.corpora.search_reading import SearchReading
from plimsoll.corpora.tasks import SearchResults
from plimsoll.serving.tasks import EmbedTask
from tests.migration.models import OLD, Inside, inside, settings_of, texts
from tests.synthetic import TINY_SHAPE, write_synthetic

QUERY = "ship load line"
SAME_SCORE = 1e-6
Between = Callable[[Inside], Awaitable[None]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_synthetic(tmp_path / f"{OLD}.gguf", arch="bert", quant="F32", shape=TINY_SHAPE, seed=0)
    return tmp_path


def searched(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    between: Between,
    n_times: int = 1,
    **options: Any,
) -> tuple[SearchResults, dict[str, float]]:
    """A search, with something done so often between the ranking and the reading of documents.

    Also the cosine of the query and of every text that it found, embedded anew.
    """
    read, left, is_between = SearchReading.documents, n_times, False

    async def play() -> tuple[SearchResults, dict[str, float]]:
        async with inside(settings_of(folder, (OLD,))) as server:
            await server.ensure("ships", model=OLD)
            given = [
                Document(f"d{n}", text, {"year": 1860 + n}) for n, text in enumerate(texts(40))
            ]
            await server.put("ships", given)

            async def documents(self: SearchReading, *given: Any) -> Any:
                nonlocal left, is_between
                if left and not is_between:  # what happens between may search too
                    left -= 1
                    is_between = True
                    await between(server)
                    is_between = False
                return await read(self, *given)

            monkeypatch.setattr(SearchReading, "documents", documents)
            found = await server.search(QUERY, **options)
            return found, await cosines(server, found)

    return asyncio.run(play())


async def cosines(server: Inside, found: SearchResults) -> dict[str, float]:
    permit = server.core.gate.permit()
    stored = [each.document.text for each in found.results]
    (query,) = (
        await server.core.service.embed_dense(EmbedTask([QUERY], "search_query"), permit)
    ).vectors
    answer = await server.core.service.embed_dense(EmbedTask(stored, "search_document"), permit)
    permit.leave()
    assert query is not None
    return {
        text: float(np.dot(query, vector))
        for text, vector in zip(stored, answer.vectors, strict=True)
        if vector is not None
    }


def test_a_text_that_changes_is_ranked_by_its_new_vector(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The best document becomes another one: its old score must not stand beside its new text."""
    best = list[str]()

    async def change(server: Inside) -> None:
        best.append((await server.search(QUERY, top_k=1)).results[0].document.id)
        await server.put("ships", [Document(best[-1], "port hull mast keel deck water", {})])

    found, expected = searched(folder, monkeypatch, change)
    assert len(found.results) == 5
    assert len(best) == 1
    for each in found.results:
        assert each.score == pytest.approx(expected[each.document.text], abs=SAME_SCORE)


def test_a_document_that_goes_leaves_its_place_to_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def delete(server: Inside) -> None:
        best = (await server.search(QUERY, top_k=1)).results[0].document.id
        await server.corpora.catalog.delete_document("ships", best)

    found, _ = searched(folder, monkeypatch, delete)
    assert len(found.results) == 5


@pytest.mark.parametrize("mode", ["dense", "hybrid", "bm25"])
def test_a_document_that_no_longer_fits_the_filter_is_not_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str
):
    """Its metadata change, and neither their size nor the text."""

    async def change(server: Inside) -> None:
        asked = {"top_k": 1, "mode": mode, "filter": {"year": {"$gte": 1870}}}
        best = (await server.search(QUERY, **asked)).results[0].document
        await server.put("ships", [Document(best.id, best.text, {"year": 1800})])

    found, _ = searched(folder, monkeypatch, change, mode=mode, filter={"year": {"$gte": 1870}})
    assert len(found.results) == 5
    assert all('"year":18' in each.document.metadata_json for each in found.results)
    assert not any('"year":1800' in each.document.metadata_json for each in found.results)


def test_writers_that_are_quicker_keep_no_search_from_its_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """What changed is left out then; the rest stands with its scores."""
    n_changes = 0

    async def change(server: Inside) -> None:
        nonlocal n_changes
        n_changes += 1
        best = (await server.search(QUERY, top_k=1)).results[0].document.id
        await server.put("ships", [Document(best, f"{QUERY} once more {n_changes}", {})])

    found, expected = searched(folder, monkeypatch, change, n_times=2 * MOST_RANKINGS)
    assert n_changes == MOST_RANKINGS
    assert len(found.results) == 4
    for each in found.results:
        assert each.score == pytest.approx(expected[each.document.text], abs=SAME_SCORE)

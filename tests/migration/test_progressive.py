"""Searches that read both versions while a collection moves, beside a brute force over all."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from plimsoll.corpora import vectors
from plimsoll.corpora.records import Document
from plimsoll.corpora.tasks import SearchResults
from plimsoll.errors import (
    MemoryPressureError,
    MigrationStateError,
    SpaceMismatchError,
    UnknownCollectionError,
)
from plimsoll.migration.stages import DocumentVectors, PatientEmbedder
from plimsoll.migration.states import MigrationState as State
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask
from tests.migration.models import BAD, CHECK_S, NEW, OLD, Inside, inside, settings_of, texts

N = 60
QUERIES = ("ship load line", "water", "keel mast port hull", texts(N)[41])
Scene = Callable[[Inside], Awaitable[None]]


def run(folder: Path, scene: Scene, **settings: object) -> None:
    """Play a scene in a server with a collection of ships; every other one has an engine."""

    async def play() -> None:
        given = settings_of(folder).model_copy(update=settings)
        async with inside(given) as server:
            await server.ensure("ships", model=OLD)
            assert (await server.put("ships", ships())).added == N
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


def ships() -> list[Document]:
    return [
        Document(f"d{number}", text, {"engine": number % 2}) for number, text in enumerate(texts(N))
    ]


async def embedded(
    server: Inside, model: str, given: list[str], input_type: str
) -> np.ndarray:  # (n, dimensions)
    permit = server.core.gate.permit()
    try:
        answer = await server.core.service.embed_dense(
            EmbedTask(given, input_type, model=model), permit
        )
    finally:
        permit.leave()
    return np.array(answer.vectors)


async def planned(server: Inside, model: str = BAD, n_done: int = 0) -> int:
    """A progressive migration, of which so many documents are done: every third comes first."""
    number = await server.begin("ships", model, starts=False, is_progressive=True)
    done = done_of(n_done)
    if done:
        found = await embedded(server, model, [texts(N)[place] for place in done],
                               "search_document")  # fmt: skip
        with server.corpora.database.writing() as connection:
            vectors.put(connection, 2, [place + 1 for place in done], list(found))
    return number


def done_of(n_done: int) -> list[int]:
    return sorted(sorted(range(N), key=lambda place: (place % 3, place))[:n_done])


@dataclass(frozen=True)
class Expected:
    """Rankings of all documents by each model alone, best first."""

    old: list[str]
    new: list[str]

    def merged(self, done: Collection[str]) -> list[str]:
        """The old ranking, in which the documents that are done stand in the new one's order."""
        ours = iter([document for document in self.new if document in done])
        return [next(ours) if document in done else document for document in self.old]


async def expected(server: Inside, query: str, model: str = BAD) -> Expected:
    orders = []
    for each in (OLD, model):
        stored = await embedded(server, each, texts(N), "search_document")
        (vector,) = await embedded(server, each, [query], "search_query")
        cosines = stored.astype(np.float64) @ vector.astype(np.float64)
        orders.append([f"d{place}" for place in np.argsort(-cosines, kind="stable")])
    return Expected(*orders)


def with_engine(documents: list[str]) -> list[str]:
    return [document for document in documents if int(document[1:]) % 2]


def ids(found: SearchResults) -> list[str]:
    return [each.document.id for each in found.results]


def spaces(found: SearchResults) -> list[tuple[str | None, int]]:
    """Models that answered, each with its number of documents."""
    return [(part.version.space.model, part.n_documents) for part in found.parts]


@pytest.mark.parametrize("n_done", [0, N * 3 // 10, N])
def test_an_answer_is_the_old_order_with_what_is_done_in_the_new_one(folder: Path, n_done: int):
    """At either end it is that version's own answer; every query of a length that fits all."""

    async def scene(server: Inside) -> None:
        await planned(server, n_done=n_done)
        done = {f"d{place}" for place in done_of(n_done)}
        for query in QUERIES:
            order = (await expected(server, query)).merged(done)
            for top_k in (3, 10, N):
                found = await server.search(query, top_k=top_k)
                assert ids(found) == order[:top_k]
                assert spaces(found) == [(BAD, n_done), (OLD, N - n_done)]
                assert found.fingerprint is None
                assert all(one.score > other.score for one, other in pairwise(found.results))

    run(folder, scene)


def test_filters_and_words_join_in(folder: Path):
    """A filter holds for every part; hybrid fuses the merged order with that of the words."""

    async def scene(server: Inside) -> None:
        await planned(server, n_done=20)
        done = {f"d{place}" for place in done_of(20)}
        alone = await expected(server, QUERIES[0])
        order = alone.merged(done)
        fitting = Expected(*map(with_engine, (alone.old, alone.new))).merged(done)
        n_done = sum(document in done for document in fitting)

        found = await server.search(QUERIES[0], filter={"engine": 1})
        assert ids(found) == fitting[:5]
        assert spaces(found) == [(BAD, n_done), (OLD, N // 2 - n_done)]

        words = await server.search(QUERIES[0], mode="bm25", top_k=100)
        assert (words.parts, words.fingerprint) == ([], None)
        scores = dict.fromkeys(order, 0.0)
        for each in (order, ids(words)):
            for place, document in enumerate(each, 1):
                scores[document] += 1 / (60 + place)
        hybrid = await server.search(QUERIES[0], mode="hybrid")
        best = sorted(scores, key=lambda document: (-scores[document], int(document[1:])))
        assert ids(hybrid) == best[:5]

    run(folder, scene)


def test_what_is_written_meanwhile_is_found_by_its_newest_vector(folder: Path):
    """A changed text counts as done, a deleted document is gone, a new one is there."""

    async def scene(server: Inside) -> None:
        await planned(server, n_done=10)
        await server.put("ships", [Document("d1", "a lighthouse"), Document("later", "a lantern")])
        await server.corpora.catalog.delete_document("ships", "d2")

        found = await server.search("a lighthouse", top_k=N + 1)
        assert sorted(ids(found)) == sorted([f"d{n}" for n in range(N) if n != 2] + ["later"])
        assert spaces(found) == [(BAD, 12), (OLD, N - 12)]
        assert ids(found)[0] == "d1"

    run(folder, scene)


def test_a_document_without_an_old_vector_is_found_too(folder: Path):
    """It has no place in the old order, and comes along with its neighbour in the new one."""

    async def scene(server: Inside) -> None:
        await planned(server, n_done=N)
        with server.corpora.database.writing() as connection:
            vectors.delete(connection, 1, range(1, 31))
        for query in QUERIES:
            order = (await expected(server, query)).new
            assert ids(await server.search(query, top_k=N)) == order

    run(folder, scene)


def test_a_document_in_quarantine_keeps_its_old_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    embed = PatientEmbedder.embed_documents

    async def fail_one(self: PatientEmbedder, documents: list) -> DocumentVectors:
        found = await embed(self, documents)
        for document in documents:
            if document.id == "d7":
                del found.vectors[document.row]
                found.failures[document.row] = ("too odd", 3)
        return found

    async def scene(server: Inside) -> None:
        monkeypatch.setattr(PatientEmbedder, "embed_documents", fail_one)
        number = await server.begin("ships", NEW, is_progressive=True)
        assert (await server.until_rest(number)).counts.n_quarantined == 1
        await server.migrations.set_progressive(number, "test", "", is_on=False)
        place = ids(await server.search(QUERIES[0], top_k=N)).index("d7")
        with server.corpora.database.writing() as connection:
            connection.execute('UPDATE migrations SET verdict = \'{"decision": "go"}\'')
        await server.migrations.set_progressive(number, "test", "", is_on=True)
        found = await server.search(QUERIES[0], top_k=N)
        assert spaces(found) == [(NEW, N - 1), (OLD, 1)]
        assert ids(found).index("d7") == place

    run(folder, scene)


# --- its beginning and its end --------------------------------------------------------------


def test_cut_over_and_rollback_come_between_searches(folder: Path):
    """None fails, and none reads two versions once the pointer has moved, or one before that."""

    async def scene(server: Inside) -> None:
        seen, is_over = list[tuple[str | None, ...]](), False

        async def keep_on() -> None:
            while not is_over:
                found = await server.search(QUERIES[0], top_k=N)
                assert len({*ids(found)}) == N
                seen.append(tuple(model for model, _ in spaces(found)))

        number = await server.begin("ships", NEW, is_progressive=True)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(keep_on())
            await server.until_rest(number)
            for change in (server.migrations.cut_over, server.migrations.roll_back):
                n_before = len(seen)
                await change(number, "test", "")
                while len(seen) < n_before + 6:
                    await asyncio.sleep(CHECK_S)
            is_over = True

        assert [*dict.fromkeys(seen)] == [(NEW, OLD), (NEW,), (OLD,)]
        assert (await server.migrations.status(number)).counts.is_progressive is False

    run(folder, scene)


def test_a_search_that_meets_the_change_is_done_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The query has its vectors of both spaces when it begins, and is compared with neither."""

    async def scene(server: Inside) -> None:
        number = await planned(server, n_done=20)
        embed, asked = EmbeddingService.embed_dense, list[str | None]()

        async def end_it(self: EmbeddingService, task: EmbedTask, permit: object) -> Embeddings:
            asked.append(task.model)
            if asked == [OLD, BAD]:
                await server.migrations.set_progressive(number, "test", "", is_on=False)
            return await embed(self, task, permit)

        with monkeypatch.context() as patch:
            patch.setattr(EmbeddingService, "embed_dense", end_it)
            found = await server.search(QUERIES[0])
        assert asked == [OLD, BAD, OLD]
        assert spaces(found) == [(OLD, N)]
        assert ids(found) == (await expected(server, QUERIES[0])).old[:5]

    run(folder, scene)


def test_a_verdict_that_is_not_go_ends_it(folder: Path):
    """Searches read the old version again, the audit says so, and it may not begin anew."""

    async def scene(server: Inside) -> None:
        too_few = [{"query": "water", "relevant": {"d1": 1.0}}]
        number = await server.begin("ships", BAD, is_progressive=True, judged=too_few)
        status = await server.until_rest(number)

        assert not status.counts.migration.is_go
        assert status.counts.is_progressive is False
        assert "searches read the old version alone again" in status.counts.changes[-1].why
        assert spaces(await server.search("ship")) == [(OLD, N)]
        with pytest.raises(MigrationStateError, match="is not go"):
            await server.migrations.set_progressive(number, "test", "", is_on=True)

    run(folder, scene)


def test_a_go_keeps_it_until_cut_over_and_cancel_ends_it(folder: Path):
    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, is_progressive=True)
        status = await server.until_rest(number)
        assert status.counts.migration.is_go
        assert spaces(await server.search("ship")) == [(NEW, N), (OLD, 0)]

        await server.migrations.cancel(number, "test", "")
        assert spaces(await server.search("ship")) == [(OLD, N)]

    run(folder, scene)


def test_it_is_switched_off_and_on_and_written_down(folder: Path):
    async def scene(server: Inside) -> None:
        number = await planned(server, n_done=20)
        off = await server.migrations.set_progressive(number, "test", "odd answers", is_on=False)
        assert off.counts.is_progressive is False
        assert spaces(await server.search("ship")) == [(OLD, N)]
        assert off.counts.changes[-1].why == "searches read one version; odd answers"
        assert off.counts.changes[-1].after is State.PLANNED

        on = await server.migrations.set_progressive(number, "test", "", is_on=True)
        assert on.counts.is_progressive is True
        assert len((await server.search("ship")).parts) == 2

        await server.migrations.resume(number, "test", "")
        await server.until_rest(number)
        await server.migrations.cut_over(number, "test", "", force=True)
        with pytest.raises(MigrationStateError, match="before cut-over"):
            await server.migrations.set_progressive(number, "test", "", is_on=True)

    run(folder, scene)


def test_a_restart_keeps_it(folder: Path):
    async def again() -> None:
        async with inside(settings_of(folder)) as server:
            assert spaces(await server.search("ship")) == [(BAD, 20), (OLD, N - 20)]

    async def before(server: Inside) -> None:
        await planned(server, n_done=20)

    run(folder, before)
    asyncio.run(again())


# --- where it cannot be ---------------------------------------------------------------------


def test_a_foreign_old_space_refuses_it(folder: Path):
    """Its queries cannot be embedded; nothing is begun."""

    async def scene(server: Inside) -> None:
        await server.ensure("shoes", foreign_space="ada", dimensions=2)
        await server.put("shoes", ships(), [np.ones(2, np.float32)] * N, "foreign:ada")
        with pytest.raises(MigrationStateError, match="no model here embeds a query"):
            await server.begin("shoes", NEW, is_progressive=True)
        assert await server.migrations.statuses() == []

    run(folder, scene)


def test_models_that_take_turns_refuse_it(folder: Path):
    async def scene(server: Inside) -> None:
        with pytest.raises(MigrationStateError, match="PLIMSOLL_MAX_OPEN_MODELS"):
            await server.begin("ships", NEW, is_progressive=True)

    run(folder, scene, max_open_models=1)


@pytest.mark.parametrize("error", [
    SpaceMismatchError("its file has changed"),
    MemoryPressureError("no room", retry_after_s=1.0),
])  # fmt: skip
def test_a_new_model_that_does_not_answer_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    """The old version has vectors of all documents, and the reply says that it stood in."""
    embed = EmbeddingService.embed_dense

    async def refuse(self: EmbeddingService, task: EmbedTask, permit: object) -> Embeddings:
        if task.model == BAD:
            raise error
        return await embed(self, task, permit)

    async def scene(server: Inside) -> None:
        await planned(server, n_done=20)
        with monkeypatch.context() as patch:
            patch.setattr(EmbeddingService, "embed_dense", refuse)
            found = await server.search(QUERIES[0])
        assert ids(found) == (await expected(server, QUERIES[0])).old[:5]
        assert spaces(found) == [(OLD, N)]
        (warning,) = [each for each in found.warnings if "left out" in each]
        assert str(error) in warning

    run(folder, scene)


def test_a_new_model_that_is_not_served_any_more_is_left_out(folder: Path):
    """The server is started without it, in the midst of the move."""
    before = list[str]()

    async def there(server: Inside) -> None:
        before.extend((await expected(server, QUERIES[0])).old[:5])
        await planned(server, n_done=20)

    async def gone() -> None:
        async with inside(settings_of(folder, (OLD,))) as server:
            found = await server.search(QUERIES[0])
            assert ids(found) == before
            assert spaces(found) == [(OLD, N)]
            assert any("left out" in warning for warning in found.warnings)

    run(folder, there)
    asyncio.run(gone())


def test_an_old_model_that_does_not_answer_leaves_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """As without a migration: the new version alone would hide what is not done yet."""
    embed = EmbeddingService.embed_dense

    async def refuse(self: EmbeddingService, task: EmbedTask, permit: object) -> Embeddings:
        if task.model == OLD:
            raise SpaceMismatchError("its file has changed")
        return await embed(self, task, permit)

    async def scene(server: Inside) -> None:
        await planned(server, n_done=20)
        monkeypatch.setattr(EmbeddingService, "embed_dense", refuse)
        found = await server.search(QUERIES[0], mode="auto")
        assert found.mode == "bm25"
        assert found.degraded is not None
        assert found.degraded.reason == "space_mismatch"

    run(folder, scene)


def test_a_dropped_collection_takes_it_along(folder: Path):
    async def scene(server: Inside) -> None:
        await planned(server, n_done=20)
        await server.corpora.catalog.drop("ships")
        with pytest.raises(UnknownCollectionError):
            await server.search("ship")
        await server.ensure("ships", model=OLD)
        await server.put("ships", ships())
        assert spaces(await server.search("ship")) == [(OLD, N)]

    run(folder, scene)

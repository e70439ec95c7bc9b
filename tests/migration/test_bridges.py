"""Bridged vectors in a migration: what has them, for how long, and what refuses them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import numpy as np
import pytest

from plimsoll.cli.migration_tables import print_migration
from plimsoll.corpora import vectors, versions
from plimsoll.corpora.query_vectors import BRIDGED
from plimsoll.corpora.records import Document
from plimsoll.errors import MemoryPressureError, MigrationStateError, SpaceMismatchError
from plimsoll.links import steps
from plimsoll.migration import bridge_figures, journal, pointer
from plimsoll.migration.as_json import migration_json
from plimsoll.migration.bridges import BridgeState
from plimsoll.migration.stages import DocumentVectors, PatientEmbedder
from plimsoll.migration.states import MigrationState as State
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import EmbedTask
from tests.migration.models import BAD, CHECK_S, NEW, OLD, Inside, inside, settings_of, texts

N = 130
SAMPLED = N // 2
Scene = Callable[[Inside], Awaitable[None]]


def run(folder: Path, scene: Scene, n: int = N, **options: Any) -> None:
    """Play a scene in a server that has a collection of ships."""

    async def play() -> None:
        async with inside(settings_of(folder).model_copy(update=options)) as server:
            await server.ensure("ships", model=OLD)
            await server.put("ships", [Document(f"d{n}", text) for n, text in enumerate(texts(n))])
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


@contextmanager
def held_after_the_sample(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let the walk of a migration wait: its sample alone is embedded."""
    embed, n_texts = PatientEmbedder.embed_documents, 0

    async def embed_sample(self: PatientEmbedder, documents: Any) -> DocumentVectors:
        nonlocal n_texts
        n_texts += len(documents)
        if n_texts > SAMPLED:
            await asyncio.Event().wait()
        return await embed(self, documents)

    with monkeypatch.context() as patch:
        patch.setattr(PatientEmbedder, "embed_documents", embed_sample)
        yield patch


async def until(server: Inside, number: int, state: BridgeState) -> dict[str, Any]:
    """Wait for a state of a migration's bridge; returns the migration."""
    while True:
        status = await server.migrations.status(number)
        bridge = status.counts.bridge
        assert bridge is not None
        if bridge.state is state:
            return migration_json(status)
        assert status.state is State.RUNNING, status
        await asyncio.sleep(CHECK_S)


def rows(server: Inside, table: str) -> set[int]:
    with server.corpora.database.reading() as connection:
        return {row for (row,) in connection.execute(f"SELECT row FROM {table}")}


def counted(server: Inside, version: int) -> int:
    with server.corpora.database.reading() as connection:
        return vectors.count(connection, version)


def names(server: Inside) -> set[str]:
    """Tables and triggers."""
    with server.corpora.database.reading() as connection:
        found = connection.execute("SELECT name FROM sqlite_master")
        return {name for (name,) in found}


def test_every_document_has_a_bridged_vector_until_its_own_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Replaced row by row, whoever stores the real one; changed and deleted as all vectors are."""

    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            migration = await until(server, number, BridgeState.IN_USE)
            bridged = rows(server, "vectors_3")

            assert migration["bridge"]["figures"]["retention"] >= 0.95
            assert migration["bridge"]["reason"] is None
            assert migration["bridge"]["vectors"] == counted(server, 3) == N - SAMPLED
            assert bridged | rows(server, "vectors_2") == rows(server, "vectors_1")
            assert not bridged & rows(server, "vectors_2")

            changed, deleted, stored = sorted(bridged)[:3]
            await server.put("ships", [Document(f"d{changed - 1}", "a wholly new lighthouse")])
            await server.corpora.catalog.delete_document("ships", f"d{deleted - 1}")
            with server.corpora.database.writing() as connection:
                vectors.put(connection, 2, [stored], [np.ones(64, np.float32) / 8])
            assert rows(server, "vectors_3") == bridged - {changed, deleted, stored}
            assert counted(server, 3) == len(bridged) - 3
            await server.migrations.pause(number, "test", "")
        await server.migrations.resume(number, "test", "")
        done = migration_json(await server.until_rest(number))

        assert done["state"] == "ready", done
        assert done["bridge"] == migration["bridge"] | {"state": "dropped", "vectors": 0}
        (told,) = (each for each in done["verdict"]["checks"] if each["name"] == "bridge")
        assert told["outcome"] == "noted"
        assert told["figures"] == migration["bridge"]["figures"]
        async with asyncio.timeout(30):
            while "vectors_3" in names(server):
                await asyncio.sleep(CHECK_S)
        assert "replaces_bridge_3" not in names(server)

    run(folder, scene)


def test_bridged_vectors_are_of_no_model_and_no_pointer_leads_to_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing embeds into their space, nothing writes to it, and no link carries it out."""

    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            await until(server, number, BridgeState.IN_USE)
            state = await server.corpora.catalog.state("ships")
            (_, new, bridge) = (version for version, _ in state.versions)

            assert bridge.space.fingerprint.startswith(f"bridge:{new.space.fingerprint}:")
            assert bridge.space.query_fingerprint == new.space.fingerprint
            assert (bridge.space.model, bridge.takes_writes) == (None, False)
            with server.corpora.database.reading() as connection:
                assert bridge.id not in {v.id for v in steps.versions_of(connection, "ships")}
            write = server.corpora.database.writing
            with write() as connection, pytest.raises(ValueError, match="no complete one"):
                versions.activate(connection, state.collection, bridge)

    run(folder, scene)


# --- searches -------------------------------------------------------------------------------


async def embedded(
    server: Inside, model: str, given: list[str], input_type: str
) -> np.ndarray:  # (n, dimensions)
    permit = server.core.gate.permit()
    try:
        task = EmbedTask(given, input_type, model=model)
        return np.array((await server.core.service.embed_dense(task, permit)).vectors)
    finally:
        permit.leave()


async def make_foreign(server: Inside) -> list[Document]:
    """A collection of vectors that came along, into whose space no query can be embedded."""
    given = [Document(f"d{n}", text, {"even": n % 2 == 0}) for n, text in enumerate(texts(N))]
    stored = await embedded(server, OLD, [each.text for each in given], "search_document")
    await server.ensure("ada", foreign_space="ada", dimensions=stored.shape[1])
    await server.put("ada", given, list(stored), "foreign:ada")
    return given


def test_a_foreign_collection_is_searched_by_meaning_as_soon_as_it_is_bridged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the new model's query alone: real and bridged vectors are asked the same, and no old one.

    The order is that of the cosines of both, as a brute force has it.
    """

    async def scene(server: Inside) -> None:
        given = await make_foreign(server)
        query = given[N - 1].text
        assert (await server.search(query, "ada", mode="auto")).mode == "bm25"
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ada", NEW, bridge="gated")
            status = await until(server, number, BridgeState.IN_USE)
            assert status["progressive"] is True
            found = await server.search(query, "ada", top_k=N)
            even = await server.search(query, "ada", top_k=N, filter={"even": True})
            (target, bridge) = (part.version for part in found.parts)

            assert [part.n_documents for part in found.parts] == [SAMPLED, N - SAMPLED]
            assert bridge.space == target.space.bridged(bridge.space.fingerprint[-16:])
            assert BRIDGED in found.warnings
            with server.corpora.database.reading() as connection:
                rows = range(1, N + 1)
                stored = vectors.get(connection, target.id, rows)
                stored |= vectors.get(connection, bridge.id, rows)
            (asked,) = await embedded(server, NEW, [query], "search_query")
            cosines = {row: float(stored[row] @ asked) for row in rows}
            best = sorted(rows, key=lambda row: -cosines[row])
            assert [each.score for each in found.results] == pytest.approx(
                [cosines[row] for row in best], abs=1e-5
            )
            assert {each.document.row for each in found.results[:20]} == {*best[:20]}
            assert found.results[0].document.id == f"d{N - 1}"
            assert [each.document for each in even.results] == [
                each.document for each in found.results if each.document.row % 2
            ]
            with pytest.raises(SpaceMismatchError, match="into which no model here embeds"):
                await server.search(query, "ada", version=bridge.id)
            await server.migrations.pause(number, "test", "")
        await server.migrations.resume(number, "test", "")
        done = migration_json(await server.until_rest(number))

        assert (done["state"], done["progressive"]) == ("ready", True), done
        found = await server.search(query, "ada", top_k=N)
        assert [(part.version.id, part.n_documents) for part in found.parts] == [(target.id, N)]
        assert BRIDGED not in found.warnings

    run(folder, scene)


@pytest.mark.parametrize("is_foreign", [False, True])
def test_old_vectors_stand_in_where_the_new_model_does_not_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_foreign: bool
):
    """Of a foreign space words do."""
    embed = EmbeddingService.embed_dense

    async def refuse(self: EmbeddingService, task: EmbedTask, permit: Any) -> Any:
        if task.model == NEW:
            raise MemoryPressureError("no room", retry_after_s=1.0)
        return await embed(self, task, permit)

    async def scene(server: Inside) -> None:
        name = "ada" if is_foreign else "ships"
        if is_foreign:
            await make_foreign(server)
        else:
            before = await server.search("ship load line")
        with held_after_the_sample(monkeypatch) as patch:
            number = await server.begin(name, NEW, bridge="gated")
            await until(server, number, BridgeState.IN_USE)
            patch.setattr(EmbeddingService, "embed_dense", refuse)
            found = await server.search("ship load line", name, mode="auto")
        if is_foreign:
            assert (found.mode, found.parts) == ("bm25", [])
        else:
            assert found.results == before.results
            assert any("stand in: no room" in warning for warning in found.warnings)

    run(folder, scene)


def test_progressive_search_ends_and_begins_with_what_is_bridged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            await until(server, number, BridgeState.IN_USE)
            for is_on, n_parts in ((False, 1), (True, 2)):
                await server.migrations.set_progressive(number, "test", "", is_on=is_on)
                assert len((await server.search("ship")).parts) == n_parts
            await server.migrations.cancel(number, "test", "")
            (part,) = (await server.search("ship")).parts
            assert part.version.space.model == OLD

    run(folder, scene)


def test_searches_that_are_told_not_to_read_a_bridge_do_not_once_it_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Said while it is still to be built; comparisons are not in its way then either."""

    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated", starts=False)
            await server.migrations.set_progressive(number, "test", "", is_on=False)
            await server.migrations.set_shadow(number, 1.0, "test", "")
            told = await server.migrations.set_shadow(number, 0.0, "test", "")
            assert told.counts.changes[-2].why == "100 % of searches are compared"
            await server.migrations.resume(number, "test", "")
            migration = await until(server, number, BridgeState.IN_USE)
            assert not migration["progressive"]
            assert len((await server.search("ship")).parts) == 1
            print_migration(migration)
            assert "\nbridge: there, and not read by searches; " in capsys.readouterr().out
            on = await server.migrations.set_progressive(number, "test", "", is_on=True)
            assert len((await server.search("ship")).parts) == 2
            print_migration(migration_json(on))
            out = capsys.readouterr().out
            assert "searches read the new version, and bridged vectors of what is not" in out
            await server.migrations.cancel(number, "test", "")

    run(folder, scene)


@pytest.mark.parametrize("rests", ["failed", "model is gone"])
def test_documents_that_come_while_no_new_vectors_are_made_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rests: str
):
    """They have an old vector alone, which no query of the new model is compared with.

    The run that goes on bridges them, and searches read bridged vectors again.
    """

    async def scene(server: Inside) -> None:
        def leave_out(connection: Connection) -> None:
            pointer.leave_out(connection, journal.find(connection, number), [2])

        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            await until(server, number, BridgeState.IN_USE)
            runs, changes = server.migrations._runs, server.migrations._changes
            if rests == "failed":
                await runs.stop(number)
                await runs._fail(number, "a disk is full")
            else:
                await server.migrations.pause(number, "test", "")
                await changes.write(leave_out)
            late = "a wholly new lighthouse"
            await server.put("ships", [Document("late", late), Document("d9", late)])
            found = await server.search(late, top_k=2)
            assert {each.document.id for each in found.results} == {"late", "d9"}

            await server.migrations.resume(number, "test", "")
            await until(server, number, BridgeState.IN_USE)
            found = await server.search(late, top_k=N)
            assert {"late", "d9"} <= {each.document.id for each in found.results}
            assert sum(part.n_documents for part in found.parts) == N + 1
            assert BRIDGED in found.warnings
            await server.migrations.pause(number, "test", "")

    run(folder, scene)


def test_two_models_take_no_turns_once_the_bridge_has_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a bridge searches ask the new model alone; without one they would ask both each time."""

    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            status = await until(server, number, BridgeState.IN_USE)
            assert status["progressive"] is True
            assert (
                status["changes"][-1]["why"] == "searches read the new version and bridged vectors"
            )
            await server.migrations.pause(number, "test", "")
        await server.migrations.resume(number, "test", "")
        done = migration_json(await server.until_rest(number))
        assert (done["state"], done["progressive"]) == ("ready", False)
        with pytest.raises(MigrationStateError, match="PLIMSOLL_MAX_OPEN_MODELS"):
            await server.migrations.set_progressive(number, "test", "", is_on=True)

    run(folder, scene, max_open_models=1)


# --- what is refused, and what goes ---------------------------------------------------------


@pytest.mark.parametrize("bridge", ["gated", "forced"])
def test_a_bridge_of_little_worth_is_refused_unless_forced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bridge: str
):
    """To random weights nothing leads. The migration goes on without it, and says why."""

    async def scene(server: Inside) -> None:
        if bridge == "forced":
            with held_after_the_sample(monkeypatch):
                number = await server.begin("ships", BAD, bridge=bridge)
                migration = await until(server, number, BridgeState.IN_USE)
                assert migration["bridge"]["vectors"] == N - SAMPLED
                await server.migrations.pause(number, "test", "")
            await server.migrations.resume(number, "test", "")
        else:
            number = await server.begin("ships", BAD, bridge=bridge)
        done = migration_json(await server.until_rest(number))

        assert done["state"] == "ready", done
        assert (done["vectors"], done["embedded"]) == (N, N)
        assert done["bridge"]["state"] == ("dropped" if bridge == "forced" else "refused")
        assert done["bridge"]["reason"].startswith("its retention is 0.")
        assert done["bridge"]["figures"]["retention"] < bridge_figures.LEAST_RETENTION
        assert "vectors_3" not in names(server) or bridge == "forced"

    run(folder, scene)


def test_a_few_documents_are_embedded_sooner_than_bridged(folder: Path):
    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, bridge="forced")
        done = migration_json(await server.until_rest(number))
        assert (done["state"], done["bridge"]["state"]) == ("ready", "refused")
        assert "50 are the least" in done["bridge"]["reason"]

    run(folder, scene, n=80)


@pytest.mark.parametrize("has_failed", [False, True])
def test_a_bridge_goes_with_its_migration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_failed: bool
):
    """Until then it stays: what stopped may go on, and so do searches."""

    async def scene(server: Inside) -> None:
        with held_after_the_sample(monkeypatch):
            number = await server.begin("ships", NEW, bridge="gated")
            await until(server, number, BridgeState.IN_USE)
            if has_failed:
                await server.migrations._runs.stop(number)
                await server.migrations._runs._fail(number, "a disk is full")
                assert counted(server, 3) == N - SAMPLED
            cancelled = migration_json(await server.migrations.cancel(number, "test", ""))
        assert cancelled["bridge"]["state"] == "dropped"
        assert "replaces_bridge_3" not in names(server)
        state = await server.corpora.catalog.state("ships")
        assert [version.id for version, _ in state.versions] == [1]

    run(folder, scene)


def test_a_plan_says_what_the_run_will(folder: Path):
    """The same documents, the same map, and nothing is written."""

    async def plan(server: Inside) -> Any:
        permit = server.core.gate.permit()
        try:
            return await server.survey.plan("ships", NEW, None, permit, tries_bridge=True)
        finally:
            permit.leave()

    async def scene(server: Inside) -> None:
        tried = (await plan(server)).bridge
        assert (tried.reason, tried.n_documents) == (None, N - SAMPLED)
        assert tried.figures.documents == SAMPLED
        assert min(tried.embed_s, tried.apply_s, tried.figures.fit_s) > 0
        assert "vectors_2" not in names(server)

        number = await server.begin("ships", NEW, bridge="gated")
        done = migration_json(await server.until_rest(number))
        told, measured = tried.figures.as_json(), done["bridge"]["figures"]
        for name in ("fit_s", "row_s"):
            del told[name], measured[name]
        assert measured == pytest.approx(told)

    run(folder, scene)

"""A collection's move from one model to another and back, with real engines and no socket."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.records import Document
from plimsoll.corpora.tasks import SearchResults
from plimsoll.errors import (
    MigrationStateError,
    StoreError,
    TooLargeError,
    UnknownMigrationError,
    VerdictError,
)
from plimsoll.migration import quarantine
from plimsoll.migration.stages import TEXT_COPIES, DocumentVectors, PatientEmbedder
from plimsoll.migration.states import MigrationState as State
from plimsoll.models.slot import ModelState
from plimsoll.serving.gate import RequestPermit
from tests.fakes import DEADLINE_S
from tests.migration.models import BAD, CHECK_S, NEW, OLD, Inside, inside, settings_of, texts

N = 120
Scene = Callable[[Inside], Awaitable[None]]


def run(folder: Path, scene: Scene, *, space: str | None = None) -> None:
    """Play a scene in a server that has a collection of ships."""

    async def play() -> None:
        async with inside(settings_of(folder)) as server:
            if space is None:
                await server.ensure("ships", model=OLD)
                assert (await server.put("ships", ships())).added == N
            await scene(server)
        assert server.core.governor.admission.held_bytes == 0

    asyncio.run(play())


def ships(n: int = N, first: int = 0) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts(n + first))][first:]


def n_vectors(server: Inside, version: int) -> int:
    with server.corpora.database.reading() as connection:
        (n,) = connection.execute(f"SELECT count(*) FROM vectors_{version}").fetchone()
    return int(n)


def tables(server: Inside) -> set[str]:
    with server.corpora.database.reading() as connection:
        return {
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }


async def until_gone(server: Inside, table: str) -> None:
    """Wait until the vectors of a dropped version are deleted."""
    async with asyncio.timeout(DEADLINE_S):
        while table in tables(server):
            await asyncio.sleep(CHECK_S)


async def ready(server: Inside, model: str = NEW, **options: object) -> int:
    """A migration with its verdict."""
    number = await server.begin("ships", model, **options)
    status = await server.until_rest(number)
    assert status.state is State.READY, status.failure
    return number


# --- there ----------------------------------------------------------------------------------


def test_a_move_to_another_quantization_is_a_go(folder: Path):
    """Every document is embedded once, searches read the old version, and the audit is whole."""

    async def scene(server: Inside) -> None:
        before = await server.search("ship load line")
        number = await ready(server)
        status = await server.migrations.status(number)
        migration = status.counts.migration

        assert migration.verdict is not None
        assert migration.verdict["decision"] == "go"
        assert migration.verdict["reasons"] == migration.verdict["warnings"] == []
        assert (status.counts.n_vectors, migration.checkpoint.n_embedded) == (N, N)
        assert (await server.search("ship load line")) == before
        assert [change.after for change in status.counts.changes] == [
            State.PLANNED, State.RUNNING, State.VALIDATING, State.READY
        ]  # fmt: skip
        assert [change.who for change in status.counts.changes] == ["test"] * 2 + ["server"] * 2

    run(folder, scene)


def test_cut_over_is_the_pointer_and_rollback_is_exact(folder: Path):
    """Documents that are written after cut-over are in the old version when it is back."""

    async def scene(server: Inside) -> None:
        before = await server.search("ship load line")
        number = await ready(server)
        after = await server.migrations.cut_over(number, "test", "")
        found = await server.search("ship load line")
        assert found.fingerprint == after.counts.migration.target.fingerprint

        later = Document("later", "a wholly new lighthouse")
        await server.put("ships", [later])
        back = await server.migrations.roll_back(number, "test", "")

        assert (await server.search("ship load line")).results == before.results
        best = (await server.search(later.text)).results[0].document
        assert best.id == "later"
        assert (back.counts.keeps_old, back.counts.n_without_old) == (True, 0)
        assert n_vectors(server, 1) == n_vectors(server, 2) == N + 1

    run(folder, scene)


def test_the_first_search_after_the_pointer_has_moved_waits_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """There and back: the model was closed in the meantime, and the vectors are not yet copied."""

    async def scene(server: Inside) -> None:
        number = await ready(server)
        for change, model in (
            (server.migrations.cut_over, NEW),
            (server.migrations.roll_back, OLD),
        ):
            slot = server.core.models.find(model)
            await slot.evict("idle")
            await change(number, "test", "")
            assert slot.state is ModelState.READY
            with monkeypatch.context() as patch:
                patch.setattr("plimsoll.corpora.vectors.of_segment", None)
                assert (await server.search("ship load line")).mode == "dense"

    run(folder, scene)


def test_purge_drops_what_searches_do_not_read(folder: Path):
    async def scene(server: Inside) -> None:
        number = await ready(server)
        await server.migrations.cut_over(number, "test", "")
        purged = await server.migrations.purge(number, "test", "")

        assert purged.state is State.PURGED
        await until_gone(server, "vectors_1")
        assert "vectors_2" in tables(server)
        with pytest.raises(MigrationStateError, match="is purged"):
            await server.migrations.roll_back(number, "test", "")
        again = await ready(server, OLD)  # another may begin, back to where it came from
        await server.migrations.cut_over(again, "test", "")
        await server.migrations.roll_back(again, "test", "")
        await server.migrations.purge(again, "test", "")
        await until_gone(server, "vectors_3")
        assert "vectors_2" in tables(server)

    run(folder, scene)


def test_a_server_that_starts_deletes_what_is_left_of_a_dropped_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Slice by slice, and nothing of the version that is there."""

    async def stop_before(server: Inside) -> None:
        number = await ready(server)
        with monkeypatch.context() as patch:
            patch.setattr(server.corpora.reclaim, "start", lambda: None)
            await server.migrations.cancel(number, "test", "")
        assert n_vectors(server, 2) == N

    async def go_on() -> None:
        async with inside(settings_of(folder)) as server:
            await until_gone(server, "vectors_2")
            assert n_vectors(server, 1) == N

    run(folder, stop_before)
    monkeypatch.setattr("plimsoll.corpora.reclaim.SLICE_ROWS", N // 3)
    asyncio.run(go_on())


def test_cancel_drops_the_new_version_alone(folder: Path):
    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW)
        cancelled = await server.migrations.cancel(number, "test", "")

        assert cancelled.state is State.CANCELLED
        await until_gone(server, "vectors_2")
        assert n_vectors(server, 1) == N
        await ready(server)

    run(folder, scene)


def test_a_collection_without_documents_moves_too(folder: Path):
    """There is nothing to judge by, which the verdict says."""

    async def scene(server: Inside) -> None:
        for number in range(N):
            await server.corpora.catalog.delete_document("ships", f"d{number}")
        number = await ready(server)
        verdict = (await server.migrations.status(number)).counts.migration.verdict
        assert verdict is not None
        assert verdict["decision"] == "inconclusive"
        await server.migrations.cut_over(number, "test", "", force=True)
        await server.put("ships", ships(1))
        assert [found.document.id for found in (await server.search("ship")).results] == ["d0"]

    run(folder, scene)


def test_a_collection_has_one_migration_at_a_time(folder: Path):
    async def scene(server: Inside) -> None:
        await ready(server)
        with pytest.raises(MigrationStateError, match="migration 1 of 'ships' is ready; cancel it"):
            await server.begin("ships", BAD)
        with pytest.raises(UnknownMigrationError):
            await server.migrations.status(2)
        await server.migrations.cut_over(1, "test", "")
        with pytest.raises(MigrationStateError, match="is cut_over; purge it"):
            await server.begin("ships", BAD)
        assert "vectors_3" not in tables(server)

    run(folder, scene)


# --- while it runs --------------------------------------------------------------------------


def test_a_paused_migration_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Documents that come while it is paused are in both versions; none is embedded twice."""
    embed, n_batches = PatientEmbedder.embed_documents, 0

    async def embed_one(self: PatientEmbedder, documents: Any) -> DocumentVectors:
        """Batches after the first one wait, so that the pause comes in their midst."""
        nonlocal n_batches
        n_batches += 1
        if n_batches > 1:
            await asyncio.Event().wait()
        return await embed(self, documents)

    async def scene(server: Inside) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(PatientEmbedder, "embed_documents", embed_one)
            number = await server.begin("ships", NEW)
            async with asyncio.timeout(DEADLINE_S):
                while n_batches < 2:
                    await asyncio.sleep(CHECK_S)
            paused = await server.migrations.pause(number, "test", "lunch")
        await server.put("ships", ships(30, first=N))
        await server.migrations.resume(number, "test", "")
        done = await server.until_rest(number)

        assert paused.state is State.PAUSED
        assert [change.after for change in done.counts.changes] == [
            State.PLANNED, State.RUNNING, State.PAUSED, State.RUNNING, State.VALIDATING,
            State.READY,
        ]  # fmt: skip
        assert done.state is State.READY
        assert done.counts.n_vectors == N + 30
        assert done.counts.migration.checkpoint.n_embedded == N

    run(folder, scene)


def test_a_request_that_is_cancelled_leaves_no_migration_without_its_run(folder: Path):
    """What it has committed has its consequences."""

    async def scene(server: Inside) -> None:
        with server.corpora.database._writing:
            asked = asyncio.create_task(server.begin("ships", NEW))
            async with asyncio.timeout(DEADLINE_S):
                while not server.migrations._changes._steps:
                    await asyncio.sleep(CHECK_S)
            await asyncio.sleep(0)  # the step hands its work to the thread, which waits
            asked.cancel()
        await asyncio.wait((asked,))
        assert asked.cancelled()
        await asyncio.gather(*server.migrations._changes._steps)
        assert (await server.until_rest(1)).state is State.READY

    run(folder, scene)


def test_a_run_of_what_is_not_under_way_ends_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """It was ready before it could be paused, for instance, and went on for nothing."""

    async def scene(server: Inside) -> None:
        number = await ready(server)
        before = await server.migrations.status(number)
        runs = server.migrations._runs
        with monkeypatch.context() as patch:
            patch.setattr(server.migrations._judge, "judge", None)
            runs.start(number)
            async with asyncio.timeout(DEADLINE_S):
                while runs.progress(number) is not None:
                    await asyncio.sleep(CHECK_S)
        assert await server.migrations.status(number) == before

    run(folder, scene)


def test_a_server_that_starts_goes_on_by_itself(folder: Path):
    async def begin() -> None:
        async with inside(settings_of(folder)) as server:
            await server.ensure("ships", model=OLD)
            await server.put("ships", ships())
            await server.begin("ships", NEW)

    async def go_on() -> None:
        async with inside(settings_of(folder)) as server:
            done = await server.until_rest(1)
            assert (done.state, done.counts.n_vectors) == (State.READY, N)

    asyncio.run(begin())
    asyncio.run(go_on())


def test_what_changes_meanwhile_has_the_vector_of_its_new_text(folder: Path):
    """Deletes win, and a changed text is never left with the vector of the old one."""

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW)
        changed = [Document(f"d{place}", f"another text {place}") for place in range(0, N, 3)]
        await server.put("ships", changed)
        for place in range(1, N, 3):
            await server.corpora.catalog.delete_document("ships", f"d{place}")
        done = await server.until_rest(number)

        n_left = N - len(range(1, N, 3))
        assert done.counts.n_vectors == done.counts.n_documents == n_left
        assert done.counts.migration.verdict is not None
        assert done.counts.migration.verdict["decision"] == "go"

    run(folder, scene)


def test_a_collection_that_is_dropped_ends_its_migration(folder: Path):
    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, starts=False)
        await server.corpora.catalog.drop("ships")
        await server.migrations.resume(number, "test", "")
        failed = await server.until_rest(number)

        assert failed.state is State.FAILED
        assert failed.failure is not None
        assert "'ships' was dropped" in failed.failure
        assert (await server.migrations.cancel(number, "test", "")).state is State.CANCELLED

    run(folder, scene)


def test_a_full_disk_stops_it_with_its_reason_and_it_resumes(folder: Path):
    """SQLite itself refuses the page; searches go on, and so does the migration when it may."""

    async def scene(server: Inside) -> None:
        writer = server.corpora.database._open()
        number = await server.begin("ships", NEW, starts=False)
        (n_pages,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {n_pages}")
        await server.migrations.resume(number, "test", "")
        stopped = await server.until_rest(number)
        assert stopped.state is State.FAILED
        assert stopped.failure is not None
        assert "database or disk is full" in stopped.failure
        assert (await server.search("ship load line")).results

        writer.execute("PRAGMA max_page_count = 1073741823")
        await server.migrations.resume(number, "test", "")
        done = await server.until_rest(number)
        assert (done.state, done.counts.n_vectors) == (State.READY, N)

    run(folder, scene)


def test_a_disk_too_full_for_the_reason_shows_it_and_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The file says that it runs, since it could not be told otherwise."""

    async def scene(server: Inside) -> None:
        number = await server.begin("ships", NEW, starts=False)
        database, n_calls = server.corpora.database, 0
        writing = database.writing

        def refusing() -> object:
            nonlocal n_calls
            n_calls += 1
            if n_calls > 1:  # the first one resumes it
                raise StoreError("the disk is full")
            return writing()

        with monkeypatch.context() as patch:
            patch.setattr(database, "writing", refusing)
            await server.migrations.resume(number, "test", "")
            stopped = await server.until_rest(number)
            assert (stopped.state, stopped.failure) == (State.FAILED, "the disk is full")
            assert stopped.counts.migration.state is State.RUNNING
            with pytest.raises(StoreError):
                await server.migrations.pause(number, "test", "")

        assert (await server.migrations.pause(number, "test", "")).state is State.PAUSED
        await server.migrations.resume(number, "test", "")
        done = await server.until_rest(number)
        assert (done.state, done.counts.n_vectors) == (State.READY, N)

    run(folder, scene)


def test_no_search_fails_or_mixes_spaces_while_the_pointer_changes(
    folder: Path, record_property: Callable[[str, object], None]
):
    """Every answer is wholly of one version, whenever cut-over and rollback come."""

    async def scene(server: Inside) -> None:
        number = await ready(server)
        fingerprints, longest_s, is_over = set[str | None](), 0.0, False
        expected = dict[str | None, list[str]]()

        def look(found: SearchResults) -> None:
            fingerprints.add(found.fingerprint)
            ids = [each.document.id for each in found.results]
            assert expected.setdefault(found.fingerprint, ids) == ids

        async def search() -> None:
            nonlocal longest_s
            while not is_over:
                began_s = monotonic()
                look(await server.search("ship load line"))
                longest_s = max(longest_s, monotonic() - began_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(search())
            for _ in range(5):
                for change in (server.migrations.cut_over, server.migrations.roll_back):
                    await change(number, "test", "")
                    look(await server.search("ship load line"))
            is_over = True
        record_property("longest_search_s", longest_s)
        migration = (await server.migrations.status(number)).counts.migration
        assert fingerprints == {migration.source.fingerprint, migration.target.fingerprint}

    run(folder, scene)


# --- the verdict ----------------------------------------------------------------------------


def test_random_weights_are_no_go_and_a_forced_one_can_be_rolled_back(folder: Path):
    """Judged queries tell: what the old version finds, the new one does not."""

    async def scene(server: Inside) -> None:
        judged = []
        for text in texts(N)[:20]:
            best = (await server.search(text[:9])).results[0].document.id
            judged.append({"query": text[:9], "relevant": {best: 1.0}})
        before = await server.search("ship load line")
        number = await ready(server, BAD, judged=judged)
        with pytest.raises(VerdictError, match="the verdict of migration 1 is no_go: "):
            await server.migrations.cut_over(number, "test", "")
        assert (await server.search("ship load line")) == before

        await server.migrations.cut_over(number, "test", "", force=True)
        await server.migrations.roll_back(number, "test", "")
        assert (await server.search("ship load line")).results == before.results

    run(folder, scene)


def test_a_verdict_can_be_asked_again_with_other_queries(folder: Path):
    judged = [{"query": text, "relevant": {f"d{n}": 1.0}} for n, text in enumerate(texts(N)[:20])]

    async def scene(server: Inside) -> None:
        number = await ready(server)
        await server.migrations.validate(number, judged, "test", "")
        done = await server.until_rest(number)
        verdict = done.counts.migration.verdict
        assert verdict is not None
        (check,) = (each for each in verdict["checks"] if each["name"] == "judged_queries")
        figures = check["figures"]
        assert figures["queries"] == 20
        assert figures["old_recall_at_10"] == figures["new_recall_at_10"] == 1

    run(folder, scene)


def test_a_document_that_memory_is_never_enough_for_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """It must not keep the others from moving."""
    keep = RequestPermit.keep
    huge = Document("huge", "ship " * 20_000)

    def limited(permit: RequestPermit, n_bytes: int, *, yields: bool) -> None:
        if n_bytes == len(huge.text) * TEXT_COPIES:
            raise TooLargeError("never so much")
        keep(permit, n_bytes, yields=yields)

    async def scene(server: Inside) -> None:
        await server.put("ships", [huge])
        with monkeypatch.context() as patched:
            patched.setattr(RequestPermit, "keep", limited)
            number = await server.begin("ships", NEW)
            status = await server.until_rest(number)

        (left,) = status.counts.quarantine
        assert (left.document_id, left.reason) == ("huge", "never so much")
        assert status.state is State.READY
        assert status.counts.n_vectors == N

    run(folder, scene)


def test_a_new_verdict_begins_with_what_failed(folder: Path):
    """The reason may have gone, such as memory that was short."""

    async def scene(server: Inside) -> None:
        number = await ready(server)
        with server.corpora.database.writing() as connection:
            document = documents.get(connection, 1, "d7")
            assert document is not None
            vectors.delete(connection, 2, [document.row])
            quarantine.add(connection, number, document, "no memory", 3)
        left_out = await server.migrations.status(number)
        await server.migrations.validate(number, None, "test", "")
        done = await server.until_rest(number)

        assert (left_out.counts.n_quarantined, left_out.counts.n_vectors) == (1, N - 1)
        assert (done.counts.n_quarantined, done.counts.n_vectors) == (0, N)

    run(folder, scene)


def test_foreign_vectors_move_and_their_rollback_is_partial(folder: Path):
    """Documents without text keep their old vector and are quarantined, in the verdict too."""
    chance = np.random.default_rng(7)
    given = [*ships(), Document("blank", " ")]
    brought = chance.standard_normal((len(given), 8)).astype(np.float32)

    async def scene(server: Inside) -> None:
        await server.ensure("ships", foreign_space="ada", dimensions=8)
        await server.put("ships", given, list(brought), "foreign:ada")
        number = await ready(server, NEW)
        status = await server.migrations.status(number)
        (left,) = status.counts.quarantine
        assert (left.document_id, left.has_old_vector, left.n_attempts) == ("blank", True, 3)
        assert left.reason.startswith("empty_text: ")
        verdict = status.counts.migration.verdict
        assert verdict is not None
        checks = {check["name"]: check for check in verdict["checks"]}
        assert checks["quarantine"]["figures"]["lost"] == 1
        lost, partial = verdict["warnings"]
        assert lost.startswith("quarantine: 1 documents have no new vector, 1 of them have an old")
        assert partial.startswith("rollback: rollback is partial: no model here embeds into ")
        assert verdict["decision"] == "no_go"  # made-up vectors agree with nothing

        after = await server.migrations.cut_over(number, "test", "", force=True)
        assert after.counts.keeps_old is False
        assert (await server.put("ships", [Document("later", "a lighthouse")])).added == 1
        back = await server.migrations.roll_back(number, "test", "")
        assert back.counts.n_without_old == 1

    run(folder, scene, space="ada")

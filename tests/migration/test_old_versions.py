"""A version that searches do not read, and whose model goes, changes or comes back."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from sqlite3 import Connection
from threading import Event

import pytest

from plimsoll.composition.migrations import SCAN_THREADS
from plimsoll.corpora import vectors
from plimsoll.corpora.records import Document, Space
from plimsoll.errors import MigrationStateError, ModelLoadingError, VerdictError
from plimsoll.migration import validation
from plimsoll.migration.facts import Facts
from plimsoll.migration.records import Migration
from plimsoll.migration.states import MigrationState as State
from plimsoll.migration.status import MigrationStatus
from tests.fakes import DEADLINE_S
from tests.migration.models import (
    BAD,
    CHECK_S,
    NAMES,
    NEW,
    OLD,
    Inside,
    inside,
    settings_of,
    texts,
)
from tests.migration.test_watch import search_in_vain

N = 60
UNREADABLE = b"GGUF, but no more of it"


def play(
    folder: Path, scene: Callable[[Inside], Awaitable[None]], names: tuple[str, ...] = NAMES
) -> None:
    """Start a server that serves these models, and play a scene in it."""

    async def run() -> None:
        async with inside(settings_of(folder, names)) as server:
            await scene(server)

    asyncio.run(run())


async def make_ready(server: Inside) -> None:
    """A collection of ships, with a migration that could be cut over."""
    await server.ensure("ships", model=OLD)
    await server.put("ships", [Document(f"d{n}", text) for n, text in enumerate(texts(N))])
    status = await server.until_rest(await server.begin("ships", NEW))
    assert status.state is State.READY, status.failure


async def cut_over(server: Inside) -> None:
    """Such a migration, cut over."""
    await make_ready(server)
    await server.migrations.cut_over(1, "test", "")


async def roll_back(server: Inside) -> None:
    """Such a migration, cut over and back."""
    await cut_over(server)
    await server.migrations.roll_back(1, "test", "")


async def add_one(server: Inside) -> None:
    """A document that no version of an unserved model gets a vector of."""
    await server.put("ships", [Document("x", "a lighthouse")])


async def until(server: Inside, is_so: Callable[[MigrationStatus], bool]) -> MigrationStatus:
    """Wait until the server has looked at the models."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so(status := await server.migrations.status(1)):
            await asyncio.sleep(CHECK_S)
    return status


def replace_by_other_weights(folder: Path) -> None:
    shutil.copy(folder / f"{BAD}.gguf", folder / f"{OLD}.gguf")


def make_unreadable(folder: Path) -> None:
    (folder / f"{OLD}.gguf").write_bytes(UNREADABLE)


@pytest.mark.parametrize("spoil", [replace_by_other_weights, make_unreadable])
def test_documents_come_in_although_the_old_version_s_model_cannot_be_used(
    folder: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    """What the old version lacks is told by the status, and once by the log."""

    async def write(server: Inside) -> None:
        await until(server, lambda status: not status.counts.keeps_old)
        with server.corpora.database.writing() as connection:  # as before that was found out
            connection.execute("UPDATE versions SET takes_writes = 1")
        for name in ("x", "y"):
            put = await server.put("ships", [Document(name, f"a lighthouse {name}")])
            assert put.added == 1
        assert (await server.search("a lighthouse x")).results[0].document.id == "x"
        status = await server.migrations.status(1)
        assert (status.counts.n_without_old, status.counts.way_back) == (2, "partial")

    play(folder, cut_over)
    spoil(folder)
    with caplog.at_level(logging.WARNING, logger="plimsoll.corpora.ingest"):
        play(folder, write)
    told = [each for each in caplog.records if each.name == "plimsoll.corpora.ingest"]
    assert [each.getMessage().startswith("new documents of 'ships' get no") for each in told] == [
        True
    ]


def test_a_server_that_starts_finds_that_a_file_was_replaced_under_its_name(folder: Path):
    """Its vectors would be refused at the next search after a rollback."""

    async def look(server: Inside) -> None:
        status = await until(server, lambda status: not status.counts.keeps_old)
        assert (status.counts.n_without_old, status.counts.way_back) == (0, "partial")

    play(folder, cut_over)
    replace_by_other_weights(folder)
    play(folder, look)


def test_a_model_that_is_back_gets_new_documents_again(folder: Path):
    """What came meanwhile is missing, and is told."""

    async def without(server: Inside) -> None:
        await server.put("ships", [Document("x", "a lighthouse")])
        assert (await server.migrations.status(1)).counts.way_back == "partial"

    async def back(server: Inside) -> None:
        await until(server, lambda status: status.counts.keeps_old)
        await server.put("ships", [Document("y", "a second lighthouse")])
        status = await server.migrations.status(1)
        assert (status.counts.n_without_old, status.counts.way_back) == (1, "partial")
        await server.migrations.roll_back(1, "test", "")
        await server.put("ships", [Document("x", "a lighthouse")])
        assert (await server.migrations.status(1)).counts.way_back == "exact"

    play(folder, cut_over)
    play(folder, without, (NEW, BAD))
    play(folder, back)


def test_searches_do_not_go_back_by_themselves_to_where_documents_are_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nobody would look for what came while the old model was away, and is in neither answer."""

    async def back(server: Inside) -> None:
        await until(server, lambda status: status.counts.keeps_old)
        await search_in_vain(server, monkeypatch)
        status = await server.migrations.status(1)
        assert status.state is State.CUT_OVER
        assert status.watch is not None
        assert status.watch[0].stays == "what was written after cut-over is not in the old version"

    play(folder, cut_over)
    play(folder, add_one, (NEW, BAD))
    play(folder, back)


def test_searches_go_back_by_themselves_to_where_no_more_is_missing_than_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scene(server: Inside) -> None:
        await make_ready(server)
        with server.corpora.database.writing() as connection:
            vectors.delete(connection, 1, [1])
        await server.migrations.cut_over(1, "test", "")
        await search_in_vain(server, monkeypatch)
        assert (await server.migrations.status(1)).state is State.ROLLED_BACK

    play(folder, scene)


def test_a_rolled_back_one_that_lacks_documents_is_filled_and_cut_over_again(folder: Path):
    """One start without the new model is no end of it."""

    async def back(server: Inside) -> None:
        with pytest.raises(VerdictError, match="1 documents came that lack a new vector: validate"):
            await server.migrations.cut_over(1, "test", "")
        with pytest.raises(MigrationStateError, match="is rolled_back; validate it instead"):
            await server.migrations.resume(1, "test", "")
        await server.migrations.validate(1, None, "test", "")
        status = await server.until_rest(1)
        assert (status.state, status.counts.n_vectors) == (State.READY, N + 1)
        await server.put("ships", [Document("y", "a second lighthouse")])
        await server.migrations.cut_over(1, "test", "")
        assert (await server.search("a lighthouse")).results[0].document.id == "x"
        await server.migrations.roll_back(1, "test", "")
        assert (await server.migrations.status(1)).counts.way_back == "exact"

    play(folder, roll_back)
    play(folder, add_one, (OLD, BAD))
    play(folder, back)


def test_a_rolled_back_one_can_be_filled_before_the_server_has_looked(folder: Path):
    """What comes in the meantime is embedded into both versions."""

    async def back(server: Inside) -> None:
        with server.corpora.database.writing() as connection:
            connection.execute("UPDATE versions SET takes_writes = 0")
        await server.migrations.validate(1, None, "test", "")
        await server.put("ships", [Document("x", "a lighthouse")])
        status = await server.until_rest(1)
        assert status.counts.n_vectors == status.counts.n_documents == N + 1

    play(folder, roll_back)
    play(folder, back)


def test_cut_over_asks_to_be_forced_where_the_way_back_is_lost_since_the_verdict(folder: Path):
    """The verdict said that rollback is exact, and that is what a go was given to."""

    async def lost(server: Inside) -> None:
        with pytest.raises(VerdictError, match=r"'old' cannot be used any more .* force the cut"):
            await server.migrations.cut_over(1, "test", "")
        status = await server.migrations.status(1)
        assert status.state is State.READY
        forced = await server.migrations.cut_over(1, "test", "", force=True)
        assert forced.counts.way_back == "partial"

    play(folder, make_ready)
    make_unreadable(folder)
    play(folder, lost)


def test_cut_over_waits_for_the_old_model_only_so_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    async def scene(server: Inside) -> None:
        await make_ready(server)

        async def opens(space: Space) -> bool:
            await asyncio.Event().wait()
            return True

        with monkeypatch.context() as patch:
            patch.setattr(validation, "MOST_MODEL_WAIT_S", 0)
            patch.setattr(server.migrations._judge, "can_embed", opens)
            with pytest.raises(ModelLoadingError, match="the migration is as it was"):
                await server.migrations.cut_over(1, "test", "")
        assert (await server.migrations.status(1)).state is State.READY

    play(folder, scene)


def test_a_rollback_waits_for_no_scan(folder: Path):
    """A verdict reads all vectors of a collection, and a fault cannot wait for that."""

    async def scene(server: Inside) -> None:
        await cut_over(server)
        is_over = Event()
        for _ in range(SCAN_THREADS):
            server.migrations._scans.submit(is_over.wait)
        try:
            async with asyncio.timeout(DEADLINE_S):
                back = await server.migrations.roll_back(1, "test", "")
        finally:
            is_over.set()
        assert back.state is State.ROLLED_BACK

    play(folder, scene)


def test_a_rollback_waits_for_no_other_migration_that_is_to_be_paused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its run ends when the thread does that reads all vectors of its collection."""
    has_begun, is_over, facts_of = Event(), Event(), validation.facts_of

    def long_scan(connection: Connection, migration: Migration) -> Facts:
        has_begun.set()
        is_over.wait()
        return facts_of(connection, migration)

    async def scene(server: Inside) -> None:
        await cut_over(server)
        await server.ensure("boats", model=OLD)
        await server.put("boats", [Document("b", "a boat")])
        monkeypatch.setattr(validation, "facts_of", long_scan)
        number = await server.begin("boats", NEW)
        try:
            assert await asyncio.to_thread(has_begun.wait, DEADLINE_S)
            pauses = [asyncio.create_task(server.migrations.pause(number, "t", "")) for _ in "12"]
            async with asyncio.timeout(DEADLINE_S):
                while server.migrations._runs.progress(number) is not None:
                    await asyncio.sleep(CHECK_S)
                back = await server.migrations.roll_back(1, "test", "")
            assert not any(pause.done() for pause in pauses)
        finally:
            is_over.set()
        done = await asyncio.gather(*pauses, return_exceptions=True)
        assert back.state is State.ROLLED_BACK
        assert [type(each) for each in done] == [MigrationStatus, MigrationStateError]
        assert (await server.migrations.status(number)).state is State.PAUSED

    play(folder, scene)

"""Two servers whose links lead to one table: one follows it, the other waits and says for which."""

import asyncio
from pathlib import Path

import pytest

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.postgres.table import PostgresTable
from plimsoll.links.server import ServerIdentity
from tests.links.conftest import HOME, NEW, outgoing, place
from tests.links.linked import (
    columns,
    content,
    grow_silent,
    in_step,
    is_embedded,
    linked,
    make_ships,
    migrate,
    pull,
    until,
    with_models,
)
from tests.migration.models import Inside


def texts_of(server: Inside) -> dict[str, str]:
    with server.corpora.database.reading() as connection:
        (number,) = connection.execute("SELECT id FROM collections").fetchone()
        return dict(connection.execute(f"SELECT id, text FROM documents_{number}"))


def waits_of(server: Inside) -> str:
    return server.links._homes["ships"].work.waits or ""


def test_a_second_server_waits_for_the_first_and_reads_all_anew_once_it_is_gone(
    folder, models, application, tmp_path
):
    """Each would take the other's notes of changes away, and neither would see them all."""
    make_ships(application, 20)
    other = with_models(tmp_path / "other", models)

    async def play() -> None:
        async with linked(folder) as first:
            await pull(first)
            async with linked(other) as second:
                with pytest.raises(OutsideUnavailableError, match=f"followed by .*{folder}/data"):
                    await pull(second)
                survey = await second.links.survey("ships")
                assert any("is followed by" in each.message for each in survey.findings)
        async with linked(other) as second:
            grow_silent(application)
            await pull(second)
            async with linked(folder) as first:
                await until(lambda: f"{other}/data" in waits_of(first), "it does not wait")
                application.execute("UPDATE ships SET text = 'changed' WHERE id = 1")
                application.execute("DELETE FROM ships WHERE id = 2")
                await in_step(second)
                assert texts_of(second)["1"] == "changed"
                assert texts_of(first)["1"] != "changed"
                await second.links._homes["ships"].work.stop()
                grow_silent(application)
                first.links.wake("ships")
                await until(lambda: not waits_of(first), "it waits on")
                await in_step(first)
                assert texts_of(first)["1"] == "changed"
                assert "2" not in texts_of(first)

    asyncio.run(play())


def test_a_server_that_comes_back_brings_out_what_was_lost_meanwhile(folder, application):
    """Another may have dropped the column of an open migration: it is made and filled again."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
        application.execute("UPDATE plimsoll_server_ships SET id = 'another', process = 'one'")
        grow_silent(application)
        application.execute("ALTER TABLE ships DROP COLUMN vector_next")
        async with linked(folder) as server:
            await until(lambda: "vector_next" in columns(application), "it makes no column")
            await in_step(server)
            await is_embedded(server, application, "vector_next")
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_server_that_unlinks_takes_nothing_from_the_one_that_follows(
    folder, models, application, tmp_path
):
    """Its triggers and its column are the other's work of hours."""
    make_ships(application, 20)
    other = with_models(tmp_path / "other", models)

    async def play() -> None:
        async with linked(other) as second:
            await pull(second)
        grow_silent(application)
        async with linked(folder) as first:
            await pull(first)
            await in_step(first)
            await migrate(first)
            async with linked(other) as second:
                await second.links.unlink("ships")
            application.execute("UPDATE ships SET text = 'changed' WHERE id = 1")
            await in_step(first)
            assert texts_of(first)["1"] == "changed"
            assert all(vector for _, vector in content(application, "vector_next").values())

    asyncio.run(play())


@pytest.fixture
def tables(ships: PostgresTable, url: str, tmp_path: Path):
    """Makes a further server's link to the ships, by the name of its data folder."""
    opened = [ships]

    def table(name: str) -> PostgresTable:
        opened.append(PostgresTable(place(), url, ServerIdentity(tmp_path / name)))
        return opened[-1]

    yield table
    for each in opened:
        each.close()


def test_what_another_has_left_is_not_taken_over(ships, tables, application):
    """Vectors of its migration would be dropped as nobody's."""
    ships.claim([HOME.fingerprint])
    ships.prepare(NEW)
    grow_silent(application)
    other = tables("other")
    with pytest.raises(OutsideMismatchError, match="from another server"):
        other.claim([HOME.fingerprint])
    with pytest.raises(OutsideMismatchError, match="another server has moved it"):
        other.claim(["v1:else"])
    assert not other.claim([HOME.fingerprint, NEW.fingerprint])
    assert ships.claim([HOME.fingerprint])  # of which the other has not made use


def test_a_server_that_was_taken_for_dead_writes_nothing_any_more(ships, tables, application):
    """It may only have been stopped for a minute, in the midst of a step."""
    ships.claim([HOME.fingerprint])
    application.execute("UPDATE ships SET text = 'changed' WHERE id = 's1'")
    changes = ships.changes(10)
    grow_silent(application)
    other = tables("other")
    assert other.claim([HOME.fingerprint], begins_anew=True)
    for write in (
        lambda: ships.forget(changes),
        lambda: ships.prepare(NEW),
        lambda: ships.push(HOME, [outgoing("s0", "ship 0")]),
        lambda: ships.switch(HOME),
        lambda: ships.claim([HOME.fingerprint]),
    ):
        with pytest.raises(OutsideUnavailableError, match="followed by the server with the data"):
            write()
    assert other.changes(10).ids == ["s1"]
    ships.unfollow()
    assert ships.drop_all_but([]) == ()
    assert other.changes(10).ids == ["s1"]


def test_a_process_that_starts_goes_on_at_once_and_a_copy_of_its_folder_does_not(ships, tables):
    """After kill -9 nothing has to be waited for; two of one data folder are two all the same."""
    assert ships.claim([HOME.fingerprint])
    started = tables("")  # with the data folder of `ships`
    assert started.claim([HOME.fingerprint])
    with pytest.raises(OutsideUnavailableError, match="is followed by"):
        ships.claim([HOME.fingerprint])
    assert started.claim([HOME.fingerprint])


def test_what_takes_long_keeps_its_place(ships, tables, application, monkeypatch):
    """An index may be built for hours, and a model may be waited for as long."""
    ships.claim([HOME.fingerprint])
    grow_silent(application)
    ships.keep_claim()  # too soon: the claim was a moment ago
    other = tables("other")
    assert not other.claim([HOME.fingerprint])
    monkeypatch.setattr(ships, "_renewed_s", ships._renewed_s - 60)
    with ships._following():  # which holds the row
        ships.keep_claim()
    ships.keep_claim()
    with pytest.raises(OutsideUnavailableError, match="was seen 0 s ago"):
        other.claim([HOME.fingerprint])

"""A table with vectors from elsewhere moved to another model and back, while others write it."""

import asyncio
import threading
from collections.abc import Sequence
from sqlite3 import Connection
from typing import Any

import psycopg
import pytest

from plimsoll.corpora.patient_embedder import PatientEmbedder
from plimsoll.corpora.records import Document, Space
from plimsoll.errors import (
    CacheSpaceError,
    LinkStateError,
    OutsideMismatchError,
    OutsideUnavailableError,
    StoreError,
    UnknownLinkError,
)
from plimsoll.links import held
from plimsoll.links.filler import Filler
from plimsoll.links.outside import PAGE_ROWS
from plimsoll.links.postgres import columns as columns_of
from plimsoll.links.postgres.catalog import Place
from plimsoll.links.postgres.table import PostgresTable
from plimsoll.links.records import OutgoingRow, Pushed
from plimsoll.migration.changes import Change, StateChanges
from plimsoll.migration.records import Migration
from plimsoll.migration.states import MigrationState as State
from plimsoll.serving.tasks import Embeddings
from tests.links.linked import (
    DEADLINE_S,
    columns,
    content,
    embedded,
    grow_silent,
    in_step,
    is_embedded,
    linked,
    make_ships,
    migrate,
    old_vector,
    pull,
    until,
    with_models,
    write,
)
from tests.migration.models import NEW, OLD, inside, settings_of, texts

N = 300


class Writer:
    """An application that changes rows until it is told to stop; keeps what it wrote."""

    def __init__(self, url: str, first: int) -> None:
        self.n_written = 0
        self._first = first
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(0.005):
                number = self._first + self.n_written
                connection.execute(
                    "UPDATE ships SET text = %s WHERE id = %s", (f"changed {number}", number % N)
                )
                connection.execute(
                    "INSERT INTO ships (id, text) VALUES (%s, %s)", (number, f"new {number}")
                )
                connection.execute("DELETE FROM ships WHERE id = %s", (number - 20,))
                self.n_written += 1


def test_a_table_moves_to_another_model_and_back_while_it_is_written(folder, application, url):
    """The whole way: what is in the table at each turn is what a plain computation gives."""
    make_ships(application, N)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == N
            with Writer(url, 1000) as writer:
                number = await migrate(server)
                await until(lambda: writer.n_written > 20, "nothing is written")
            await in_step(server)
            await server.migrations.cut_over(number, "test", "meant", force=True)
            assert columns(application) == {"id", "text", "vector", "vector_before"}
            await is_embedded(server, application)

            with Writer(url, 5000) as writer:  # which is not in the way of a switch
                await until(lambda: writer.n_written > 20, "nothing is written")
                back = await server.migrations.roll_back(number, "test", "")
                assert back.state is State.ROLLED_BACK
            await in_step(server)
            old = {int(row_id): vector for row_id, (_, vector) in content(application).items()}
            assert {row_id: vector for row_id, vector in old.items() if row_id < N} == {
                row_id: tuple(old_vector(row_id).tolist()) for row_id in range(N)
            }
            await server.migrations.cut_over(number, "test", "again", force=True)
            await is_embedded(server, application)
            write(application, 7, "written after the second cut-over")
            await in_step(server)
            await is_embedded(server, application)

            await server.migrations.purge(number, "test", "")
            await until(lambda: columns(application) == {"id", "text", "vector"}, "no purge")
            await until(lambda: not triggers(application), "the triggers stay")
            await is_embedded(server, application)
            changes = (await server.migrations.status(number)).counts.changes
            told = [change.why for change in changes if change.after is State.CUT_OVER]
            assert told[0].startswith("meant; public.ships of SHIPS_URL: vector is of v1:")
            assert indexes(application) == {"nearest"}

    asyncio.run(play())


def triggers(application: psycopg.Connection) -> set[str]:
    return {name for (name,) in application.execute("SELECT tgname FROM pg_trigger")}


def indexes(application: psycopg.Connection) -> set[str]:
    found = application.execute("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")
    return {name for (name,) in found}


def test_a_table_of_a_served_model_is_filled_and_kept_in_step_for_both_versions(
    folder, application
):
    """Rows without a vector get one; after a cut-over what is written goes to both columns."""

    async def play() -> None:
        async with linked(folder, space=f'model = "{OLD}"\nfollow = true\n') as server:
            size = len((await embedded(server, ["a"], OLD))[0])
            make_ships(application, 30, size)
            await pull(server)
            await is_embedded(server, application, "vector", OLD)
            application.execute("UPDATE ships SET vector = NULL WHERE id = 5")
            await in_step(server)
            await is_embedded(server, application, "vector", OLD)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            application.execute("UPDATE ships SET text = 'other' WHERE id = 3")
            application.execute("INSERT INTO ships VALUES (77, 'came later')")
            application.execute("DELETE FROM ships WHERE id = 4")
            await in_step(server)
            await is_embedded(server, application, "vector", NEW)
            await is_embedded(server, application, "vector_before", OLD)
            assert (await server.migrations.status(number)).counts.way_back == "exact"
            await server.migrations.roll_back(number, "test", "")
            await is_embedded(server, application, "vector", OLD)
            await is_embedded(server, application, "vector_next", NEW)
            await server.migrations.purge(number, "test", "")
            await until(lambda: columns(application) == {"id", "text", "vector"}, "no purge")
            application.execute("INSERT INTO ships VALUES (78, 'still followed')")
            await in_step(server)
            await is_embedded(server, application, "vector", OLD)

    asyncio.run(play())


def test_a_row_without_text_is_no_document_and_keeps_its_vector(folder, application):
    """What cannot be embedded is left as it is, in both columns."""
    make_ships(application, 20)
    write(application, 50, None, old_vector(50))
    write(application, 51, "no old vector")

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            state = await server.corpora.catalog.state("ships")
            assert (state.n_documents, state.versions[0][1]) == (21, 20)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            rows = content(application)
            assert rows["50"] == (None, None)
            assert rows["51"][1] == (await embedded(server, ["no old vector"]))[0]
            assert content(application, "vector_before")["50"][1] is not None
            application.execute("UPDATE ships SET text = NULL WHERE id = 51")
            await in_step(server)
            state = await server.corpora.catalog.state("ships")
            assert state.n_documents == 20

    asyncio.run(play())


def test_a_vector_that_its_application_changes_is_taken_and_one_that_is_stale_is_not(
    folder, application
):
    """Of a text that changed the old vector says nothing, unless it changed as well."""
    make_ships(application, 10)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            application.execute("UPDATE ships SET text = 'stale' WHERE id = 1")
            write(application, 2, "both", old_vector(99))
            write(application, 3, texts(10)[3], old_vector(98))
            await in_step(server)
            with server.corpora.database.reading() as connection:
                found = dict(
                    connection.execute(
                        "SELECT id, vector FROM documents_1 AS d LEFT JOIN vectors_1 AS v "
                        "ON v.row = d.row"
                    )
                )
            assert found["1"] is None
            assert found["2"] == old_vector(99).tobytes()
            assert found["3"] == old_vector(98).tobytes()
            assert found["4"] == old_vector(4).tobytes()

    asyncio.run(play())


@pytest.mark.parametrize("interruption", ["changed again", "taken in again"])
def test_a_vector_is_stale_until_the_one_made_here_has_been_brought_out(
    folder, application, monkeypatch, interruption
):
    """What stands outside is the oldest text's, and would be taken as the newest one's for good."""
    push, taken = PostgresTable.push, list[str]()

    def interrupted(self: PostgresTable, space: Space, rows: Sequence[OutgoingRow]) -> Pushed:
        if not taken and any(row.text == "once" for row in rows):
            taken.append(interruption)
            text = "twice" if interruption == "changed again" else "once"
            application.execute("UPDATE ships SET text = '' WHERE id = 1")
            application.execute("UPDATE ships SET text = %s WHERE id = 1", (text,))
            if interruption == "taken in again":
                raise OutsideUnavailableError("gone", retry_after_s=0.01)
        return push(self, space, rows)

    monkeypatch.setattr(PostgresTable, "push", interrupted)

    async def play() -> None:
        async with linked(folder, space=f'model = "{NEW}"\n') as server:
            size = len((await embedded(server, ["a"]))[0])
            make_ships(application, 3, size)
            await pull(server)
            application.execute("UPDATE ships SET text = 'once' WHERE id = 1")
            await until(lambda: taken, "nothing was brought out")
            await in_step(server)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_vector_written_just_before_the_switch_is_not_taken_for_that_of_the_other_column(
    folder, application, monkeypatch
):
    """Its application waits for the switch no longer than for any lock; the mark comes after it."""
    make_ships(application, 10)
    switch = columns_of.switch

    def late(connection: psycopg.Connection, place: Place, space: Space) -> str:
        write(application, 3, "written at the last moment", old_vector(99))
        return switch(connection, place, space)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            monkeypatch.setattr(columns_of, "switch", late)
            await server.migrations.cut_over(number, "test", "", force=True)
            await in_step(server)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_change_is_not_forgotten_while_its_model_cannot_be_opened(
    folder, application, monkeypatch
):
    """A disk that is full for a minute would leave the row without a vector for good."""
    embed, is_full = PatientEmbedder.embed, [False]
    monkeypatch.setattr("plimsoll.links.work.FAULT_RETRY_S", 0.05)

    async def refused(self: PatientEmbedder, *given: Any) -> Embeddings:
        if is_full[0]:
            raise CacheSpaceError("the disk is full")
        return await embed(self, *given)

    monkeypatch.setattr(PatientEmbedder, "embed", refused)

    async def play() -> None:
        async with linked(folder, space=f'model = "{NEW}"\n') as server:
            size = len((await embedded(server, ["a"]))[0])
            make_ships(application, 3, size)
            await pull(server)
            is_full[0] = True
            application.execute("UPDATE ships SET text = 'once' WHERE id = 1")
            work = server.links._homes["ships"].work
            await until(lambda: work.waits == "the disk is full", "it does not wait")
            is_full[0] = False
            await in_step(server)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_purge_leaves_nothing_behind_that_was_written_before_it(folder, application):
    """Nobody follows the table afterwards: its last texts would keep the vectors of others."""
    make_ships(application, N)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            application.execute("UPDATE ships SET text = 'written last ' || id")
            await server.migrations.purge(number, "test", "")
            await until(lambda: columns(application) == {"id", "text", "vector"}, "no purge")
            await until(lambda: not triggers(application), "the triggers stay")
            await is_embedded(server, application)

    asyncio.run(play())


def test_what_went_while_nothing_followed_goes_with_the_next_pull(folder, application):
    """A pull reads every row, and what it does not find is gone; so after TRUNCATE."""
    make_ships(application, 200)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            application.execute("ALTER TABLE ships DISABLE TRIGGER ALL")
            application.execute("DELETE FROM ships WHERE id % 2 = 0")
            application.execute("ALTER TABLE ships ENABLE TRIGGER ALL")
            assert (await server.corpora.catalog.state("ships")).n_documents == 200
            await pull(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == 100
            application.execute("TRUNCATE ships")
            await in_step(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == 0

    asyncio.run(play())


def test_a_database_that_is_gone_for_a_while_is_waited_for(folder, application, url, postgres):
    """The link says why it waits, a cut-over is refused and changes nothing, and all goes on."""
    make_ships(application, 40)
    application.close()

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            postgres.stop()
            with pytest.raises(OutsideUnavailableError, match="does not answer"):
                await server.migrations.cut_over(number, "test", "", force=True)
            status = await server.migrations.status(number)
            assert status.state is State.READY
            server.links.wake("ships")
            await until(lambda: server.links._homes["ships"].work.waits is not None, "no word")
            postgres.start()
            with psycopg.connect(url, autocommit=True) as again:
                again.execute("UPDATE ships SET text = 'after the restart' WHERE id = 1")
                await in_step(server)
                await server.migrations.cut_over(number, "test", "", force=True)
                await is_embedded(server, again)
            assert (await server.links.status("ships")).waits is None

    asyncio.run(play())


@pytest.mark.parametrize("moment", ["finish", "switch"])
@pytest.mark.parametrize("way", ["there", "back"])
def test_a_move_whose_caller_has_gone_comes_to_its_end_with_the_link_held(
    folder, application, monkeypatch, moment, way
):
    """A client that hangs up would let others change the link in the midst of a switch."""
    make_ships(application, 20)
    begun, goes_on = threading.Event(), threading.Event()
    usual = getattr(PostgresTable, moment)

    def slow(self: PostgresTable, *given: object) -> object:
        begun.set()
        assert goes_on.wait(DEADLINE_S)
        return usual(self, *given)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            migrations, wanted = server.migrations, State.CUT_OVER
            move = migrations.cut_over(number, "test", "", force=True)
            if way == "back":
                await move
                move, wanted = migrations.roll_back(number, "test", ""), State.ROLLED_BACK
            monkeypatch.setattr(PostgresTable, moment, slow)
            moving = asyncio.create_task(move)
            await until(begun.is_set, "it is not moved")
            moving.cancel()
            await asyncio.wait((moving,), timeout=0.2)
            assert server.links._homes["ships"].work.lock.locked()
            goes_on.set()
            await asyncio.wait((moving,))
            async with server.links._homes["ships"].work.lock:
                assert (await migrations.status(number)).state is wanted

    asyncio.run(play())


def test_a_move_that_the_file_does_not_take_is_taken_back_outside(folder, application, monkeypatch):
    """Applications would read the new vectors, and searches the old ones, until a restart."""
    make_ships(application, 20)
    usual = StateChanges._commit

    async def full(self: StateChanges, work: Change) -> Migration:
        def do_and_fail(connection: Connection) -> Migration:
            work(connection)
            raise StoreError("the disk is full")

        return await usual(self, do_and_fail)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            with monkeypatch.context() as patched:
                patched.setattr(StateChanges, "_commit", full)
                with pytest.raises(StoreError, match="is full"):
                    await server.migrations.cut_over(number, "test", "", force=True)
            assert (await server.migrations.status(number)).state is State.READY
            assert "vector_next" in columns(application)
            assert "vector_before" not in columns(application)
            await server.migrations.cut_over(number, "test", "", force=True)
            with monkeypatch.context() as patched:
                patched.setattr(StateChanges, "_commit", full)
                with pytest.raises(StoreError, match="is full"):
                    await server.migrations.roll_back(number, "test", "")
            assert (await server.migrations.status(number)).state is State.CUT_OVER
            await is_embedded(server, application)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("moment", "told"),
    [("before it is held", "is busy"), ("while it is held", "brought up to date within")],
)
def test_a_move_does_not_wait_for_ever_for_a_link_that_waits(
    folder, application, monkeypatch, moment, told
):
    """A rollback is wanted most when memory is short, which is what the link may wait for."""
    make_ships(application, 20)
    waiting, goes_on = asyncio.Event(), asyncio.Event()
    usual = Filler.fill

    async def fill(self: Filler, *given: object) -> None:
        waiting.set()
        await goes_on.wait()
        await usual(self, *given)

    async def play() -> None:
        async with linked(folder) as server, asyncio.timeout(DEADLINE_S):
            await pull(server)
            number = await migrate(server)
            work = server.links._homes["ships"].work
            monkeypatch.setattr(Filler, "fill", fill)
            monkeypatch.setattr(held, "HOLD_WAIT_S", 0.2)
            monkeypatch.setattr(held, "STEP_S", 0.2)
            if moment == "while it is held":
                await work.stop()
            application.execute("UPDATE ships SET text = 'changed' WHERE id = 1")
            if moment == "before it is held":
                await waiting.wait()
            with pytest.raises(OutsideUnavailableError, match=told):
                await server.migrations.cut_over(number, "test", "", force=True)
            assert (await server.migrations.status(number)).state is State.READY
            work.start()
            goes_on.set()
            await in_step(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)

    asyncio.run(play())


def test_documents_of_a_linked_collection_are_changed_where_they_are_at_home(folder, application):
    """What a client wrote here would be taken back by the next pull."""
    make_ships(application, 3)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            with pytest.raises(LinkStateError, match="mirrors what it is linked to"):
                await server.put("ships", [Document("9", "mine")])
            with pytest.raises(LinkStateError):
                await server.corpora.catalog.delete_document("ships", "1")
            with pytest.raises(LinkStateError):
                await server.corpora.catalog.drop("ships")
            await server.links.unlink("ships")
            assert not triggers(application)
            assert (await server.corpora.catalog.drop("ships")).n_documents == 3

    asyncio.run(play())


def test_a_collection_with_documents_of_its_own_is_not_replaced_by_a_pull(folder, application):
    """A link of the same name would delete all of them."""
    make_ships(application, 3)

    async def play() -> None:
        async with linked(folder) as server:
            await server.ensure("ships", model=OLD)
            await server.put("ships", [Document("9", "mine")])
            with pytest.raises(LinkStateError, match="documents of its own"):
                await pull(server)
            with pytest.raises(UnknownLinkError):
                await server.links.status("other")

    asyncio.run(play())


def test_a_wrong_size_in_the_file_of_links_is_told_and_can_be_corrected(folder, application):
    """A pull that is refused leaves no collection of that size in the way of the next."""
    make_ships(application, 3)

    async def play() -> None:
        async with linked(folder, space='space = "ada"\ndimensions = 9\n') as server:
            found = (await server.links.survey("ships")).findings
            assert [each.blocks for each in found if "dimensions = 9" in each.message] == [True]
            with pytest.raises(OutsideMismatchError, match="9 values"):
                await pull(server)
        async with linked(folder) as server:
            found = (await server.links.survey("ships")).findings
            assert not [each for each in found if each.blocks]
            await pull(server)
            assert (await server.links.status("ships")).n_documents == 3

    asyncio.run(play())


def test_a_migration_does_not_begin_of_a_table_that_is_not_followed(folder, application):
    """Rows may have changed unseen: the move would be of what the table was once."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            await server.migrations.purge(number, "test", "")
            await until(lambda: not triggers(application), "the triggers stay")
            with pytest.raises(LinkStateError, match="pull it first"):
                await server.begin("ships", OLD)
            await pull(server)
            number = await migrate(server, OLD)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application, model=OLD)

    asyncio.run(play())


def test_a_cancelled_migration_leaves_the_table_as_it_was(folder, application):
    """But for what notes its changes, which unlinking removes."""
    make_ships(application, 20)
    before = content(application)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            assert "vector_next" in columns(application)
            await server.migrations.cancel(number, "test", "")
            await until(lambda: "vector_next" not in columns(application), "the column stays")
            await server.links.unlink("ships")
            assert content(application) == before
            assert not triggers(application)

    asyncio.run(play())


def test_a_link_that_the_operator_took_away_can_be_unlinked_by_force(folder, application, caplog):
    """Else its collection could never be written to, moved or dropped."""
    make_ships(application, 3)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
        async with inside(settings_of(folder)) as server:
            with pytest.raises(LinkStateError, match=r"has no \[links.ships\] any more"):
                await server.begin("ships", NEW)
            with pytest.raises(UnknownLinkError):
                await server.links.unlink("ships")
            await server.links.unlink("ships", force=True)
            assert caplog.text.count("no [links.ships] any more: changes may pile up") == 1
            assert (await server.corpora.catalog.drop("ships")).n_documents == 3

    asyncio.run(play())


def test_a_data_folder_that_was_lost_does_not_take_the_old_vectors_along(folder, application):
    """They may have cost money, and another server may still be to go back to them."""
    make_ships(application, 3)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
        before = content(application, "vector_before")
        grow_silent(application)
        other = with_models(folder / "other", folder)
        async with linked(other, space=f'model = "{NEW}"\n') as server:
            with pytest.raises(OutsideMismatchError, match="'vector_before' with vectors of"):
                await pull(server)
        assert content(application, "vector_before") == before

    asyncio.run(play())


def test_a_cut_over_that_others_do_not_let_through_changes_nothing(folder, application, url):
    """A long transaction of a report holds the table; searches and the pointer stay as they are."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            with psycopg.connect(url) as report:
                report.execute("SELECT count(*) FROM ships")
                with pytest.raises(OutsideUnavailableError, match="nothing was changed"):
                    await server.migrations.cut_over(number, "test", "", force=True)
                status = await server.migrations.status(number)
                assert status.state is State.READY
                assert "vector_next" in columns(application)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_column_that_someone_dropped_is_made_anew_and_filled_when_that_is_asked_for(
    folder, application
):
    """An operator's hand in the table, or a backup that was put back, is mended by one command."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            application.execute("ALTER TABLE ships DROP COLUMN vector_next")
            with pytest.raises(OutsideMismatchError, match="no vectors of"):
                await server.migrations.cut_over(number, "test", "", force=True)
            assert (await server.migrations.status(number)).state is State.READY
            await server.links.push("ships")
            await until(lambda: "vector_next" in columns(application), "no column")
            await in_step(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_column_that_someone_dropped_is_filled_when_the_server_makes_it_anew(folder, application):
    """Empty, it would be cut over to: nothing waited to be brought there."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            application.execute("ALTER TABLE ships DROP COLUMN vector_next")
        async with linked(folder) as server:
            await until(lambda: "vector_next" in columns(application), "no column")
            await in_step(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)

    asyncio.run(play())


def test_rows_that_others_hold_are_passed_by_those_behind_them(folder, application, url):
    """A report that locks a page of rows does not keep the vectors of all others back."""
    make_ships(application, N)
    n_held = PAGE_ROWS + 2

    def with_vector() -> set[int]:
        found = application.execute("SELECT id FROM ships WHERE vector_next IS NOT NULL")
        return {number for (number,) in found}

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            await migrate(server)
            await in_step(server)
            application.execute("UPDATE ships SET vector_next = NULL")
            with psycopg.connect(url) as report:
                report.execute("SELECT FROM ships WHERE id < %s FOR UPDATE", (n_held,))
                await server.links.push("ships")
                await until(lambda: with_vector() == set(range(n_held, N)), "nothing passes them")
            await in_step(server)
            await is_embedded(server, application, "vector_next")

    asyncio.run(play())

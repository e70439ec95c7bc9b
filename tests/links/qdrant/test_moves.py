"""A collection of Qdrant moved to another model and back, while applications write to its alias."""

import asyncio
import threading

import pytest
from qdrant_client import QdrantClient, models

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideUnavailableError
from plimsoll.links.qdrant.outside import QdrantOutside
from plimsoll.migration.cutovers import Cutovers
from plimsoll.migration.outside import LOST
from plimsoll.migration.records import SERVER
from plimsoll.migration.states import MigrationState as State
from tests.fakes import DEADLINE_S
from tests.links.linked import embedded, in_step, migrate, old_vector, pull, shown, until
from tests.links.qdrant.ships import (
    ALIAS,
    OLD_COLLECTION,
    are_old,
    beside,
    content,
    is_embedded,
    is_read,
    led_to,
    linked,
    make_ships,
    point,
    until_embedded,
    write_text,
)
from tests.migration.models import CHECK_S, OLD, Inside
from tests.qdrant_server import QdrantServer

N = 150


class Writer:
    """An application that changes points until it is told to stop; keeps what it wrote last."""

    def __init__(self, qdrant: QdrantServer, first: int) -> None:
        self.texts = dict[int, str]()
        self.years = dict[int, int]()
        self.gone = set[int]()
        self._first = first
        self._client = qdrant.client()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _write(self) -> None:
        number = self._first
        while not self._stop.wait(0.03):
            self.texts[number] = f"new {number}"
            self._client.upsert(ALIAS, [point(number, self.texts[number], None)])
            old = number % N
            if old not in self.gone:
                self.texts[old], self.years[old] = f"changed {number}", number
                change = {"text": self.texts[old], "year": number}
                self._client.set_payload(ALIAS, payload=change, points=[old])
            gone = (number * 7) % N
            if number % 10 == 0:
                self._client.delete(ALIAS, models.PointIdsList(points=[gone]))
                self.gone.add(gone)
                self.texts.pop(gone, None)
                self.years.pop(gone, None)
            number += 1

    def is_all_in(self, application: QdrantClient) -> bool:
        """Whether the alias has what was written last."""
        rows = {int(each): payload for each, (payload, _) in content(application).items()}
        texts_there = {n: rows[n]["text"] for n in self.texts if n in rows}
        years_there = {n: rows[n]["year"] for n in self.years if n in rows}
        is_there = (texts_there, years_there) == (self.texts, self.years)
        return is_there and not self.gone & rows.keys()


def test_a_collection_moves_to_another_model_and_back_while_it_is_written(
    folder, application, qdrant
):
    """The whole way. What was written at any moment is what the alias has, with its vector."""
    make_ships(application, N)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == N
            with Writer(qdrant, 1000) as writer:
                number = await migrate(server)
                await until(lambda: len(writer.texts) > 40, "nothing is written")
                assert led_to(application) == OLD_COLLECTION
                await server.migrations.cut_over(number, "test", "meant", force=True)
                new = led_to(application)
                assert beside(application) == [OLD_COLLECTION]
            assert new != OLD_COLLECTION
            await until(lambda: writer.is_all_in(application), "something was lost")
            await until_embedded(server, application)
            await in_step(server)
            info = application.get_collection(ALIAS)
            assert info.config.hnsw_config.m == 24
            assert info.config.params.on_disk_payload
            assert info.payload_schema["year"].params.lookup is False

            untouched = [n for n in range(N) if n not in writer.gone and n not in writer.texts]
            back = await server.migrations.roll_back(number, "test", "")
            assert back.state is State.ROLLED_BACK
            assert led_to(application) == OLD_COLLECTION
            assert writer.is_all_in(application)
            are_old(application, untouched)
            await server.migrations.cut_over(number, "test", "again", force=True)
            assert led_to(application) == new
            await is_embedded(server, application)

            await server.migrations.purge(number, "test", "")
            await until(lambda: not beside(application), "no purge")
            await is_embedded(server, application)
            changes = (await server.migrations.status(number)).counts.changes
            told = [change.why for change in changes if change.after is State.CUT_OVER]
            assert told[0].startswith("meant; the alias ships of SHIPS_QDRANT_URL leads to ships-")

    asyncio.run(play())


def test_points_of_a_served_model_are_filled_and_kept_in_step_for_both_versions(
    folder, application
):
    """Points without a vector get one; after a cut-over what is written goes to both collections.

    A text that an application changes alone keeps a vector that Qdrant has brought to length 1
    itself: taken for a new one, it would stay the vector of another text.
    """

    async def play() -> None:
        async with linked(folder, f'model = "{OLD}"\nfollow = true\n') as server:
            make_ships(application, 30, len((await embedded(server, ["a"], OLD))[0]))
            await pull(server)
            await is_embedded(server, application, model=OLD)
            write_text(application, 5, "other")
            await until(lambda: is_read(server, "other"), "it is not read again")
            await in_step(server)
            await is_embedded(server, application, model=OLD)
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            write_text(application, 3, "after cut-over")
            application.upsert(ALIAS, [point(77, "came later", None)])
            application.delete(ALIAS, models.PointIdsList(points=[4]))
            await until(lambda: is_read(server, "came later", "after cut-over"), "not read again")
            await in_step(server)
            await is_embedded(server, application)
            assert (await server.migrations.status(number)).counts.way_back == "exact"
            await server.migrations.roll_back(number, "test", "")
            assert led_to(application) == OLD_COLLECTION
            assert content(application).keys() == {*map(str, range(30)), "77"} - {"4"}
            await is_embedded(server, application, model=OLD)
            await server.migrations.purge(number, "test", "")
            await until(lambda: not beside(application), "no purge")
            application.upsert(ALIAS, [point(78, "still followed", None)])
            await until(lambda: is_read(server, "still followed"), "not read again")
            await in_step(server)
            await is_embedded(server, application, model=OLD)

    asyncio.run(play())


def test_a_point_without_text_goes_along_and_is_no_document(folder, application):
    """Applications find it by its payload, before and after the cut-over."""
    make_ships(application, 20)
    application.upsert(ALIAS, [point(50, None, old_vector(50))])

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == 20
            number = await migrate(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            assert content(application)["50"] == ({"year": 1870}, None)
            await server.migrations.roll_back(number, "test", "")
            are_old(application, [50])

    asyncio.run(play())


def test_a_server_that_is_gone_for_a_while_is_waited_for(folder, application, qdrant):
    """The link says why it waits, a cut-over is refused and changes nothing, and all goes on."""
    make_ships(application, 40)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            qdrant.stop()
            with pytest.raises(OutsideUnavailableError, match="SHIPS_QDRANT_URL"):
                await server.migrations.cut_over(number, "test", "", force=True)
            assert (await server.migrations.status(number)).state is State.READY
            server.links.wake("ships")
            await until(lambda: server.links._homes["ships"].work.waits is not None, "no word")
            qdrant.start()
            write_text(application, 1, "after the restart")
            await until(lambda: is_read(server, "after the restart"), "not read again")
            await in_step(server)
            await server.migrations.cut_over(number, "test", "", force=True)
            await is_embedded(server, application)
            assert (await server.links.status("ships")).waits is None

    asyncio.run(play())


def test_a_switch_whose_answer_is_lost_is_followed_once_the_server_answers_again(
    folder, application, monkeypatch
):
    """The alias leads to the new vectors already, and searches here would not before a restart."""
    make_ships(application, 40)
    switch, n_lost = QdrantOutside.switch, 1

    def lose_answer(self: QdrantOutside, space: Space) -> str:
        nonlocal n_lost
        told = switch(self, space)
        if n_lost:
            n_lost -= 1
            raise OutsideUnavailableError("no answer within 20 s", retry_after_s=0.1)
        return told

    monkeypatch.setattr(QdrantOutside, "switch", lose_answer)

    async def followed(server: Inside, number: int, state: State) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (await server.migrations.status(number)).state is not state:
                await asyncio.sleep(CHECK_S)
        last = (await server.migrations.status(number)).counts.changes[-1]
        assert (last.who, last.why) == (SERVER, LOST)

    async def play() -> None:
        nonlocal n_lost
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            with pytest.raises(OutsideUnavailableError, match="no answer"):
                await server.migrations.cut_over(number, "test", "", force=True)
            await followed(server, number, State.CUT_OVER)
            await is_embedded(server, application)

            async def may_go_back(*_: object) -> None:  # also to vectors from elsewhere
                return None

            monkeypatch.setattr(Cutovers, "_why_no_better", may_go_back)
            n_lost = 1  # of a rollback that nobody asks for, and nobody would ask for again
            assert not await server.migrations._cutovers._go_back(number, "too little agreement")
            await followed(server, number, State.ROLLED_BACK)

    asyncio.run(play())


def test_metrics_count_what_waits_for_a_server_that_is_gone_and_nothing_once_it_is_unlinked(
    folder, application, qdrant
):
    """Else nobody sees that it grows, and the alert of a link goes on that is none any more."""
    make_ships(application, 20)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            qdrant.stop()
            server.links.wake("ships")
            await until(lambda: shown(server)['state state="waiting"'] == 1, "it does not wait")
            await server.links.push("ships")
            await until(lambda: shown(server)['vectors_waiting space="read"'] == 20, "not counted")
            await server.links.unlink("ships", force=True)
            assert shown(server)['state state="waiting"'] == 0
            assert shown(server)['state state="at_rest"'] == 1
            assert shown(server)['vectors_waiting space="read"'] == 0

    asyncio.run(play())


def test_a_cancelled_migration_leaves_the_alias_and_its_collection_as_they_were(
    folder, application
):
    """The collection beside it goes."""
    make_ships(application, 20)
    before = content(application)

    async def play() -> None:
        async with linked(folder) as server:
            await pull(server)
            number = await migrate(server)
            assert len(beside(application)) == 1
            await server.migrations.cancel(number, "test", "")
            await until(lambda: not beside(application), "the collection stays")
            await server.links.unlink("ships")
            assert content(application) == before
            assert led_to(application) == OLD_COLLECTION

    asyncio.run(play())

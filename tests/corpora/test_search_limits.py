"""A search ends: after its time, with its client, with the server. It waits for no writer."""

import asyncio
import sqlite3
from collections.abc import Iterator
from itertools import count
from threading import Event

import pytest

from plimsoll.corpora import search_reading, versions
from plimsoll.corpora.database import Database
from plimsoll.corpora.ranking import Ranked
from plimsoll.corpora.reading_limit import ReadingLimit
from plimsoll.corpora.records import Space
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import SearchStoppedError
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer

ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
TASK = SearchTask("ships", "ship", 10, "bm25")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Set once a search runs; none ends by itself."""
    begun = Event()

    def search_words(connection: sqlite3.Connection, *_: object) -> Ranked:
        begun.set()
        connection.execute(ENDLESS).fetchone()
        return Ranked.none()

    monkeypatch.setattr(search_reading, "search_words", search_words)
    return begun


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    with server.corpora.database.writing() as connection:
        versions.create(connection, "ships", Space("v1:a", 2, "small"))
    yield server
    server.close()


def test_a_reading_ends_after_its_time(database: Database):
    """The connection is as good as before for the next one, which has no limit."""
    limit = ReadingLimit(5, Event(), clock=count(0.0).__next__)

    with pytest.raises(SearchStoppedError, match="5 s"), database.reading(limit) as connection:
        connection.execute(ENDLESS).fetchone()

    with database.reading() as again:
        assert again is connection
        query = ENDLESS.replace("FROM n)", "FROM n WHERE x < 200000)")
        assert again.execute(query).fetchone() == (200_000,)


def test_a_search_ends_with_its_client(server: FakeServer, begun: Event):
    """Its thread is free for the next one."""

    async def hang_up() -> None:
        searching = asyncio.ensure_future(searched(server))
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        searching.cancel()
        await asyncio.wait((searching,), timeout=DEADLINE_S)
        assert searching.cancelled()

    asyncio.run(hang_up())


def test_a_search_ends_with_the_server(server: FakeServer, begun: Event):
    async def stop() -> None:
        searching = asyncio.ensure_future(searched(server))
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        await asyncio.wait_for(asyncio.to_thread(server.corpora.close), DEADLINE_S)
        with pytest.raises(SearchStoppedError, match="the server ends"):
            await searching

    asyncio.run(stop())


def test_a_search_waits_for_no_writer(server: FakeServer):
    """However many wait: another process, or a migration, may hold the one place for long."""
    catalog = server.corpora.catalog

    async def pass_them() -> SearchResults:
        with server.corpora.database.writing():
            writers = [asyncio.ensure_future(catalog.drop("ships")) for _ in range(4)]
            await asyncio.sleep(0)  # each stands before its thread now
            answer = await asyncio.wait_for(searched(server), DEADLINE_S)
        await asyncio.wait(writers)
        return answer

    assert asyncio.run(pass_them()).results == []


async def searched(server: FakeServer) -> SearchResults:
    permit = server.core.gate.permit()
    try:
        return await server.corpora.search.search(TASK, permit)
    finally:
        permit.leave()

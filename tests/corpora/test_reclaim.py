"""What a dropped collection leaves is deleted in short transactions, and nothing else is."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll.composition.application import create_app
from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import FILE_NAME, Database, faults_of
from plimsoll.corpora.reclaim import reclaim
from plimsoll.corpora.records import Collection, Document, Space
from plimsoll.corpora.words import search_words
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer
from tests.migration.conftest import write_models
from tests.migration.models import settings_of

N = 60
SLICE_ROWS = 7
OF_A_COLLECTION = {"documents", "words", "vectors"}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    yield server
    server.close()


def fill(database: Database, name: str) -> Collection:
    """A collection whose documents came one by one, so that FTS5 has many parts of an index."""
    with database.writing() as connection:
        collection = versions.create(connection, name, Space("v1:a", 2, "small"))
    for number in range(N):
        with database.writing() as connection:
            document = Document(f"d{number}", f"ship word{number} " * 400)
            rows = documents.put(connection, collection.id, [document])
            vectors.put(connection, collection.active.id, rows, np.ones((1, 2), np.float32))
    return collection


def drop(database: Database, name: str) -> None:
    with database.writing() as connection:
        versions.drop(connection, versions.find(connection, name))


def tables(database: Database) -> set[str]:
    """Tables of documents, words and vectors."""
    with database.reading() as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    return {name for name in names if name.split("_")[0] in OF_A_COLLECTION}


def assert_whole(database: Database, collection: Collection) -> None:
    """Each of its documents is found by its words, and has its vector."""
    with database.reading() as connection:
        assert documents.count(connection, collection.id) == N
        assert len(search_words(connection, collection.id, "ship", N).rows) == N
        assert vectors.count(connection, collection.active.id) == N
    assert faults_of(database.path) == []


def test_a_dropped_collection_goes_in_short_transactions(database: Database):
    """And nothing that is another's, though a server ends after any of them."""
    sheep = fill(database, "sheep")
    others = tables(database)
    fill(database, "ships")
    drop(database, "ships")

    n_slices, is_left = 0, True
    while is_left:
        with database.writing() as connection:
            before = connection.total_changes
            is_left = reclaim(connection, SLICE_ROWS)
            n_deleted = connection.total_changes - before
        assert n_deleted <= 2 * SLICE_ROWS  # of two tables, at the end of the first
        n_slices += 1
        if n_slices % 5 == 0:
            database.close()  # FTS5 has to open what is left of its index
            assert_whole(database, sheep)

    assert n_slices > 3 * N / SLICE_ROWS
    assert tables(database) == others
    assert_whole(database, sheep)


def test_the_name_is_free_at_once(database: Database):
    fill(database, "ships")
    drop(database, "ships")

    again = fill(database, "ships")
    with database.writing() as connection:
        while reclaim(connection, SLICE_ROWS):
            pass

    assert_whole(database, again)


def test_a_server_gives_the_room_back(server: FakeServer):
    """Of what is dropped now, and of what was left when it stopped."""
    database = server.corpora.database
    sheep = fill(database, "sheep")
    others = tables(database)
    fill(database, "ships")
    drop(database, "ships")

    server.corpora.reclaim.start()
    *_, thread = server.corpora.threads
    thread.submit(lambda: None).result(DEADLINE_S)  # it does one thing after the other

    assert tables(database) == others
    assert_whole(database, sheep)


def test_a_server_that_starts_goes_on(tmp_path: Path):
    """Nothing else would ever look at what is left."""
    settings = settings_of(write_models(tmp_path))
    database = Database(settings.data_dir / FILE_NAME)
    fill(database, "ships")
    drop(database, "ships")

    deadline_s = monotonic() + DEADLINE_S
    with TestClient(create_app(settings)):
        while tables(database) and monotonic() < deadline_s:
            sleep(0.01)

    assert tables(database) == set()
    database.close()

"""A PostgreSQL server, emptied for each test, and a table of ships."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psycopg
import pytest

from plimsoll.corpora.records import Space, text_sha256
from plimsoll.links.postgres.catalog import Place
from plimsoll.links.postgres.table import PostgresTable
from plimsoll.links.records import OutgoingRow
from plimsoll.links.server import ServerIdentity
from tests.links.linked import VARIABLE, with_models
from tests.migration.conftest import write_models
from tests.postgres_server import PostgresServer, is_installed

HOME = Space.foreign("ada", 3)
NEW = Space("v1:new", 4, "new")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server; skips where its package has no wheel for this Python."""
    if not is_installed():
        pytest.skip("pgserver has no wheel for this Python")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """The connection string of a database without tables."""
    return postgres.cleaned()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def folder(models: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, without collections; the link leads to a database without tables."""
    monkeypatch.setenv(VARIABLE, url)
    return with_models(tmp_path, models)


@pytest.fixture
def application(url: str) -> Iterator[psycopg.Connection]:
    """A connection of an application, which commits each statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def make_table(
    application: psycopg.Connection, n: int = 5, id_type: str = "text", table: str = "ships"
) -> None:
    """A table of ships with vectors of HOME."""
    application.execute(
        f"CREATE TABLE {table} (id {id_type} PRIMARY KEY, text text, vector vector(3))"
    )
    for number in range(n):
        application.execute(
            f"INSERT INTO {table} VALUES (%s, %s, %s)",
            (number if "int" in id_type else f"s{number}", f"ship {number}", f"[1,2,{number}]"),
        )


def place(**names: str) -> Place:
    """Where that table is."""
    usual = {"schema": "public", "table": "ships", "id": "id", "text": "text", "vector": "vector"}
    return Place(**(usual | names), variable="SHIPS_URL")


def vector_of(number: float, size: int = NEW.dimensions) -> np.ndarray:
    """A vector that says its number."""
    return np.arange(size, dtype=np.float32) + np.float32(number)


def outgoing(row_id: str, text: str, number: float = 0) -> OutgoingRow:
    """A vector of NEW for a row, embedded from `text`."""
    return OutgoingRow(row_id, text, text_sha256(text), vector_of(number))


@pytest.fixture
def linked(url: str, tmp_path: Path) -> Iterator[Callable[..., PostgresTable]]:
    """Makes a table's link of one server, to be closed with the test."""
    server = ServerIdentity(tmp_path)
    with ExitStack() as opened:

        def link(at: str = url, **names: str) -> PostgresTable:
            table = PostgresTable(place(**names), at, server)
            opened.callback(table.close)
            return table

        yield link


@pytest.fixture
def ships(application: psycopg.Connection, linked: Callable[..., PostgresTable]) -> PostgresTable:
    """Five ships, followed."""
    make_table(application)
    table = linked()
    table.follow(HOME)
    return table

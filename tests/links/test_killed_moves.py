"""A move of a table killed at any moment, its database restarted meanwhile: as if nothing had been.

Equal means rows, vectors, order, pointers and states here; outside every value of every row, the
columns with what their comments say, and the indexes.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.killing import SOAK, Extent, killed_and_not, stored
from tests.links.linked import with_models
from tests.links.mover import connected
from tests.migration.models import texts
from tests.postgres_server import PostgresServer
from tests.synthetic import TINY_SHAPE

USUAL = Extent(n_documents=300, n_kills=2, n_kills_a_stage=1)
FINAL_STAGES = (
    "the table is being switched",
    "the table is switched and the pointer is not",
)
STAGES = (
    "a page is in the mirror and its position is not noted",
    "changes are in the mirror and not forgotten",
    "the column is made",
    "reader",
    "encoder",
    "validator",
    "writer",
    "vectors are written and not committed",
    "vectors are outside and not confirmed here",
    "an index is to be built",
    *FINAL_STAGES,
)
# test_kill.py has most of the others, each once.
USUAL_STAGES = STAGES[-4:]
# Two of each table: also the second one may be what is to be built.
INDEXES = {"nearest": "vector_cosine_ops", "nearest_by_product": "vector_ip_ops"}


@pytest.fixture
def extent(is_soak: bool) -> Extent:
    return SOAK if is_soak else USUAL


def make_ships(url: str, schema: str, n: int) -> None:
    """A table of texts without vectors, anew; the database may restart meanwhile."""
    names = {"schema": sql.Identifier(schema), "ships": sql.Identifier(schema, "ships")}
    while True:
        try:
            with connected(url) as application, application.transaction():
                for statement in (
                    "DROP SCHEMA IF EXISTS {schema} CASCADE",
                    "CREATE SCHEMA {schema}",
                    f"CREATE TABLE {{ships}} (id int PRIMARY KEY, text text, "
                    f"vector vector({TINY_SHAPE.hidden}))",
                    *(
                        f"CREATE INDEX {name} ON {{ships}} USING hnsw (vector {operators}) "
                        "WITH (m = 4, ef_construction = 16)"
                        for name, operators in INDEXES.items()
                    ),
                ):
                    application.execute(sql.SQL(statement).format(**names))
                with application.cursor() as cursor:
                    cursor.executemany(
                        sql.SQL("INSERT INTO {ships} VALUES (%s, %s)").format(**names),
                        list(enumerate(texts(n))),
                    )
            return
        except psycopg.OperationalError:
            continue


def outside(url: str, schema: str) -> dict[str, Any]:
    """All that the table is."""
    asked = {
        "rows": sql.SQL(
            "SELECT id, text, vector::text, vector_before::text FROM {} ORDER BY id"
        ).format(sql.Identifier(schema, "ships")),
        "columns": sql.SQL(
            "SELECT attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum) "
            "FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 AND NOT attisdropped "
            "ORDER BY 1"
        ).format(sql.Literal(f"{schema}.ships")),
        "indexes": sql.SQL(
            "SELECT indexname, replace(indexdef, {schema}, ''), indisvalid FROM pg_indexes "
            "JOIN pg_index ON indexrelid = format('%I.%I', schemaname, indexname)::regclass "
            "WHERE schemaname = {schema} ORDER BY 1"
        ).format(schema=sql.Literal(schema)),
        "changes": sql.SQL("SELECT count(*) FROM {}").format(
            sql.Identifier(schema, "plimsoll_changes_ships")
        ),
    }
    while True:
        try:
            with connected(url) as application:
                return {name: application.execute(one).fetchall() for name, one in asked.items()}
        except psycopg.OperationalError:
            continue


@contextmanager
def restarts(postgres: PostgresServer) -> Iterator[None]:
    """The database dies now and then with all its connections, and is away for a while."""
    chance, ended = random.Random(11), threading.Event()
    failures = list[BaseException]()

    def restart() -> None:
        try:
            while not ended.wait(chance.uniform(2, 10)):
                postgres.stop()
                ended.wait(chance.uniform(0, 3))
                postgres.start()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures


def test_killed_at_any_moment_it_ends_as_one_that_was_not(
    models: Path, tmp_path: Path, url: str, folder: Path, postgres: PostgresServer, extent: Extent
):
    """Nothing twice and nothing missing, here and in the table."""

    def begin(one: Path) -> None:
        with_models(one, models)
        make_ships(url, one.name, extent.n_documents)

    found = killed_and_not(
        "tests.links.mover",
        begin,
        tmp_path,
        lambda one: stored(one) | outside(url, one.name),
        STAGES if extent is SOAK else USUAL_STAGES,
        extent,
        FINAL_STAGES,
        trouble=lambda: restarts(postgres),
    )

    n = extent.n_documents
    assert len(found["new"]) == len(found["rows"]) == n
    assert all(new and old for _, _, new, old in found["rows"])
    assert found["changes"] == [(0,)]
    n_indexes = sum("hnsw" in definition for _, definition, _ in found["indexes"])
    assert n_indexes == 2 * len(INDEXES)

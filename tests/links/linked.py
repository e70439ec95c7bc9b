"""A server's inside with a link to a table of ships, and what that table should be."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import numpy as np
import psycopg

from plimsoll.links.links import LinkStatus
from plimsoll.migration.states import MigrationState
from plimsoll.serving.tasks import EmbedTask
from plimsoll.settings import Settings
from tests.migration.models import CHECK_S, NEW, Inside, inside, settings_of, texts

DEADLINE_S = 120.0
OLD_SIZE = 8
VARIABLE = "SHIPS_URL"
TOML = f"""[links.ships]
kind = "postgres"
url_env = "{VARIABLE}"
table = "ships"
"""
FOREIGN = 'space = "ada"\ndimensions = 8\n'


def linked_settings(folder: Path, space: str = FOREIGN, **names: str) -> Settings:
    """A server with the models of `folder` and the link; space: lines of the file of links."""
    file = folder / "links.toml"
    file.write_text(TOML + space + "".join(f'{key} = "{name}"\n' for key, name in names.items()))
    return settings_of(folder).model_copy(update={"links": file})


def with_models(folder: Path, models: Path) -> Path:
    """A folder that has the models of another one."""
    folder.mkdir(exist_ok=True)
    for file in models.glob("*.gguf"):
        (folder / file.name).symlink_to(file)
    return folder


def old_vector(number: int) -> np.ndarray:
    """What another model once made of a text."""
    return np.random.default_rng(number).normal(size=OLD_SIZE).astype(np.float32)


def make_ships(application: psycopg.Connection, n: int, size: int = OLD_SIZE) -> None:
    """A table of ships with vectors from elsewhere, indexed."""
    application.execute(
        f"CREATE TABLE ships (id int PRIMARY KEY, text text, vector vector({size}))"
    )
    for number, text in enumerate(texts(n)):
        write(application, number, text, old_vector(number) if size == OLD_SIZE else None)
    application.execute("CREATE INDEX nearest ON ships USING hnsw (vector vector_cosine_ops)")


def write(
    application: psycopg.Connection, number: int, text: str | None, vector: np.ndarray | None = None
) -> None:
    """Write a row as an application does, in the place of what is there."""
    application.execute(
        "INSERT INTO ships VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET text = "
        "excluded.text, vector = excluded.vector",
        (number, text, None if vector is None else str(vector.tolist())),
    )


def content(
    application: psycopg.Connection, column: str = "vector"
) -> dict[str, tuple[str | None, tuple[float, ...] | None]]:
    """Texts and vectors of the table, by id."""
    found = application.execute(f"SELECT id::text, text, {column}::real[] FROM ships")
    return {
        row_id: (text, None if vector is None else tuple(np.float32(vector).tolist()))
        for row_id, text, vector in found
    }


def columns(application: psycopg.Connection) -> set[str]:
    """Names of the table's columns."""
    found = application.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'ships'::regclass AND attnum > 0 "
        "AND NOT attisdropped"
    )
    return {name for (name,) in found}


async def embedded(
    server: Inside, given: Sequence[str], model: str = NEW
) -> list[tuple[float, ...]]:
    """What the model makes of texts, each by itself and without a collection."""
    permit = server.core.gate.permit()
    try:
        answer = await server.core.service.embed_dense(
            EmbedTask(list(given), "search_document", model=model), permit
        )
    finally:
        permit.leave()
    return [tuple(map(float, vector)) for vector in answer.vectors]


async def is_embedded(
    server: Inside, application: psycopg.Connection, column: str = "vector", model: str = NEW
) -> None:
    """The column has the vector of every row's text, as a plain computation gives it."""
    rows = content(application, column)
    expected = await embedded(server, [text or "" for text, _ in rows.values()], model)
    assert [vector for _, vector in rows.values()] == expected


async def begin_pull(server: Inside) -> None:
    """Have every row read, and do not wait for it."""
    permit = server.core.gate.permit()
    try:
        await server.links.pull("ships", permit)
    finally:
        permit.leave()


async def pull(server: Inside) -> None:
    """Pull the link, and wait until every row was read."""
    await begin_pull(server)
    await in_step(server)


async def migrate(server: Inside, model: str = NEW) -> int:
    """Begin a migration of the ships, and wait until it is ready; returns its number."""
    number = await server.begin("ships", model)
    status = await server.until_rest(number)
    assert status.state is MigrationState.READY, status.failure
    return number


def grow_silent(application: psycopg.Connection) -> None:
    """The server that follows the ships has not been heard of for an hour."""
    application.execute("UPDATE plimsoll_server_ships SET seen_at = seen_at - interval '1 hour'")


async def in_step(server: Inside) -> LinkStatus:
    """Wait until nothing is left to be taken in or brought out."""
    deadline = monotonic() + DEADLINE_S
    while True:
        # In this order: a change is forgotten outside once its vectors wait here.
        n_changes = (await server.links.survey("ships")).n_changes
        status = await server.links.status("ships")
        assert status.state is not None
        if not (n_changes or status.state.is_pulling or any(status.n_waiting.values())):
            return status
        assert monotonic() < deadline, status
        await asyncio.sleep(CHECK_S)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < deadline, what
        await asyncio.sleep(CHECK_S)


@asynccontextmanager
async def linked(folder: Path, **options: str) -> AsyncIterator[Inside]:
    """A server with the link."""
    async with inside(linked_settings(folder, **options)) as server:
        yield server


def shown(server: Inside) -> dict[str, float]:
    """What a scrape says of the link, by the rest of the name and the labels behind the link's."""
    page = server.telemetry.render().decode()
    found = re.findall(r'^plimsoll_link_(\w+){link="ships",?([^}]*)} (\S+)$', page, re.MULTILINE)
    return {f"{name} {labels}".rstrip(): float(value) for name, labels, value in found}


def vectors_of(server: Inside) -> dict[str, bytes | None]:
    """What documents have of the foreign space, by their ids."""
    with server.corpora.database.reading() as connection:
        return dict(
            connection.execute(
                "SELECT id, vector FROM documents_1 AS d LEFT JOIN vectors_1 AS v ON v.row = d.row"
            )
        )

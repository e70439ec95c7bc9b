"""A server killed at any point of a move in Qdrant: it ends as if nothing had been."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from plimsoll.migration.runs import SERVER
from plimsoll.migration.states import MigrationState as State
from tests.links.linked import in_step, pull, until
from tests.links.qdrant.ships import (
    ALIAS,
    OLD_COLLECTION,
    are_old,
    beside,
    content,
    is_embedded,
    led_to,
    linked,
    make_ships,
)
from tests.migration.models import CHECK_S, NEW, Inside
from tests.running_server import DEADLINE_S, ROOT, environment

N = 140


@pytest.fixture
def planned(folder: Path, application: QdrantClient) -> Path:
    """A collection of ships, pulled, with a migration that is to run."""
    make_ships(application, N)

    async def begin() -> None:
        async with linked(folder) as server:
            await pull(server)
            await server.begin("ships", NEW, starts=False)
            await server.migrations.resume(1, "test", "")

    asyncio.run(begin())
    return folder


def work(folder: Path, action: str, point: str, number: int) -> None:
    """Have a process do something, and die at a point."""
    module = "tests.links.qdrant.worker"
    ended = subprocess.run(
        [sys.executable, "-m", module, str(folder), action, point, str(number)],
        cwd=ROOT, env=environment(), timeout=DEADLINE_S, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


async def until_state(server: Inside, state: State) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await server.migrations.status(1)).state is not state:
            await asyncio.sleep(CHECK_S)


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("vectors are outside and not confirmed here", 1),
        ("points are copied", 1),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(planned, application, point, number):
    """What was pushed twice is there once, and what was not pushed is pushed."""
    before = content(application)
    work(planned, "run", point, number)

    async def play() -> None:
        async with linked(planned) as server:
            assert (await server.until_rest(1)).state is State.READY
            await in_step(server)
            [other] = beside(application)
            await is_embedded(server, application, other)
            copied = content(application, other)
            assert {each: row[0] for each, row in copied.items()} == {
                each: row[0] for each, row in before.items()
            }
            assert content(application) == before

    asyncio.run(play())


def test_a_collection_that_was_left_without_its_payload_index_gets_it(planned, application):
    """Filters of applications would read every point there."""
    for name in beside(application):
        application.delete_collection(name)
    work(planned, "run", "the collection is made and not indexed", 1)
    [other] = beside(application)
    assert not application.get_collection(other).payload_schema

    async def play() -> None:
        async with linked(planned) as server:
            assert (await server.until_rest(1)).state is State.READY
            assert application.get_collection(other).payload_schema.keys() == {"year"}

    asyncio.run(play())


@pytest.mark.parametrize(
    ("action", "point"),
    [
        ("cutover", "the alias is switched and the pointer is not"),
        ("rollback", "the alias is switched and the pointer is not"),
        ("cutover", "the alias is to be switched"),
    ],
)
def test_a_switch_that_is_killed_is_taken_to_its_end_or_never_was(
    planned, application, action, point
):
    """Applications and searches read the same version once a server has started again."""

    async def make_ready() -> None:
        async with linked(planned) as server:
            await server.until_rest(1)
            if action == "rollback":
                await server.migrations.cut_over(1, "test", "", force=True)

    asyncio.run(make_ready())
    work(planned, action, point, 1)
    was_done = point == "the alias is switched and the pointer is not"

    async def play() -> None:
        async with linked(planned) as server:
            if not was_done:
                assert (await server.migrations.status(1)).state is State.READY
                assert led_to(application) == OLD_COLLECTION
                await server.migrations.cut_over(1, "test", "", force=True)
            await until_state(server, State.ROLLED_BACK if action == "rollback" else State.CUT_OVER)
            last = (await server.migrations.status(1)).counts.changes[-1]
            assert (last.who == SERVER) is was_done
            if action == "rollback":
                assert led_to(application) == OLD_COLLECTION
                are_old(application, range(N))
            else:
                await is_embedded(server, application, ALIAS)

    asyncio.run(play())


def test_a_purge_that_is_killed_is_taken_to_its_end(planned, application):
    """The version is gone here; its collection goes once a server has started again."""

    async def cut_over() -> None:
        async with linked(planned) as server:
            await server.until_rest(1)
            await server.migrations.cut_over(1, "test", "", force=True)

    asyncio.run(cut_over())
    work(planned, "purge", "the old collection is to be deleted", 1)
    assert beside(application) == [OLD_COLLECTION]

    async def play() -> None:
        async with linked(planned) as server:
            assert (await server.migrations.status(1)).state is State.PURGED
            await until(lambda: not beside(application), "no purge")
            await is_embedded(server, application)

    asyncio.run(play())

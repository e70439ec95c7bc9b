"""A server killed at any point of a linked migration: it ends as if nothing had been."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import psycopg
import pytest

from plimsoll.migration.runs import SERVER
from plimsoll.migration.states import MigrationState as State
from tests.links.linked import (
    begin_pull,
    columns,
    content,
    in_step,
    is_embedded,
    linked,
    make_ships,
    old_vector,
    pull,
    until,
)
from tests.migration.models import CHECK_S, NEW
from tests.running_server import DEADLINE_S, ROOT, environment

N = 200


@pytest.fixture
def planned(folder: Path, application: psycopg.Connection) -> Path:
    """A table of ships, pulled, with a migration that is planned."""
    make_ships(application, N)

    async def begin() -> None:
        async with linked(folder) as server:
            await pull(server)
            await server.begin("ships", NEW, starts=False)

    asyncio.run(begin())
    return folder


def work(folder: Path, action: str, point: str, number: int) -> None:
    """Have a process do something, and die at a point."""
    command = [sys.executable, "-m", "tests.links.worker", str(folder), action, point, str(number)]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), timeout=DEADLINE_S, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def resumed(folder: Path) -> None:
    """Let the migration run."""

    async def resume() -> None:
        async with linked(folder) as server:
            await server.migrations.resume(1, "test", "")

    asyncio.run(resume())


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("the column is made", 1),
        ("vectors are written and not committed", 2),
        ("vectors are outside and not confirmed here", 1),
        ("changes are in the mirror and not forgotten", 1),
        ("an index is to be built", 1),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_is_not(planned, application, point, number):
    """What was pushed twice is there once, and what was not pushed is pushed."""
    resumed(planned)
    application.execute("UPDATE ships SET text = 'changed' WHERE id % 50 = 0")
    work(planned, "run", point, number)

    async def play() -> None:
        async with linked(planned) as server:
            assert (await server.until_rest(1)).state is State.READY
            await in_step(server)
            await is_embedded(server, application, "vector_next")
            found = application.execute(
                "SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%hnsw%' ORDER BY 1"
            ).fetchall()
            assert found == [("nearest",), ("nearest_next",)]

    asyncio.run(play())


@pytest.mark.parametrize(
    ("action", "point"),
    [
        ("cutover", "the table is switched and the pointer is not"),
        ("rollback", "the table is switched and the pointer is not"),
        ("cutover", "the table is being switched"),
    ],
)
def test_a_switch_that_is_killed_is_taken_to_its_end_or_never_was(
    planned, application, action, point
):
    """Applications and searches read the same version once a server has started again."""
    resumed(planned)

    async def make_ready() -> None:
        async with linked(planned) as server:
            await server.until_rest(1)
            if action == "rollback":
                await server.migrations.cut_over(1, "test", "", force=True)

    asyncio.run(make_ready())
    work(planned, action, point, 1)
    was_committed = point == "the table is switched and the pointer is not"

    async def play() -> None:
        async with linked(planned) as server:
            if not was_committed:
                assert (await server.migrations.status(1)).state is State.READY
                assert "vector_next" in columns(application)
                await server.migrations.cut_over(1, "test", "", force=True)
            wanted = State.ROLLED_BACK if action == "rollback" else State.CUT_OVER
            status = await server.migrations.status(1)
            deadline = monotonic() + DEADLINE_S
            while status.state is not wanted:
                assert monotonic() < deadline, status.state
                await asyncio.sleep(CHECK_S)
                status = await server.migrations.status(1)
            assert (status.counts.changes[-1].who == SERVER) is was_committed
            if action == "rollback":
                old = {int(row_id): vector for row_id, (_, vector) in content(application).items()}
                assert old == {number: tuple(old_vector(number).tolist()) for number in range(N)}
                await is_embedded(server, application, "vector_next")
            else:
                await is_embedded(server, application)

    asyncio.run(play())


def test_hooks_after_a_cut_over_are_asked_of_one_that_a_start_takes_to_its_end(planned):
    """A smoke test that never ran would leave a bad version to searches."""
    resumed(planned)
    told = planned / "told"
    (planned / "hooks.toml").write_text(
        'always = ["smoke"]\n[hooks.smoke]\nwhen = "after-cutover"\n'
        f'command = ["/bin/sh", "-c", "touch {told}"]\n'
    )

    async def switch_outside_alone() -> None:
        async with linked(planned) as server:
            target = (await server.until_rest(1)).counts.migration.target
            async with server.links.held("ships") as link:
                assert link is not None
                await link.finish(target)
                await asyncio.to_thread(link.switch, target)

    asyncio.run(switch_outside_alone())

    async def play() -> None:
        async with linked(planned):
            await until(told.exists, "no hook was asked")

    asyncio.run(play())


@pytest.mark.parametrize("point", ["the old column is dropped", "the old column is to be dropped"])
def test_a_purge_that_is_killed_is_taken_to_its_end(planned, application, point):
    """The version is gone here; its column goes once a server has started again."""
    resumed(planned)

    async def cut_over() -> None:
        async with linked(planned) as server:
            await server.until_rest(1)
            await server.migrations.cut_over(1, "test", "", force=True)

    asyncio.run(cut_over())
    work(planned, "purge", point, 2)

    async def play() -> None:
        async with linked(planned) as server:
            assert (await server.migrations.status(1)).state is State.PURGED
            await until(lambda: columns(application) == {"id", "text", "vector"}, "no purge")
            await is_embedded(server, application)

    asyncio.run(play())


def test_a_pull_that_is_killed_goes_on_behind_what_it_has(folder, application):
    """No row is left out, and none is there twice."""
    make_ships(application, N)

    async def begin() -> None:
        async with linked(folder) as server:
            await pull(server)
            application.execute("DELETE FROM ships WHERE id = 5")
            await begin_pull(server)

    asyncio.run(begin())
    work(folder, "pull", "a page is in the mirror and its position is not noted", 1)

    async def play() -> None:
        async with linked(folder) as server:
            await in_step(server)
            assert (await server.corpora.catalog.state("ships")).n_documents == N - 1

    asyncio.run(play())

"""A server's inside in a process of its own: moves a linked table, and may be killed.

Called as `python -m tests.links.mover FOLDER [STAGE NUMBER]`: STAGE ends the process by SIGKILL at
its call of that number. The table is `ships` in a schema of the folder's name. Prints a line when
it has started, and ends when searches and applications read vectors of the new model. A database
that does not answer is asked again.
"""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psycopg
from psycopg import sql

from plimsoll.errors import MigrationStateError
from plimsoll.migration.states import MigrationState
from tests.killing import PATIENCE_S, kill_at
from tests.links.linked import VARIABLE, begin_pull, linked
from tests.links.patience import RETRY_S, hurry, patiently, to_rest
from tests.links.worker import POINTS
from tests.migration import worker as migration_worker
from tests.migration.models import CHECK_S, NEW, OLD, Inside

HOME = f'model = "{OLD}"\n'
"""Lines of the file of links: the vectors are by a model that is served."""


def connected(url: str) -> psycopg.Connection:
    """A connection of an application that waits for its database."""
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            return psycopg.connect(url, autocommit=True, connect_timeout=5)
        except psycopg.OperationalError:
            assert monotonic() < deadline, "the database does not answer"
            sleep(RETRY_S)


async def in_step(server: Inside) -> None:
    """Wait until nothing is left to be taken in or brought out."""
    deadline = monotonic() + PATIENCE_S
    while True:
        server.links.wake("ships")
        # In this order: a change is forgotten outside once its vectors wait here.
        n_changes = (await patiently(lambda: server.links.survey("ships"))).n_changes
        status = await server.links.status("ships")
        assert status.state is not None
        if not (n_changes or status.state.is_pulling or any(status.n_waiting.values())):
            return
        assert monotonic() < deadline, status
        await asyncio.sleep(CHECK_S)


def change_texts(schema: str, remainder: int) -> None:
    """Give some rows another text, as an application does that was killed and does it again."""
    while True:
        try:
            with connected(os.environ[VARIABLE]) as application:
                application.execute(
                    sql.SQL(
                        "UPDATE {} SET text = 'changed ' || text "
                        "WHERE id %% 50 = %s AND text NOT LIKE 'changed %%'"
                    ).format(sql.Identifier(schema, "ships")),
                    (remainder,),
                )
            return
        except psycopg.OperationalError:  # it restarts
            sleep(RETRY_S)


async def move(server: Inside, schema: str) -> None:
    """Pull, migrate and cut over, each as far as it is not done."""
    if (await server.links.status("ships")).state is None:
        await patiently(lambda: begin_pull(server))
    await in_step(server)
    for remainder in range(2):
        await asyncio.to_thread(change_texts, schema, remainder)
        await in_step(server)
    begun = await server.migrations.statuses()
    number = begun[0].counts.migration.id if begun else await server.begin("ships", NEW)
    status = await to_rest(server, number)
    if status.state is not MigrationState.CUT_OVER:
        # Where the table was switched before a kill, the server that starts follows it.
        with suppress(MigrationStateError):
            await patiently(lambda: server.migrations.cut_over(number, "test", ""))
    status = await server.migrations.status(number)
    assert status.state is MigrationState.CUT_OVER, (status.state, status.failure)
    await in_step(server)


async def run(folder: Path) -> None:
    """Work until it has been moved."""
    hurry()
    async with linked(folder, space=HOME, schema=folder.name) as server:
        print("started", flush=True)
        await move(server, folder.name)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        stage, number = sys.argv[2], int(sys.argv[3])
        if stage in POINTS:
            owner, name, is_before = POINTS[stage]
            kill_at(owner, name, number, is_before=is_before)
        else:
            migration_worker.kill_at(stage, number)
    asyncio.run(run(Path(sys.argv[1])))

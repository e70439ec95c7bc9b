"""A server's inside in a process of its own: moves a linked collection, and may be killed.

Called as `python -m tests.links.files.worker FOLDER [STAGE NUMBER]`: STAGE ends the process by
SIGKILL at its call of that number. Prints a line when it has started, and ends when searches and
the pointer outside are those of the new model.
"""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from plimsoll.errors import MigrationStateError
from plimsoll.links import steps
from plimsoll.links.files import manifest, parts, sets
from plimsoll.links.files.pushed import PushedVectors
from plimsoll.migration.states import MigrationState
from tests.killing import kill_at
from tests.links.files.ships import linked, pulled
from tests.links.patience import hurry, patiently, to_rest
from tests.migration.models import NEW, Inside

PART_ROWS = 90
STAGES: dict[str, tuple[Any, str]] = {
    "reader": (steps, "mirror_page"),  # rows are taken in, and the place is not noted
    "outbox": (PushedVectors, "put"),  # vectors are outside, and the outbox does not know
    "writer": (parts, "publish"),  # a part has its name, and the set is not whole
    "pointer": (manifest, "point_to"),  # others read the new set, and searches do not
}


async def move(server: Inside) -> None:
    """Pull, migrate and cut over, each as far as it is not done."""
    await patiently(lambda: pulled(server))
    begun = await server.migrations.statuses()
    number = begun[0].counts.migration.id if begun else await server.begin("ships", NEW)
    status = await to_rest(server, number)
    if status.state is not MigrationState.CUT_OVER:
        # Where the pointer outside was changed before a kill, the server that starts follows it.
        with suppress(MigrationStateError):
            await patiently(lambda: server.migrations.cut_over(number, "test", ""))
    assert (await server.migrations.status(number)).state is MigrationState.CUT_OVER


async def run(folder: Path) -> None:
    """Work until it has been moved."""
    sets.PART_ROWS = PART_ROWS
    hurry()
    async with linked(folder) as server:
        print("started", flush=True)
        await move(server)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        kill_at(*STAGES[sys.argv[2]], int(sys.argv[3]))
    asyncio.run(run(Path(sys.argv[1])))

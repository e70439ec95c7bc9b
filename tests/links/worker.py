"""A server's inside with a link, in a process of its own, which is killed at a point.

Called as `python -m tests.links.worker FOLDER ACTION [POINT NUMBER]`: the action is done, and the
process killed by SIGKILL where it comes to the point for the time of that number.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from plimsoll.links import steps
from plimsoll.links.held import HeldLink
from plimsoll.links.postgres import columns
from plimsoll.links.postgres import table as postgres_table
from plimsoll.links.postgres.connection import PostgresConnection
from plimsoll.links.postgres.table import PostgresTable
from tests.killing import kill_at
from tests.links.linked import in_step, linked

# Point → what is called there, and whether the kill comes before the call.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "a page is in the mirror and its position is not noted": (steps, "note_position", True),
    "changes are in the mirror and not forgotten": (PostgresTable, "forget", True),
    "the column is made": (PostgresTable, "prepare", False),
    "vectors are written and not committed": (postgres_table, "_there", True),
    "vectors are outside and not confirmed here": (steps, "confirm", True),
    "an index is to be built": (PostgresConnection, "alone", True),
    "the table is switched and the pointer is not": (HeldLink, "switch", False),
    "the table is being switched": (columns, "switch", False),
    "the old column is dropped": (PostgresTable, "drop_all_but", False),
    "the old column is to be dropped": (PostgresTable, "drop_all_but", True),
}


async def play(folder: Path, action: str) -> None:
    """Do what is asked of migration 1, and see to it that nothing is left to do."""
    async with linked(folder) as server:
        if action == "cutover":
            await server.migrations.cut_over(1, "test", "", force=True)
        elif action == "rollback":
            await server.migrations.roll_back(1, "test", "")
        elif action == "purge":
            target = (await server.migrations.status(1)).counts.migration.target
            async with server.links.held("ships") as link:
                assert link is not None
                await link.catch_up(target)  # the link has looked at the table once, so far
            await server.migrations.purge(1, "test", "")
            await asyncio.Event().wait()  # the rest is the link's
        else:
            if action == "run":
                await server.until_rest(1)
            await in_step(server)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        owner, name, is_before = POINTS[sys.argv[3]]
        kill_at(owner, name, int(sys.argv[4]), is_before=is_before)
    asyncio.run(play(Path(sys.argv[1]), sys.argv[2]))

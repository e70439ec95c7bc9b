"""A server's inside that is linked to Qdrant, in a process of its own, which is killed at a point.

Called as `python -m tests.links.qdrant.worker FOLDER ACTION [POINT NUMBER]`.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from plimsoll.links import steps
from plimsoll.links.held import HeldLink
from plimsoll.links.qdrant import switching
from tests.killing import kill_at
from tests.links.linked import in_step
from tests.links.qdrant.ships import linked

# Point → what is called there, and whether the kill comes before the call.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "the collection is made and not indexed": (QdrantClient, "create_payload_index", True),
    "vectors are outside and not confirmed here": (steps, "confirm", True),
    "points are copied": (switching, "wait_until_indexed", True),
    "the alias is to be switched": (switching, "point_to", True),
    "the alias is switched and the pointer is not": (HeldLink, "switch", False),
    "the old collection is to be deleted": (QdrantClient, "delete_collection", True),
}


async def play(folder: Path, action: str) -> None:
    """Do what is asked of migration 1."""
    async with linked(folder) as server:
        if action == "run":
            await server.until_rest(1)
            await in_step(server)
        elif action == "cutover":
            await server.migrations.cut_over(1, "test", "", force=True)
        elif action == "rollback":
            await server.migrations.roll_back(1, "test", "")
        else:
            await server.migrations.purge(1, "test", "")
            await asyncio.Event().wait()  # the rest is the link's


if __name__ == "__main__":
    if len(sys.argv) > 3:
        owner, name, is_before = POINTS[sys.argv[3]]
        kill_at(owner, name, int(sys.argv[4]), is_before=is_before)
    asyncio.run(play(Path(sys.argv[1]), sys.argv[2]))

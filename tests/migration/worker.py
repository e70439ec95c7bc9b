"""A server's inside in a process of its own: goes on with what is under way, and may be killed.

Called as `python -m tests.migration.worker FOLDER [STAGE NUMBER]`: STAGE is killed by SIGKILL when
it has given its batch of that number on; with `resume NUMBER` that migration is resumed first.
Prints a line when it has started, and ends when nothing is under way.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from plimsoll.migration import bridge_builder, bridges, stages
from tests import killing
from tests.migration.models import inside, settings_of

# Of a bridge: all of these are within their transactions.
OF_A_BRIDGE = {
    "sampler": (bridge_builder, "store"),
    "fitter": (bridges, "begin"),
    "bridger": (bridges, "put"),
    "dropper": (bridges, "drop"),
}


def kill_at(stage: str, number: int) -> None:
    """Have a stage end the process as a power cut does."""
    if stage in OF_A_BRIDGE:
        killing.kill_at(*OF_A_BRIDGE[stage], number)
        return
    n_calls = 0

    def count() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if stage == "reader":
        look = stages._next_rows

        def look_and_count(connection, migration, position, limits):
            count()  # what it has read until now is on its way, and not yet stored
            return look(connection, migration, position, limits)

        stages._next_rows = look_and_count
    elif stage == "writer":
        store = stages.store

        def store_and_count(connection, migration, batch, found):
            written = store(connection, migration, batch, found)
            count()  # vectors and checkpoint are written, and not yet committed
            return written

        stages.store = store_and_count
    elif stage == "encoder":
        embed = stages.PatientEmbedder.embed_documents

        async def embed_and_count(self, documents):
            found = await embed(self, documents)
            count()
            return found

        stages.PatientEmbedder.embed_documents = embed_and_count
    else:
        fault = stages._fault

        def look_and_count(vector, space):
            if n_calls < number:
                count()
            return fault(vector, space)

        stages._fault = look_and_count


async def run(folder: Path, resumed: int | None = None) -> None:
    """Work until nothing is under way."""
    async with inside(settings_of(folder)) as server:
        print("started", flush=True)
        if resumed is not None:
            await server.migrations.resume(resumed, "test", "")
        for status in await server.migrations.statuses():
            await server.until_rest(status.counts.migration.id)


if __name__ == "__main__":
    folder, stage, number = (*sys.argv[1:], "", "0")[:3]
    if stage and stage != "resume":
        kill_at(stage, int(number))
    asyncio.run(run(Path(folder), int(number) if stage == "resume" else None))

"""For workers whose source may be lost and come back: what is asked for is asked again."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from plimsoll.errors import OutsideError
from plimsoll.links import work
from plimsoll.links.files import paths
from plimsoll.links.postgres import connection
from plimsoll.migration.states import MigrationState
from plimsoll.migration.status import MigrationStatus
from tests.killing import PATIENCE_S
from tests.migration.models import Inside

RETRY_S = 0.2
T = TypeVar("T")


def hurry() -> None:
    """Have this process's links look again soon, so that a test need not wait for long."""
    connection.RETRY_S = paths.CHANGE_RETRY_S = work.FAULT_RETRY_S = RETRY_S


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What is asked for, once the source is there."""
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except OutsideError:
            if monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)


async def to_rest(server: Inside, number: int) -> MigrationStatus:
    """How a migration stands once nothing is under way; what the loss has stopped goes on."""
    deadline = monotonic() + PATIENCE_S
    while True:
        status = await server.until_rest(number)
        if status.state is not MigrationState.FAILED:
            return status
        assert monotonic() < deadline, status.failure
        await asyncio.sleep(RETRY_S)
        await server.migrations.resume(number, "test", "")

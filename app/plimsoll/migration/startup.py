"""What a server that starts has to know of migrations before it serves."""

import logging
from collections.abc import Callable
from sqlite3 import Connection

from plimsoll.corpora.records import Space
from plimsoll.migration import journal, pointer
from plimsoll.migration.records import Migration
from plimsoll.migration.states import ENDED

log = logging.getLogger(__name__)


def leave_out_unserved(
    connection: Connection, is_served: Callable[[Space], bool]
) -> list[Migration]:
    """Write no more to versions whose model is not served now, or all writes would fail.

    Returns every migration.
    """
    found = journal.all_migrations(connection)
    for migration in found:
        if migration.state in ENDED or not journal.is_there(connection, migration):
            continue
        unserved = [
            version
            for version, space in (
                (migration.source_version, migration.source),
                (migration.target_version, migration.target),
            )
            if not is_served(space)
        ]
        for version in pointer.leave_out(connection, migration, unserved):
            log.warning(
                "migration %d of %r: %r is not served now, so new documents get no vector of it",
                migration.id, migration.collection, version.space.model,
            )  # fmt: skip
    return found

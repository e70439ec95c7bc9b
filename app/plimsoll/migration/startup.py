"""What a server that starts has to find out of migrations.

Which versions it can still write to, and which cut-overs it goes on watching.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from sqlite3 import Connection

from plimsoll.corpora.records import Space
from plimsoll.errors import StoreError, UnknownModelError
from plimsoll.migration import journal, pointer
from plimsoll.migration.agreement import least_agreement
from plimsoll.migration.changes import StateChanges
from plimsoll.migration.records import Migration
from plimsoll.migration.states import ENDED, UNDER_WAY, MigrationState
from plimsoll.migration.validation import MigrationJudge
from plimsoll.models.pool import ModelPool

log = logging.getLogger(__name__)

# Those in which a version that searches do not read is kept in step, and no run looks after it.
AT_REST = frozenset(MigrationState) - ENDED - UNDER_WAY - {MigrationState.FAILED}


def leave_out_unserved(connection: Connection, models: ModelPool) -> list[Migration]:
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
            if not _is_served(models, space)
        ]
        for version in pointer.leave_out(connection, migration, unserved):
            log.warning(
                "migration %d of %r: %r is not served now, so new documents get no vector of it",
                migration.id, migration.collection, version.space.model,
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class CutOver:
    """A migration that is cut over and may be taken back.

    age_s: since then. least_agreement: as `least_agreement_of` has it.
    """

    migration: Migration
    age_s: float
    least_agreement: float


def least_agreement_of(connection: Connection, migration: Migration) -> float:
    """On what searches have to agree after a cut-over; 0: no more than that they are answered.

    One that the server has taken back once, and that is cut over again, is meant as it is.
    """
    if journal.was_taken_back(connection, migration.id):
        return 0.0
    return least_agreement(migration.verdict)


def cut_over(connection: Connection, migrations: Sequence[Migration]) -> list[CutOver]:
    """Those that are cut over and may be taken back."""
    return [
        CutOver(
            migration,
            journal.cut_over_age_s(connection, migration.id),
            least_agreement_of(connection, migration),
        )
        for migration in migrations
        if migration.state is MigrationState.CUT_OVER and journal.is_there(connection, migration)
    ]


class IdleVersions:
    """Looks whether models still embed into versions that searches do not read, while it serves.

    A model has to be opened for that: its file may have been replaced, or may be back.
    """

    def __init__(self, changes: StateChanges, judge: MigrationJudge) -> None:
        self._changes = changes
        self._judge = judge

    async def look(self, migrations: Sequence[Migration]) -> None:
        """Write on to versions whose model is as it was, and no more to others."""
        for migration in migrations:
            if migration.state not in AT_REST:
                continue
            _, space = migration.idle
            takes_writes = await self._judge.can_embed(space)
            work = partial(
                pointer.set_idle_takes_writes, before=migration, takes_writes=takes_writes
            )
            try:
                is_news = await self._changes.write(work)
            except StoreError as error:
                log.error("%s", error)
                continue
            if is_news:
                log.warning(
                    "migration %d of %r: new documents get %s vector of %r from now on",
                    migration.id, migration.collection, "a" if takes_writes else "no", space.model,
                )  # fmt: skip


def _is_served(models: ModelPool, space: Space) -> bool:
    if space.model is None:
        return False
    try:
        models.find(space.model)
    except UnknownModelError:
        return False
    return True

"""Asks the new version what clients asked the old one, in the background, and counts how far both
agree. Clients have the old version's answer by then.

Owns which searches are compared. Lives on the event loop.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from sqlite3 import Connection
from time import perf_counter

from plimsoll.corpora.database import Database
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import PlimsollError, StoreError
from plimsoll.migration import journal, shadow
from plimsoll.migration.measures import DEPTH
from plimsoll.migration.records import Migration
from plimsoll.migration.second_answers import DROPPING, SecondAnswers
from plimsoll.migration.shadow import Comparison
from plimsoll.migration.states import ENDED, MigrationState
from plimsoll.telemetry.migrations import MigrationMetrics, ShadowOutcome

log = logging.getLogger(__name__)

# The new version is whole, and searches read the old one.
COMPARED = frozenset({MigrationState.VALIDATING, MigrationState.READY, MigrationState.ROLLED_BACK})
UNFORESEEN = "unforeseen"


@dataclass(frozen=True)
class _Share:
    """Of a collection's searches, those that a migration compares."""

    migration: int
    share: float


class ShadowSearches:
    """Compares live searches. draw: a number from 0 to 1."""

    def __init__(
        self,
        database: Database,
        second: SecondAnswers,
        metrics: MigrationMetrics,
        draw: Callable[[], float],
    ) -> None:
        self._database = database
        self._second = second
        self._metrics = metrics
        self._draw = draw
        self._shares: dict[str, _Share] = {}  # by collection

    def start(self, found: Iterable[tuple[Migration, float]]) -> None:
        """Go on with the shares that were set."""
        for migration, share in found:
            self.set_share(migration, share)

    def set_share(self, migration: Migration, share: float) -> None:
        """Compare that share of the collection's searches from now on."""
        self._shares.pop(migration.collection, None)
        if share:
            self._shares[migration.collection] = _Share(migration.id, share)

    def answered(self, task: SearchTask, found: SearchResults, seconds: float) -> None:
        """A client's search was answered by meaning: compare it perhaps. Returns at once."""
        asked = self._shares.get(task.collection)
        if asked is None or self._draw() >= asked.share:
            return
        if not self._second.have_room:
            self._metrics.shadowed("dropped")
            return
        rows = [each.document.row for each in found.results[:DEPTH]]
        versions = [part.version.id for part in found.parts]
        self._second.begin(self._compare(asked, task, versions, rows, seconds))

    async def _compare(
        self, asked: _Share, task: SearchTask, versions: list[int], old: list[int], old_s: float
    ) -> None:
        outcome: ShadowOutcome = "dropped"
        try:
            migration = await self._database.read(self._second.thread, _compared, asked.migration)
            if migration is None or versions != [migration.source_version]:
                return
            outcome = await self._outcome(migration, task, old, old_s)
        except StoreError as error:  # a full disk: it is not counted
            log.warning("a search was not compared: %s", error)
        self._metrics.shadowed(outcome)

    async def _outcome(
        self, migration: Migration, task: SearchTask, old: list[int], old_s: float
    ) -> ShadowOutcome:
        """Ask the new version, and write down what came of it. Raises StoreError."""
        began_s = perf_counter()
        try:
            found = await self._second.ask(task, migration.target_version)
        except DROPPING:
            return "dropped"
        except StoreError:
            raise
        except Exception as error:
            if not isinstance(error, PlimsollError):
                log.exception("the new version of %r gave no answer", task.collection)
            code = error.code if isinstance(error, PlimsollError) else UNFORESEEN
            await self._write(lambda file: shadow.add_failure(file, migration.id, code))
            return "failed"
        new_s = perf_counter() - began_s
        new = [each.document.row for each in found.results[:DEPTH]]
        seen = Comparison(old, new, old_s, new_s)
        await self._write(lambda file: shadow.add(file, migration.id, seen))
        return "compared"

    async def _write(self, work: Callable[[Connection], None]) -> None:
        await self._database.write(self._second.thread, work)


def shares(connection: Connection, found: Iterable[Migration]) -> list[tuple[Migration, float]]:
    """Those of the migrations that compare searches or may yet, with the share of each."""
    each = (
        (migration, shadow.share_of(connection, migration.id))
        for migration in found
        if migration.state not in ENDED and journal.is_there(connection, migration)
    )
    return [(migration, share) for migration, share in each if share]


def _compared(connection: Connection, number: int) -> Migration | None:
    """The migration, where its versions are to be compared now."""
    migration = journal.find(connection, number)
    is_now = migration.state in COMPARED and journal.is_there(connection, migration)
    return migration if is_now and shadow.share_of(connection, number) else None

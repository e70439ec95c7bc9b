"""Asks the old version what clients asked the new one soon after a cut-over, and compares.

Each different query counts once, and a few hundred are enough. Only answers of vectors alone say
something: words find the same in both. Owns which queries were compared. Lives on the event loop.
"""

import logging
from sqlite3 import Connection

from plimsoll.corpora.database import Database
from plimsoll.corpora.tasks import SearchResults, SearchTask
from plimsoll.errors import PlimsollError
from plimsoll.migration import journal
from plimsoll.migration.agreement import beyond_chance
from plimsoll.migration.cutovers import Cutovers
from plimsoll.migration.measures import DEPTH
from plimsoll.migration.progressive import may_both_open
from plimsoll.migration.records import Migration
from plimsoll.migration.second_answers import DROPPING, SecondAnswers
from plimsoll.migration.states import MigrationState

log = logging.getLogger(__name__)


class OldAnswers:
    """Compares for the watch of `cutovers`. max_open: models at a time."""

    def __init__(
        self, database: Database, second: SecondAnswers, cutovers: Cutovers, max_open: int
    ) -> None:
        self._database = database
        self._second = second
        self._cutovers = cutovers
        self._max_open = max_open
        self._queries: dict[int, set[int]] = {}  # hashes of those compared, by migration

    def answered(self, task: SearchTask, found: SearchResults) -> None:
        """A client's search was answered by meaning: compare it perhaps. Returns at once."""
        number = self._cutovers.compares(task.collection)
        # What a filter leaves may be so little that any two versions agree on it.
        if number is None or found.mode != "dense" or task.filter:
            return
        query = hash(task.query)
        if query in self._queries_of(number) or not self._second.have_room:
            return
        self._queries_of(number).add(query)
        rows = [each.document.row for each in found.results[:DEPTH]]
        versions = [part.version.id for part in found.parts]
        self._second.begin(self._compare(number, task, versions, rows))

    def _queries_of(self, number: int) -> set[int]:
        if number not in self._queries:
            watched = [each for each in self._queries if self._cutovers.watched(each)]
            self._queries = {each: self._queries[each] for each in watched} | {number: set()}
        return self._queries[number]

    async def _compare(
        self, number: int, task: SearchTask, versions: list[int], new: list[int]
    ) -> None:
        try:
            migration = await self._database.read(
                self._second.thread, _compared, number, self._max_open
            )
            if migration is None or versions != [migration.target_version]:
                return
            found = await self._second.ask(task, migration.source_version)
        except DROPPING:
            self._queries_of(number).discard(hash(task.query))  # it may come again
            return
        except PlimsollError as error:  # the old version is at fault, or the file
            log.warning("a search after cut-over was not compared: %s", error)
            return
        old = [each.document.row for each in found.results[:DEPTH]]
        value = beyond_chance(new, old, found.parts[0].n_documents)
        if value is not None:
            self._cutovers.compared(task.collection, number, value)


def _compared(connection: Connection, number: int, max_open: int) -> Migration | None:
    """The migration, where its old version has what the new one has, and answers beside it."""
    migration = journal.find(connection, number)
    if migration.state is not MigrationState.CUT_OVER:
        return None
    if not journal.is_there(connection, migration) or migration.source.is_foreign:
        return None
    source, _ = journal.versions_of(connection, migration)
    return migration if source.takes_writes and may_both_open(migration, max_open) else None

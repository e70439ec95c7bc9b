"""Asks the hooks of a migration, in order, each within its time, and ends a run that one stops.

What each answers is in the file before the next is asked. A server that is killed while one is
asked asks it again when it goes on; those that had passed before the run are not asked again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from sqlite3 import Connection
from time import monotonic
from typing import Any, TypeAlias

from plimsoll.corpora.database import Database
from plimsoll.errors import (
    HookStoppedError,
    InvalidRequestError,
    PlimsollError,
    UnknownHookError,
)
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.migration import journal as migrations_journal
from plimsoll.migration.hooks import journal
from plimsoll.migration.hooks.catalog import HookCatalog
from plimsoll.migration.hooks.occasion import Ask, Hook, Occasion
from plimsoll.migration.hooks.records import Answer, Answered, HookOutcome, Moment, Outcome
from plimsoll.migration.pace import RunPace
from plimsoll.migration.progress import ProgressMonitor
from plimsoll.migration.status import MigrationStatus, counts_of, status_of
from plimsoll.policy.governor import Governor
from plimsoll.policy.lines import BREAKER_STEP
from plimsoll.telemetry.migrations import MigrationMetrics

log = logging.getLogger(__name__)

# Of a hook that looks again and again: how often what it found is written down.
NOTE_EVERY_S = 10.0
# Those whose answer holds for the rest of the run; a verdict is drawn anew by a server that starts.
ASKED_ONCE = frozenset({Moment.BEFORE, Moment.AFTER_CUTOVER})
BASELINE = "benchmark-baseline"
UNFORESEEN = "an unforeseen error, which stands in the server's log"


Look: TypeAlias = Callable[[bool], Awaitable[None]]
"""Asks a hook beside a run once more; True: what it says is written down."""


@dataclass(frozen=True)
class HookedRun:
    """A migration, and of its run what hooks see and change; both None of one at rest."""

    number: int
    progress: ProgressMonitor | None = None
    pace: RunPace | None = None


class MigrationHooks:
    """Asks hooks. thread: reads and writes the file. clock: seconds."""

    def __init__(
        self,
        catalog: HookCatalog,
        database: Database,
        memory: MemoryMonitor,
        governor: Governor,
        metrics: MigrationMetrics,
        thread: Executor,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.catalog = catalog
        self._database = database
        self._memory = memory
        self._governor = governor
        self._metrics = metrics
        self._thread = thread
        self._clock = clock

    def check(self, names: Sequence[str]) -> None:
        """Raise UnknownHookError where one of these may not be named."""
        for name in names:
            self.catalog.find(name)

    def expect(self, connection: Connection, number: int, moment: Moment) -> None:
        """Note those of a moment as to be asked, in the transaction that is open."""
        with suppress(UnknownHookError):  # of which `ask` tells
            hooks, _ = self._of(connection, number, moment)
            journal.expect(connection, number, moment, [hook.name for hook in hooks])

    async def ask(self, run: HookedRun, moment: Moment) -> None:
        """Ask those of a moment, one after the other.

        Raises HookStoppedError where one stops the run or gives no answer, UnknownHookError where
        one is not configured any more, StoreError.
        """
        hooks, answered = await self._database.read(self._thread, self._of, run.number, moment)
        for hook in hooks:
            is_settled = answered.get(hook.name) == "passed" or (
                answered.get(hook.name) == "failed" and not hook.required
            )
            if moment not in ASKED_ONCE or not is_settled:
                await self._ask_and_note(hook, hook.make(), run, moment)

    async def accompany(self, run: HookedRun, begun: asyncio.Event, ended: asyncio.Event) -> None:
        """Ask those of `during` again and again, each at its interval, until the run has ended.

        begun: set once each has been asked, in order; the run then begins. Raises as `ask` does.
        """
        hooks, _ = await self._database.read(self._thread, self._of, run.number, Moment.DURING)
        looks = [await self._first_look(hook, run) for hook in hooks]
        begun.set()
        async with asyncio.TaskGroup() as group:
            for hook, look in zip(hooks, looks, strict=True):
                group.create_task(self._repeat(look, hook.interval_s, ended))

    async def try_once(self, name: str, number: int | None) -> HookOutcome:
        """Ask one hook now, at any moment; nothing is written down, and nothing stopped.

        Raises UnknownHookError, UnknownMigrationError, InvalidRequestError where it needs a
        migration.
        """
        hook = self.catalog.find(name)
        if hook.needs_migration and number is None:
            raise InvalidRequestError(
                f"{name} looks at a migration: say which (--migration NUMBER)", param="migration"
            )
        moment = next(moment for moment in Moment if moment in hook.moments)
        occasion = await self._occasion(hook, moment, None if number is None else HookedRun(number))
        outcome, fault = await self._outcome(hook, hook.make(), occasion)
        _log_answer(outcome, fault, None)
        return outcome

    async def _first_look(self, hook: Hook, run: HookedRun) -> Look:
        ask = hook.make()
        number, attempt = await self._database.write(
            self._thread, journal.begin, run.number, Moment.DURING, hook.name
        )

        before: HookOutcome | None = None

        async def look(is_noted: bool) -> None:
            nonlocal before
            occasion = await self._occasion(hook, Moment.DURING, run, attempt)
            outcome, fault = await self._outcome(hook, ask, occasion)
            is_news = before is None or not _says_the_same(before, outcome)
            if is_news:
                _log_answer(outcome, fault, before)
            if is_news or (is_noted and outcome.outcome == "passed"):
                await self._database.write(self._thread, journal.end, run.number, number, outcome)
            before = outcome
            _raise_if_it_ends(hook, outcome)

        await look(True)
        return look

    async def _repeat(self, look: Look, interval_s: float, ended: asyncio.Event) -> None:
        noted_s = self._clock()
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await ended.wait()
            is_due = self._clock() >= noted_s + NOTE_EVERY_S
            noted_s = self._clock() if is_due else noted_s
            is_last = ended.is_set()  # before it looks: else it would have seen no end
            await look(is_due or is_last)

    async def _ask_and_note(self, hook: Hook, ask: Ask, run: HookedRun, moment: Moment) -> None:
        number, attempt = await self._database.write(
            self._thread, journal.begin, run.number, moment, hook.name
        )
        log.info("migration %d: hook %r is asked (%s)", run.number, hook.name, moment.value)
        occasion = await self._occasion(hook, moment, run, attempt)
        outcome, fault = await self._outcome(hook, ask, occasion)
        _log_answer(outcome, fault, None)
        await self._database.write(self._thread, journal.end, run.number, number, outcome)
        _raise_if_it_ends(hook, outcome)

    async def _outcome(
        self, hook: Hook, ask: Ask, occasion: Occasion
    ) -> tuple[HookOutcome, Exception | None]:
        """Ask a hook within its time; with an error that was not foreseen, if there was one."""
        began_s = self._clock()
        answer, failure, fault = Answer(), None, None
        try:
            async with asyncio.timeout(hook.timeout_s):
                answer = await ask(occasion)
        except TimeoutError:
            failure = f"no answer within {hook.timeout_s:g} s"
        except PlimsollError as error:
            failure = str(error)
        except Exception as error:
            failure, fault = UNFORESEEN, error
        outcome: Answered = "stopped" if answer.stops else "passed"
        if failure is not None:
            outcome = "failed"
        self._metrics.asked(outcome)
        asked = HookOutcome(
            hook=hook.name,
            moment=occasion.moment,
            attempt=occasion.attempt,
            outcome=outcome,
            reason=answer.reason if failure is None else failure,
            figures=answer.figures,
            began_at="",  # which the journal knows
            seconds=self._clock() - began_s,
        )
        return asked, fault

    async def _occasion(
        self, hook: Hook, moment: Moment, run: HookedRun | None, attempt: int = 1
    ) -> Occasion:
        status, baseline = None, None
        if run is not None and hook.reads_status:
            status, baseline = await self._database.read(self._thread, self._looked_at, run)
        step = self._governor.step
        return Occasion(
            hook=hook.name,
            moment=moment,
            memory=self._memory.sample(),
            step=step,
            is_breaker_open=step == BREAKER_STEP,
            attempt=attempt,
            status=status,
            pace=None if run is None else run.pace,
            baseline=baseline,
        )

    def _looked_at(
        self, connection: Connection, run: HookedRun
    ) -> tuple[MigrationStatus, dict[str, Any] | None]:
        migration = migrations_journal.find(connection, run.number)
        status = status_of(counts_of(connection, migration), run.progress, None, None)
        measures = [hook.name for hook in self.catalog.hooks.values() if hook.builtin == BASELINE]
        return status, journal.last_figures(connection, run.number, measures)

    def _of(
        self, connection: Connection, number: int, moment: Moment
    ) -> tuple[list[Hook], dict[str, Outcome]]:
        names = journal.names(connection, number)
        return self.catalog.of(names, moment), journal.answers(connection, number, moment)


def _says_the_same(before: HookOutcome, outcome: HookOutcome) -> bool:
    """Whether a hook that looks again has nothing new to say; what it measured may be other."""
    if before.outcome != outcome.outcome:
        return False
    return outcome.outcome == "passed" or before.reason == outcome.reason


def _log_answer(outcome: HookOutcome, fault: Exception | None, before: HookOutcome | None) -> None:
    """Say that a hook gives no answer, and that it gives one again; its answers are in status."""
    if outcome.outcome == "failed":
        log.warning("hook %r gives no answer: %s", outcome.hook, outcome.reason, exc_info=fault)
    elif before is not None and before.outcome == "failed":
        log.info("hook %r answers again", outcome.hook)


def _raise_if_it_ends(hook: Hook, outcome: HookOutcome) -> None:
    if outcome.outcome == "stopped":
        raise HookStoppedError(f"hook {hook.name!r} stopped it: {outcome.reason}")
    if outcome.outcome == "failed" and hook.required:
        raise HookStoppedError(f"hook {hook.name!r} gave no answer: {outcome.reason}")

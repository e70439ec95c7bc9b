"""The tables of hooks: which a migration names, and what became of each in every run.

Functions over a connection that is in a transaction of the file of collections, which the caller
holds. A run is named by the change of state that it follows.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.migration.hooks.records import HookOutcome, Moment, Outcome
from plimsoll.migration.states import MigrationState

# The state that begins a round of hooks at each moment; None: the last state there is.
_BEGINS: Mapping[Moment, MigrationState | None] = {
    Moment.BEFORE: MigrationState.RUNNING,
    Moment.DURING: MigrationState.RUNNING,
    Moment.AFTER: MigrationState.RUNNING,
    Moment.BEFORE_CUTOVER: None,
    Moment.AFTER_CUTOVER: MigrationState.CUT_OVER,
}


def put_names(connection: sqlite3.Connection, migration: int, names: Sequence[str]) -> None:
    """Keep the names that a new migration was given, in their order."""
    connection.executemany(
        "INSERT INTO migration_hooks (migration, place, hook) VALUES (?, ?, ?)",
        [(migration, place, name) for place, name in enumerate(names)],
    )


def names(connection: sqlite3.Connection, migration: int) -> list[str]:
    """These names."""
    found = connection.execute(
        "SELECT hook FROM migration_hooks WHERE migration = ? ORDER BY place", (migration,)
    )
    return [name for (name,) in found]


def round_of(connection: sqlite3.Connection, migration: int, moment: Moment) -> int:
    """The run that is under way, or the attempt at a cut-over; 0 before the first one."""
    state = _BEGINS[moment]
    (number,) = connection.execute(
        "SELECT ifnull(max(id), 0) FROM migration_changes WHERE migration = ?1 "
        "AND (?2 IS NULL OR after = ?2)",
        (migration, None if state is None else state.value),
    ).fetchone()
    return int(number)


def expect(
    connection: sqlite3.Connection, migration: int, moment: Moment, hooks: Sequence[str]
) -> None:
    """Note that hooks are to be asked, of which none has been in this run."""
    number = round_of(connection, migration, moment)
    connection.executemany(
        """INSERT INTO hook_outcomes (migration, round, moment, hook, attempt, outcome)
        VALUES (?, ?, ?, ?, 0, 'under_way')""",
        [(migration, number, moment.value, hook) for hook in hooks],
    )


def begin(
    connection: sqlite3.Connection, migration: int, moment: Moment, hook: str
) -> tuple[int, int]:
    """Note that a hook is asked. Returns the run's number, and how often this was."""
    number = round_of(connection, migration, moment)
    (attempt,) = connection.execute(
        """INSERT INTO hook_outcomes (migration, round, moment, hook, attempt, outcome)
        VALUES (?, ?, ?, ?, 1, 'under_way')
        ON CONFLICT (migration, round, moment, hook) DO UPDATE
            SET attempt = attempt + 1, outcome = 'under_way', reason = '', figures = '{}',
            seconds = NULL, began_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now')
        RETURNING attempt""",
        (migration, number, moment.value, hook),
    ).fetchone()
    return number, int(attempt)


def end(
    connection: sqlite3.Connection,
    migration: int,
    number: int,
    outcome: HookOutcome,
) -> None:
    """Note what became of it in the run of this number."""
    connection.execute(
        """UPDATE hook_outcomes SET outcome = ?, reason = ?, figures = ?, seconds = ?
        WHERE migration = ? AND round = ? AND moment = ? AND hook = ?""",
        (
            outcome.outcome,
            outcome.reason,
            json.dumps(outcome.figures),
            outcome.seconds,
            migration,
            number,
            outcome.moment.value,
            outcome.hook,
        ),
    )


def answers(connection: sqlite3.Connection, migration: int, moment: Moment) -> dict[str, Outcome]:
    """What became of hooks in the run under way, by their names."""
    found = connection.execute(
        """SELECT hook, outcome FROM hook_outcomes
        WHERE migration = ? AND round = ? AND moment = ?""",
        (migration, round_of(connection, migration, moment), moment.value),
    )
    return dict(found.fetchall())


def interrupted_after_cutover(connection: sqlite3.Connection) -> list[int]:
    """Migrations that are cut over, and of which a hook after that was not asked or not heard.

    Also where one has stopped and was not followed: the server died before it went back.
    """
    found = connection.execute(
        """SELECT DISTINCT migration FROM hook_outcomes JOIN migrations
            ON migrations.id = migration
        WHERE moment = ? AND outcome <> 'passed' AND state = ?""",
        (Moment.AFTER_CUTOVER.value, MigrationState.CUT_OVER.value),
    )
    return [number for (number,) in found]


def outcomes(connection: sqlite3.Connection, migration: int, most: int) -> list[HookOutcome]:
    """What became of hooks, in the order in which they were asked: the last `most`."""
    found = connection.execute(
        """SELECT hook, moment, attempt, outcome, reason, figures, began_at, seconds
        FROM hook_outcomes WHERE migration = ? AND attempt > 0 ORDER BY id DESC LIMIT ?""",
        (migration, most),
    ).fetchall()
    return [_outcome(*row) for row in reversed(found)]


def last_figures(
    connection: sqlite3.Connection, migration: int, hooks: Sequence[str]
) -> dict[str, Any] | None:
    """What the last of these hooks that passed has measured."""
    row = connection.execute(
        """SELECT figures FROM hook_outcomes WHERE migration = ? AND outcome = 'passed'
        AND hook IN (SELECT value FROM json_each(?)) ORDER BY id DESC LIMIT 1""",
        (migration, json.dumps(hooks)),
    ).fetchone()
    return None if row is None else json.loads(row[0])


def _outcome(
    hook: str,
    moment: str,
    attempt: int,
    outcome: Outcome,
    reason: str,
    figures: str,
    began_at: str,
    seconds: float | None,
) -> HookOutcome:
    return HookOutcome(
        hook, Moment(moment), attempt, outcome, reason, json.loads(figures), began_at, seconds
    )

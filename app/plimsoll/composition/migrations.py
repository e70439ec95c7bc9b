"""Put the use cases of migrations together."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, get_args

from plimsoll.corpora.corpora import Corpora
from plimsoll.corpora.search import CollectionSearch
from plimsoll.corpora.search_reading import SearchReading
from plimsoll.links.links import Links
from plimsoll.migration.hooks.builtin.table import builtin_hooks
from plimsoll.migration.hooks.catalog import HookCatalog
from plimsoll.migration.hooks.configuration import read_catalog
from plimsoll.migration.hooks.hooks import MigrationHooks
from plimsoll.migration.hooks.records import Answered
from plimsoll.migration.migrations import Migrations
from plimsoll.migration.readiness import SearchReadiness
from plimsoll.migration.runs import MigrationRuns
from plimsoll.migration.second_answers import SecondAnswers
from plimsoll.migration.shadow_searches import ShadowSearches
from plimsoll.migration.states import MigrationState
from plimsoll.migration.survey import CollectionSurvey
from plimsoll.migration.validation import MigrationJudge
from plimsoll.migration.verdict import Decision
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

# One that scans all vectors while the other reads and writes. Changes of state have a thread of
# their own: a rollback waits for no scan.
SCAN_THREADS = 2
# Folder beside the file of collections.
EXPORTS = "exports"


def build_migrations(
    corpora: Corpora,
    links: Links,
    core: ServingCore,
    telemetry: Telemetry,
    hooks_file: Path | None = None,
) -> tuple[Migrations, CollectionSurvey]:
    """Migrations of the collections in `corpora`, and what looks at them before.

    hooks_file: the operator's hooks. Raises SettingsError where it is wrong.
    """
    scans = ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="migration")
    changes = ThreadPoolExecutor(1, thread_name_prefix="migration-changes")
    database, metrics = corpora.database, telemetry.migrations
    states = [state.value for state in MigrationState]
    metrics.expect(states, get_args(Decision), get_args(Answered))
    judge = MigrationJudge(database, core.models, core.service, core.gate, scans, _now)
    builtin = builtin_hooks(judge, database, scans, database.path.parent / EXPORTS, _now)
    catalog = read_catalog(hooks_file, builtin)
    hooks = MigrationHooks(catalog, database, core.memory, core.governor, metrics, scans)
    runs = MigrationRuns(
        database,
        core.service,
        core.gate,
        judge,
        links,
        metrics,
        scans,
        hooks,
        corpora.reclaim,
        core.models.max_open,
    )
    shadow_thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
    second = SecondAnswers(
        CollectionSearch(
            SearchReading(database, shadow_thread, shadow_thread),
            core.service,
            telemetry.corpora,
            telemetry.pressure,
        ),
        core.gate,
        shadow_thread,
    )
    shadows = ShadowSearches(
        database,
        second,
        metrics,
        Random().random,  # noqa: S311 - a sample, no secret
    )
    migrations = Migrations(
        database,
        core.models,
        corpora.reclaim,
        runs,
        judge,
        links,
        metrics,
        core.drain,
        changes,
        scans,
        hooks,
        second,
        shadows,
        SearchReadiness(judge, corpora.search, core.gate),
    )
    corpora.search.listen(migrations.searched)
    corpora.search.listen_to_answers(migrations.answered)
    return migrations, CollectionSurvey(database, core.models, core.service, scans)


def check_hooks(file: Path) -> HookCatalog:
    """Read the operator's hooks as a server does, which is not there; none of them can be asked.

    Raises SettingsError where the file is wrong.
    """
    nothing: Any = None
    return read_catalog(file, builtin_hooks(nothing, nothing, nothing, Path(EXPORTS), _now))


def _now() -> str:
    """The moment as SQLite writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

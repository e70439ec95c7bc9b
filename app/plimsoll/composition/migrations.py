"""Put the use cases of migrations together."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from plimsoll.corpora.corpora import Corpora
from plimsoll.migration.migrations import Migrations
from plimsoll.migration.runs import MigrationRuns
from plimsoll.migration.states import MigrationState
from plimsoll.migration.survey import CollectionSurvey
from plimsoll.migration.validation import MigrationJudge
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

# One that scans all vectors while the other reads and writes.
MIGRATION_THREADS = 2


def build_migrations(
    corpora: Corpora, core: ServingCore, telemetry: Telemetry
) -> tuple[Migrations, CollectionSurvey]:
    """Migrations of the collections in `corpora`, and what looks at them before."""
    thread = ThreadPoolExecutor(MIGRATION_THREADS, thread_name_prefix="migration")
    database, metrics = corpora.database, telemetry.migrations
    metrics.expect(state.value for state in MigrationState)
    judge = MigrationJudge(database, core.models, core.service, core.gate, thread, _now)
    runs = MigrationRuns(database, core.service, core.gate, judge, metrics, thread)
    migrations = Migrations(database, core.models, runs, judge, metrics, core.drain, thread)
    corpora.search.listen(migrations.searched)
    return migrations, CollectionSurvey(database, core.models, core.service, thread)


def _now() -> str:
    """The moment as SQLite writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

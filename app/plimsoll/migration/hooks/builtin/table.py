"""Every built-in hook by its name, made for one server."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from plimsoll.corpora.database import Database
from plimsoll.migration.hooks.builtin.benchmarks import (
    Baseline,
    BenchmarkBaseline,
    BenchmarkComparison,
    Comparison,
)
from plimsoll.migration.hooks.builtin.dependencies import DependencyValidation, ValidateDependencies
from plimsoll.migration.hooks.builtin.embeddings import EmbeddingValidation, ValidateEmbeddings
from plimsoll.migration.hooks.builtin.export import Export, SessionExport
from plimsoll.migration.hooks.builtin.memory import (
    Adapt,
    Adaptation,
    MemoryMonitor,
    MemoryValidation,
    MemoryWatch,
    ValidateMemory,
)
from plimsoll.migration.hooks.builtin.notices import Notices, Notify
from plimsoll.migration.hooks.hooks import BASELINE
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.hooks.written import BuiltinKind
from plimsoll.migration.validation import MigrationJudge

LOOK_EVERY_S = 1.0  # as often as the server itself looks at memory
# Models open, and samples are embedded behind live requests.
PATIENT_TIMEOUT_S = 1800.0

BEFORE, DURING, AFTER = (
    frozenset({moment}) for moment in (Moment.BEFORE, Moment.DURING, Moment.AFTER)
)


def builtin_hooks(
    judge: MigrationJudge,
    database: Database,
    thread: Executor,
    exports: Path,
    now: Callable[[], str],
) -> Mapping[str, BuiltinKind]:
    """The hooks, in the order of a run. exports: folder of what session-export writes.

    thread: reads the file. now: the moment, as the journal writes it.
    """
    return {
        "validate-memory": BuiltinKind(
            "stops where more memory is in use than that",
            BEFORE,
            ValidateMemory,
            MemoryValidation,
            reads_status=False,
        ),
        "validate-dependencies": BuiltinKind(
            "stops where a library, the new model, FTS5 or room on the disk is wanting",
            BEFORE,
            ValidateDependencies,
            partial(DependencyValidation, judge, database, thread),
            timeout_s=PATIENT_TIMEOUT_S,
            needs_migration=True,
        ),
        BASELINE: BuiltinKind(
            "measures the old version, for benchmark-comparison",
            BEFORE,
            BenchmarkBaseline,
            partial(Baseline, judge),
            timeout_s=PATIENT_TIMEOUT_S,
            needs_migration=True,
        ),
        "memory-monitor": BuiltinKind(
            "keeps the peak of memory; stops where it stays above the limit",
            DURING,
            MemoryMonitor,
            MemoryWatch,
            interval_s=LOOK_EVERY_S,
            reads_status=False,
        ),
        "notify": BuiltinKind(
            "tells the log, and a webhook, how it goes and what it came to",
            DURING | AFTER,
            Notify,
            Notices,
            interval="interval",
            required=False,
        ),
        "adapt": BuiltinKind(
            "takes smaller batches while memory is short",
            DURING,
            Adapt,
            Adaptation,
            interval_s=LOOK_EVERY_S,
            reads_status=False,
        ),
        "validate-embeddings": BuiltinKind(
            "stops where a sampled vector is less accurate than that",
            AFTER,
            ValidateEmbeddings,
            EmbeddingValidation,
            needs_migration=True,
        ),
        "benchmark-comparison": BuiltinKind(
            "sets the new version beside the baseline; stops where it fell further than that",
            AFTER,
            BenchmarkComparison,
            Comparison,
            needs_migration=True,
        ),
        "session-export": BuiltinKind(
            "writes all that is known of the migration into a file",
            AFTER,
            SessionExport,
            partial(Export, exports, now),
            needs_migration=True,
        ),
    }

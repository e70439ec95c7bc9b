"""A migration as it is now: what the file says, and how its run goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Literal, TypeAlias

from plimsoll.corpora import documents, vectors
from plimsoll.migration import bridges, journal, pointer, progressive, quarantine, shadow
from plimsoll.migration.bridges import Bridge
from plimsoll.migration.hooks import journal as hooks_journal
from plimsoll.migration.hooks.records import HookOutcome
from plimsoll.migration.progress import ProgressMonitor, eta_s
from plimsoll.migration.records import Migration, Quarantined, StateChange
from plimsoll.migration.shadow import Shadow
from plimsoll.migration.states import ENDED, MigrationState
from plimsoll.migration.watch import Watched

MOST_LISTED = 100  # documents in quarantine, answers of hooks


WayBack: TypeAlias = Literal["exact", "partial", "none"]
"""What rollback would give."""


@dataclass(frozen=True)
class Counts:
    """What the file says of a migration; the counts are 0 once a version of it is gone.

    has_both: both versions are there, so that there is a way back. keeps_old: what is written goes
    into the old version too, so that going back loses nothing.
    n_without_old: documents that the old version has no vector of. named_hooks: in their order.
    hooks: the last answers. is_progressive: searches read both versions. shadow: what comparisons
    of live searches say, None where there was no share to compare. n_bridged: documents that have a
    bridged vector.
    """

    migration: Migration
    changes: Sequence[StateChange]
    n_documents: int = 0
    n_vectors: int = 0
    n_quarantined: int = 0
    n_without_old: int = 0
    keeps_old: bool = False
    has_both: bool = False
    quarantine: Sequence[Quarantined] = ()
    named_hooks: Sequence[str] = ()
    hooks: Sequence[HookOutcome] = ()
    is_progressive: bool = False
    shadow: Shadow | None = None
    bridge: Bridge | None = None
    n_bridged: int = 0

    @property
    def way_back(self) -> WayBack:
        """What rollback would give."""
        if not self.has_both:
            return "none"
        return "exact" if self.keeps_old and not self.n_without_old else "partial"

    @property
    def n_left(self) -> int:
        """Documents that are still to be embedded."""
        return max(0, self.n_documents - self.n_vectors - self.n_quarantined)


@dataclass(frozen=True)
class MigrationStatus:
    """A migration as it is now.

    yielding: why nothing is embedded now, n_yields: how often that was. failure: why it stopped.
    watch: what was seen since the cut-over, and for how many seconds it is still watched.
    Rates and eta_s are None where they are not known, and of one that is not worked on.
    """

    counts: Counts
    state: MigrationState
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    yielding: str | None = None
    n_yields: int = 0
    failure: str | None = None
    watch: tuple[Watched, float] | None = None


def counts_of(connection: Connection, migration: Migration) -> Counts:
    """Count in the transaction that is open."""
    changes = journal.changes(connection, migration.id)
    named = hooks_journal.names(connection, migration.id)
    asked = hooks_journal.outcomes(connection, migration.id, MOST_LISTED)
    seen = shadow.find(connection, migration.id)
    bridge = bridges.find(connection, migration.id)
    if migration.state in ENDED or not journal.is_there(connection, migration):
        return Counts(
            migration, changes, named_hooks=named, hooks=asked, shadow=seen, bridge=bridge
        )
    n_documents = documents.count(connection, migration.collection_id)
    source, _ = journal.versions_of(connection, migration)
    is_active = migration.state is not MigrationState.CUT_OVER
    return Counts(
        migration,
        changes,
        n_documents=n_documents,
        n_vectors=vectors.count(connection, migration.target_version),
        n_quarantined=quarantine.count(connection, migration)[0],
        n_without_old=pointer.n_without_old(connection, migration),
        keeps_old=source.takes_writes or is_active,
        has_both=True,
        quarantine=quarantine.listed(connection, migration, MOST_LISTED),
        named_hooks=named,
        hooks=asked,
        is_progressive=progressive.is_progressive(connection, migration),
        shadow=seen,
        bridge=bridge,
        n_bridged=bridges.n_bridged(connection, bridge),
    )


def status_of(
    counts: Counts,
    progress: ProgressMonitor | None,
    unwritten_failure: str | None,
    watch: tuple[Watched, float] | None,
) -> MigrationStatus:
    """Put both together. unwritten_failure: why it stopped, where the file could not be told."""
    state, failure = counts.migration.state, unwritten_failure
    if failure is not None:
        state = MigrationState.FAILED
    elif state is MigrationState.FAILED:
        failure = counts.changes[-1].why
    if progress is None:
        return MigrationStatus(counts, state, failure=failure, watch=watch)
    rate = progress.rate()
    return MigrationStatus(
        counts,
        state,
        rows_per_s=None if rate is None else rate.rows_per_s,
        tokens_per_s=None if rate is None else rate.tokens_per_s,
        eta_s=eta_s(counts.n_left, rate) if state is MigrationState.RUNNING else None,
        yielding=progress.yielding,
        n_yields=progress.n_yields,
        failure=failure,
    )

"""Metrics of migrations: what is stored, what waits, and where each stands."""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

RowOutcome: TypeAlias = Literal["embedded", "skipped", "quarantined"]
"""What became of a document; skipped: it changed or went while it was embedded."""

ShadowOutcome: TypeAlias = Literal["compared", "failed", "dropped"]
"""What became of a live search that was to be compared; failed: the new version gave no answer."""


class MigrationMetrics:
    """Owns the metrics that migrations record in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Counter(
            "plimsoll_migration_rows",
            "Documents that migrations took through, by outcome (embedded, skipped: changed or "
            "gone meanwhile, quarantined: no vector to be had)",
            ["outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "plimsoll_migration_tokens", "Tokens that migrations embedded", registry=registry
        )
        self._yields = Counter(
            "plimsoll_migration_yields",
            "Times that a migration stood back for live requests, memory or a model",
            registry=registry,
        )
        self._changes = Counter(
            "plimsoll_migration_changes",
            "Changes of a migration's state, by the state that followed",
            ["state"],
            registry=registry,
        )
        self._left = dict[int, int]()  # by migration
        self._documents_left = Gauge(
            "plimsoll_migration_documents_left",
            "Documents that migrations under way have still to embed",
            registry=registry,
        )
        self._bridged = dict[int, int]()  # by migration
        self._documents_bridged = Gauge(
            "plimsoll_migration_documents_bridged",
            "Documents of migrations under way that searches find by a bridged vector, until they "
            "are embedded",
            registry=registry,
        )
        self._verdicts = Counter(
            "plimsoll_migration_verdicts",
            "Verdicts on new versions, by decision (go, no_go, inconclusive)",
            ["decision"],
            registry=registry,
        )
        self._hooks = Counter(
            "plimsoll_migration_hooks",
            "Hooks of migrations that were asked, by outcome (passed, stopped: said no, failed: "
            "gave no answer)",
            ["outcome"],
            registry=registry,
        )
        self._shadowed = Counter(
            "plimsoll_shadow_searches",
            "Live searches that a new version was asked too, by outcome (compared, failed: it gave "
            "no answer, dropped: memory, the queue or others under way left no room)",
            ["outcome"],
            registry=registry,
        )
        for shadow_outcome in get_args(ShadowOutcome):
            self._shadowed.labels(shadow_outcome)
        for outcome in get_args(RowOutcome):
            self._rows.labels(outcome)

    def expect(
        self, states: Iterable[str], decisions: Iterable[str], answers: Iterable[str]
    ) -> None:
        """Begin a series for each: a rate does not see the first event of a new one.

        states: of migrations; decisions: of verdicts; answers: what becomes of hooks.
        """
        for state in states:
            self._changes.labels(state)
        for decision in decisions:
            self._verdicts.labels(decision)
        for answer in answers:
            self._hooks.labels(answer)

    def rows(self, outcome: RowOutcome, n: int) -> None:
        """Count documents."""
        self._rows.labels(outcome).inc(n)

    def set_left(self, migration: int, n: int) -> None:
        """So many documents are to be embedded; 0 where it is not worked on."""
        self._left[migration] = max(0, n)
        self._documents_left.set(sum(self._left.values()))

    def moved(self, migration: int, n: int) -> None:
        """So many of them need nothing more."""
        self.set_left(migration, self._left.get(migration, 0) - n)

    def set_bridged(self, migration: int, n: int) -> None:
        """So many documents have a bridged vector; 0 where it is not worked on."""
        self._bridged[migration] = n
        self._documents_bridged.set(sum(self._bridged.values()))

    def judged(self, decision: str) -> None:
        """A verdict was drawn."""
        self._verdicts.labels(decision).inc()

    def tokens(self, n: int) -> None:
        """Count tokens."""
        self._tokens.inc(n)

    def yielded(self) -> None:
        """A migration stands back."""
        self._yields.inc()

    def asked(self, outcome: str) -> None:
        """A hook was asked."""
        self._hooks.labels(outcome).inc()

    def shadowed(self, outcome: ShadowOutcome) -> None:
        """A live search was to be compared."""
        self._shadowed.labels(outcome).inc()

    def changed(self, state: str) -> None:
        """A migration has come to this state."""
        self._changes.labels(state).inc()

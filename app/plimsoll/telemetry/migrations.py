"""Metrics of migrations: what is stored, what waits, and where each stands."""

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter

RowOutcome: TypeAlias = Literal["embedded", "skipped", "quarantined"]
"""What became of a document; skipped: it changed or went while it was embedded."""


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
        for outcome in get_args(RowOutcome):
            self._rows.labels(outcome)

    def expect(self, states: Iterable[str]) -> None:
        """Begin a series for each state: a rate does not see the first event of a new one."""
        for state in states:
            self._changes.labels(state)

    def rows(self, outcome: RowOutcome, n: int) -> None:
        """Count documents."""
        self._rows.labels(outcome).inc(n)

    def tokens(self, n: int) -> None:
        """Count tokens."""
        self._tokens.inc(n)

    def yielded(self) -> None:
        """A migration stands back."""
        self._yields.inc()

    def changed(self, state: str) -> None:
        """A migration has come to this state."""
        self._changes.labels(state).inc()

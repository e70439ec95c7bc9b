"""Metrics of the bottleneck: what limits throughput, and what was tried against it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge


class BottleneckMetrics:
    """Owns the metrics that the bottleneck resolver records in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kind = Gauge(
            "plimsoll_bottleneck",
            "1 for what limits throughput (none, memory, disk, cpu, dequantization, queue), else 0",
            ["kind"],
            registry=registry,
        )
        self._actions = Counter(
            "plimsoll_bottleneck_actions",
            "What was tried against a bottleneck, by action and outcome (kept: it helped, "
            "reverted: it did not, unclear: reverted, with too little load to compare, let_go: "
            "undone later)",
            ["action", "outcome"],
            registry=registry,
        )

    def expect(self, action: str, outcomes: Iterable[str]) -> None:
        """Begin the series of an action at 0: a rate does not see what begins with its event."""
        for outcome in outcomes:
            self._actions.labels(action, outcome)

    def tried(self, action: str, outcome: str) -> None:
        """Count an action whose outcome is known."""
        self._actions.labels(action, outcome).inc()

    def show(self, kind: str, kinds: Iterable[str]) -> None:
        """Set which of `kinds` it is now."""
        for known in kinds:
            self._kind.labels(known).set(known == kind)

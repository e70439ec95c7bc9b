"""Metrics of models: their openings and closings, and the loads of their weights."""

from typing import Literal, TypeAlias, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
TENSOR_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

EvictionReason: TypeAlias = Literal["asked", "idle", "lru", "pressure"]
"""Why a model was closed: its last client, unused for long, room for another one, memory."""


class ModelMetrics:
    """Owns the metrics that the models' slots record in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loads = Counter(
            "plimsoll_model_loads",
            "Times a model was opened, by outcome (ok, failed) and model",
            ["outcome", "model"],
            registry=registry,
        )
        self._load_seconds = Histogram(
            "plimsoll_model_load_seconds",
            "Time to open a model, fetching and conversion included, by model",
            ["model"],
            buckets=LOAD_BUCKETS_S,
            registry=registry,
        )
        self._open = Gauge("plimsoll_model_open", "Models that are open", registry=registry)
        self._evictions = Counter(
            "plimsoll_model_evictions",
            "Models closed while no request used them, by reason (asked: a client wanted it, idle: "
            "unused for long, lru: another one opened, pressure: memory ran high)",
            ["reason"],
            registry=registry,
        )
        for reason in get_args(EvictionReason):
            self._evictions.labels(reason)

    def serve(self, model: str) -> None:
        """Begin the series of a model that the server has: a rate does not see the first event."""
        for outcome in ("ok", "failed"):
            self._loads.labels(outcome, model)
        self._load_seconds.labels(model)

    def opened(self, model: str, seconds: float) -> None:
        """A model has opened."""
        self._loads.labels("ok", model).inc()
        self._load_seconds.labels(model).observe(seconds)
        self._open.inc()

    def failed_to_open(self, model: str) -> None:
        """A model would not open."""
        self._loads.labels("failed", model).inc()

    def evicted(self, reason: EvictionReason) -> None:
        """An idle model is about to be closed."""
        self._evictions.labels(reason).inc()

    def closed(self) -> None:
        """A model that was open is so no longer."""
        self._open.dec()


class WeightMetrics:
    """Owns the metric that loads of weights record in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tensor_seconds = Histogram(
            "plimsoll_tensor_load_seconds",
            "Time to read, expand, check and write one tensor of a model's weights",
            buckets=TENSOR_BUCKETS_S,
            registry=registry,
        )

    def tensor_loaded(self, seconds: float) -> None:
        """A tensor has been read, expanded, checked and written."""
        self._tensor_seconds.observe(seconds)

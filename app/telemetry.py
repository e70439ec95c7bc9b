"""Every metric, and the only module that knows Prometheus.

Base units, conventional names, few labels; never a text or a user. Nothing is registered
at import: `Telemetry` owns a registry of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

__all__ = ["CONTENT_TYPE", "STAGES", "Telemetry"]

STAGES = ("parse", "tokenize", "queue", "encode", "pool", "render")
# 1 ms to 60 s: a cached short text to a long list on a busy machine.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class MetricDescription:
    """A metric as documentation and dashboards name it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


class Telemetry:
    """Owns the registry and every metric in it."""

    def __init__(self, version: str) -> None:
        # A second series per counter that no dashboard reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "plimsoll_requests",
            "Requests answered, by route, status code and kind of reply (dense, none)",
            ["route", "status", "kind"],
            registry=self.registry,
        )
        self.errors = Counter(
            "plimsoll_errors",
            "Requests and single texts refused or failed, by error code",
            ["code"],
            registry=self.registry,
        )
        self.texts = Counter("plimsoll_texts", "Texts embedded", registry=self.registry)
        self.tokens = Counter(
            "plimsoll_tokens", "Tokens embedded, prefixes included", registry=self.registry
        )
        self.truncated = Counter(
            "plimsoll_truncated", "Texts cut to the model's token limit", registry=self.registry
        )
        self._stages = Histogram(
            "plimsoll_stage_duration_seconds",
            "Time in each stage of a request; encode and pool are per wave of texts",
            ["stage"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        for stage in STAGES:
            self._stages.labels(stage)
        self.queue_tokens = Gauge(
            "plimsoll_queue_tokens", "Tokens waiting for the engine", registry=self.registry
        )
        self.model_loads = Counter(
            "plimsoll_model_loads",
            "Times a model was opened, by outcome (ok, failed)",
            ["outcome"],
            registry=self.registry,
        )
        self.model_load_seconds = Histogram(
            "plimsoll_model_load_seconds",
            "Time to open a model, fetching and conversion included",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
            registry=self.registry,
        )
        self.model_open = Gauge(
            "plimsoll_model_open", "1 while a model is open, else 0", registry=self.registry
        )
        self._used = Gauge(
            "plimsoll_memory_used_bytes",
            "Memory that the kernel cannot take back at once",
            registry=self.registry,
        )
        self._resident = Gauge(
            "plimsoll_memory_resident_bytes",
            "Used memory and mapped file pages",
            registry=self.registry,
        )
        self._budget = Gauge(
            "plimsoll_memory_budget_bytes",
            "Smallest of control-group limit, setting and host memory",
            registry=self.registry,
        )
        self._utilization = Gauge(
            "plimsoll_memory_utilization_ratio", "Used over budget", registry=self.registry
        )
        self._build = Info("plimsoll_build", "Version of Plimsoll", registry=self.registry)
        self._build.info({"version": version})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one of STAGES."""
        start = perf_counter()
        try:
            yield
        finally:
            self._stages.labels(name).observe(perf_counter() - start)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Record a stage that was timed elsewhere."""
        self._stages.labels(name).observe(seconds)

    def read_memory(self, sample: Callable[[], tuple[int, int, int]]) -> None:
        """Fill the memory gauges at each scrape from `sample`: used, resident, budget bytes."""

        def ratio() -> float:
            used, _, budget = sample()
            return used / budget

        self._used.set_function(lambda: sample()[0])
        self._resident.set_function(lambda: sample()[1])
        self._budget.set_function(lambda: sample()[2])
        self._utilization.set_function(ratio)

    def metrics(self) -> list[MetricDescription]:
        """Every metric of Plimsoll's own, in the order of definition."""
        found = []
        for value in vars(self).values():
            if isinstance(value, MetricWrapperBase):
                (family,) = value.describe()
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                kind = "gauge" if family.type == "info" else family.type
                labels = tuple(value._labelnames)
                found.append(
                    MetricDescription(family.name + suffix, kind, labels, family.documentation)
                )
        return found

    def render(self) -> bytes:
        """The page that Prometheus scrapes, of type CONTENT_TYPE."""
        return generate_latest(self.registry)

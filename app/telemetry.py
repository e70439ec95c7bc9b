"""Every metric, and the only module that knows Prometheus.

Base units, conventional names, few labels; never a text or a user. Nothing is registered
at import: `Telemetry` owns a registry of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, TypeAlias, get_args

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

from app.current_request import Trace, current_request

__all__ = ["CONTENT_TYPE", "STAGES", "EvictionReason", "Telemetry"]

STAGES = ("parse", "tokenize", "admission", "queue", "encode", "pool", "render")
# 1 ms to 60 s: a cached short text to a long list on a busy machine.
RUN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# Label values that are there from the start: a rate does not see the first event of a series that
# begins with it. Alerts and the dashboard count on these.
BREAKER_STATES = ("closed", "open", "half_open")
DEGRADED_REASONS = ("memory_pressure", "breaker_open", "model_loading", "out_of_memory")
SERVER_ERRORS = (*DEGRADED_REASONS, "queue_full", "model_unavailable", "internal_error")
RECOVERIES = (("1", "retried"), ("1", "recovered"), ("1", "failed"), ("3", "answered"))

EvictionReason: TypeAlias = Literal["idle", "lru", "pressure"]
"""Why a model was closed: unused for long, room for another one, memory."""


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
            "Requests answered, by route, status code and kind of reply (dense, sparse, none)",
            ["route", "status", "kind"],
            registry=self.registry,
        )
        self.errors = Counter(
            "plimsoll_errors",
            "Requests and single texts refused or failed, by error code",
            ["code"],
            registry=self.registry,
        )
        for code in SERVER_ERRORS:
            self.errors.labels(code)
        self.request_seconds = Histogram(
            "plimsoll_request_duration_seconds",
            "Time from a request's arrival to the end of its reply, by route",
            ["route"],
            buckets=BUCKETS_S,
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
        self.run_tokens = Histogram(
            "plimsoll_run_tokens",
            "Tokens that the engine took at once",
            buckets=RUN_BUCKETS,
            registry=self.registry,
        )
        self.throughput = Gauge(
            "plimsoll_throughput_tokens_per_second",
            "Tokens embedded in the last second",
            registry=self.registry,
        )
        self.parallelism = Gauge(
            "plimsoll_parallelism", "Sequences that run at once", registry=self.registry
        )
        self.engine_threads = Gauge(
            "plimsoll_engine_threads", "Threads that the engine uses", registry=self.registry
        )
        self.ladder_step = Gauge(
            "plimsoll_ladder_step",
            "Step of the memory ladder: 0 all is well, 1 saving, 2 dropping pages, "
            "3 requests wait or get the fallback, 4 breaker open",
            registry=self.registry,
        )
        self.breaker_state = Gauge(
            "plimsoll_breaker_state",
            "1 for the state that the memory breaker is in (closed, open, half_open), else 0",
            ["state"],
            registry=self.registry,
        )
        self.breaker_transitions = Counter(
            "plimsoll_breaker_transitions",
            "Changes of the memory breaker's state, by the state that followed",
            ["state"],
            registry=self.registry,
        )
        for state in BREAKER_STATES:
            self.breaker_state.labels(state).set(state == "closed")
            self.breaker_transitions.labels(state)
        self.degraded = Counter(
            "plimsoll_degraded",
            "Requests that did not get the primary answer, by reason",
            ["reason"],
            registry=self.registry,
        )
        for reason in DEGRADED_REASONS:
            self.degraded.labels(reason)
        self.recoveries = Counter(
            "plimsoll_recoveries",
            "Failures for want of memory that were worked around, by level (1 smaller runs, "
            "2 pages dropped, 3 fallback) and outcome",
            ["level", "outcome"],
            registry=self.registry,
        )
        for level_and_outcome in RECOVERIES:
            self.recoveries.labels(*level_and_outcome)
        self.model_loads = Counter(
            "plimsoll_model_loads",
            "Times a model was opened, by outcome (ok, failed)",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("ok", "failed"):
            self.model_loads.labels(outcome)
        self.model_load_seconds = Histogram(
            "plimsoll_model_load_seconds",
            "Time to open a model, fetching and conversion included",
            buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
            registry=self.registry,
        )
        self.models_open = Gauge(
            "plimsoll_model_open", "Models that are open", registry=self.registry
        )
        self.model_evictions = Counter(
            "plimsoll_model_evictions",
            "Models closed while nobody used them, by reason (idle: unused for long, lru: another "
            "one opened, pressure: memory ran high)",
            ["reason"],
            registry=self.registry,
        )
        for reason in get_args(EvictionReason):
            self.model_evictions.labels(reason)
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
        self.predicted = Gauge(
            "plimsoll_memory_predicted_bytes",
            "Memory in use and promised to admitted requests, at its peak",
            registry=self.registry,
        )
        self.pressure = Gauge(
            "plimsoll_memory_pressure_ratio",
            "Share of the last 10 s in which some task waited for memory (PSI)",
            registry=self.registry,
        )
        self.refaults = Gauge(
            "plimsoll_memory_refaults_per_second",
            "File pages read again soon after the kernel took them",
            registry=self.registry,
        )
        self.oom_kills = Gauge(
            "plimsoll_memory_oom_kills",
            "Processes that the kernel has killed in this control group",
            registry=self.registry,
        )
        self.cpu_others = Gauge(
            "plimsoll_cpu_others_ratio",
            "Share of the allowed CPU that other processes took",
            registry=self.registry,
        )
        self.cpu_throttled = Gauge(
            "plimsoll_cpu_throttled_ratio",
            "Share of time in which the CPU quota held this process back",
            registry=self.registry,
        )
        self.tensor_load_seconds = Histogram(
            "plimsoll_tensor_load_seconds",
            "Time to read, expand, check and write one tensor of a model's weights",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.bottleneck = Gauge(
            "plimsoll_bottleneck",
            "1 for what limits throughput (none, memory, disk, cpu, dequantization, queue), else 0",
            ["kind"],
            registry=self.registry,
        )
        self.bottleneck_actions = Counter(
            "plimsoll_bottleneck_actions",
            "What was tried against a bottleneck, by action and outcome (kept: it helped, "
            "reverted: it did not, unclear: reverted, with too little load to compare, let_go: "
            "undone later)",
            ["action", "outcome"],
            registry=self.registry,
        )
        self._sample_memory: Callable[[], tuple[int, int, int]] | None = None
        self._build = Info("plimsoll_build", "Version of Plimsoll", registry=self.registry)
        self._build.info({"version": version})

    @contextmanager
    def stage(self, name: str, traces: Iterable[Trace] | None = None) -> Iterator[None]:
        """Time one of STAGES: of the request being served, or of those whose `traces` are given."""
        start_s = perf_counter()
        try:
            yield
        finally:
            end_s = perf_counter()
            self._stages.labels(name).observe(end_s - start_s)
            if traces is None:
                request = current_request()
                traces = (request.trace,) if request and request.trace else ()
            for trace in traces:
                trace.add_stage(name, start_s, end_s)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Record a stage that was timed elsewhere."""
        self._stages.labels(name).observe(seconds)

    def read_memory(self, sample: Callable[[], tuple[int, int, int]]) -> None:
        """Fill the memory gauges at each scrape from `sample`: used, resident, budget bytes."""
        self._sample_memory = sample

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
        """The page that Prometheus scrapes, of type CONTENT_TYPE. Measures memory once."""
        if self._sample_memory is not None:
            used_bytes, resident_bytes, budget_bytes = self._sample_memory()
            self._used.set(used_bytes)
            self._resident.set(resident_bytes)
            self._budget.set(budget_bytes)
            self._utilization.set(used_bytes / budget_bytes)
        return generate_latest(self.registry)

"""Metrics of requests: how many, how they ended, what they brought, where their time went."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram

from plimsoll.telemetry.current_request import CurrentRequest, current_request
from plimsoll.telemetry.pressure import DEGRADED_REASONS

STAGES = ("parse", "tokenize", "admission", "queue", "encode", "pool", "render")
# 1 ms to 60 s: a cached short text to a long list on a busy machine.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# The label `model` of what asks for none: probes, pages, BM25 that was asked for, and requests that
# were refused before they said which.
NO_MODEL = "none"

# There from the start: a rate does not see the first event of a series that begins with it.
# Alerts and the dashboard count on these.
SERVER_ERRORS = (*DEGRADED_REASONS, "queue_full", "model_unavailable", "internal_error")


class RequestMetrics:
    """Owns the metrics that the edge, the dialects and the use cases record in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "plimsoll_requests",
            "Requests answered, by route, status code, kind of reply (dense, sparse, none) and the "
            "model that was asked for, none where it was no model",
            ["route", "status", "kind", "model"],
            registry=registry,
        )
        self._errors = Counter(
            "plimsoll_errors",
            "Requests and single texts refused or failed, by error code",
            ["code"],
            registry=registry,
        )
        for code in SERVER_ERRORS:
            self._errors.labels(code)
        self._request_seconds = Histogram(
            "plimsoll_request_duration_seconds",
            "Time from a request's arrival to the end of its reply, by route and model",
            ["route", "model"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._texts = Counter("plimsoll_texts", "Texts embedded", registry=registry)
        self._tokens = Counter(
            "plimsoll_tokens",
            "Tokens embedded, prefixes included, by model",
            ["model"],
            registry=registry,
        )
        self._truncated = Counter(
            "plimsoll_truncated", "Texts cut to the model's token limit", registry=registry
        )
        self._stage_seconds = Histogram(
            "plimsoll_stage_duration_seconds",
            "Time in each stage of a request; encode and pool are per run of texts",
            ["stage"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in STAGES}

    def serve(self, model: str) -> None:
        """Begin the series of a model that the server has."""
        self._tokens.labels(model)

    def answered(
        self, route: str, status: int, kind: str, model: str | None, seconds: float
    ) -> None:
        """Count a request whose reply has been sent.

        route: one of the server's paths. model: one of its models' own names, if it asked for one.
        """
        model = model or NO_MODEL
        self._requests.labels(route, str(status), kind, model).inc()
        self._request_seconds.labels(route, model).observe(seconds)

    def failed(self, code: str) -> None:
        """Count a request, or one of its texts, that gets an error."""
        self._errors.labels(code).inc()

    def embedded(self, model: str, n_texts: int, n_tokens: int, n_truncated: int) -> None:
        """Count what a request brought: texts with vectors, its tokens, texts that were cut."""
        self._texts.inc(n_texts)
        self._tokens.labels(model).inc(n_tokens)
        self._truncated.inc(n_truncated)

    @contextmanager
    def stage(self, name: str, requests: Iterable[CurrentRequest] | None = None) -> Iterator[None]:
        """Time one of STAGES for `requests`, or else for the request being served."""
        start_s = perf_counter()
        try:
            yield
        finally:
            end_s = perf_counter()
            self.observe_stage(name, end_s - start_s)
            if requests is None:
                request = current_request()
                requests = () if request is None else (request,)
            for request in requests:
                request.add_stage(name, start_s, end_s)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Record a stage that was timed elsewhere."""
        self._stages[name].observe(seconds)

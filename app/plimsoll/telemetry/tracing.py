"""Traces over OTLP/HTTP: a span for each request, and one below it for each of its stages.

The only module that knows OpenTelemetry, which is an extra: it is imported where traces are asked
for, and nowhere else. Attributes follow OpenTelemetry's conventions for HTTP servers; never a text,
a key or a query string. Sampling, the service's name and headers for the collector stand in the
standard OTEL_ variables, which OpenTelemetry's SDK reads by itself.
"""

import logging
from collections.abc import Iterable
from threading import Thread
from time import perf_counter, time_ns

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from plimsoll.telemetry.current_request import CurrentRequest

log = logging.getLogger(__name__)

EXPORT_PATH = "/v1/traces"
STOP_S = 3.0
KNOWN_METHODS = {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

Headers = Iterable[tuple[bytes, bytes]]


def otlp_exporter(address: str) -> SpanExporter:
    """What sends spans to a collector: http://collector:4318, with or without /v1/traces."""
    address = address.rstrip("/")
    return OTLPSpanExporter(
        endpoint=address if address.endswith(EXPORT_PATH) else address + EXPORT_PATH
    )


class RequestTracer:
    """Owns what makes spans and, from `start` to `stop`, the thread that exports them.

    Ended spans wait in a bounded queue: a collector that hangs costs spans, never requests.
    """

    def __init__(self, exporter: SpanExporter, version: str, *, stop_s: float = STOP_S) -> None:
        """stop_s: how long `stop` waits for the last spans to go."""
        ours = Resource({"service.name": "plimsoll", "service.version": version})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer("plimsoll", version)
        self._exporter = exporter
        self._stop_s = stop_s

    def start(self) -> None:
        """Start the thread."""
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    def stop(self) -> None:
        """Export what is left, and lose what does not go in time; blocks."""
        # The SDK waits half a minute, so it is left alone with that.
        ending = Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(self._stop_s)
        if ending.is_alive():
            log.warning("the last traces were not taken within %g s and are lost", self._stop_s)

    def begin(self, method: str, path: str, scheme: str, headers: Headers) -> "RequestTrace":
        """The trace of a request that has just come, part of a client's where that says so."""
        known = method if method in KNOWN_METHODS else "_OTHER"
        attributes = {"http.request.method": known, "url.path": path, "url.scheme": scheme}
        if known != method:
            attributes["http.request.method_original"] = method
        span = self._tracer.start_span(
            _name(known), _parent(headers), SpanKind.SERVER, attributes, start_time=time_ns()
        )
        return RequestTrace(self._tracer, span, _name(known))


class RequestTrace:
    """Owns the span of one request.

    The request keeps its stages, which become spans at the end: the engine's thread, which works
    for many requests at once, must not be kept from its work.
    """

    def __init__(self, tracer: Tracer, span: Span, name: str) -> None:
        self._tracer = tracer
        self._span = span
        self._name = name
        self._clock_offset_ns = time_ns() - _ns(perf_counter())

    @property
    def trace_id(self) -> str | None:
        """32 hexadecimal digits; None where OpenTelemetry has been turned off."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def end(
        self, request: CurrentRequest, status: int, route: str | None, **about: str | int | None
    ) -> None:
        """Make the spans of a request that has ended.

        status: 0 where the request was broken off. about: what it was.
        """
        if not self._span.is_recording():  # not sampled, or ended before
            return
        times = request.stage_times()
        below = set_span_in_context(self._span, Context())
        for name, start_s, end_s in times.kept:
            stage = self._tracer.start_span(name, below, start_time=self._unix_ns(start_s))
            stage.end(self._unix_ns(end_s))
        about["request_id"] = request.id
        if times.n_left_out:
            about["stages_left_out"] = times.n_left_out
        for key, value in about.items():
            if value is not None:
                self._span.set_attribute(f"plimsoll.{key}", value)
        if route is not None:
            self._span.set_attribute("http.route", route)
            self._span.update_name(f"{self._name} {route}")
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            self._span.set_attribute("error.type", str(status) if status else "cancelled")
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._unix_ns(perf_counter()))

    def _unix_ns(self, counter_s: float) -> int:
        return self._clock_offset_ns + _ns(counter_s)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _name(method: str) -> str:
    return "HTTP" if method == "_OTHER" else method


def _parent(headers: Headers) -> Context:
    """The client's span, as W3C's `traceparent` names it; several of them are as good as none."""
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if name in (b"traceparent", b"tracestate"):
            carrier.setdefault(name.decode(), []).append(value.decode("latin-1"))
    if len(carrier.get("traceparent", ())) != 1:
        return Context()
    return TraceContextTextMapPropagator().extract(carrier, Context())

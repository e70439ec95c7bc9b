"""Traces: what spans a request leaves, where they go, and what a collector cannot do to it."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from plimsoll.composition.application import create_app
from plimsoll.errors import SettingsError
from plimsoll.settings import Settings
from plimsoll.settings_sources import load_settings
from plimsoll.telemetry.current_request import MOST_STAGES, CurrentRequest
from plimsoll.telemetry.logs import JSONFormatter, name_request
from plimsoll.telemetry.tracing import RequestTrace, RequestTracer, otlp_exporter
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric
from tests.running_server import environment

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01"
STAGES = ["parse", "tokenize", "admission", "queue", "encode", "pool", "render"]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of OpenTelemetry, and no proxy for 127.0.0.1."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Tracing:
    """A tracer whose spans stay here."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = RequestTracer(self._exporter, "1.2.3")
        self.tracer.start()

    def begin(self, **headers: str) -> RequestTrace:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        return self.tracer.begin("GET", "/", "http", raw)

    def spans(self) -> list[ReadableSpan]:
        """Everything so far; nothing comes after it."""
        self.tracer.stop()
        return list(self._exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans() if span.name == name]
        return found


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    tracing = Tracing()
    yield tracing
    tracing.tracer.stop()


@pytest.fixture
def server(tracing: Tracing) -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener(), tracer=tracing.tracer)
    yield server
    server.close()


@pytest.fixture
def client(server: FakeServer) -> TestClient:
    return TestClient(server.app, raise_server_exceptions=False)


@pytest.fixture
def access_log() -> Iterator[io.StringIO]:
    """The access log as machines get it."""
    log, stream = logging.getLogger("plimsoll.access"), io.StringIO()
    handler, level = logging.StreamHandler(stream), log.level
    handler.setFormatter(JSONFormatter())
    handler.addFilter(name_request)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)
    log.setLevel(level)


class Collector:
    """Takes traces over OTLP/HTTP on a free port, and holds its answer back while it is told to."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.exports: list[ExportTraceServiceRequest] = []
        self.asked = threading.Event()
        self.answering = threading.Event()
        self.answering.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.append(self.path)
                collector.exports.append(ExportTraceServiceRequest.FromString(body))
                collector.asked.set()
                collector.answering.wait(DEADLINE_S)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def names(self) -> list[str]:
        return [
            span.name
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def resource(self) -> dict[str, str]:
        attributes = self.exports[0].resource_spans[0].resource.attributes
        return {pair.key: pair.value.string_value for pair in attributes}

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


# --- the spans of a request -----------------------------------------------------------------


def test_a_request_leaves_a_span_with_one_for_each_stage_below_it(
    tracing: Tracing, client: TestClient
):
    """Where its time went, in the order it went."""
    headers = {"X-Request-Id": "mine"}
    client.post("/embed?colour=red", json={"input": ["a b", "c"]}, headers=headers)

    *stages, request = tracing.spans()
    assert request.name == "POST /embed"
    assert (request.kind, request.parent) == (SpanKind.SERVER, None)
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/embed",
        "plimsoll.kind": "dense",
        "plimsoll.model": "fake",
        "plimsoll.request_id": "mine",
        "plimsoll.texts": 2,
        "plimsoll.tokens": 7,
        "url.path": "/embed",
        "url.scheme": "http",
    }
    assert [span.name for span in sorted(stages, key=lambda span: span.start_time)] == STAGES
    for span in stages:
        assert span.parent == request.context
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time


def test_requests_that_share_a_run_each_have_their_wait_and_the_run(
    tracing: Tracing, server: FakeServer, client: TestClient
):
    """Each trace is whole by itself, though the engine works for several at once."""
    model = server.model
    model.released.clear()

    with ThreadPoolExecutor(3) as threads:
        ahead = threads.submit(client.post, "/embed", json={"input": "ahead"})
        assert model.encoding.wait(DEADLINE_S)
        behind = [
            threads.submit(client.post, "/embed", json={"input": [word, f"{word}wards"]})
            for word in ("left", "right")
        ]
        while metric(server.telemetry.render().decode(), "plimsoll_queue_tokens") < 4 * 3:
            assert not any(answer.done() for answer in behind)
        model.released.set()
        assert [answer.result().status_code for answer in (ahead, *behind)] == [200] * 3

    spans = tracing.spans()
    runs = {
        request.context.trace_id: {
            span.name: (span.start_time, span.end_time)
            for span in spans
            if span.parent == request.context and span.name in ("queue", "encode")
        }
        for request in spans
        if request.kind is SpanKind.SERVER
    }
    assert [len(wave) for wave in model.runs] == [1, 4]
    assert [sorted(run) for run in runs.values()] == [["encode", "queue"]] * 3
    for run in runs.values():
        assert run["queue"][0] <= run["queue"][1] <= run["encode"][0] <= run["encode"][1]


def test_an_answer_that_is_not_the_primary_one_says_so(tracing: Tracing, client: TestClient):
    """Sparse vectors were made without most of the stages."""
    client.post("/embed", json={"input": "a", "encoder": "bm25"})

    request = tracing.span("POST /embed")
    assert request.attributes["plimsoll.kind"] == "sparse"
    assert "plimsoll.tokens" not in request.attributes


def test_a_failure_is_marked_and_a_refusal_is_not(
    tracing: Tracing, server: FakeServer, client: TestClient
):
    """By OpenTelemetry's conventions a server's span is an error from 500 on."""
    client.get("/nowhere/zanzibar")
    server.model.error = ZeroDivisionError("zanzibar")
    client.post("/embed", json={"input": "a"})

    refused, failed = [span for span in tracing.spans() if span.kind is SpanKind.SERVER]
    assert (refused.name, refused.status.status_code) == ("GET", StatusCode.UNSET)
    assert refused.attributes["http.response.status_code"] == 404
    assert "http.route" not in refused.attributes
    assert (failed.name, failed.status.status_code) == ("POST /embed", StatusCode.ERROR)
    assert failed.attributes["error.type"] == "500"
    assert "zanzibar" not in failed.to_json()


def test_no_text_and_no_key_is_in_a_span(tracing: Tracing, client: TestClient):
    """Traces go to other machines and are read by many."""
    headers = {"Authorization": "Bearer zanzibar", "User-Agent": "zanzibar"}
    client.post("/embed?zanzibar=zanzibar", json={"input": "zanzibar"}, headers=headers)
    client.post("/embed", json={"input": {"zanzibar": "zanzibar"}}, headers=headers)

    assert "zanzibar" not in "".join(span.to_json() for span in tracing.spans())


@pytest.mark.parametrize("path", ["/health", "/health/live", "/metrics", "/status"])
def test_what_machines_ask_every_second_leaves_no_span(
    tracing: Tracing, client: TestClient, path: str
):
    """They would bury everything else."""
    client.get(path)

    assert tracing.spans() == []


def test_an_unknown_method_makes_no_name(tracing: Tracing):
    """Names of spans are counted and compared: a client must not make up new ones."""
    trace = tracing.tracer.begin("BREW", "/", "http", [])
    trace.end(CurrentRequest("id"), 405, None)

    request = tracing.span("HTTP")
    assert request.attributes["http.request.method"] == "_OTHER"
    assert request.attributes["http.request.method_original"] == "BREW"


def test_a_request_that_was_broken_off_is_an_error_without_a_status(tracing: Tracing):
    """The server stopped, so there was no answer."""
    tracing.begin().end(CurrentRequest("id"), 0, "/embed")

    request = tracing.span("GET /embed")
    assert request.attributes["error.type"] == "cancelled"
    assert "http.response.status_code" not in request.attributes


def test_a_long_list_leaves_a_bounded_number_of_spans(tracing: Tracing):
    """It must not push everybody else's spans out of the queue; how many are missing is said."""
    trace, request = tracing.begin(), CurrentRequest("id")
    for _ in range(MOST_STAGES + 7):
        request.add_stage("encode", 0.0, 1.0)
    trace.end(request, 200, "/embed")

    *stages, span = tracing.spans()
    assert len(stages) == MOST_STAGES
    assert span.attributes["plimsoll.stages_left_out"] == 7


def test_a_stage_that_ends_after_its_request_is_dropped(tracing: Tracing):
    """The engine finishes a run whose client has hung up."""
    trace, request = tracing.begin(), CurrentRequest("id")
    trace.end(request, 499, "/embed")
    request.add_stage("encode", 0.0, 1.0)
    trace.end(request, 499, "/embed")

    assert [span.name for span in tracing.spans()] == ["GET /embed"]


# --- the client's trace ---------------------------------------------------------------------


def test_a_request_takes_part_in_its_clients_trace(
    tracing: Tracing, client: TestClient, access_log: io.StringIO
):
    """One trace from the user's click to the engine, and the log line leads to it."""
    client.get("/v1/models", headers={"traceparent": SAMPLED, "tracestate": "a=b"})

    request = tracing.span("GET /v1/models")
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == PARENT_ID
    assert request.context.trace_state.get("a") == "b"
    assert json.loads(access_log.getvalue())["trace_id"] == TRACE_ID


def test_a_client_that_does_not_sample_is_not_sampled(tracing: Tracing):
    """It has decided for the whole trace; its id is still good for the log."""
    trace = tracing.begin(traceparent=SAMPLED[:-1] + "0")
    request = CurrentRequest("id")
    request.add_stage("encode", 0.0, 1.0)
    trace.end(request, 200, "/embed")

    assert trace.trace_id == TRACE_ID
    assert tracing.spans() == []


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        SAMPLED[:-1],
        SAMPLED + "0",
        SAMPLED + "-more",
        SAMPLED.upper(),
        SAMPLED.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-é1",
        "x" * 60_000,
    ],
)
def test_a_traceparent_that_is_none_is_ignored(
    tracing: Tracing, client: TestClient, traceparent: str
):
    """A client's mistake must not cost its request, nor the trace."""
    headers = [(b"traceparent", traceparent.encode()), (b"tracestate", b"\xff==,,=")]

    assert client.get("/v1/models", headers=headers).status_code == 200
    request = tracing.span("GET /v1/models")
    assert request.parent is None
    assert f"{request.context.trace_id:032x}" != TRACE_ID


def test_several_traceparents_are_as_good_as_none(tracing: Tracing, client: TestClient):
    """As W3C's recommendation has it."""
    client.get("/v1/models", headers=[(b"traceparent", SAMPLED.encode())] * 2)

    assert tracing.span("GET /v1/models").parent is None


# --- on the way to the collector ------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_server_sends_its_spans_to_the_collector(tmp_path: Path, collector: Collector, path: str):
    """Those that wait when it stops are sent then."""
    settings = Settings(cache_dir=tmp_path, otlp_endpoint=collector.url + path)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        client.get("/v1/models")

    assert collector.names() == ["GET /v1/models"]
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.resource()["service.name"] == "plimsoll"


def test_the_standard_variables_name_the_service(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
):
    """An operator with several servers tells them apart as everywhere else."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "embeddings-7")
    tracer = RequestTracer(otlp_exporter(collector.url), "1.2.3")
    tracer.start()
    tracer.begin("GET", "/", "http", []).end(CurrentRequest("id"), 200, "/")
    tracer.stop()

    assert collector.resource()["service.name"] == "embeddings-7"
    assert collector.resource()["service.version"] == "1.2.3"


def test_opentelemetrys_own_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch):
    """Then there is no trace to name in the log either."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing()

    trace = tracing.begin()
    request = CurrentRequest("id")
    request.add_stage("encode", 0.0, 1.0)
    trace.end(request, 200, "/embed")

    assert trace.trace_id is None
    assert tracing.spans() == []


def test_a_collector_that_hangs_costs_spans_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, collector: Collector, caplog: pytest.LogCaptureFixture
):
    """Requests go on beside it, memory stays bounded, and the server stops in time."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "40")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    collector.answering.clear()
    threads = set(threading.enumerate())
    tracer = RequestTracer(otlp_exporter(collector.url), "1.2.3", stop_s=0.01)
    tracer.start()
    server = FakeServer(FakeOpener(), tracer=tracer)
    client = TestClient(server.app)

    client.post("/embed", json={"input": "a"})
    assert collector.asked.wait(DEADLINE_S)
    answers = [client.post("/embed", json={"input": "a"}) for _ in range(20)]
    server.close()
    tracer.stop()

    assert {answer.status_code for answer in answers} == {200}
    assert not collector.answering.is_set()
    assert len(collector.exports) == 1
    assert "were not taken within 0.01 s and are lost" in caplog.text
    collector.answering.set()
    for thread in set(threading.enumerate()) - threads:
        thread.join(DEADLINE_S)
    assert len(collector.names()) <= 4 + 40


# --- off, or not installed ------------------------------------------------------------------


def test_without_the_setting_nothing_of_it_is_loaded(tmp_path: Path):
    """Who asks for no traces pays for none: neither in memory nor in time."""
    program = (
        "import sys, pathlib; from plimsoll.composition.application import create_app; "
        "from plimsoll.settings import Settings; "
        "create_app(Settings(cache_dir=pathlib.Path(sys.argv[1]))); "
        "import json; print(json.dumps(sorted(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout

    modules = json.loads(output)
    assert "plimsoll.api.edge.middleware" in modules
    prefixes = (
        "plimsoll.telemetry.tracing",
        "opentelemetry.sdk",
        "opentelemetry.exporter",
        "opentelemetry.proto",
    )
    assert [name for name in modules if name.startswith(prefixes)] == []


def test_a_missing_extra_is_told_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the command that adds it."""
    monkeypatch.delitem(sys.modules, "plimsoll.telemetry.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings(cache_dir=tmp_path, otlp_endpoint="http://127.0.0.1:4318")

    with pytest.raises(SettingsError, match=r"PLIMSOLL_OTLP_ENDPOINT.*'\.\[tracing\]'"):
        create_app(settings)


def test_the_frameworks_own_telemetry_stays_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector
):
    """It would send what errors say, and an error may quote a text."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    app = create_app(Settings(cache_dir=tmp_path))
    with TestClient(app, base_url="http://localhost") as client:
        client.get("/v1/models")

    assert collector.paths == []


@pytest.mark.parametrize(
    "address", ["collector:4318", "grpc://collector:4317", "http://", "http://a:b"]
)
def test_an_address_that_is_none_is_refused(load: Callable[[str], Settings], address: str):
    """Traces that go nowhere would be missed only when they are needed."""
    with pytest.raises(SettingsError, match="PLIMSOLL_OTLP_ENDPOINT"):
        load(address)


@pytest.mark.parametrize(
    "address", ["http://user:zanzibar@collector:4318", "http://collector:4318?key=zanzibar"]
)
def test_an_address_with_a_key_in_it_is_refused_without_showing_it(
    load: Callable[[str], Settings], address: str
):
    """`plimsoll config` prints settings, and so do error messages."""
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_HEADERS") as refusal:
        load(address)

    assert "zanzibar" not in str(refusal.value)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Settings]:
    """Settings of an environment with this address."""
    return lambda address: (
        load_settings(environ={"PLIMSOLL_OTLP_ENDPOINT": address}, directory=tmp_path).settings
    )

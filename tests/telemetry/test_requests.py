"""Metrics of requests, and the stages that their context manager notes."""

import logging
import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from plimsoll.api.edge.errors import code_of
from plimsoll.errors import ModelError, QueueFullError
from plimsoll.telemetry.current_request import CurrentRequest, current_request, serving
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.telemetry.pressure import DEGRADED_REASONS
from plimsoll.telemetry.requests import SERVER_ERRORS, STAGES
from tests.fakes import FakeOpener, FakeServer, metric


class SeenRequests(logging.Handler):
    """The requests that the access log has a line for."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.requests: list[CurrentRequest | None] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.requests.append(current_request())


@pytest.fixture
def seen() -> Iterator[SeenRequests]:
    log, handler = logging.getLogger("plimsoll.access"), SeenRequests()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


def noted(request: CurrentRequest) -> list[str]:
    return [stage.name for stage in request.stage_times().kept]


def test_error_codes_that_are_there_from_the_start_are_the_servers_own():
    """A rate does not see the first event of a series that begins with it."""
    others = (QueueFullError("", retry_after_s=1), ModelError(""), RuntimeError())
    assert set(SERVER_ERRORS) == {*DEGRADED_REASONS, *(code_of(error) for error in others)}


def test_a_request_keeps_its_stages_though_nothing_traces_it(seen: SeenRequests):
    """Dialects tell their clients where the time went, with or without a collector."""
    server = FakeServer(FakeOpener())
    TestClient(server.app).post("/embed", json={"input": ["a b", "c"]})
    server.close()

    (request,) = seen.requests
    assert request is not None
    assert tuple(noted(request)) == STAGES
    assert request.stage_times().total_s.keys() == set(STAGES)


def test_a_stage_is_the_requests_that_is_being_served():
    """The event loop serves many at once; none may get another one's time."""
    requests = Telemetry("0").requests
    outer, inner = CurrentRequest("outer"), CurrentRequest("inner")

    with serving(outer), requests.stage("parse"), serving(inner), requests.stage("render"):
        pass

    assert (noted(outer), noted(inner)) == (["parse"], ["render"])


def test_a_stage_of_several_requests_is_noted_by_each_and_measured_once():
    """The engine works for all of them together."""
    telemetry = Telemetry("0")
    one, other, bystander = (CurrentRequest(name) for name in ("one", "other", "bystander"))

    with serving(bystander), telemetry.requests.stage("encode", [one, other]):
        pass

    assert one.stage_times() == other.stage_times()
    assert (noted(one), noted(bystander)) == (["encode"], [])
    page = telemetry.render().decode()
    assert metric(page, 'plimsoll_stage_duration_seconds_count{stage="encode"}') == 1


def test_a_stage_that_fails_is_measured_and_noted_too():
    """What takes long is often what fails."""
    telemetry, request = Telemetry("0"), CurrentRequest("mine")

    with (
        pytest.raises(ZeroDivisionError),
        serving(request),
        telemetry.requests.stage("tokenize"),
    ):
        raise ZeroDivisionError

    assert noted(request) == ["tokenize"]
    page = telemetry.render().decode()
    assert metric(page, 'plimsoll_stage_duration_seconds_count{stage="tokenize"}') == 1


def test_without_a_request_a_stage_is_only_measured():
    """The command line embeds without a server."""
    telemetry = Telemetry("0")

    with telemetry.requests.stage("pool"):
        pass

    page = telemetry.render().decode()
    assert metric(page, 'plimsoll_stage_duration_seconds_count{stage="pool"}') == 1


def test_the_models_of_metrics_are_the_served_ones_however_they_are_called():
    """A name that a client makes up must not make a series; an alias is the same model."""
    server = FakeServer(FakeOpener())
    client = TestClient(server.app)
    for body in ({"model": "FAKE"}, {}, {"model": "made up"}, {"encoder": "bm25"}):
        client.post("/embed", json={"input": "a ship", **body})
    client.get("/health")
    client.get("/v1/models/made-up")
    page = client.get("/metrics").text
    server.close()

    assert set(re.findall(r'model="([^"]*)"', page)) == {"fake", "none"}
    dense = 'kind="dense",model="fake",route="/embed",status="200"'
    assert metric(page, f"plimsoll_requests_total{{{dense}}}") == 2
    for kind, status in (("none", 404), ("sparse", 200)):
        other = f'kind="{kind}",model="none",route="/embed",status="{status}"'
        assert metric(page, f"plimsoll_requests_total{{{other}}}") == 1
    series = '{model="fake",route="/embed"}'
    assert metric(page, f"plimsoll_request_duration_seconds_count{series}") == 2


def test_the_series_of_a_model_are_there_from_the_start():
    """A rate does not see the first event of a series that begins with it."""
    server = FakeServer(FakeOpener())
    page = server.telemetry.render().decode()
    server.close()

    for series in (
        'plimsoll_tokens_total{model="fake"}',
        'plimsoll_model_loads_total{model="fake",outcome="ok"}',
        'plimsoll_model_loads_total{model="fake",outcome="failed"}',
        'plimsoll_model_load_seconds_count{model="fake"}',
    ):
        assert f"\n{series} 0.0" in page

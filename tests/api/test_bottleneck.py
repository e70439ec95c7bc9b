"""GET /bottleneck: what the server says of itself, over fake models."""

from collections.abc import Iterator
from time import monotonic

import pytest
from fastapi.testclient import TestClient

from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric


@pytest.fixture
def served() -> Iterator[tuple[FakeServer, TestClient, FakeOpener]]:
    opener = FakeOpener()
    server = FakeServer(opener)
    with TestClient(server.app) as client:
        try:
            yield server, client, opener
        finally:
            opener.released.set()
            server.close()


def test_before_anything_is_asked_there_is_no_bottleneck(served):
    """And looking for it opens no model."""
    _, client, opener = served
    answer = client.get("/bottleneck")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert (body["kind"], body["actions"], body["caps"]) == ("none", [], [])
    assert opener.n_tries == 0


def test_every_look_of_the_watch_reaches_it(served):
    """What is shown has been measured in this second, not once at start."""
    server, client, _ = served
    for _ in range(2):
        server.core.control_loop.tick()
    evidence = client.get("/bottleneck").json()["evidence"]
    assert evidence["cores"] >= 1
    assert evidence["budget_bytes"] > evidence["used_bytes"] > 0


def test_runs_are_in_the_evidence(served):
    """The engine's speed is what actions are judged by."""
    server, client, _ = served
    server.core.control_loop.tick()
    assert client.post("/embed", json={"input": ["a ship", "a mark on a hull"]}).json()["kind"]
    deadline_s = monotonic() + DEADLINE_S
    evidence = {"n_runs": 0}
    while not evidence["n_runs"] and monotonic() < deadline_s:  # told just after the reply
        server.core.control_loop.tick()
        evidence = client.get("/bottleneck").json()["evidence"]
    assert evidence["n_runs"] >= 1
    assert evidence["tokens_per_s"] > 0


def test_health_and_metrics_tell_the_name_too(served):
    """Probes and dashboards look there."""
    _, client, _ = served
    assert client.get("/health").json()["bottleneck"]["kind"] == "none"
    assert metric(client.get("/metrics").text, 'plimsoll_bottleneck{kind="none"}') == 1

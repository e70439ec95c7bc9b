"""The log of those who are turned away: the first of a flood, and how many more there were."""

import logging

import pytest
from fastapi.testclient import TestClient

from plimsoll.api.edge.guard import AccessRules
from plimsoll.api.edge.keys import Keys
from plimsoll.api.edge.origins import AllowedHosts
from plimsoll.api.edge.refused_lines import LINES_PER_S, RefusedLines
from tests.fakes import TEST_HOSTS, FakeClock, FakeOpener, FakeServer

KEY = "embed-key-0123456789"


def test_of_a_flood_so_many_lines_are_written_and_the_rest_is_counted():
    """The next line that is written says how many were not."""
    lines = RefusedLines(clock := FakeClock())
    flood = [lines.take() for _ in range(100)]

    assert flood == [0] * LINES_PER_S + [None] * (100 - LINES_PER_S)
    clock.now_s += 1
    assert [lines.take() for _ in range(2)] == [100 - LINES_PER_S, 0]


def test_a_trickle_is_written_line_by_line():
    """Where wrong keys come one by one, each of them may be looked for."""
    lines = RefusedLines(clock := FakeClock())
    for _ in range(100):
        clock.now_s += 1 / LINES_PER_S + 1e-6
        assert lines.take() == 0


def test_wrong_keys_do_not_flood_the_log_and_others_keep_their_lines(
    caplog: pytest.LogCaptureFixture,
):
    """Its disk is not theirs; every request that was answered is still there."""
    caplog.set_level(logging.INFO, "plimsoll.access")
    access = AccessRules(Keys(f"embed:{KEY}"), AllowedHosts(TEST_HOSTS.split(",")))
    server = FakeServer(FakeOpener(), access=access)
    with TestClient(server.app) as client:
        for _ in range(200):
            assert client.get("/v1/models", headers={"X-API-Key": "wrong"}).status_code == 401
        for _ in range(30):
            assert client.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200
        page = client.get("/metrics", headers={"X-API-Key": KEY}).text
        server.close()

    lines = [record.getMessage() for record in caplog.records]
    refused = [line for line in lines if "code=invalid_api_key" in line]
    assert len([line for line in lines if "/v1/models 200" in line]) == 30
    assert LINES_PER_S <= len(refused) < 200
    left_out = sum(int(line.partition("left_out=")[2] or 0) for line in refused)
    assert len(refused) + left_out <= 200
    assert 'plimsoll_errors_total{code="invalid_api_key"} 200.0' in page

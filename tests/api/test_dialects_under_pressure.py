"""What clients without a place for words are told when memory is short: to come back."""

import pytest
from fastapi.testclient import TestClient

from tests.pressure import (
    QUEUE_TOKENS,
    REASONS,
    assert_only_the_pressure_is_left,
    fill_queue,
    serving,
    under_pressure,
)

BODIES = {
    "/v1/embeddings": {"input": "a ship"},
    "/openai/deployments/fake/embeddings": {"input": "a ship"},
    "/api/embed": {"input": "a ship"},
    "/api/embeddings": {"prompt": "a ship"},
    "/v2/embed": {"texts": ["a ship"]},
}
# Of an error, by the first part of the path.
SHAPES = {"v1": {"error"}, "openai": {"error"}, "api": {"error"}, "v2": {"id", "message"}}


def assert_says_when(client: TestClient, path: str, status: int) -> None:
    """A refusal in the dialect's own shape, with nothing in it that could be taken for vectors."""
    answer = client.post(path, json=BODIES[path])

    assert answer.status_code == status, answer.text
    assert set(answer.json()) == SHAPES[path.split("/")[1]]
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-plimsoll-degraded" not in answer.headers


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("path", BODIES)
def test_under_pressure_the_answer_is_a_time_to_come_back(path: str, reason: str):
    """A sparse vector in the place of a dense one would be stored as one."""
    with under_pressure(reason) as (server, client):
        assert_says_when(client, path, 503)
        assert_only_the_pressure_is_left(server, reason)


@pytest.mark.parametrize("path", BODIES)
def test_a_full_queue_is_429_in_every_dialect(path: str):
    """Which every client that tries again tries again for."""
    with serving() as (server, client):
        fill_queue(server, 2 * QUEUE_TOKENS + 800)
        assert_says_when(client, path, 429)

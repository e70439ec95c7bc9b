"""X-Priority: which of the two classes a request's texts wait in."""

from typing import Any

import pytest

from plimsoll.policy.priority import INTERACTIVE_TOKENS, Priority
from tests.pressure import QUEUE_TOKENS, fill_queue, serving

BODIES = {
    "/embed": {"input": "a mark"},
    "/v1/embeddings": {"input": "a mark"},
    "/rank": {"query": "a mark", "documents": ["a hull"]},
}
PATHS = pytest.mark.parametrize("path", BODIES)


def priorities_of(path: str, body: dict[str, Any], headers: dict[str, str]) -> set[Priority]:
    """The classes in which the executor was given the texts of a request."""
    given = set()
    with serving() as (server, client):
        executor = server.core.executor
        encode = executor.encode

        async def watched(*arguments: Any) -> Any:
            given.add(arguments[4])
            return await encode(*arguments)

        executor.encode = watched  # type: ignore[method-assign]
        assert client.post(path, json=body, headers=headers).status_code == 200
    return given


@PATHS
@pytest.mark.parametrize("priority", Priority)
def test_a_client_may_say_the_class(path: str, priority: Priority):
    """A nightly job of single texts is bulk, and a user may wait for a page of many."""
    assert priorities_of(path, BODIES[path], {"X-Priority": priority.value}) == {priority}


@pytest.mark.parametrize(
    ("n_texts", "priority"),
    [(1, Priority.INTERACTIVE), (INTERACTIVE_TOKENS, Priority.BULK)],
)
def test_without_a_word_the_size_of_the_request_decides(n_texts: int, priority: Priority):
    """Of all its texts: a list of short ones is a list."""
    body = {"input": ["some words"] * n_texts}

    assert priorities_of("/embed", body, {}) == {priority}


@PATHS
@pytest.mark.parametrize("value", ["", "high", "BULK", "bulk, interactive"])
def test_another_word_is_refused_with_those_that_are_allowed(path: str, value: str):
    """A job that believes to be bulk and is not would slow down every query."""
    with serving() as (_, client):
        answer = client.post(path, json=BODIES[path], headers={"X-Priority": value})

    assert answer.status_code == 400
    assert "None" not in answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "X-Priority")
    for priority in Priority:
        assert priority.value in error["message"]


@PATHS
def test_the_document_names_the_header_and_its_values(path: str):
    """Clients are generated from it."""
    with serving() as (_, client):
        document = client.get("/openapi.json").json()

    parameters = document["paths"][path]["post"]["parameters"]
    (header,) = [each for each in parameters if each["in"] == "header"]
    assert (header["name"], header["required"]) == ("X-Priority", False)
    assert all(f"{priority.value}: " in header["description"] for priority in Priority)
    schema = document["components"]["schemas"][header["schema"]["$ref"].rpartition("/")[2]]
    assert schema["enum"] == [priority.value for priority in Priority]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"input": "a query"}, {}, 200),
        ({"input": "a query"}, {"X-Priority": "bulk"}, 429),
        ({"input": ["some words"] * INTERACTIVE_TOKENS}, {}, 429),
        ({"input": "x" * (128 << 10)}, {}, 429),
        ({"input": "x" * (128 << 10)}, {"X-Priority": "interactive"}, 200),
    ],
    ids=["a query", "that is bulk", "a list", "a large body", "that is interactive"],
)
def test_a_backlog_of_bulk_turns_only_bulk_away(
    body: dict[str, Any], headers: dict[str, str], status: int
):
    """A query passes it, so it must not be told to come back when it has drained."""
    with serving() as (server, client):
        fill_queue(server, 2 * QUEUE_TOKENS + 800, Priority.BULK)

        assert client.post("/embed", json=body, headers=headers).status_code == status

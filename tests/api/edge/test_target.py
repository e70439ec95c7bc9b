"""Requests that ask for a route in other words than its own."""

import pytest
from fastapi.testclient import TestClient

from tests.api.edge.bodies import error_of
from tests.fakes import FakeServer, metric

LOOKS = [
    "/",
    "/status",
    "/health",
    "/health/live",
    "/health/ready",
    "/bottleneck",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/pages/status.css",
    "/v1/models",
    "/v1/models/fake",
]


@pytest.mark.parametrize("path", LOOKS)
def test_head_answers_as_get_does_without_a_body(fake: tuple[FakeServer, TestClient], path: str):
    """Balancers and uptime checks ask with it."""
    _, client = fake
    get, head = client.get(path), client.head(path)

    assert get.status_code == head.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b""


def test_head_of_a_route_that_only_takes_a_body_is_told_what_it_takes(
    fake: tuple[FakeServer, TestClient],
):
    """It must not be answered as if it were there to look at."""
    _, client = fake
    head = client.head("/embed")

    assert head.status_code == 405
    assert head.headers["allow"] == "POST"


@pytest.mark.parametrize("path", [f"{path}/" for path in LOOKS if path != "/"])
def test_a_slash_at_the_end_of_a_look_changes_nothing(
    fake: tuple[FakeServer, TestClient], path: str
):
    """A redirect to an absolute address leads nowhere from outside a proxy."""
    _, client = fake

    assert client.get(path, follow_redirects=False).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed/", {"input": "a ship"}),
        ("/v1/embeddings/", {"input": "a ship"}),
        ("/rank/", {"query": "a ship", "documents": ["a sea"]}),
    ],
)
def test_a_slash_at_the_end_of_a_post_changes_nothing(
    fake: tuple[FakeServer, TestClient], path: str, body: dict
):
    """Base URLs are joined with and without one; the counts are those of the one route."""
    _, client = fake
    answer = client.post(path, json=body, follow_redirects=False)

    assert (answer.status_code, answer.json()) == (200, client.post(path[:-1], json=body).json())
    labels = f'{{kind="dense",model="fake",route="{path[:-1]}",status="200"}}'
    assert metric(client.get("/metrics").text, f"plimsoll_requests_total{labels}") == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei//embed", {"inputs": "a ship"}),
        ("//api/embed", {"input": "a ship"}),
        ("/v1//embeddings", {"input": "a ship"}),
        ("/openai/deployments/fake//embeddings", {"input": "a ship"}),
    ],
)
def test_two_slashes_in_a_row_are_one(fake: tuple[FakeServer, TestClient], path: str, body: dict):
    """LlamaIndex's client of TEI joins a base address that ends in a slash so."""
    _, client = fake
    answer = client.post(f"http://testserver{path}", json=body)
    plain = client.post(path.replace("//", "/"), json=body)

    assert answer.status_code == 200
    assert answer.headers["x-plimsoll-fingerprint"] == plain.headers["x-plimsoll-fingerprint"]


def test_an_error_behind_two_slashes_has_the_shape_of_its_dialect(
    fake: tuple[FakeServer, TestClient],
):
    """The shape goes by the path that is served."""
    _, client = fake
    answer = client.post("http://testserver//api//embed", json={"input": 5})

    assert (answer.status_code, type(answer.json()["error"])) == (400, str)


def test_two_slashes_in_the_id_of_a_document_stay(fake: tuple[FakeServer, TestClient]):
    """An id may be an address, and that of another document may differ by a slash alone."""
    _, client = fake
    client.put("/collections/ships", json={})
    line = {"id": "https://example.org/a", "text": "a ship"}
    client.post("/collections/ships/documents", json=line)
    path = "/collections/ships/documents/https:"

    assert client.get(f"{path}//example.org/a").json()["text"] == "a ship"
    assert client.get(f"{path}/example.org/a").status_code == 404


def test_a_path_of_slashes_alone_is_the_status_page(fake: tuple[FakeServer, TestClient]):
    """What is left of it is the root."""
    _, client = fake

    assert client.get("http://testserver//").text == client.get("/").text


def test_an_unknown_path_with_a_slash_is_not_found(fake: tuple[FakeServer, TestClient]):
    """As without one."""
    _, client = fake
    answer = client.get("/nowhere/", follow_redirects=False)

    assert (answer.status_code, error_of(answer)["code"]) == (404, "http_404")

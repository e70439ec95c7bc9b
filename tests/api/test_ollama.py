"""Ollama's dialect, by bodies that its clients send."""

import json
from datetime import datetime
from math import inf

import pytest
from fastapi.testclient import TestClient
from pydantic import TypeAdapter, ValidationError

from plimsoll import __version__
from plimsoll.api.ollama_fields import KeepAlive
from plimsoll.models.slot import ModelState
from tests.fakes import FakeServer, metric
from tests.pressure import open_breaker

TEXTS = ["a ship", "the open sea"]
# What langchain-ollama sends: every option that its caller did not set is null.
OPTIONS = dict.fromkeys(
    ("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread",
     "repeat_last_n", "repeat_penalty", "temperature", "stop", "tfs_z", "top_k", "top_p")
)  # fmt: skip


@pytest.fixture
def client(fake: tuple[FakeServer, TestClient]) -> TestClient:
    return fake[1]


def native(client: TestClient) -> dict:
    return client.post("/embed", json={"input": TEXTS}).json()


# --- vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"model": "fake", "input": TEXTS},  # ollama.embed
        {"model": "fake", "input": TEXTS, "options": OPTIONS, "keep_alive": None},
        {"model": "fake", "input": TEXTS, "truncate": None, "dimensions": None, "options": {}},
        {"model": "fake", "input": TEXTS, "stream": False, "anything": 1},
    ],
)
def test_the_answer_is_ollama_s_with_our_vectors(client: TestClient, body: dict):
    """Whatever a client sends besides."""
    answer = client.post("/api/embed", json=body)

    found = answer.json()
    assert answer.status_code == 200
    assert found["model"] == "fake"
    assert found["embeddings"] == native(client)["embeddings"]
    assert found["prompt_eval_count"] == native(client)["usage"]["tokens"]
    assert 0 <= found["load_duration"] <= found["total_duration"] < 60e9
    assert set(found) == {
        "model", "embeddings", "total_duration", "load_duration", "prompt_eval_count",
    }  # fmt: skip
    assert answer.headers["x-plimsoll-fingerprint"] == native(client)["fingerprint"]


def test_the_older_route_gives_one_vector(client: TestClient):
    """Clients of before 2024 still ask so."""
    body = {"model": "fake", "prompt": TEXTS[0], "options": OPTIONS}
    answer = client.post("/api/embeddings", json=body)

    assert (answer.status_code, answer.json()) == (
        200, {"embedding": native(client)["embeddings"][0]},
    )  # fmt: skip


@pytest.mark.parametrize("asked", ["fake", "FAKE", "fake:latest", "Fake:Latest", None])
def test_a_model_goes_by_its_names_with_latest_or_without(client: TestClient, asked: str | None):
    """Ollama's clients put it behind names by themselves, and want their own name back."""
    answer = client.post("/api/embed", json={"model": asked, "input": "a ship"}).json()

    assert answer["model"] == (asked or "fake")
    assert len(answer["embeddings"]) == 1


def test_the_size_is_as_asked(client: TestClient):
    """Ollama takes it since 0.11.11."""
    answer = client.post("/api/embed", json={"input": "a ship", "dimensions": 2}).json()

    assert {len(row) for row in answer["embeddings"]} == {2}


@pytest.mark.parametrize("size", [0, -1, 0.0])
def test_a_size_below_one_is_the_models_own(client: TestClient, size: float):
    """A client in Go or C# sends the zero of its type for what its caller did not set."""
    answer = client.post("/api/embed", json={"input": "a ship", "dimensions": size})

    assert answer.status_code == 200
    plain = client.post("/api/embed", json={"input": "a ship"})
    assert answer.json()["embeddings"] == plain.json()["embeddings"]


@pytest.mark.parametrize(
    "content_type",
    ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/json", None],
)
@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings/"])
def test_a_body_is_json_whatever_its_type_says(
    client: TestClient, content_type: str | None, path: str
):
    """`curl -d`, fetch with a string, and some proxies."""
    content = json.dumps({"model": "fake", "input": "a ship", "prompt": "a ship"})
    headers = {} if content_type is None else {"content-type": content_type}

    answer = client.post(path, content=content, headers=headers)

    assert answer.status_code == 200, answer.text
    assert answer.json().keys() & {"embeddings", "embedding"}


def test_a_page_of_another_site_is_still_refused(client: TestClient):
    """It may send such a body without asking; its browser says where it comes from."""
    headers = {"content-type": "text/plain", "origin": "https://evil.example"}
    answer = client.post("/api/embed", content='{"input": "a ship"}', headers=headers)

    assert (answer.status_code, list(answer.json())) == (403, ["error"])


# --- without a text -------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [{}, {"input": []}, {"input": ""}, {"input": None}])
def test_a_request_without_a_text_opens_the_model(
    fake: tuple[FakeServer, TestClient], nothing: dict
):
    """So clients have it ready before the first text."""
    server, client = fake
    answer = client.post("/api/embed", json={"model": "fake", **nothing})

    assert (answer.status_code, answer.json()) == (200, {"model": "fake", "embeddings": []})
    assert server.slot.state is ModelState.READY


def test_a_list_of_an_empty_text_is_no_request_without_a_text(client: TestClient):
    """A caller who pairs texts with vectors would have one vector too few."""
    answer = client.post("/api/embed", json={"model": "fake", "input": [""]})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_the_older_route_does_so_too(fake: tuple[FakeServer, TestClient]):
    """With the field that it has."""
    server, client = fake
    answer = client.post("/api/embeddings", json={"prompt": ""})

    assert (answer.status_code, answer.json()) == (200, {"embedding": []})
    assert server.slot.state is ModelState.READY


def test_keep_alive_of_nothing_gives_the_model_back(fake: tuple[FakeServer, TestClient]):
    """With the last text, or without one; a model that is closed is not opened for that."""
    server, client = fake
    with_text = client.post("/api/embed", json={"input": "a ship", "keep_alive": 0})
    assert (with_text.status_code, server.slot.state) == (200, ModelState.CLOSED)

    client.post("/api/embed", json={"input": "a ship"})
    assert server.slot.state is ModelState.READY
    for _ in range(2):
        without = client.post("/api/embed", json={"model": "fake", "keep_alive": "0s"})
        assert (without.status_code, server.slot.state) == (200, ModelState.CLOSED)

    assert len(server.opener.models) == 2
    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_model_evictions_total{reason="asked"}') == 2


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0), (300, 300), (0.5, 0.5), (-1, inf), (-0.1, inf), ("0", 0), ("5m", 300),
        ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("-1", inf), ("-1m", inf), ("+2s", 2),
        ("30", 30), (".5s", 0.5), (None, None),
    ],
)  # fmt: skip
def test_a_time_is_written_as_go_reads_it(written: object, seconds: float | None):
    """Or as a number of seconds; below nothing is for ever."""
    assert TypeAdapter(KeepAlive).validate_python(written) == seconds


@pytest.mark.parametrize("written", ["", "m", "5 m", "5x", "1h30", "--1", "٣s", "9" * 33, True, []])
def test_what_is_no_time_is_refused(client: TestClient, written: object):
    """A typing error must not close a model, nor keep it for ever."""
    with pytest.raises(ValidationError):
        TypeAdapter(KeepAlive).validate_python(written)
    answer = client.post("/api/embed", json={"input": "a ship", "keep_alive": written})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("keep_alive: ")


# --- what there is --------------------------------------------------------------------------


def test_tags_lists_every_name_as_clients_show_it(client: TestClient):
    """Langchain compares them with the name that it was given; others parse the date."""
    (model,) = client.get("/api/tags").json()["models"]

    assert model["name"] == model["model"] == "fake:latest"
    assert datetime.fromisoformat(model["modified_at"]).tzinfo is not None
    assert model["details"]["format"] == "gguf"


def test_the_version_is_that_of_the_api(client: TestClient):
    """Clients decide by it what to send; Plimsoll's own would be too low for all of them."""
    answer = client.get("/api/version").json()

    assert tuple(map(int, answer["version"].split("."))) >= (0, 11, 11)
    assert answer["plimsoll"] == __version__


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_probe_of_the_address_finds_a_server(client: TestClient, method: str):
    """Ollama's own clients ask so first; it is the status page, with or without a key."""
    answer = client.request(method, "/")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/embed", {"model": "llama3", "input": "x"}, 404, "not 'llama3'"),
        ("POST", "/api/embed", {"model": "llama3:latest", "input": "x"}, 404, "not 'llama3'"),
        ("POST", "/api/embed", {"model": "llama3"}, 404, "not 'llama3'"),
        ("POST", "/api/embed", {"model": "", "input": "x"}, 404, "not ''"),
        ("POST", "/api/embed", {"input": ["a", ""]}, 400, "input[1]: the text has no tokens"),
        ("POST", "/api/embed", {"input": [1]}, 400, "input[0]: Input should be"),
        ("POST", "/api/embed", {"input": "word " * 30, "truncate": False}, 400, "32 tokens"),
        ("POST", "/api/embed", [], 400, "the body must be a JSON object"),
        ("POST", "/api/embeddings", {"prompt": " "}, 400, "prompt: the text has no tokens"),
        ("POST", "/api/generate", {"prompt": "x"}, 404, "there is no route /api/generate"),
        ("GET", "/api/embed", None, 405, "does not take GET"),
    ],
)
def test_a_refusal_is_a_string(
    client: TestClient, method: str, path: str, body: object, status: int, message: str
):
    """The JavaScript client shows anything else as [object Object]."""
    answer = client.request(method, path, json=body)

    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert message in answer.json()["error"]


def test_no_model_is_opened_into_memory_that_is_short(fake: tuple[FakeServer, TestClient]):
    """An empty request asks the breaker first, as one with texts does; closing needs no leave."""
    server, client = fake
    client.post("/api/embed", json={"input": "a ship"})
    open_breaker(server)

    opening = client.post("/api/embed", json={"model": "fake"})
    closing = client.post("/api/embed", json={"model": "fake", "keep_alive": 0})

    assert opening.status_code == 503
    assert (closing.status_code, server.slot.state) == (200, ModelState.CLOSED)

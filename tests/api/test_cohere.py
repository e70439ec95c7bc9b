"""Cohere's dialect, by bodies that its clients send."""

import base64

import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll.policy.costs import json_bytes
from tests.api.edge.bodies import JSON
from tests.fakes import FakeServer, metric

# What cohere 5's ClientV2.embed sends.
BODY = {
    "model": "fake",
    "texts": ["a ship", "the open sea"],
    "input_type": "search_document",
    "embedding_types": ["float"],
}
ALL_TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def native(client: TestClient, **fields: object) -> dict:
    return client.post("/embed", json={"input": BODY["texts"], **fields}).json()


def test_the_answer_is_cohere_s_with_our_vectors(fake: tuple[FakeServer, TestClient]):
    """A stored index goes on with either server's client."""
    _, client = fake
    answer = client.post("/v2/embed", json=BODY, headers={"X-Request-Id": "mine"})

    assert answer.status_code == 200
    vectors = native(client)
    assert answer.json() == {
        "id": "mine",
        "embeddings": {"float": vectors["embeddings"]},
        "texts": BODY["texts"],
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"input_tokens": vectors["usage"]["tokens"]},
            "warnings": ["fake has no prefix for search_document; the text went in as it is"],
        },
        "response_type": "embeddings_by_type",
    }
    assert answer.headers["x-plimsoll-fingerprint"] == vectors["fingerprint"]


def test_each_type_is_there_once_and_those_that_are_not_asked_for_are_not(
    fake: tuple[FakeServer, TestClient],
):
    """The client reads them by name; a type that is missing is None to it."""
    _, client = fake
    body = BODY | {"embedding_types": [*ALL_TYPES, "int8"]}

    found = client.post("/v2/embed", json=body).json()["embeddings"]
    only = client.post("/v2/embed", json=BODY | {"embedding_types": ["ubinary"]}).json()

    assert list(found) == ALL_TYPES
    assert list(only["embeddings"]) == ["ubinary"]
    floats = np.float32(found["float"])
    decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]]
    np.testing.assert_array_equal(floats, decoded)
    for kind in ("int8", "uint8", "binary", "ubinary"):
        assert found[kind] == native(client, encoding_format=kind)["embeddings"], kind
    assert {len(rows) for rows in found.values()} == {2}


def test_without_types_and_with_nulls_it_answers_floats(fake: tuple[FakeServer, TestClient]):
    """Cohere's own default."""
    _, client = fake
    optional = ("model", "input_type", "embedding_types", "output_dimension", "truncate")
    least = client.post("/v2/embed", json={"texts": BODY["texts"]}).json()["embeddings"]
    nulls = {"texts": BODY["texts"], **dict.fromkeys(optional)}

    assert list(least) == ["float"]
    assert client.post("/v2/embed", json=nulls).json()["embeddings"] == least


def test_the_size_and_the_side_that_is_cut_are_as_asked(fake: tuple[FakeServer, TestClient]):
    """END is Cohere's default; NONE is an error, not a shorter text."""
    server, client = fake
    long = {"texts": ["word " * 30]}

    small = client.post("/v2/embed", json=BODY | {"output_dimension": 2}).json()
    cut = [client.post("/v2/embed", json=long | {"truncate": side}) for side in ("START", "END")]
    refused = client.post("/v2/embed", json=long | {"truncate": "NONE"})

    assert {len(row) for row in small["embeddings"]["float"]} == {2}
    assert server.model.cuts[-3:-1] == ["start", "end"]
    assert [answer.headers["x-plimsoll-truncated"] for answer in cut] == ["1", "1"]
    assert refused.status_code == 400
    assert "texts[0]: the text has 32 tokens" in refused.json()["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (BODY | {"model": "embed-v4.0"}, 404, "this server serves 'fake', not 'embed-v4.0'"),
        (BODY | {"texts": []}, 400, "texts is an empty list"),
        (BODY | {"texts": ["a", ""]}, 400, "texts[1]: the text has no tokens"),
        (BODY | {"texts": "a"}, 400, "texts: Input should be a valid"),
        (BODY | {"embedding_types": ["int4"]}, 400, "embedding_types[0]: Input should be"),
        (BODY | {"embedding_types": []}, 400, "embedding_types: "),
        (BODY | {"output_dimension": 5}, 400, "dimensions is 5; fake gives 1 to 4"),
        ({"input_type": "search_query"}, 400, "texts: Field required"),
        ({"images": ["data:image/png;base64,aGk="], "input_type": "image"}, 400, "images are not"),
        (BODY | {"images": ["data:image/png;base64,aGk="]}, 400, "images are not embedded here"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, 400, "inputs are not"),
    ],
)
def test_a_refusal_has_cohere_s_shape(
    fake: tuple[FakeServer, TestClient], body: dict, status: int, message: str
):
    """The client shows `message`, and support asks for the id, which the log has too."""
    _, client = fake
    answer = client.post("/v2/embed", json=body, headers={"X-Request-Id": "mine"})

    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"id", "message"}
    assert answer.json()["id"] == answer.headers["x-request-id"] == "mine"
    assert message in answer.json()["message"]


def test_a_lower_limit_of_tokens_is_said_not_to_be_followed(fake: tuple[FakeServer, TestClient]):
    """The vector is of more of the text than was asked for."""
    server, client = fake
    limit = server.model.traits.token_limit

    lower, higher = (
        client.post("/v2/embed", json=BODY | {"max_tokens": most, "images": None, "inputs": []})
        for most in (limit - 1, limit)
    )

    told = f"max_tokens is not followed: texts are cut at the model's limit of {limit} tokens"
    of_prefix = higher.json()["meta"]["warnings"]
    assert lower.json()["meta"]["warnings"] == [*of_prefix, told]
    assert "max_tokens" not in str(of_prefix)


def test_the_reply_counts_with_every_type_and_what_it_repeats(
    fake: tuple[FakeServer, TestClient], monkeypatch: pytest.MonkeyPatch
):
    """Six forms of each vector and the texts take several times the memory of one."""
    server, client = fake
    tasks = []
    embed_dense = server.core.service.embed_dense

    async def noting(task: object, permit: object) -> object:
        tasks.append(task)
        return await embed_dense(task, permit)

    monkeypatch.setattr(server.core.service, "embed_dense", noting)
    client.post("/v2/embed", json=BODY | {"embedding_types": ALL_TYPES})

    assert (tasks[0].encodings, tasks[0].echoed_bytes) == (6, json_bytes(BODY["texts"]))


def test_its_requests_are_counted_as_others_are(fake: tuple[FakeServer, TestClient]):
    """By route, and as dense vectors."""
    _, client = fake
    client.post("/v2/embed", json=BODY, headers=JSON)

    page = client.get("/metrics").text
    series = 'plimsoll_requests_total{kind="dense",model="fake",route="/v2/embed",status="200"}'
    assert metric(page, series) == 1

"""POST /rank: documents in order for a query, by meaning, or under pressure by words."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from rank_bm25 import BM25Okapi

from plimsoll.composition.application import create_app
from plimsoll.serving.ranking import MOST_QUERY_CHARACTERS
from tests.fakes import FakeModel, metric
from tests.pressure import (
    REASONS,
    assert_nothing_is_held,
    error_of,
    fill_queue,
    open_breaker,
    serving,
    under_pressure,
)
from tests.small_models import TINY, small_settings, write_e5

QUERY = "How deep may a ship be loaded?"
DOCUMENTS = [
    "A harbour is where ships are loaded, and a deep harbour takes deep ships.",
    "Bread is made of flour, water and salt.",
    "The Plimsoll line shows how deep a ship may be loaded.",
    "The sea is deep.",
    "A loaf of bread.",
    "Ships sail.",
]


def rank(client: TestClient, **body: object) -> dict:
    response = client.post("/rank", json={"query": QUERY, "documents": DOCUMENTS, **body})
    assert response.status_code == 200, response.text
    return response.json()


def order_of(answer: dict) -> list[int]:
    return [document["index"] for document in answer["results"]]


def scores_of(answer: dict) -> list[float]:
    return [document["score"] for document in answer["results"]]


# --- by meaning -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def e5_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A model with prefixes: a query's differs from a document's."""
    folder = tmp_path_factory.mktemp("e5")
    settings = small_settings(folder, write_e5(folder / "e5.gguf"), idle_unload_s=0)
    with TestClient(create_app(settings)) as client:
        yield client


def embed(client: TestClient, input_type: str, texts: list[str]) -> dict:
    return client.post("/embed", json={"input": texts, "input_type": input_type}).json()


def test_the_order_is_that_of_the_cosines_of_embeddings(e5_client: TestClient):
    """Whoever stores vectors must come to the same order, task prefixes included."""
    answer = rank(e5_client)

    query = embed(e5_client, "search_query", [QUERY])
    documents = embed(e5_client, "search_document", DOCUMENTS)
    cosines = np.float32(documents["embeddings"]) @ np.float32(query["embeddings"][0])
    assert order_of(answer) == np.argsort(-cosines, kind="stable").tolist()
    np.testing.assert_allclose(scores_of(answer), np.sort(cosines)[::-1], atol=1e-5)
    fields = {"kind", "fingerprint", "results", "truncated", "errors", "warnings", "degraded"}
    assert set(answer) == fields
    assert (answer["kind"], answer["degraded"]) == ("dense", None)
    assert answer["fingerprint"] == documents["fingerprint"] == query["fingerprint"]
    assert answer["truncated"] == answer["errors"] == answer["warnings"] == []


def test_the_built_in_model_finds_what_is_meant(client: TestClient):
    """The document that answers comes first, the loaf of bread among the last."""
    order = order_of(rank(client))

    assert order[0] == 2
    assert set(order[-2:]) == {1, 4}


def test_top_k_cuts_the_order_and_changes_nothing_in_it(client: TestClient):
    """More than there are is all of them."""
    whole = rank(client)["results"]

    assert rank(client, top_k=2)["results"] == whole[:2]
    assert rank(client, top_k=100)["results"] == whole


def test_documents_that_say_the_same_keep_the_order_in_which_they_came(client: TestClient):
    """An order that flaps between two calls looks like a fault."""
    answer = rank(client, documents=["A ship.", "Bread.", "A ship.", "Bread."])

    assert order_of(answer) == [0, 2, 1, 3]


def test_a_model_without_prefixes_is_no_news(client: TestClient):
    """The route chooses input types by itself; what they do for a model is not the client's."""
    assert rank(client, documents=["a sea"])["warnings"] == []


def test_what_was_cut_is_said(e5_client: TestClient):
    """A document that ranks low because its end never counted must not look read."""
    long = "ship " * (TINY.context + 50)

    answer = rank(e5_client, query=long, documents=["a sea", long])

    (cut,) = answer["truncated"]
    assert (cut["index"], cut["kept"]) == (1, TINY.context)
    assert cut["tokens"] > TINY.context + 50
    (warning,) = answer["warnings"]
    assert warning.startswith("query: only the first 512 of its ")


# --- by words -------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


@pytest.mark.parametrize("query", [QUERY, "ship ship harbour", "nothing of this kind"])
@pytest.mark.parametrize("reason", REASONS)
def test_under_pressure_the_order_is_rank_bm25s(reason: str, query: str):
    """A published ranking that anybody can check, and said to be what it is."""
    with under_pressure(reason) as (_, client):
        answer = rank(client, query=query)
        response = client.post("/rank", json={"query": query, "documents": DOCUMENTS, "top_k": 2})

    scores = BM25Okapi([words(document) for document in DOCUMENTS]).get_scores(words(query))
    assert order_of(answer) == np.argsort(-scores, kind="stable").tolist()
    assert scores_of(answer) == pytest.approx(np.sort(scores)[::-1])
    assert (answer["kind"], answer["fingerprint"]) == ("bm25", None)
    assert answer["degraded"]["reason"] == reason
    assert answer["truncated"] == answer["errors"] == answer["warnings"] == []
    assert response.headers["x-plimsoll-degraded"] == reason
    assert response.json()["results"] == answer["results"][:2]


def test_a_query_too_long_for_words_is_told_so_under_pressure_alone():
    """Every distinct word of it looks at every document once; by meaning it is one vector."""
    query = "a" * (MOST_QUERY_CHARACTERS + 1)
    with serving() as (server, client):
        by_meaning = client.post("/rank", json={"query": query, "documents": ["a"]})
        open_breaker(server)
        too_long = client.post("/rank", json={"query": query, "documents": ["a"]})
        at_the_limit = client.post("/rank", json={"query": query[1:], "documents": ["a"]})
        assert_nothing_is_held(server)

    assert (by_meaning.status_code, at_the_limit.status_code) == (200, 200)
    assert error_of(too_long) == (400, "invalid_request")
    error = too_long.json()["error"]
    assert error["param"] == "query"
    assert str(MOST_QUERY_CHARACTERS) in error["message"]


def test_without_a_fallback_the_client_is_told_when_to_come_back():
    """It would rather wait than show another order."""
    body = {"query": QUERY, "documents": DOCUMENTS, "fallback": "none"}
    with under_pressure("breaker_open") as (_, client):
        response = client.post("/rank", json=body)

    assert error_of(response) == (503, "breaker_open")
    assert 15 <= int(response.headers["retry-after"]) <= 17


def test_a_full_queue_is_no_reason_for_words():
    """As in /embed: it is refused at once, and is told when the queue will have drained."""
    with serving() as (server, client):
        fill_queue(server, 20_000)
        response = client.post("/rank", json={"query": QUERY, "documents": DOCUMENTS})

    assert error_of(response) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": "a ship"}, "documents"),
        ({"documents": ["a", 5]}, "documents"),
        ({"documents": None}, "documents"),
        ({"query": 5}, "query"),
        ({"query": None}, "query"),
        ({"query": ["a"]}, "query"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"fallback": "words"}, "fallback"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(client: TestClient, body: dict, param: str):
    """In good times and in bad ones alike."""
    response = client.post("/rank", json={"query": QUERY, "documents": DOCUMENTS, **body})

    assert error_of(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == param


def test_a_model_that_is_not_served_is_not_found(client: TestClient):
    """Not even by words: the name is a mistake."""
    body = {"query": QUERY, "documents": DOCUMENTS, "model": "other"}

    assert error_of(client.post("/rank", json=body)) == (404, "model_not_found")


def test_a_query_without_a_token_has_no_order(client: TestClient):
    """A score for it would be made up."""
    response = client.post("/rank", json={"query": " ", "documents": DOCUMENTS})

    assert error_of(response) == (400, "empty_text")
    error = response.json()["error"]
    assert error["param"] == "query"
    assert error["message"].startswith("query: ")


def test_a_document_without_a_token_does_not_fail_the_others(client: TestClient):
    """One blank page among a thousand: the others keep their order and their places."""
    whole = rank(client)["results"]

    answer = rank(client, documents=["", *DOCUMENTS, "\u200b"])

    assert [(error["index"], error["code"]) for error in answer["errors"]] == [
        (0, "empty_text"),
        (len(DOCUMENTS) + 1, "empty_text"),
    ]
    assert all(error["message"] for error in answer["errors"])
    assert order_of(answer) == [document["index"] + 1 for document in whole]
    np.testing.assert_allclose(
        scores_of(answer), [document["score"] for document in whole], atol=1e-5
    )


def test_documents_without_a_token_take_no_place_of_the_best(client: TestClient):
    """A client that asks for the best one gets it."""
    assert order_of(rank(client, documents=["", *DOCUMENTS], top_k=1)) == [3]


def test_blank_documents_alone_have_an_empty_order(client: TestClient):
    """As /embed answers 200 with an error for each."""
    answer = rank(client, documents=["", " "])

    assert (answer["kind"], answer["results"]) == ("dense", [])
    assert [error["index"] for error in answer["errors"]] == [0, 1]


def test_documents_are_not_embedded_for_a_query_without_a_vector():
    """Minutes of work for nothing."""
    model = FakeModel()
    with serving(model) as (server, client):
        response = client.post("/rank", json={"query": "", "documents": ["a ship"] * 50})
        assert_nothing_is_held(server)

    assert response.status_code == 400
    assert model.runs == []


def test_a_vector_that_is_not_finite_is_said_beside_the_order():
    """A score that compares with nothing must not be sorted in anywhere."""
    body = {"query": "a ship", "documents": ["a sea", "poison", "a loaf"]}
    with serving() as (server, client):
        answer = client.post("/rank", json=body).json()
        assert_nothing_is_held(server)

    assert sorted(order_of(answer)) == [0, 2]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1, "non_finite")]


def test_a_query_whose_vector_is_not_finite_is_the_servers_fault_not_the_clients():
    """There is nothing in the request to mend."""
    with serving() as (server, client):
        response = client.post("/rank", json={"query": "poison", "documents": ["a sea"]})
        assert_nothing_is_held(server)

    assert error_of(response) == (500, "internal_error")
    assert response.json()["error"]["message"].startswith("query: ")


def test_what_was_ranked_is_counted(client: TestClient):
    """Query and documents are texts like any others."""

    def n_texts() -> float:
        return metric(client.get("/metrics").text, "plimsoll_texts_total")

    before = n_texts()
    rank(client)

    assert n_texts() - before == 1 + len(DOCUMENTS)
    page = client.get("/metrics").text
    labels = '{kind="dense",model="all-MiniLM-L6-v2",route="/rank",status="200"}'
    assert metric(page, f"plimsoll_requests_total{labels}") >= 1

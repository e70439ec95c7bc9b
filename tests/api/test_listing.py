"""Documents of a collection, page after page: what an export reads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll.corpora import documents, versions
from plimsoll.corpora.records import Document, Space, VersionState
from plimsoll.policy.costs import LISTED_BYTES, LISTED_NUMBERS
from tests.fakes import FakeServer
from tests.pressure import assert_nothing_is_held, error_of, serving, take_room

SHIPS = "/collections/ships"
TEXTS = {f"id-{number}": f"ship number {number}" for number in range(7)}


@pytest.fixture
def server_and_client() -> Iterator[tuple[FakeServer, TestClient]]:
    with serving() as (server, client):
        client.put(SHIPS, json={})
        for id, text in TEXTS.items():
            line = {"id": id, "text": text, "metadata": {"length": len(text)}}
            client.post(f"{SHIPS}/documents", json=line)
        yield server, client


@pytest.fixture
def client(server_and_client: tuple[FakeServer, TestClient]) -> TestClient:
    return server_and_client[1]


def pages(client: TestClient, **options: object) -> Iterator[dict[str, Any]]:
    """Every page, each asked for as the one before says."""
    after = 0
    while after is not None:
        answer = client.get(f"{SHIPS}/documents", params={**options, "after": after})
        assert answer.status_code == 200, answer.text
        yield answer.json()
        after = answer.json()["after"]


def test_the_pages_are_all_documents_in_the_order_in_which_they_came(client: TestClient):
    """Each once, whole, and the last page says that it is the last."""
    read = list(pages(client, limit=3))
    listed = [document for page in read for document in page["documents"]]

    assert [len(page["documents"]) for page in read] == [3, 3, 1]
    assert {each["id"]: each["text"] for each in listed} == TEXTS
    assert [each["id"] for each in listed] == list(TEXTS)
    assert listed[0] == {
        "id": "id-0", "text": "ship number 0", "metadata": {"length": 13}, "vector": None,
    }  # fmt: skip


def test_vectors_come_along_exactly(client: TestClient):
    """What is exported and sent back must be what was stored, to the last bit."""
    page, *_ = pages(client, vectors=True)
    collection = client.get(SHIPS).json()

    assert (page["version"], page["dimensions"]) == (collection["versions"][0]["id"], 4)
    assert page["fingerprint"] == collection["fingerprint"]
    for listed in page["documents"]:
        embedded = client.post("/embed", json={"input": listed["text"]}).json()["embeddings"][0]
        assert np.float32(listed["vector"]).tolist() == np.float32(embedded).tolist()


def test_a_document_without_a_vector_of_the_version_is_listed_all_the_same(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Of a version that is being built some have none; an export must not lose them."""
    server, client = server_and_client
    with server.corpora.database.writing() as connection:
        collection = versions.find(connection, "ships")
        space = Space("other", 3, "other")
        building = versions.add(connection, collection.id, space, VersionState.BUILDING)

    (page,) = pages(client, vectors=True, version=building.id)

    assert [each["vector"] for each in page["documents"]] == [None] * len(TEXTS)
    assert (page["fingerprint"], page["dimensions"]) == ("other", 3)


def test_a_page_is_bounded_by_what_it_takes(server_and_client: tuple[FakeServer, TestClient]):
    """Whatever `limit` says: long texts make short pages, and none is left out."""
    server, client = server_and_client
    n_bytes = LISTED_BYTES * 2 // 5
    with server.corpora.database.writing() as connection:
        collection = versions.find(connection, "ships").id
        long = [Document(f"long-{n}", "x" * n_bytes) for n in range(4)]
        huge = Document("huge", "y" * (2 * LISTED_BYTES))
        documents.put(connection, collection, [*long, huge])

    read = list(pages(client, limit=1000))
    counts = [len(page["documents"]) for page in read]

    assert counts == [len(TEXTS) + 2, 2, 1]
    assert_nothing_is_held(server)


def test_a_page_of_large_vectors_is_short(server_and_client: tuple[FakeServer, TestClient]):
    """Numbers take more as JSON than as they are stored."""
    server, client = server_and_client
    with server.corpora.database.writing() as connection:
        collection = versions.find(connection, "ships")
        space = Space.foreign("wide", LISTED_NUMBERS // 3)
        wide = versions.add(connection, collection.id, space, VersionState.COMPLETE)

    counts = [len(page["documents"]) for page in pages(client, vectors=True, version=wide.id)]

    assert counts == [3, 3, 1]


def test_a_version_of_another_collection_is_refused(client: TestClient):
    client.put("/collections/boats", json={})
    other = client.get("/collections/boats").json()["versions"][0]["id"]

    refused = client.get(f"{SHIPS}/documents", params={"version": other})

    assert error_of(refused) == (400, "invalid_request")
    assert refused.json()["error"]["param"] == "version"
    assert error_of(client.get("/collections/none/documents")) == (404, "collection_not_found")


def test_a_page_that_there_is_no_memory_for_is_refused(
    server_and_client: tuple[FakeServer, TestClient],
):
    server, client = server_and_client
    take_room(server)

    refused = client.get(f"{SHIPS}/documents")

    assert error_of(refused) == (503, "memory_pressure")
    assert int(refused.headers["retry-after"]) >= 1

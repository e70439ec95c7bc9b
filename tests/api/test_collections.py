"""Collections over HTTP: documents in, the best of them out, and what is refused."""

import gzip
import json
from collections.abc import Iterator
from sys import getsizeof
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll.api.edge.json_body import MAX_FIELDS
from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.ingest import MOST_MESSAGE_CHARACTERS
from plimsoll.corpora.ingest_batch import BATCH_DOCUMENTS
from plimsoll.corpora.records import Document, Space, VersionState
from plimsoll.errors import EncodeMemoryError, GGUFFormatError
from plimsoll.policy.costs import INGEST_BATCH_BYTES, MOST_LINE_BYTES
from plimsoll.policy.priority import Priority
from tests.fakes import DEADLINE_S, FakeModel, FakeServer, fake_traits, metric
from tests.pressure import (
    REASONS,
    HeavyModel,
    assert_nothing_is_held,
    error_of,
    fill_queue,
    open_breaker,
    serving,
    take_room,
)

SHIPS = "/collections/ships"
NDJSON = {"content-type": "application/x-ndjson"}
TEXTS = {"a": "a deep ship", "b": "the price of tea", "c": "ship ship harbour"}


@pytest.fixture
def server_and_client() -> Iterator[tuple[FakeServer, TestClient]]:
    with serving() as (server, client):
        assert client.put(SHIPS, json={}).status_code == 200
        yield server, client


@pytest.fixture
def client(server_and_client: tuple[FakeServer, TestClient]) -> TestClient:
    return server_and_client[1]


def post(client: TestClient, *lines: object, space: str | None = None, **options) -> httpx.Response:
    """Send lines: what is no text is written as JSON."""
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    parameters = {} if space is None else {"space": space}
    return client.post(
        f"{SHIPS}/documents",
        content=content.encode(),
        params=parameters,
        headers={**NDJSON, **options},
    )


def put(client: TestClient, texts: dict[str, str] = TEXTS, **fields: object) -> dict[str, Any]:
    response = post(client, *({"id": id, "text": text, **fields} for id, text in texts.items()))
    assert response.status_code == 200, response.text
    return counts(response)


def counts(response: httpx.Response) -> dict[str, int]:
    """Those that are not 0."""
    names = ("added", "updated", "unchanged", "failed")
    return {name: response.json()[name] for name in names if response.json()[name]}


def search(client: TestClient, query: str, **fields: object) -> dict[str, Any]:
    response = client.post(f"{SHIPS}/search", json={"query": query, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [found["id"] for found in answer["results"]]


def vector_of(client: TestClient, text: str) -> np.ndarray:
    return np.float32(client.post("/embed", json={"input": text}).json()["embeddings"][0])


# --- collections ----------------------------------------------------------------------------


def test_a_collection_takes_the_space_of_its_model(client: TestClient):
    """Put twice it is the same one; what it holds is told."""
    made = client.get(SHIPS).json()
    again = client.put(SHIPS, json={"model": "FAKE", "dimensions": 4}).json()
    put(client)
    listed = client.get("/collections").json()["collections"]

    assert again == made
    assert made["fingerprint"] == fake_traits().fingerprint(4, "search_document")
    assert (made["model"], made["dimensions"], made["documents"]) == ("fake", 4, 0)
    (one,) = listed
    (version,) = one["versions"]
    assert (one["name"], one["documents"], version["vectors"]) == ("ships", 3, 3)
    assert (version["active"], version["takes_writes"], version["state"]) == (
        True,
        True,
        "complete",
    )


@pytest.mark.parametrize(
    "body",
    [{"dimensions": 2}, {"space": "ada", "dimensions": 4}, {"dimensions": 3, "model": "fake"}],
)
def test_another_space_for_a_collection_that_is_there_is_a_conflict(client: TestClient, body: dict):
    """Its vectors are kept, and the client is told what to do instead."""
    put(client)
    response = client.put(SHIPS, json=body)

    assert error_of(response) == (409, "collection_conflict")
    assert "another name" in response.json()["error"]["message"]
    assert client.get(SHIPS).json()["documents"] == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"dimensions": 5}, "dimensions"),
        ({"space": "ada"}, "space"),
        ({"space": "ada", "dimensions": 4, "model": "fake"}, "space"),
        ({"space": ""}, "space"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(client: TestClient, body: dict, param: str):
    response = client.put("/collections/new", json=body)

    assert error_of(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == param
    assert client.get("/collections/new").status_code == 404


def test_a_model_that_is_not_served_makes_no_collection(client: TestClient):
    response = client.put("/collections/new", json={"model": "other"})
    assert error_of(response) == (404, "model_not_found")


def test_a_dropped_collection_is_gone_with_its_documents(
    server_and_client: tuple[FakeServer, TestClient],
):
    """And with its tables, soon after."""
    server, client = server_and_client
    put(client)
    dropped = client.delete(SHIPS)
    missing = [
        client.get(SHIPS),
        client.delete(SHIPS),
        client.get(f"{SHIPS}/documents/a"),
        client.post(f"{SHIPS}/search", json={"query": "ship"}),
        post(client, {"id": "a", "text": "b"}),
    ]
    client.put(SHIPS, json={})

    assert dropped.json()["documents"] == 3
    assert {error_of(response) for response in missing} == {(404, "collection_not_found")}
    assert search(client, "ship", mode="bm25")["results"] == []
    *_, reclaim_thread = server.corpora.threads
    reclaim_thread.submit(lambda: None).result(DEADLINE_S)
    with server.corpora.database.reading() as connection:
        assert connection.execute(
            "SELECT name FROM sqlite_master WHERE name GLOB 'documents_[0-9]*'"
        ).fetchall() == [("documents_2",)]


def test_a_method_that_a_path_does_not_take_is_told_all_that_it_does(client: TestClient):
    """Several routes share the path, each with a method of its own."""
    response = client.request("PATCH", SHIPS, json={})

    assert error_of(response) == (405, "http_405")
    assert response.headers["allow"] == "DELETE, GET, PUT"


# --- documents ------------------------------------------------------------------------------


def test_a_list_may_be_sent_again(server_and_client: tuple[FakeServer, TestClient]):
    """What is stored is neither embedded nor written: that is how a client resumes."""
    server, client = server_and_client
    first = put(client)
    n_runs = len(server.model.runs)

    again = put(client)

    assert (first, again) == ({"added": 3}, {"unchanged": 3})
    assert len(server.model.runs) == n_runs


@pytest.mark.parametrize(("before", "after"), [(True, 1), (1, 1.0), (0, False)])
def test_metadata_of_another_kind_are_other_metadata(
    server_and_client: tuple[FakeServer, TestClient], before: object, after: object
):
    """To Python they are equal; filters tell them apart, and so does who sends them."""
    _, client = server_and_client
    put(client, metadata={"lost": before})

    assert put(client, metadata={"lost": after}) == {"updated": 3}
    stored = client.get(f"{SHIPS}/documents/a").json()["metadata"]["lost"]
    assert (type(stored), stored) == (type(after), after)


def test_other_metadata_are_written_without_embedding(
    server_and_client: tuple[FakeServer, TestClient],
):
    server, client = server_and_client
    put(client)
    n_runs = len(server.model.runs)

    assert put(client, metadata={"year": 1876}) == {"updated": 3}
    assert len(server.model.runs) == n_runs
    assert client.get(f"{SHIPS}/documents/a").json()["metadata"] == {"year": 1876}
    assert ids(search(client, "ship", filter={"year": 1876}, mode="bm25")) == ["c", "a"]


def test_another_text_is_embedded_anew(client: TestClient):
    put(client)
    changed = put(client, {"a": "one two three four five six"})
    answer = search(client, "one two three four five six", top_k=1)

    assert changed == {"updated": 1}
    assert answer["results"][0]["id"] == "a"
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_the_same_id_twice_in_a_list_ends_as_its_last(client: TestClient):
    response = post(client, {"id": "a", "text": "first"}, {"id": "a", "text": "last"})

    assert counts(response) == {"added": 1, "updated": 1}
    assert client.get(f"{SHIPS}/documents/a").json()["text"] == "last"
    assert client.get(SHIPS).json()["versions"][0]["vectors"] == 1


def test_a_bad_line_fails_alone(client: TestClient):
    """Each with its number and why; blank lines are none."""
    response = post(
        client,
        {"id": "a", "text": "a ship"},
        "",
        "no JSON",
        {"id": 5, "text": "a ship"},
        {"id": "x"},
        {"id": "empty", "text": " "},
        {"id": "poison", "text": "poison"},
        {"id": "more", "text": "a", "colour": "red"},
        {"id": "list", "text": "a", "metadata": [1]},
        {"id": "ends/", "text": "a"},
        {"id": "vector", "text": "a", "vector": [1, 2, 3, 4]},
        [1],
        "[" * 70,
        {"id": "long", "text": "x" * MOST_LINE_BYTES},
        {"id": "b", "text": "the sea"},
    )
    answer = response.json()

    assert counts(response) == {"added": 2, "failed": 12}
    told = {(error["line"], error["id"], error["code"]) for error in answer["errors"]}
    assert told == {
        (3, None, "invalid_request"),
        (4, None, "invalid_request"),
        (5, "x", "invalid_request"),
        (6, "empty", "empty_text"),
        (7, "poison", "non_finite"),
        (8, "more", "invalid_request"),
        (9, "list", "invalid_request"),
        (10, "ends/", "invalid_request"),
        (11, "vector", "invalid_vector"),
        (12, None, "invalid_request"),
        (13, None, "invalid_request"),
        (14, None, "body_too_large"),
    }
    assert [error["line"] for error in answer["errors"]] == list(range(3, 15))
    assert client.get(SHIPS).json()["documents"] == 2


def test_what_is_said_of_a_line_is_short_whatever_it_held(client: TestClient):
    """A thousand of these are kept for one answer."""
    response = post(
        client,
        {"id": "a", "text": "a ship", "colour" * 100_000: 1},
        {"id": "b", "text": "a ship", **{str(n): 1 for n in range(MAX_FIELDS)}},
    )

    name, number = response.json()["errors"]
    assert (name["id"], name["code"]) == ("a", "invalid_request")
    assert name["message"].startswith("colour")
    assert len(name["message"]) == MOST_MESSAGE_CHARACTERS
    assert (number["id"], number["code"]) == ("b", "invalid_request")
    assert f"more than {MAX_FIELDS} fields" in number["message"]


def test_a_text_that_fails_keeps_what_was_stored(client: TestClient):
    """Its old vector stays beside its old text."""
    put(client)
    assert put(client, {"a": " "}) == {"failed": 1}

    assert client.get(f"{SHIPS}/documents/a").json()["text"] == TEXTS["a"]
    assert client.get(SHIPS).json()["versions"][0]["vectors"] == 3


def test_a_list_may_be_larger_than_a_body_may(server_and_client: tuple[FakeServer, TestClient]):
    """It is used up as it comes, compressed too; what it takes is given back."""
    server, client = server_and_client
    n = 3 * BATCH_DOCUMENTS
    lines = [json.dumps({"id": str(k), "text": f"ship {k}", "metadata": {"x": "y" * 5000}})
             for k in range(n)]  # fmt: skip
    content = "\n".join(lines).encode()
    assert len(content) > 1 << 20  # what FakeServer takes of other bodies

    plain = client.post(f"{SHIPS}/documents", content=content, headers=NDJSON)
    zipped = client.post(
        f"{SHIPS}/documents",
        content=gzip.compress(content),
        headers={**NDJSON, "content-encoding": "gzip"},
    )

    assert (counts(plain), counts(zipped)) == ({"added": n}, {"unchanged": n})
    assert_nothing_is_held(server)


def test_a_batch_is_bounded_by_all_that_came_along(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Metadata take memory as texts do: what lies in wait is no more than was reserved."""
    server, client = server_and_client
    write, sizes = server.corpora.database.write, []

    async def seen(thread, store, name, news, found):
        sizes.append(sum(getsizeof(new.document.metadata["x"]) for new in news))
        return await write(thread, store, name, news, found)

    server.corpora.database.write = seen
    largest = [0] * 200_000
    put(client, {str(k): "a ship" for k in range(5)}, metadata={"x": largest})
    put(client, {f"small {k}": "a ship" for k in range(9)}, metadata={"x": [0] * 40_000})

    assert max(sizes) <= max(getsizeof(largest), INGEST_BATCH_BYTES)
    assert len(sizes) > 6


def test_a_document_is_read_and_deleted_by_its_id(client: TestClient):
    """Whatever stands in it."""
    odd = "a/b c?d=ä#e"
    put(client, {odd: "a ship"})
    url = f"{SHIPS}/documents/{quote(odd)}"
    found = client.get(url)
    deleted = client.delete(url)
    gone = client.get(url), client.delete(url)

    assert found.json() == {"id": odd, "text": "a ship", "metadata": {}}
    assert deleted.json() == found.json()
    assert {error_of(response) for response in gone} == {(404, "document_not_found")}
    assert search(client, "ship")["results"] == []
    assert search(client, "ship", mode="bm25")["results"] == []


def test_documents_are_bulk_work(server_and_client: tuple[FakeServer, TestClient]):
    """A query that comes in the meantime passes them: short ones too."""
    server, client = server_and_client
    priorities = []
    encode = server.core.service._encoder.encode

    async def noting(model, texts, dimensions, on_row, priority, form):
        priorities.append(priority.value)
        return await encode(model, texts, dimensions, on_row, priority, form)

    server.core.service._encoder.encode = noting
    put(client)
    search(client, "ship")

    assert priorities == ["bulk", "interactive"]


def test_metadata_come_back_as_they_were_sent(client: TestClient):
    metadata = {"ä": [None, True, 1.5, 10**12, {"b": '"\u2028'}], "": {}}
    put(client, metadata=metadata)

    assert client.get(f"{SHIPS}/documents/a").json()["metadata"] == metadata
    assert [found["metadata"] for found in search(client, "tea", mode="bm25")["results"]] == [
        metadata
    ]


def test_what_came_and_went_is_counted(client: TestClient):
    put(client)
    put(client)
    post(client, "no JSON")
    client.delete(f"{SHIPS}/documents/a")
    search(client, "ship", mode="hybrid")
    page = client.get("/metrics").text

    outcomes = ("added", "updated", "unchanged", "failed", "deleted")
    numbers = [metric(page, f'plimsoll_documents_total{{outcome="{name}"}}') for name in outcomes]
    assert numbers == [3, 0, 3, 1, 1]
    assert metric(page, 'plimsoll_search_seconds_count{mode="hybrid"}') == 1


# --- vectors from elsewhere -----------------------------------------------------------------


def test_vectors_come_along_with_their_fingerprint(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Those of this very model need not be computed again; lines without one are embedded."""
    server, client = server_and_client
    fingerprint = client.get(SHIPS).json()["fingerprint"]
    query = vector_of(client, "a ship").tolist()
    n_runs = len(server.model.runs)

    response = post(
        client, {"id": "a", "text": "bread", "vector": query}, {"id": "b", "text": "one two three"},
        space=fingerprint,
    )  # fmt: skip

    assert counts(response) == {"added": 2}
    assert len(server.model.runs) == n_runs + 1
    found = search(client, "a ship", top_k=1)["results"][0]
    assert (found["id"], found["score"]) == ("a", pytest.approx(1, abs=1e-6))


def test_a_foreign_space_is_known_by_its_name_and_searched_by_words(client: TestClient):
    """No query has a vector there: dense is refused with both names, auto says what it did."""
    client.delete(SHIPS)
    client.put(SHIPS, json={"space": "ada", "dimensions": 3})
    response = post(
        client,
        {"id": "a", "text": "a ship", "vector": [1, 2, 3]},
        {"id": "b", "text": "a ship"},
        {"id": "c", "text": "a ship", "vector": [1, 2]},
        {"id": "d", "text": "a ship", "vector": [1, 2, 1e39]},
        space="ada",
    )
    dense = client.post(f"{SHIPS}/search", json={"query": "ship", "mode": "dense"})
    auto = search(client, "ship")

    assert client.get(SHIPS).json()["fingerprint"] == "foreign:ada"
    assert [error["code"] for error in response.json()["errors"]] == [
        "vector_missing", "invalid_vector", "invalid_vector",
    ]  # fmt: skip
    assert error_of(dense) == (409, "space_mismatch")
    assert "foreign:ada" in dense.json()["error"]["message"]
    assert (auto["mode"], ids(auto)) == ("bm25", ["a"])
    assert auto["degraded"]["reason"] == "space_mismatch"
    assert auto["degraded"]["retry_after_s"] is None


def test_vectors_of_another_space_are_refused(client: TestClient):
    """Before anything is stored, with both names."""
    response = post(client, {"id": "a", "text": "a", "vector": [1, 2, 3, 4]}, space="ada")

    assert error_of(response) == (409, "space_mismatch")
    message = response.json()["error"]["message"]
    assert "'ada'" in message
    assert fake_traits().fingerprint(4) in message
    assert client.get(SHIPS).json()["documents"] == 0


def test_a_model_file_that_changed_is_never_compared_with_what_it_gave_before(
    server_and_client: tuple[FakeServer, TestClient],
):
    """The name is the same, the space another: no search may mix them, and no document."""
    server, client = server_and_client
    put(client)
    with server.corpora.database.writing() as connection:
        connection.execute("UPDATE versions SET fingerprint = 'v1:before'")

    dense = client.post(f"{SHIPS}/search", json={"query": "ship", "mode": "dense"})
    auto = search(client, "ship")
    sent = post(client, {"id": "d", "text": "a ship"})

    assert error_of(dense) == error_of(sent) == (409, "space_mismatch")
    message = dense.json()["error"]["message"]
    assert "v1:before" in message
    assert fake_traits().fingerprint(4) in message
    assert (auto["mode"], auto["degraded"]["reason"]) == ("bm25", "space_mismatch")
    assert_nothing_is_held(server)


# --- several versions -----------------------------------------------------------------------


def add_version(server: FakeServer, space: Space) -> int:
    with server.corpora.database.writing() as connection:
        collection = versions.find(connection, "ships")
        return versions.add(connection, collection.id, space, VersionState.BUILDING).id


def activate(server: FakeServer, target: int) -> None:
    with server.corpora.database.writing() as connection:
        collection = versions.find(connection, "ships")
        (new,) = [v for v in versions.of_collection(connection, collection.id) if v.id == target]
        versions.set_state(connection, new, VersionState.COMPLETE)
        versions.activate(connection, collection, new)


def n_vectors(client: TestClient) -> list[int]:
    return [version["vectors"] for version in client.get(SHIPS).json()["versions"]]


def smaller() -> Space:
    return Space(fake_traits().fingerprint(2, "search_document"), 2, "fake")


def test_writes_are_embedded_into_every_version_that_takes_them(
    server_and_client: tuple[FakeServer, TestClient],
):
    """What is there already is a migration's work; what comes or changes is not."""
    server, client = server_and_client
    put(client)
    add_version(server, smaller())

    again, new = put(client), put(client, {"a": "another", "d": "new"})
    before_delete = n_vectors(client)
    client.delete(f"{SHIPS}/documents/d")

    assert (again, new) == ({"unchanged": 3}, {"added": 1, "updated": 1})
    assert before_delete == [4, 2]
    assert n_vectors(client) == [3, 1]


def test_a_foreign_version_that_is_not_active_keeps_no_document_out(
    server_and_client: tuple[FakeServer, TestClient],
):
    """After a cut-over the old model may be out of reach: the new version goes on."""
    server, client = server_and_client
    add_version(server, Space.foreign("ada", 3))

    assert put(client) == {"added": 3}
    assert n_vectors(client) == [3, 0]


def test_a_document_needs_a_vector_of_the_version_that_becomes_active_meanwhile(
    server_and_client: tuple[FakeServer, TestClient],
):
    """It could do without while that was not active; stored so, no search by meaning found it."""
    server, client = server_and_client
    target = add_version(server, Space.foreign("ada", 3))
    write, moved = server.corpora.database.write, []

    async def late(thread, store, name, *args):
        if not moved:
            activate(server, target)
            moved.append(name)
        return await write(thread, store, name, *args)

    server.corpora.database.write = late
    response = post(client, {"id": "a", "text": "a ship"})

    assert counts(response) == {"failed": 1}
    assert response.json()["errors"][0]["code"] == "vector_missing"
    assert client.get(SHIPS).json()["documents"] == 0


def test_a_version_that_begins_while_a_batch_is_embedded_gets_its_vectors(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Else a migration that has passed the row would never see that it changed."""
    server, client = server_and_client
    embed_dense, begun = server.core.service.embed_dense, []

    async def slow(task, permit):
        if not begun:
            begun.append(add_version(server, smaller()))
        return await embed_dense(task, permit)

    server.core.service.embed_dense = slow

    assert put(client) == {"added": 3}
    assert n_vectors(client) == [3, 3]


def test_a_document_that_another_writer_changes_meanwhile_keeps_no_stale_vector(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Only metadata were to be written, and then the text has to be embedded after all."""
    server, client = server_and_client
    put(client)
    read, changed = server.corpora.database.read, []

    async def disturbed(thread, work, *args):
        found = await read(thread, work, *args)
        if work.__name__ == "plan_of" and not changed:
            with server.corpora.database.writing() as connection:
                collection = versions.find(connection, "ships").id
                rows = documents.put(connection, collection, [Document("a", "quite another")])
                changed.append(vectors.having(connection, 1, rows))
        return found

    server.corpora.database.read = disturbed

    assert put(client, metadata={"year": 1}) == {"updated": 3}
    assert client.get(f"{SHIPS}/documents/a").json()["text"] == TEXTS["a"]
    assert n_vectors(client) == [3]
    assert changed == [set()]


def test_the_pointer_may_move_while_a_query_is_embedded(
    server_and_client: tuple[FakeServer, TestClient],
):
    """The query is embedded again, into the space that is active now."""
    server, client = server_and_client
    put(client)
    target = add_version(server, smaller())
    put(client, {id: f"{text} more" for id, text in TEXTS.items()})
    embed_dense, moved = server.core.service.embed_dense, []

    async def slow(task, permit):
        answer = await embed_dense(task, permit)
        if not moved:
            activate(server, target)
            moved.append(answer.fingerprint)
        return answer

    server.core.service.embed_dense = slow
    answer = search(client, "a deep ship more", mode="dense")

    assert answer["fingerprint"] == smaller().fingerprint
    assert moved != [answer["fingerprint"]]
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-6)


# --- search ---------------------------------------------------------------------------------


def test_dense_is_the_cosine_of_embeddings(client: TestClient):
    put(client)
    answer = search(client, "a deep ship", mode="dense")

    query = vector_of(client, "a deep ship")
    cosines = {id: float(vector_of(client, text) @ query) for id, text in TEXTS.items()}
    assert ids(answer) == sorted(cosines, key=lambda id: -cosines[id])
    for found in answer["results"]:
        assert found["score"] == pytest.approx(cosines[found["id"]], abs=1e-6)
    assert answer["results"][0]["text"] == "a deep ship"
    assert (answer["mode"], answer["degraded"]) == ("dense", None)


def test_hybrid_joins_both_orders(client: TestClient):
    put(client)
    dense, words = (ids(search(client, "ship tea", mode=mode)) for mode in ("dense", "bm25"))
    answer = search(client, "ship tea", mode="hybrid")

    expected = {
        id: sum(1 / (61 + order.index(id)) for order in (dense, words) if id in order)
        for id in TEXTS
    }
    assert {found["id"]: found["score"] for found in answer["results"]} == pytest.approx(expected)
    assert answer["mode"] == "hybrid"


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_filter_and_top_k_hold_in_every_mode(client: TestClient, mode: str):
    for year, (id, text) in enumerate(TEXTS.items(), 1870):
        put(client, {id: text}, metadata={"year": year})

    some = search(client, "ship tea deep", mode=mode, filter={"year": {"$lt": 1872}})
    one = search(client, "ship tea deep", mode=mode, top_k=1)

    assert set(ids(some)) == {"a", "b"}
    assert len(one["results"]) == 1


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
@pytest.mark.parametrize("is_made_again", [True, False])
def test_a_collection_may_go_while_it_is_searched(
    server_and_client: tuple[FakeServer, TestClient], mode: str, is_made_again: bool
):
    """What was ranked is not there any more; one that took the name meanwhile is searched."""
    server, client = server_and_client
    put(client)
    read, dropped = server.corpora.search._documents, []

    async def disturbed(*args):
        if not dropped:
            with server.corpora.database.writing() as connection:
                collection = versions.find(connection, "ships")
                versions.drop(connection, collection)
                if is_made_again:
                    versions.create(connection, "ships", collection.active.space)
                dropped.append(collection)
        return await read(*args)

    server.corpora.search._documents = disturbed
    response = client.post(f"{SHIPS}/search", json={"query": "ship", "mode": mode})

    if is_made_again:
        assert response.json()["results"] == []
    else:
        assert error_of(response) == (404, "collection_not_found")


def test_a_filter_takes_no_more_memory_the_longer_a_collection_lives(
    server_and_client: tuple[FakeServer, TestClient],
):
    """Rows are never given again, so their numbers grow with all that ever was there."""
    server, client = server_and_client
    put(client, {"gone": "a ship"})
    client.delete(f"{SHIPS}/documents/gone")
    with server.corpora.database.writing() as connection:
        connection.execute("UPDATE sqlite_sequence SET seq = 100000000 WHERE name = 'documents_1'")
    put(client, metadata={"year": 1876})

    answer = search(client, "a deep ship", mode="dense", filter={"year": 1876})

    assert set(ids(answer)) == set(TEXTS)


@pytest.mark.parametrize("reason", REASONS)
def test_auto_searches_words_while_the_model_cannot_answer(reason: str):
    """And says so; a search that named its mode is told when to come back."""
    model = FakeModel()
    with serving(model) as (server, client):
        client.put(SHIPS, json={})
        put(client)
        press(server, model, reason)
        auto = client.post(f"{SHIPS}/search", json={"query": "ship"})
        strict = [
            client.post(f"{SHIPS}/search", json={"query": "ship", "mode": mode})
            for mode in ("dense", "hybrid")
        ]

    answer = auto.json()
    assert (answer["mode"], answer["fingerprint"], ids(answer)) == ("bm25", None, ["c", "a"])
    assert answer["degraded"]["reason"] == auto.headers["x-plimsoll-degraded"] == reason
    assert answer["degraded"]["retry_after_s"] >= 0
    assert {error_of(response) for response in strict} == {(503, reason)}


def press(server: FakeServer, model: FakeModel, reason: str) -> None:
    if reason == "memory_pressure":
        take_room(server)
    elif reason == "breaker_open":
        open_breaker(server)
    elif reason == "out_of_memory":
        model.error = EncodeMemoryError("no memory to compute with")
    else:
        server.core.models._load_wait_s = 0
        server.opener.released.clear()
        server.slot._model = None  # as after a long pause


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("ship " * 12, 413, "too_large_for_budget"),
        ("poison ship", 500, "internal_error"),
        ("ship", 503, "model_unavailable"),
    ],
)
def test_auto_searches_words_where_waiting_would_not_help(query: str, status: int, reason: str):
    """A query that never fits the budget, one without a finite vector, a model that has gone."""
    with serving(HeavyModel()) as (server, client):
        client.put(SHIPS, json={})
        put(client)
        if reason == "model_unavailable":
            server.slot._model = None  # as after a long pause
            server.opener.errors = [GGUFFormatError("no model any more", offset=4)]
        auto = client.post(f"{SHIPS}/search", json={"query": query})
        strict = [
            client.post(f"{SHIPS}/search", json={"query": query, "mode": mode})
            for mode in ("dense", "hybrid")
        ]
        page = client.get("/metrics").text
        assert_nothing_is_held(server)

    refusal = strict[0].json()["error"]["message"]
    answer = auto.json()
    assert (answer["mode"], ids(answer)) == ("bm25", ["c", "a"])
    assert answer["degraded"]["reason"] == auto.headers["x-plimsoll-degraded"] == reason
    assert answer["degraded"]["message"] == f"searched by words: {refusal}"
    assert answer["degraded"]["retry_after_s"] is None
    assert {error_of(response) for response in strict} == {(status, reason)}
    assert metric(page, f'plimsoll_degraded_total{{reason="{reason}"}}') == 1
    assert metric(page, 'plimsoll_recoveries_total{level="3",outcome="answered"}') == 0


def test_a_query_without_a_token_is_refused_by_meaning_and_finds_nothing_by_words(
    client: TestClient,
):
    put(client)
    response = client.post(f"{SHIPS}/search", json={"query": " "})

    assert error_of(response) == (400, "empty_text")
    assert response.json()["error"]["param"] == "query"
    assert search(client, " ", mode="bm25")["results"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "query"),
        ({"query": 5}, "query"),
        ({"query": "a", "top_k": 0}, "top_k"),
        ({"query": "a", "top_k": 1001}, "top_k"),
        ({"query": "a", "mode": "best"}, "mode"),
        ({"query": "a", "filter": []}, "filter"),
        ({"query": "a", "filter": {"x": {"$near": 1}}}, "filter"),
        ({"query": "a", "colour": "red"}, "colour"),
    ],
)
def test_a_search_that_cannot_be_meant_is_refused_by_name(
    client: TestClient, body: dict, param: str
):
    response = client.post(f"{SHIPS}/search", json=body)

    assert error_of(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == param


# --- pressure on documents ------------------------------------------------------------------


def test_documents_that_find_no_room_are_refused_before_anything_is_stored():
    with serving() as (server, client):
        client.put(SHIPS, json={})
        fill_queue(server, 20_000, Priority.BULK)
        response = post(client, {"id": "a", "text": "a ship"})

        assert error_of(response) == (429, "queue_full")
        assert client.get(SHIPS).json()["documents"] == 0


def test_a_list_that_is_cut_off_by_pressure_says_what_is_stored():
    """Sent again after that, what was stored is skipped."""
    n = 2 * BATCH_DOCUMENTS + 5
    lines = [{"id": str(k), "text": f"ship {k}"} for k in range(n)]
    model = FakeModel()
    with serving(model) as (server, client):
        client.put(SHIPS, json={})
        write, n_commits = server.corpora.database.write, []

        async def breaking(*args):
            outcomes = await write(*args)
            n_commits.append(1)
            if len(n_commits) == 2:
                model.error = EncodeMemoryError("no memory to compute with")
            return outcomes

        server.corpora.database.write = breaking
        cut_off = post(client, *lines)
        stored = client.get(SHIPS).json()["documents"]
        model.error = None
        again = post(client, *lines)
        assert_nothing_is_held(server)

    assert error_of(cut_off) == (503, "documents_unfinished")
    assert f"{2 * BATCH_DOCUMENTS} documents were added" in cut_off.json()["error"]["message"]
    assert int(cut_off.headers["retry-after"]) >= 1
    assert stored == 2 * BATCH_DOCUMENTS
    assert counts(again) == {"added": 5, "unchanged": 2 * BATCH_DOCUMENTS}


def test_a_file_that_cannot_be_used_is_said(server_and_client: tuple[FakeServer, TestClient]):
    server, client = server_and_client
    put(client)
    server.corpora.database.close()
    server.corpora.database.path.write_bytes(b"no database" * 1000)

    response = client.get(SHIPS)

    assert error_of(response) == (503, "store_unavailable")
    assert "damaged" in response.json()["error"]["message"]

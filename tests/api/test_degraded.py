"""Under pressure: what a request gets instead of its vectors, and how it is told."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic

import mmh3
import pytest
from fastapi.testclient import TestClient

from plimsoll.errors import EncodeMemoryError
from plimsoll.policy import runs
from tests.fakes import DEADLINE_S, FakeModel, metric
from tests.pressure import (
    BUDGET,
    MIB,
    QUEUE_TOKENS,
    REASONS,
    FakeMemory,
    HeavyModel,
    assert_nothing_is_held,
    assert_only_the_pressure_is_left,
    error_of,
    fill_queue,
    open_breaker,
    serving,
    take_room,
    under_pressure,
)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a run that finds no memory."""
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0)


def number_of(stem: str) -> int:
    """A word's number in an index of Qdrant/bm25, as its documentation gives it."""
    return abs(mmh3.hash(stem))


# --- sparse instead of dense ----------------------------------------------------------------


@pytest.mark.parametrize("reason", REASONS)
def test_under_pressure_a_request_gets_words_instead_of_vectors_and_is_told_so(reason: str):
    """In its body and a header, by a name of the space: a client must not mix them up."""
    with under_pressure(reason) as (server, client):
        response = client.post("/embed", json={"input": ["The ship, the ship", "", "a deep sea"]})
        assert_only_the_pressure_is_left(server, reason)

    assert response.status_code == 200
    assert response.headers["x-plimsoll-degraded"] == reason
    answer = response.json()
    assert set(answer) == {"kind", "encoder", "fingerprint", "sparse", "degraded"}
    assert (answer["kind"], answer["encoder"]) == ("sparse", "bm25")
    assert answer["fingerprint"].startswith("bm25-v1:")
    assert answer["degraded"]["reason"] == reason
    assert 1 <= answer["degraded"]["retry_after_s"] <= 60
    ships, nothing, sea = answer["sparse"]
    assert ships["indices"] == [number_of("ship")]
    # BM25's half that is the document's: k 1.2, b 0.75, two words of an average of 256.
    weight = 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 2 / 256))
    assert ships["values"] == pytest.approx([weight])
    assert nothing == {"indices": [], "values": []}
    assert sea["indices"] == sorted([number_of("deep"), number_of("sea")])
    assert len(sea["values"]) == 2


@pytest.mark.parametrize("path", ["/embed", "/rank"])
@pytest.mark.parametrize("reason", REASONS)
def test_a_degraded_reply_is_counted_and_logged(
    reason: str, path: str, caplog: pytest.LogCaptureFixture
):
    """Nothing degrades silently: an operator sees how often, and why."""
    caplog.set_level(logging.INFO, "plimsoll.access")
    body = {"input": "a ship"} if path == "/embed" else {"query": "ship", "documents": ["a ship"]}
    with under_pressure(reason) as (_, client):
        client.post(path, json=body)
        page = client.get("/metrics").text

    assert metric(page, f'plimsoll_degraded_total{{reason="{reason}"}}') == 1
    labels = f'{{kind="sparse",model="fake",route="{path}",status="200"}}'
    assert metric(page, f"plimsoll_requests_total{labels}") == 1
    assert metric(page, 'plimsoll_recoveries_total{level="3",outcome="answered"}') == 1
    (line,) = [text for text in caplog.messages if f"POST {path} 200" in text]
    assert line.endswith(f" degraded={reason}")


@pytest.mark.parametrize(("path", "body"), [
    ("/embed", {"input": "a ship", "fallback": "none"}),
    ("/rank", {"query": "ship", "documents": ["a ship"], "fallback": "none"}),
    ("/v1/embeddings", {"input": "a ship"}),
])  # fmt: skip
@pytest.mark.parametrize("reason", REASONS)
def test_who_can_do_nothing_with_words_is_told_when_to_come_back(
    reason: str, path: str, body: dict
):
    """An OpenAI client reads nothing but dense vectors; a sparse one there would be an accident."""
    with under_pressure(reason) as (server, client):
        response = client.post(path, json=body)
        page = client.get("/metrics").text
        assert_only_the_pressure_is_left(server, reason)

    assert error_of(response) == (503, reason)
    assert int(response.headers["retry-after"]) >= 1
    assert "x-plimsoll-degraded" not in response.headers
    assert "sparse" not in response.text
    assert metric(page, f'plimsoll_errors_total{{code="{reason}"}}') == 1
    assert metric(page, f'plimsoll_degraded_total{{reason="{reason}"}}') == 0
    labels = f'{{kind="none",model="fake",route="{path}",status="503"}}'
    assert metric(page, f"plimsoll_requests_total{labels}") == 1


def test_when_the_pressure_has_gone_the_same_request_gets_its_vectors():
    """Degraded is a state of the server, not of the client."""
    with serving() as (server, client):
        before = client.post("/embed", json={"input": "a ship"}).json()
        ticket = take_room(server)
        meanwhile = client.post("/embed", json={"input": "a ship"}).json()
        server.core.governor.admission.release(ticket)
        after = client.post("/embed", json={"input": "a ship"})

    assert meanwhile["kind"] == "sparse"
    assert "x-plimsoll-degraded" not in after.headers
    assert after.json() == before
    assert before["degraded"] is None


def test_three_requests_without_memory_open_the_breaker():
    """From then on nobody tries: what fails costs everybody time."""
    model = FakeModel()
    model.error = EncodeMemoryError("no memory to compute with")
    with serving(model) as (_, client):
        replies = [client.post("/embed", json={"input": "a ship"}) for _ in range(4)]
        health = client.get("/health").json()

    reasons = [reply.headers["x-plimsoll-degraded"] for reply in replies]
    assert reasons == [*["out_of_memory"] * 3, "breaker_open"]
    assert (health["breaker"]["state"], health["ladder_step"]) == ("open", 4)
    assert len(model.runs) == 3 * runs.ATTEMPTS


def test_the_reason_to_wait_is_the_one_that_the_breaker_gives():
    """Its recovery timeout is known to the second; a guess would bring clients back too soon."""
    with under_pressure("breaker_open") as (server, client):
        degraded = client.post("/embed", json={"input": "a ship"}).json()["degraded"]
        left_s = server.core.governor.breaker.snapshot().retry_after_s

    assert left_s <= degraded["retry_after_s"] <= 15


@pytest.mark.parametrize("path", ["/embed", "/rank", "/v1/embeddings"])
def test_while_the_breaker_is_open_no_model_opens(path: str):
    """It would take the very memory that is short, and keep the client waiting for a download."""
    body = {"query": "a", "documents": ["a"]} if path == "/rank" else {"input": "a"}
    with serving() as (server, client):
        open_breaker(server)
        response = client.post(path, json=body)
        unknown = client.post(path, json={**body, "model": "other"})

    assert response.status_code == (503 if path == "/v1/embeddings" else 200)
    assert error_of(unknown) == (404, "model_not_found")
    assert server.slot.state.value == "closed"


# --- sparse that was asked for --------------------------------------------------------------


@pytest.mark.parametrize("reason", [None, *REASONS])
def test_words_are_there_for_the_asking_at_any_time(reason: str | None):
    """For a hybrid index; and who asks for little is not refused where others get it."""
    with under_pressure(reason or "none") as (_, client):
        response = client.post("/embed", json={"input": "deep ship", "encoder": "bm25"})
        page = client.get("/metrics").text

    answer = response.json()
    assert (response.status_code, answer["kind"], answer["encoder"]) == (200, "sparse", "bm25")
    assert answer["degraded"] is None
    assert "x-plimsoll-degraded" not in response.headers
    assert sum(metric(page, f'plimsoll_degraded_total{{reason="{r}"}}') for r in REASONS) == 0


def test_words_do_not_open_the_model():
    """Who wants no vectors shall not wait for a download."""
    with serving(loads=False) as (server, client):
        response = client.post("/embed", json={"input": "ship", "encoder": "bm25"})

    assert response.status_code == 200
    assert server.slot.state.value == "closed"


@pytest.mark.parametrize("encoder", ["dense", "bm25"])
def test_a_querys_words_all_weigh_one(encoder: str):
    """The index puts in its own inverse document frequency, and the document its counts."""
    with under_pressure("breaker_open") as (_, client):
        body = {"input": "ship ship deep", "input_type": "search_query", "encoder": encoder}
        answer = client.post("/embed", json=body).json()

    (vector,) = answer["sparse"]
    assert vector["indices"] == sorted([number_of("deep"), number_of("ship")])
    assert vector["values"] == [1.0, 1.0]


def test_the_space_of_words_is_one_whether_asked_for_or_not():
    """Documents stored in good times must be found by queries in bad ones."""
    with serving() as (server, client):
        asked = client.post("/embed", json={"input": "a ship", "encoder": "bm25"}).json()
        dense = client.post("/embed", json={"input": "a ship"}).json()
        open_breaker(server)
        degraded = client.post("/embed", json={"input": "a ship"}).json()

    assert asked["fingerprint"] == degraded["fingerprint"] != dense["fingerprint"]
    assert asked["sparse"] == degraded["sparse"]


@pytest.mark.parametrize(
    "body", [{"encoder": "splade"}, {"encoder": ""}, {"fallback": "dense"}, {"fallback": True}]
)
def test_an_encoder_or_a_fallback_that_is_not_there_is_refused_by_name(body: dict):
    """A guess would give a client the wrong kind of vector."""
    with serving() as (_, client):
        response = client.post("/embed", json={"input": "a ship", **body})

    assert error_of(response) == (400, "invalid_request")
    assert response.json()["error"]["param"] == next(iter(body))


# --- neither --------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [
    ("/embed", {"input": "a"}),
    ("/embed", {"input": "a", "fallback": "none"}),
    ("/embed", {"input": "a", "encoder": "bm25"}),
    ("/rank", {"query": "a", "documents": ["a"]}),
])  # fmt: skip
def test_where_not_even_words_have_room_the_client_is_told_when_to_come_back(path: str, body: dict):
    """The fallback may pass the line that admission defends, not the budget."""
    with serving() as (server, client):
        take_room(server, round(0.76 * BUDGET))
        response = client.post(path, json=body)

    assert error_of(response) == (503, "memory_pressure")
    assert int(response.headers["retry-after"]) >= 1


def test_a_fallback_that_could_never_fit_does_not_speak_for_the_vectors():
    """They would fit once memory is there: "send fewer texts" would be wrong advice."""
    body = {"input": "deep ship " * 20_000}
    with serving(memory=FakeMemory(8 * MIB, MIB)) as (server, client):
        before = client.post("/embed", json=body)
        asked = client.post("/embed", json={**body, "encoder": "bm25"})
        open_breaker(server)
        response = client.post("/embed", json=body)

    assert (before.status_code, before.json()["kind"]) == (200, "dense")
    assert error_of(asked) == (413, "too_large_for_budget")
    assert error_of(response) == (503, "breaker_open")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_what_could_never_fit_is_refused_with_the_largest_size_that_would(path: str):
    """Waiting does not help, so there is no time to come back, and no fallback either."""
    model = HeavyModel()
    with serving(model) as (server, client):
        refused = client.post(path, json={"input": "a " * 12})
        largest = client.post(path, json={"input": "a " * 9})
        assert_nothing_is_held(server)

    assert error_of(refused) == (413, "too_large_for_budget")
    assert "retry-after" not in refused.headers
    message = refused.json()["error"]["message"]
    assert "takes 70 MiB" in message
    assert "more than 60 MiB" in message
    assert largest.status_code == 200
    assert [len(wave) for wave in model.runs] == [1]


def test_a_list_whose_vectors_could_never_fit_is_refused_too():
    """They are reserved as the texts are tokenized; nothing has run by then."""
    model = FakeModel()
    model.traits = replace(model.traits, dimensions=1 << 20)
    with serving(model) as (server, client):
        refused = client.post("/embed", json={"input": ["a"] * 300})
        assert_nothing_is_held(server)

    assert error_of(refused) == (413, "too_large_for_budget")
    assert "retry-after" not in refused.headers
    assert "more than 60 MiB" in refused.json()["error"]["message"]
    assert model.runs == []


def test_a_text_that_is_refused_takes_no_room():
    """Its neighbours get their vectors: it is too long to run, not the request too large."""
    with serving(HeavyModel()) as (_, client):
        response = client.post("/embed", json={"input": ["a " * 20, "a", ""], "truncate": False})
        answer = response.json()

    assert response.status_code == 200, response.text
    assert [error["code"] for error in answer["errors"]] == ["too_long", "empty_text"]
    assert answer["embeddings"][1] is not None


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_full_queue_is_told_when_it_will_have_drained(path: str):
    """At once, whatever the fallback: a queue that only grows helps nobody."""
    with serving() as (server, client):
        fill_queue(server, 2 * QUEUE_TOKENS + 800)
        response = client.post(path, json={"input": "a ship"})

    assert error_of(response) == (429, "queue_full")
    # 800 tokens too many at 200 a second, and up to a tenth more; the message says the same.
    told = response.headers["retry-after"]
    assert 4 <= int(told) <= 5
    assert response.json()["error"]["message"].endswith(f"; retry in {told} s")


def test_a_request_that_finds_no_room_waits_for_it():
    """Most shortages pass within the second; the client need not know of them."""
    with serving(queue_timeout_s=DEADLINE_S) as (server, client):
        ticket = take_room(server)
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(client.post, "/embed", json={"input": "a ship"})
            wait_for_step(client, 3)
            client.portal.call(server.core.governor.leave, ticket)
            client.portal.call(server.core.gate.wake)
            response = reply.result(DEADLINE_S)
        assert client.get("/health").json()["ladder_step"] == 0
        assert_nothing_is_held(server)

    assert (response.status_code, response.json()["kind"]) == (200, "dense")


def wait_for_step(client: TestClient, step: int) -> None:
    """As an operator sees it: requests wait on step 3."""
    deadline_s = monotonic() + DEADLINE_S
    while client.get("/health").json()["ladder_step"] != step:
        assert monotonic() < deadline_s, f"the server never came to step {step}"

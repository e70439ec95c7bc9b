"""POST /embed?explain=true: what would become of a request, and the numbers that decide it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.fakes import DEADLINE_S, FakeClock, FakeModel
from tests.pressure import (
    MIB,
    QUEUE_TOKENS,
    ROOM,
    HeavyModel,
    assert_nothing_is_held,
    error_of,
    fill_queue,
    open_breaker,
    serving,
    take_room,
)

FIELDS = {
    "kind",
    "outcome",
    "step",
    "n_texts",
    "n_tokens",
    "longest_tokens",
    "predicted_bytes",
    "predicted_s",
    "headroom_bytes",
    "largest_bytes",
    "queue_tokens",
    "tokens_per_s",
    "retry_after_s",
}


def explain(client: TestClient, **body: object) -> dict:
    response = client.post("/embed?explain=true", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def embed(client: TestClient, **body: object) -> httpx.Response:
    return client.post("/embed", json=body)


# --- nothing happens ------------------------------------------------------------------------


def test_an_explanation_runs_nothing_and_reserves_nothing():
    """Asking must cost so little that a client can ask before every request."""
    model = FakeModel()
    with serving(model) as (server, client):
        answer = explain(client, input=["a ship", "", "the deep sea"])
        assert_nothing_is_held(server)
        page = client.get("/metrics").text

    assert set(answer) == FIELDS
    assert (answer["kind"], answer["outcome"], answer["step"]) == ("explanation", "admit", 0)
    assert model.runs == []
    assert "plimsoll_texts_total 0.0" in page
    assert 'kind="dense"' not in page


@pytest.mark.parametrize("query", ["", "?explain=false"])
def test_a_request_that_asks_for_no_explanation_is_answered(query: str):
    """The word alone must not turn vectors off."""
    with serving() as (_, client):
        response = client.post(f"/embed{query}", json={"input": "a ship"})

    assert response.json()["kind"] == "dense"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"input": []}, (400, "invalid_request")),
        ({"input": "a", "dimensions": 5}, (400, "invalid_request")),
        ({"input": "a", "colour": "red"}, (400, "invalid_request")),
        ({"input": "a", "model": "other"}, (404, "model_not_found")),
    ],
)
def test_what_would_be_refused_as_wrong_is_refused_here_too(body: dict, error: tuple[int, str]):
    """An explanation of a request that cannot be meant would help nobody."""
    with serving() as (_, client):
        assert error_of(client.post("/embed?explain=true", json=body)) == error
        assert error_of(client.post("/embed", json=body)) == error


# --- the numbers ----------------------------------------------------------------------------


def test_tokens_are_those_that_would_run(client: TestClient):
    """With the model's own tokenizer: cut to its limit, without the texts that have no token."""
    body = {"input": ["the deep blue sea", "", "ship " * 400, "harbour"]}

    told = explain(client, **body)
    ran = embed(client, **body).json()

    assert told["outcome"] == "admit"
    assert (told["n_texts"], told["longest_tokens"]) == (4, 256)
    assert told["n_tokens"] == ran["usage"]["tokens"]


def test_texts_that_would_be_refused_take_nothing(client: TestClient):
    """Without truncation the long text does not run."""
    body = {"input": ["ship " * 400, "harbour"], "truncate": False}

    told = explain(client, **body)

    assert told["n_tokens"] == embed(client, **body).json()["usage"]["tokens"] < 10


def test_a_request_of_empty_texts_takes_no_run():
    """There is no longest text of none."""
    with serving() as (_, client):
        told = explain(client, input=["", " "])

    assert (told["outcome"], told["n_tokens"], told["longest_tokens"]) == ("admit", 0, 0)


def test_what_is_foretold_is_what_is_reserved():
    """Else an operator who sizes a server by it would be wrong."""
    model = FakeModel()
    model.released.clear()
    body = {"input": ["a ship", "the deep blue sea", ""], "dimensions": 2}
    with serving(model) as (server, client), ThreadPoolExecutor(1) as thread:
        told = explain(client, **body)
        reply = thread.submit(embed, client, **body)
        assert model.encoding.wait(DEADLINE_S)
        admission = server.core.governor.admission
        held_bytes, queue_tokens = admission.held_bytes, admission.backlog.queue_tokens
        model.released.set()
        usage = reply.result(DEADLINE_S).json()["usage"]

    assert told["longest_tokens"] == 6
    assert told["predicted_bytes"] == held_bytes + model.run_bytes([6])
    assert told["n_tokens"] == queue_tokens == usage["tokens"] == 10


def test_headroom_falls_with_what_others_hold_and_the_largest_size_does_not():
    """The one says what goes now, the other what is worth waiting for."""
    with serving() as (server, client):
        before = explain(client, input="a")
        take_room(server, 20 * MIB)
        after = explain(client, input="a")

    assert before["headroom_bytes"] == before["largest_bytes"] == after["largest_bytes"] == ROOM
    assert after["headroom_bytes"] == ROOM - 20 * MIB


def test_time_is_foretold_from_the_queue_and_the_measured_rate():
    """What stands before a request counts as much as the request."""
    with serving() as (server, client):
        server.core.governor.admission.end_run(1 << 40, (1 << 40) / 500)
        fill_queue(server, 1000)
        told = explain(client, input="a ship")

    assert told["queue_tokens"] == 1000
    assert told["tokens_per_s"] == pytest.approx(500)
    assert told["predicted_s"] == pytest.approx(1004 / 500)


# --- the outcomes, and that they come true --------------------------------------------------


def test_admit_comes_true():
    """The same request then gets its vectors."""
    with serving() as (_, client):
        told, reply = explain(client, input="a ship"), embed(client, input="a ship")

    assert (told["outcome"], reply.json()["kind"]) == ("admit", "dense")


@pytest.mark.parametrize("model", [FakeModel, HeavyModel])
def test_wait_comes_true(model: type[FakeModel]):
    """Whether room is short for what a request keeps or for its run; then the fallback."""
    with serving(model()) as (server, client):
        taken = take_room(server, ROOM if model is FakeModel else ROOM - 10 * MIB)
        told = explain(client, input="a ship")
        reply = embed(client, input="a ship")
        server.core.governor.admission.release(taken)

    assert told["outcome"] == "wait"
    assert told["headroom_bytes"] < told["predicted_bytes"] <= told["largest_bytes"]
    assert reply.json()["degraded"]["reason"] == "memory_pressure"
    assert reply.json()["degraded"]["retry_after_s"] == told["retry_after_s"]


def test_queue_full_comes_true():
    """With the seconds that the refusal speaks of."""
    with serving() as (server, client):
        fill_queue(server, 2 * QUEUE_TOKENS + 800)
        told = explain(client, input="a ship")
        reply = embed(client, input="a ship")

    assert told["outcome"] == "queue_full"
    assert told["predicted_s"] == pytest.approx((2 * QUEUE_TOKENS + 804) / 200)
    assert told["retry_after_s"] == pytest.approx(800 / 200)
    assert error_of(reply) == (429, "queue_full")
    assert 4 <= int(reply.headers["retry-after"]) <= 5  # and up to a tenth more


@pytest.mark.parametrize("is_long", [True, False], ids=["a run", "what is held"])
def test_too_large_comes_true(is_long: bool):
    """The refusal names both numbers; and 413 for asking would explain nothing."""
    model = HeavyModel()
    body = {"input": "a " * 12 if is_long else ["a"] * 300}
    if not is_long:
        model.traits = replace(model.traits, dimensions=1 << 20)
    with serving(model) as (server, client):
        told = explain(client, **body)
        reply = embed(client, **body)
        assert_nothing_is_held(server)

    assert told["outcome"] == "too_large"
    assert told["predicted_bytes"] > told["largest_bytes"] == ROOM
    assert told["n_tokens"] == (14 if is_long else 900)
    assert error_of(reply) == (413, "too_large_for_budget")
    message = reply.json()["error"]["message"]
    assert f"more than {told['largest_bytes'] / MIB:.0f} MiB" in message
    if is_long:
        assert f"takes {told['predicted_bytes'] / MIB:.0f} MiB" in message
    assert model.runs == []


def test_breaker_open_comes_true():
    """With the breaker's own time to come back, and on the ladder's last step."""
    clock = FakeClock()
    with serving(clock=clock) as (server, client):
        open_breaker(server)
        clock.now_s += 5
        told = explain(client, input="a ship")
        reply = embed(client, input="a ship")
        assert not server.core.models.find(None).is_open  # into memory that is short

    assert (told["outcome"], told["step"], told["retry_after_s"]) == ("breaker_open", 4, 10)
    assert reply.json()["degraded"] == {"reason": "breaker_open", "retry_after_s": 10}


def test_a_request_that_would_be_the_breakers_probe_is_told_that_it_would_run():
    """To say "open" would keep away the very request that closes it."""
    clock, model = FakeClock(), FakeModel()
    model.released.clear()
    with serving(model, clock=clock) as (server, client), ThreadPoolExecutor(1) as thread:
        open_breaker(server)
        clock.now_s += 15
        told = explain(client, input="a ship")
        state = server.core.governor.breaker.state.value
        probe = thread.submit(embed, client, input="a ship")
        assert model.encoding.wait(DEADLINE_S)
        told_meanwhile = explain(client, input="a ship")
        model.released.set()
        reply = probe.result(DEADLINE_S)

    assert (told["outcome"], told["step"], state) == ("admit", 4, "open")
    assert told_meanwhile["outcome"] == "breaker_open"
    assert reply.json()["kind"] == "dense"


def test_model_loading_comes_true():
    """Tokens are not known before there is a tokenizer."""
    with serving(loads=False) as (_, client):
        told = explain(client, input="a ship")
        reply = embed(client, input="a ship")

    assert (told["outcome"], told["n_texts"], told["n_tokens"]) == ("model_loading", 1, 0)
    assert reply.json()["degraded"] == {
        "reason": "model_loading",
        "retry_after_s": told["retry_after_s"],
    }


def test_words_that_are_asked_for_are_explained_as_such():
    """No tokens, no model, and no breaker in the way."""
    with serving(loads=False) as (server, client):
        open_breaker(server)
        told = explain(client, input=["a ship"], encoder="bm25")
        reply = embed(client, input=["a ship"], encoder="bm25")

    assert (told["outcome"], told["n_tokens"]) == ("admit", 0)
    assert told["predicted_bytes"] > 0
    assert (reply.json()["kind"], reply.json()["degraded"]) == ("sparse", None)

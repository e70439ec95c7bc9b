"""What a request reserves is given back, however it ends."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from plimsoll.api.dialects import native
from plimsoll.errors import EncodeMemoryError
from plimsoll.policy import runs
from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import Demand
from plimsoll.policy.decision import Decision
from tests.fakes import DEADLINE_S, FakeModel, FakeOpener, FakeServer
from tests.pressure import (
    REASONS,
    FakeMemory,
    assert_nothing_is_held,
    assert_only_the_pressure_is_left,
    call,
    error_of,
    serving,
    take_room,
    under_pressure,
)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the tries of a run that finds no memory."""
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0)


BODIES = [
    ("/embed", {"input": ["a ship", "a sea"]}),
    ("/embed", {"input": ["a ship", "a sea"], "encoder": "bm25"}),
    ("/v1/embeddings", {"input": ["a ship", "a sea"]}),
    ("/rank", {"query": "ship", "documents": ["a ship", "a sea"]}),
]


@pytest.fixture
def held() -> FakeServer:
    """A server over a model that holds its first wave; `run` ends it."""
    opener = FakeOpener()
    opener.next_model.released.clear()
    return FakeServer(opener, monitor=FakeMemory(), queue_timeout_s=DEADLINE_S)


def run(server: FakeServer, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, or fail where something never comes; the server ends before its loop."""

    async def whole() -> None:
        try:
            await asyncio.wait_for(scenario(), DEADLINE_S)
        finally:
            server.model.released.set()
            await asyncio.to_thread(server.close)

    asyncio.run(whole())


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_what_a_reply_holds_counts_until_it_has_been_sent(held: FakeServer, path: str, body: dict):
    """A slow client holds it for long; given back earlier, it would be spent twice."""
    held.model.released.set()
    held_bytes: list[int] = []

    def note(message: dict) -> None:
        held_bytes.append(held.core.governor.admission.held_bytes)

    run(held, lambda: call(held.app, path, body, on_send=note))

    assert min(held_bytes) > 2 * 1024  # of two texts
    assert_nothing_is_held(held)


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("reason", [None, *REASONS])
def test_nothing_is_held_after_a_reply(reason: str | None, path: str, body: dict):
    """A leak is missing for ever; in the end nothing is let in any more."""
    with under_pressure(reason or "none") as (server, client):
        client.post(path, json=body)
        assert_only_the_pressure_is_left(server, reason)


@pytest.mark.parametrize("encoder", ["dense", "bm25"])
def test_nothing_is_held_after_a_reply_that_could_not_be_rendered(
    encoder: str, monkeypatch: pytest.MonkeyPatch
):
    """A bug there shall cost one reply."""

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(native, "_render", broken)
    monkeypatch.setattr(native, "_render_sparse", broken)
    with serving() as (server, client):
        response = client.post("/embed", json={"input": "a ship", "encoder": encoder})
        assert_nothing_is_held(server)

    assert error_of(response) == (500, "internal_error")


def test_nothing_is_held_after_a_run_that_failed():
    """Not for want of memory: the breaker has nothing to do with it."""
    model = FakeModel()
    model.error = ZeroDivisionError()
    with serving(model) as (server, client):
        replies = [client.post("/embed", json={"input": "a ship"}) for _ in range(5)]
        assert_nothing_is_held(server)
        state = client.get("/health").json()["breaker"]["state"]

    assert {error_of(reply) for reply in replies} == {(500, "internal_error")}
    assert state == "closed"


@pytest.mark.parametrize("path", ["/embed", "/rank"])
def test_what_the_vectors_had_is_given_back_before_words_are_counted(
    path: str, monkeypatch: pytest.MonkeyPatch
):
    """Else the fallback would be refused for want of what the failed attempt no longer uses."""
    model = FakeModel()
    model.error = EncodeMemoryError("no memory to compute with")
    body = {"input": ["a"] * 300, "query": "a", "documents": ["a"] * 300}
    wanted = ["input"] if path == "/embed" else ["query", "documents"]
    with serving(model) as (server, client):
        governor, held_bytes = server.core.governor, []
        renew = governor.renew

        def note(permit: Permit, demand: Demand, **options: bool) -> Decision:
            if demand.is_fallback:
                admission = governor.admission
                held_bytes.append((admission.held_bytes, admission.backlog.queue_tokens))
            return renew(permit, demand, **options)

        monkeypatch.setattr(governor, "renew", note)
        response = client.post(path, json={name: body[name] for name in wanted})

    assert response.headers["x-plimsoll-degraded"] == "out_of_memory"
    assert held_bytes == [(0, 0)]


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, body in BODIES if "encoder" not in body]
)
@pytest.mark.parametrize("end", ["hang up", "cancel"])
def test_nothing_is_held_for_a_request_that_ended_while_it_ran(
    held: FakeServer, path: str, body: dict, end: str
):
    """A client that has gone, or a server that is being stopped."""
    model, admission = held.model, held.core.governor.admission

    async def scenario() -> None:
        if end == "hang up":
            await call(held.app, path, body, hang_up=lambda: model.encoding.wait(DEADLINE_S))
        else:
            request = asyncio.create_task(call(held.app, path, body))
            await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
            assert admission.held_bytes
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
        # The run under way goes on, and counts as such; the request does not.
        assert (admission.held_bytes, admission.backlog.queue_tokens) == (0, 0)

    run(held, scenario)
    assert_nothing_is_held(held)


def test_a_client_that_hung_up_is_not_waited_for(held: FakeServer):
    """It would be let in later, and keep others out."""
    governor = held.core.governor
    permit = take_room(held)
    waits = threading.Event()

    async def scenario() -> None:
        asking = asyncio.create_task(
            call(held.app, "/embed", {"input": "a"}, hang_up=lambda: waits.wait(DEADLINE_S))
        )
        while not governor.waiting:
            await asyncio.sleep(0)
        waits.set()
        await asking
        assert not governor.waiting
        governor.leave(permit)

    run(held, scenario)
    assert_nothing_is_held(held)

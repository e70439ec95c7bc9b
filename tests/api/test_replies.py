"""Large replies are rendered in the thread, small ones in line, and nothing leaks on the way."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from plimsoll.api import replies
from plimsoll.api.dialects import native
from tests.api.edge.bodies import Client, HeldThread
from tests.fakes import DEADLINE_S, HIDDEN, FakeOpener, FakeServer, metric
from tests.pressure import FakeMemory, assert_nothing_is_held, call

TEXTS = ["a ship", "a sea", "a ship at sea"]
BODIES = [
    ("/embed", {"input": TEXTS}),
    ("/embed", {"input": TEXTS, "encoding_format": "base64"}),
    ("/embed", {"input": TEXTS, "encoder": "bm25"}),
    ("/v1/embeddings", {"input": TEXTS}),
    ("/rank", {"query": "ship", "documents": TEXTS}),
]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener(), monitor=FakeMemory())
    yield server
    server.close()


@pytest.fixture
def thread(server: FakeServer) -> Iterator[HeldThread]:
    """The server's thread for JSON, which holds its work until it is released."""
    thread = HeldThread()
    server.app.state.parsing = thread
    yield thread
    thread.released.set()
    thread.shutdown()


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "THREAD_FROM_NUMBERS", 0)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_reply_is_the_same_wherever_it_was_rendered(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, path: str, body: dict
):
    """Status, headers and every byte, in each dialect."""
    client = TestClient(server.app)
    in_line = client.post(path, json=body, headers={"X-Request-Id": "a"})
    monkeypatch.setattr(replies, "THREAD_FROM_NUMBERS", 0)
    in_thread = client.post(path, json=body, headers={"X-Request-Id": "a"})

    assert in_thread.status_code == 200
    assert in_thread.content == in_line.content
    assert in_thread.headers == in_line.headers


def test_large_replies_are_rendered_in_the_thread_and_small_ones_are_not(
    server: FakeServer, thread: HeldThread, monkeypatch: pytest.MonkeyPatch
):
    """The event loop has to answer probes in between; a small reply is done before a hop is."""
    a_text = HIDDEN + replies.NUMBERS_AN_ITEM
    monkeypatch.setattr(replies, "THREAD_FROM_NUMBERS", 3 * a_text)
    thread.released.set()
    client = TestClient(server.app)

    client.post("/embed", json={"input": TEXTS[:2]})
    n_small = thread.n_jobs
    client.post("/embed", json={"input": TEXTS})

    assert (n_small, thread.n_jobs) == (0, 1)


@pytest.mark.usefixtures("all_are_large")
def test_the_loop_serves_others_while_a_reply_is_rendered(server: FakeServer, thread: HeldThread):
    """A probe that waits for a large reply takes the server for dead."""

    async def scenario() -> None:
        request = asyncio.create_task(call(server.app, "/embed", {"input": TEXTS}))
        await asyncio.to_thread(thread.started.wait, DEADLINE_S)
        answers: list[dict] = []
        await call(server.app, "/v1/models", {}, on_send=answers.append, method="GET")
        assert answers[0]["status"] == 200
        assert not request.done()
        thread.released.set()
        await request

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("end", ["hang up", "cancel"])
@pytest.mark.parametrize(("path", "body"), BODIES)
def test_memory_is_held_as_long_as_the_thread_renders_for_a_client_that_has_gone(
    server: FakeServer, thread: HeldThread, path: str, body: dict, end: str
):
    """The thread cannot be stopped: given back earlier, the memory would be spent twice."""
    admission = server.core.governor.admission

    async def scenario() -> None:
        rendering = asyncio.Event()

        async def hang_up_while_it_is_rendered() -> None:
            await asyncio.to_thread(thread.started.wait, DEADLINE_S)
            rendering.set()
            if end == "cancel":
                await asyncio.Event().wait()

        client = Client(json.dumps(body).encode(), then=hang_up_while_it_is_rendered, path=path)
        request = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await rendering.wait()
        if end == "cancel":
            request.cancel()
        for _ in range(20):  # turns of the loop, in which a request that does not wait would end
            await asyncio.sleep(0)
        was_done, held_bytes = request.done(), admission.held_bytes
        thread.released.set()
        await asyncio.wait([request])
        assert not was_done
        assert held_bytes
        assert client.sent == []

    asyncio.run(asyncio.wait_for(scenario(), DEADLINE_S))
    assert_nothing_is_held(server)


@pytest.mark.usefixtures("all_are_large")
def test_nothing_is_held_after_a_reply_that_could_not_be_rendered_in_the_thread(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
):
    """A bug there costs one reply, as in line."""

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(native, "_render", broken)
    client = TestClient(server.app, raise_server_exceptions=False)

    response = client.post("/embed", json={"input": TEXTS})

    assert response.status_code == 500
    assert_nothing_is_held(server)


@pytest.mark.parametrize("threshold", [0, 1 << 30], ids=["thread", "in line"])
def test_rendering_is_timed_wherever_it_is_done(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, threshold: int
):
    """The stage is how an operator sees that replies, not vectors, take the time."""
    monkeypatch.setattr(replies, "THREAD_FROM_NUMBERS", threshold)
    client = TestClient(server.app)

    client.post("/embed", json={"input": TEXTS})

    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_stage_duration_seconds_count{stage="render"}') == 1

"""How failures leave: in the shape of a dialect, with a connection that still answers."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import BaseModel, StrictStr

from plimsoll import errors
from plimsoll.api.edge.errors import Refusal
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.refusals import Refusals
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.serving.tasks import EmbedTask
from plimsoll.telemetry.metrics import Telemetry
from tests.api.edge.bodies import JSON, LIMIT_BYTES, Client, error_of
from tests.fakes import FakeOpener, FakeServer, metric
from tests.pressure import post_scope


def test_an_overload_leaves_with_its_time_to_come_back(fake: tuple[FakeServer, TestClient]):
    """Through the whole application, in the header that clients know."""
    server, client = fake
    client.post("/embed", json={"input": "a"})
    server.model.error = errors.QueueFullError("too much", retry_after_s=40)

    response = client.post("/embed", json={"input": "a"})

    assert response.status_code == 429
    told = response.headers["retry-after"]
    assert 40 <= int(told) <= 44
    assert error_of(response)["message"] == f"too much; retry in {told} s"


def test_an_unforeseen_error_leaves_in_the_one_shape_and_in_the_log(
    fake: tuple[FakeServer, TestClient], caplog: pytest.LogCaptureFixture
):
    """A bug must be found in the log, and its message must not reach a client."""
    server, client = fake
    client.post("/embed", json={"input": "a"})
    server.model.error = ZeroDivisionError("secret detail")

    response = client.post("/embed", json={"input": "a"})

    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    assert "ZeroDivisionError: secret detail" in caplog.text
    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_errors_total{code="internal_error"}') == 1
    server.model.error = None
    assert client.post("/embed", json={"input": "a"}).status_code == 200


LONG = "\x01" * 100_000


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/embed", {"input": "a", "model": LONG}, "see GET /v1/models"),
        ("/v1/embeddings", {"input": "a", "model": LONG}, "see GET /v1/models"),
        ("/api/embed", {"input": "a", "model": LONG}, "see GET /v1/models"),
        ("/v2/embed", {"texts": ["a"], "model": LONG}, "see GET /v1/models"),
        ("/tei/embed", {"inputs": "a", "prompt_name": LONG}, "clustering"),
        ("/embed", {"input": "a", LONG: 1}, "Extra inputs are not permitted"),
        (
            "/collections/ships/search",
            {"query": "a", "mode": "bm25", "filter": {"a" * 100_000: {"$no": 1}}},
            "there are $eq, $ne, $gt, $gte, $lt, $lte, $in",
        ),
    ],
)
def test_a_refusal_is_not_as_large_as_what_it_quotes(
    fake: tuple[FakeServer, TestClient], path: str, body: dict, end: str
):
    """Its memory is not reserved, and it is made on the event loop; what to do still stands in it.

    Control characters take four times their room in quotes, and more as JSON.
    """
    _, client = fake
    client.put("/collections/ships", json={})
    answer = client.post(path, json=body)

    assert answer.status_code in (400, 404, 413)
    assert len(answer.content) < 20_000
    assert end in answer.text


# --- a dialect's own shape -------------------------------------------------------------------


class ShoutRequest(BaseModel):
    """What the made-up dialect takes."""

    input: StrictStr


def shouted(refusal: Refusal) -> object:
    """The made-up dialect's errors."""
    return {"OH_NO": refusal.message.upper(), "kind": refusal.code, "status": refusal.status}


def shout_router(server: FakeServer) -> APIRouter:
    """A dialect that knows nothing of errors but their shape."""
    routes = APIRouter(prefix="/shout", route_class=StrictJSONRoute)

    @routes.post("/embed")
    async def embed(body: ShoutRequest) -> dict[str, int]:
        permit = server.core.gate.permit()
        result = await server.core.service.embed_dense(EmbedTask([body.input]), permit)
        return {"n": len(result.vectors)}

    return routes


@pytest.fixture
def shouting() -> Iterator[tuple[FakeServer, TestClient]]:
    """A server that speaks one dialect more."""
    server = FakeServer(FakeOpener())
    server.app.include_router(shout_router(server))
    server.refusals.register("/shout", shouted)
    with TestClient(server.app, raise_server_exceptions=False) as client:
        try:
            yield server, client
        finally:
            server.close()


def ask(client: TestClient, method: str, path: str, content: bytes) -> httpx.Response:
    return client.request(method, path, content=content, headers=JSON)


FINE = b'{"input": "a"}'


@pytest.mark.parametrize(
    ("status", "code", "method", "route", "content", "error"),
    [
        (404, "http_404", "POST", "/nowhere", FINE, None),
        (405, "http_405", "GET", "/embed", b"", None),
        (400, "invalid_request", "POST", "/embed", b"{}", None),
        (400, "invalid_request", "POST", "/embed", b"{", None),
        (413, "body_too_large", "POST", "/embed", b" " * (LIMIT_BYTES + 1), None),
        (429, "queue_full", "POST", "/embed", FINE, errors.QueueFullError("x", retry_after_s=20)),
        (500, "internal_error", "POST", "/embed", FINE, ZeroDivisionError("secret")),
    ],
)
def test_each_failure_at_a_dialects_routes_leaves_in_its_shape(
    shouting: tuple[FakeServer, TestClient],
    status: int,
    code: str,
    method: str,
    route: str,
    content: bytes,
    error: Exception | None,
):
    """Its clients read no other: one that finds no message shows none. Our own routes keep ours."""
    server, client = shouting
    server.model.error = error

    theirs = ask(client, method, f"/shout{route}", content)
    ours = ask(client, method, route, content)

    assert theirs.status_code == ours.status_code == status
    assert error_of(ours)["code"] == code
    message = error_of(ours)["message"].replace(route, f"/shout{route}", 1)
    if told := ours.headers.get("retry-after"):  # each is told a time of its own
        message = message.replace(told, theirs.headers["retry-after"])
    assert theirs.json() == {"OH_NO": message.upper(), "kind": code, "status": status}
    for name in ("content-type", "allow", "connection"):
        assert theirs.headers.get(name) == ours.headers.get(name)
    assert ("retry-after" in theirs.headers) == ("retry-after" in ours.headers) == (status == 429)
    page = client.get("/metrics").text
    assert metric(page, f'plimsoll_errors_total{{code="{code}"}}') == 2


def test_a_body_that_comes_too_slowly_is_refused_in_its_dialect():
    """The route has not been asked by then; the path alone says whose client waits."""
    server = FakeServer(FakeOpener(), body_timeout_s=0)
    server.app.include_router(shout_router(server))
    server.refusals.register("/shout", shouted)

    class Stalling(Client):
        async def receive(self) -> dict:
            if not self.sent:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

    client = Stalling(FINE, path="/shout/embed")
    try:
        client.call(server)
    finally:
        server.close()

    assert client.status == 408
    assert json.loads(client.sent[1]["body"])["kind"] == "slow_body"


def test_a_prefix_ends_where_a_path_does_and_the_longest_counts():
    """/shouting is no route of /shout."""
    refusals = Refusals(Telemetry("test").requests, RecentRequests())
    refusals.register("/a", lambda refusal: "a")
    refusals.register("/a/b", lambda refusal: "ab")

    def shape(path: str) -> object:
        answer = refusals.answer(errors.EmptyTextError("x"), post_scope(path))
        found = json.loads(answer.body)
        return found if isinstance(found, str) else "default"

    assert [shape(path) for path in ("/a", "/a/", "/a/c", "/ab", "/a/b", "/a/b/c", "/")] == [
        "a", "a", "a", "default", "ab", "ab", "default",
    ]  # fmt: skip


def test_a_dialect_may_have_statuses_of_its_own():
    """The client's library retries by the status that its own server gives."""
    recent = RecentRequests()
    refusals = Refusals(Telemetry("test").requests, recent)
    refusals.register("/a", shouted, lambda refusal: replace(refusal, status=429))
    error = errors.MemoryPressureError("x", retry_after_s=3)

    theirs = refusals.answer(error, post_scope("/a/embed"))
    ours = refusals.answer(error, post_scope("/embed"))

    assert (theirs.status_code, ours.status_code) == (429, 503)
    assert json.loads(theirs.body)["status"] == 429
    assert "retry-after" in theirs.headers


@pytest.mark.parametrize("prefix", ["/a", "", "/", "/b/", "b"])
def test_a_prefix_that_is_taken_or_fits_no_path_is_a_mistake(prefix: str):
    """Found when the application is put together, not when the first client cannot read."""
    refusals = Refusals(Telemetry("test").requests, RecentRequests())
    refusals.register("/a", shouted)

    with pytest.raises(ValueError, match="registered"):
        refusals.register(prefix, shouted)

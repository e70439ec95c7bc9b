"""Who is answered: on every route, without a key, with one of each role, from another's page."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.testclient import TestClient

from plimsoll.api.edge.guard import MOST_SENT_KEYS, AccessRules
from plimsoll.api.edge.keys import Keys
from plimsoll.api.edge.origins import AllowedHosts, AllowedOrigins
from plimsoll.errors import ModelNotFoundError
from tests.api.edge.bodies import JSON, KIB, Client, body_of, error_of
from tests.fakes import DEADLINE_S, TEST_HOSTS, FakeOpener, FakeServer, metric

EMBED, ADMIN, WRONG = "embed-key-0123456789", "admin-key-0123456789", "wrong-key-0123456789"
KEYS = f"embed:{EMBED},admin:{ADMIN}"
PAGE = "https://app.example.org"
# Open to everyone: the pages' files hold no data, and without them a browser cannot ask for a key.
OPEN = {
    "/health/live", "/health/ready", "/tei/health", "/tei/ping", "/", "/pages/{name}",
    "/docs", "/docs/{name}", "/docs/docs/{name}",
}  # fmt: skip
OPEN_TO_LOOKS = {"/tei"}  # it is TEI's health to look at, and embeds what is posted there
OPERATORS = {
    "/status", "/bottleneck", "/hooks", "/collections/{name}/doctor", "/links/{name}/doctor",
}  # fmt: skip
# Beside looking, which needs a key of any role.
CHANGED_BY_OPERATORS = {
    "/collections/{name}",
    "/collections/{name}/documents",
    "/collections/{name}/documents/{id:path}",
    "/collections/{name}/plan",
    "/migrations",
    *(
        f"/migrations/{{number}}/{verb}"
        for verb in (
            "pause",
            "resume",
            "cancel",
            "validate",
            "cutover",
            "rollback",
            "purge",
            "shadow",
            "progressive",
        )
    ),
    "/hooks/{name}/run",
    *(f"/links/{{name}}/{verb}" for verb in ("pull", "push", "unlink")),
}
# Ollama's clients send what they like, and nothing is changed by it.
ANY_TYPE = {"/api/embed", "/api/embeddings"}
BODY = {"input": "a ship"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def serving(keys: str | None = KEYS, origins: str = "", **rules: object) -> Iterator[TestClient]:
    """A server with these rules; `server` of the client is the server."""
    access = AccessRules(
        Keys(keys) if keys else None,
        AllowedHosts(TEST_HOSTS.split(",")),
        AllowedOrigins(origins.split(",") if origins else ()),
        **rules,
    )
    server = FakeServer(FakeOpener(), access=access)
    with TestClient(server.app, raise_server_exceptions=False) as client:
        client.server = server
        try:
            yield client
        finally:
            server.close()


@pytest.fixture
def client() -> Iterator[TestClient]:
    with serving() as client:
        yield client


def path_of(route: RouteContext) -> str:
    """A path that the route fits."""
    path = route.path.replace("{name:path}", "fake").replace("{name}", "status.js")
    return path.replace("{id:path}", "7").replace("{number}", "7")


def is_open(route: RouteContext, method: str) -> bool:
    looks = method in ("GET", "HEAD")
    return route.path in OPEN or (looks and route.path in OPEN_TO_LOOKS)


def is_for_operators(route: RouteContext, method: str) -> bool:
    changes = method not in ("GET", "HEAD")
    return route.path in OPERATORS or (changes and route.path in CHANGED_BY_OPERATORS)


def requests(client: TestClient) -> list[tuple[RouteContext, str, str]]:
    """Each route with each of its methods and a path that it fits."""
    found = [
        (route, method, path_of(route))
        for route in iter_route_contexts(client.server.app.routes)
        for method in sorted({*route.methods, *({"HEAD"} if "GET" in route.methods else ())})
    ]
    assert {route.path for route, _, _ in found} > OPEN | OPERATORS | {"/embed"}
    return found


# --- keys -----------------------------------------------------------------------------------


def test_without_a_key_every_route_but_the_open_ones_answers_401(client: TestClient):
    """The whole table: a route that is added later is closed unless it says otherwise."""
    for route, method, path in requests(client):
        answer = client.request(method, path)

        assert (answer.status_code == 401) != is_open(route, method), (method, path)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or "asks for a key" in answer.text


@pytest.mark.parametrize(("method", "path"), [("GET", "/no/route"), ("DELETE", "/embed")])
def test_without_a_key_what_is_no_route_answers_401_too(client: TestClient, method: str, path: str):
    """Strangers do not learn which routes there are."""
    assert client.request(method, path).status_code == 401
    assert client.request(method, path, headers=bearer(EMBED)).status_code in (404, 405)


def test_with_a_key_every_route_answers_but_an_operators_to_the_role_embed(client: TestClient):
    """What happened to the requests of others is for those who run the server."""
    for route, method, path in requests(client):
        by_embed = client.request(method, path, headers=bearer(EMBED))
        by_admin = client.request(method, path, headers=bearer(ADMIN))

        assert (by_embed.status_code == 403) == is_for_operators(route, method), (method, path)
        assert by_admin.status_code not in (401, 403), (method, path)
        if by_embed.status_code == 403 and method != "HEAD":
            assert error_of(by_embed)["code"] == "admin_key_required"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {EMBED}"},
        {"authorization": f"bearer {EMBED}"},
        {"AUTHORIZATION": f"BEARER  {EMBED} "},
        {"X-API-Key": EMBED},
        {"api-key": EMBED},  # as Azure's clients
        {"X-API-Key": EMBED, "Authorization": "Bearer none"},  # as OpenAI's library must send one
        {"X-API-Key": EMBED, "Authorization": "Basic dXNlcjpwYXNz"},
    ],
)
def test_a_key_comes_in_either_header(client: TestClient, headers: dict[str, str]):
    """Libraries and proxies differ in which of them they can set."""
    assert client.post("/embed", json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": f"Basic {EMBED}"}, "missing_api_key"),
        ({"Authorization": "Bearer "}, "missing_api_key"),
        ({"Authorization": EMBED}, "missing_api_key"),
        ({"X-API-Key": ""}, "missing_api_key"),
        ({"Authorization": f"Bearer {WRONG}"}, "invalid_api_key"),
        ({"Authorization": f"Bearer embed:{EMBED}"}, "invalid_api_key"),
        ({"Authorization": "Bearer schl\xfcssel".encode("latin-1")}, "invalid_api_key"),
        ({"X-API-Key": WRONG}, "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_key_that_is_missing_or_wrong_is_told_apart(
    client: TestClient, headers: dict, code: str, path: str
):
    """One is a client that was never set up, the other a key that has been taken back."""
    answer = client.post(path, json=BODY, headers=headers)

    assert (answer.status_code, error_of(answer)["code"]) == (401, code)
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(("is_open", "status"), [(True, 200), (False, 401)])
def test_metrics_are_open_where_a_setting_says_so(is_open: bool, status: int):
    """A scrape may come without a key, by a name that is not listed; nothing else may."""
    with serving(metrics_open=is_open) as client:
        assert client.get("/metrics").status_code == status
        scraped = client.get("/metrics", headers={"Host": "plimsoll:8080"}).status_code
        assert scraped == (200 if is_open else 421)
        assert client.get("/metrics", headers=bearer(EMBED)).status_code == 200
        assert client.get("/health").status_code == 401


def test_without_keys_everyone_may_do_everything():
    """On one's own machine nothing has to be set up."""
    with serving(keys=None) as client:
        assert client.post("/embed", json=BODY).status_code == 200
        assert client.get("/status").status_code == 200
        assert client.post("/embed", json=BODY, headers=bearer(WRONG)).status_code == 200


def test_a_key_is_seen_nowhere(client: TestClient, caplog: pytest.LogCaptureFixture):
    """Logs, metrics and pages have more readers than keys have; a wrong one may be nearly right."""
    caplog.set_level(0)
    answers = [
        client.post("/embed", json=BODY, headers={**bearer(key), "X-API-Key": key})
        for key in (WRONG, EMBED, ADMIN)
    ]
    answers += [
        client.get(path, headers=bearer(ADMIN))
        for path in ("/status", "/metrics", "/health", "/bottleneck", "/openapi.json")
    ]
    client.server.model.error = ZeroDivisionError("x")
    answers.append(client.post("/embed", json=BODY, headers=bearer(ADMIN)))

    assert [answer.status_code for answer in answers] == [
        401,
        200,
        200,
        200,
        200,
        200,
        200,
        200,
        500,
    ]
    everything = caplog.text + "".join(f"{answer.headers} {answer.text}" for answer in answers)
    everything += "".join(str(vars(record)) for record in caplog.records)
    assert not any(key in everything for key in (WRONG, EMBED, ADMIN))


def test_a_request_with_many_keys_is_a_guess(client: TestClient):
    """A head has room for a thousand of them, and each is compared with all that there are."""
    headers = [("X-API-Key", WRONG)] * MOST_SENT_KEYS + [("X-API-Key", EMBED)]
    answer = client.post("/embed", json=BODY, headers=headers)

    assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")


def test_a_wrong_key_at_a_quiet_route_is_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
):
    """Whoever tries keys would try them where nothing is written down."""
    caplog.set_level("INFO")
    client.get("/health", headers=bearer(WRONG))

    assert "GET /health 401" in caplog.text


def test_readiness_tells_strangers_no_reason():
    """It may name paths and hosts; without keys everyone may know, with keys a key tells."""
    for keys, told in ((None, "in /home/somewhere"), (KEYS, "GET /health says why")):
        with serving(keys) as client:
            client.server.slot.error = ModelNotFoundError("no file in /home/somewhere")
            answer = client.get("/health/ready").json()
        assert told in answer["reason"]


def test_what_is_refused_is_logged_and_counted_by_its_route(
    client: TestClient, caplog: pytest.LogCaptureFixture
):
    """An alert on refused requests has to know where they were sent."""
    caplog.set_level("INFO")
    client.post("/embed", json=BODY)
    client.get("/nowhere")
    page = client.get("/metrics", headers=bearer(EMBED)).text

    refused = 'plimsoll_requests_total{kind="none",model="none",route="%s",status="401"}'
    assert metric(page, refused % "/embed") == metric(page, refused % "other") == 1
    assert metric(page, 'plimsoll_errors_total{code="missing_api_key"}') == 2
    assert "POST /embed 401" in caplog.text
    assert "code=missing_api_key" in caplog.text


# --- before the body ------------------------------------------------------------------------


class Watched(Client):
    """Notes how much of its body was taken when the answer began."""

    n_received_first: int | None = None

    async def send(self, message: dict) -> None:
        if self.n_received_first is None:
            self.n_received_first = self.n_received
        await super().send(message)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "test"}, 401),
        ({"host": "test", "x-api-key": WRONG}, 401),
        ({"host": "evil.example", "x-api-key": EMBED}, 421),
        ({"host": "test", "x-api-key": EMBED, "origin": "http://evil.example"}, 403),
        ({"host": "test", "x-api-key": EMBED, "content-type": "text/plain"}, 415),
    ],
)
@pytest.mark.parametrize("declares", [True, False])
def test_no_byte_of_a_refused_body_is_read_before_the_answer(
    client: TestClient, headers: dict[str, str], status: int, declares: bool
):
    """A stranger must not make the server hold a body; what still comes is dropped, for a while."""
    chunked = {} if declares else {"transfer-encoding": "chunked"}
    sender = Watched(body_of(256 * KIB), headers={**headers, **chunked}, declares=declares)
    sender.call(client.server)

    assert (sender.status, sender.n_received_first) == (status, 0)
    assert sender.answer_headers[b"connection"] == b"close"
    assert sender.n_received == 256 * KIB


def test_a_refusal_comes_while_the_body_is_still_on_its_way(client: TestClient):
    """A client that sends slowly, or never, is not waited for."""
    sender = Watched(b"x" * KIB, headers={"host": "test"}, chunk_bytes=1)

    async def stalled() -> dict:
        await asyncio.Event().wait()
        raise AssertionError

    async def call() -> None:
        answered = asyncio.Event()

        async def send(message: dict) -> None:
            await sender.send(message)
            answered.set()

        task = asyncio.create_task(client.server.app(sender.scope, stalled, send))
        await asyncio.wait_for(answered.wait(), DEADLINE_S)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(call())
    assert sender.status == 401


def test_a_refused_request_without_a_body_keeps_its_connection(client: TestClient):
    """A browser that has not been given its key yet asks again at once."""
    assert "connection" not in client.get("/health").headers


# --- hosts, origins, content types ----------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "plimsoll"])
def test_every_route_but_the_open_ones_refuses_a_name_that_is_not_listed(host: str):
    """A site that lets its own name point here could read answers, and not only change things."""
    with serving(keys=None) as client:
        for route, method, path in requests(client):
            answer = client.request(method, path, headers={"Host": host})
            assert (answer.status_code == 421) != is_open(route, method), (method, path)
        answer = client.post("/embed", json=BODY, headers={"Host": host})
    error = error_of(answer)
    assert error["code"] == "host_not_allowed"
    assert repr(host) in error["message"]
    assert "PLIMSOLL_ALLOWED_HOSTS" in error["message"]


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "testserver"])
def test_a_name_that_is_ours_is_answered(host: str):
    """With any port: a published one differs from the one that is listened on."""
    with serving(keys=None) as client:
        assert client.post("/embed", json=BODY, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://testserver:81"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/embed"), ("GET", "/health"), ("OPTIONS", "/embed")]
)
def test_a_page_of_another_origin_is_refused(origin: str, method: str, path: str):
    """With a key too: a page that has it is none that the operator has named."""
    with serving() as client:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", **bearer(ADMIN)}
        answer = client.request(method, path, headers={**headers, **JSON})

    assert (answer.status_code, error_of(answer)["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_is_answered():
    """A browser sends the origin of the status page when that asks for vectors."""
    with serving(keys=None) as client:
        headers = {"Origin": "http://testserver"}
        assert client.post("/embed", json=BODY, headers=headers).status_code == 200


def test_a_page_that_is_named_may_ask_and_read():
    """A browser asks first, without a key; then the answer, and errors too, can be read."""
    with serving(origins=PAGE) as client:
        asking = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-api-key,x-stainless-os",
        }
        asked = client.options("/embed", headers=asking)
        answered = client.post("/embed", json=BODY, headers={"Origin": PAGE, **bearer(EMBED)})
        refused = client.post("/embed", json=BODY, headers={"Origin": PAGE})
        other = client.options("/embed", headers={**asking, "Origin": "https://evil.example"})

    assert (asked.status_code, answered.status_code, refused.status_code) == (200, 200, 401)
    for answer in (asked, answered, refused):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in answer.headers
    allowed = asked.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "x-api-key"} <= set(allowed.split(","))
    exposed = answered.headers["access-control-expose-headers"]
    assert {"X-Request-Id", "Retry-After"} <= set(exposed.split(", "))
    assert other.status_code == 403


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_may_change_something_comes_as_json_on_every_route(content_type: str | None):
    """A page can send anything else here without asking first; curl -d says it is a form.

    DELETE a browser always asks about first, and it has nothing to say a type of.
    """
    headers = {} if content_type is None else {"content-type": content_type}
    with serving(keys=None) as client:
        changing = [r for r in requests(client) if r[1] not in ("GET", "HEAD", "DELETE")]
        assert changing
        for _, method, path in changing:
            answer = client.request(method, path, content=b'{"input": "x"}', headers=headers)
            if path in ANY_TYPE:
                assert answer.status_code == 200, path
                continue
            # TEI's clients know no other status for it.
            assert answer.status_code == (413 if path.startswith("/tei") else 415), path
            assert "Content-Type: application/json" in answer.text

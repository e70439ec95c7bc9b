"""Limits of each client over the whole application: who is refused, when, how, and who is not."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from plimsoll.api.edge.access import is_counted
from plimsoll.api.edge.clients import Clients
from plimsoll.api.edge.guard import AccessRules
from plimsoll.api.edge.keys import LOOK_S, Keys
from plimsoll.api.edge.origins import AllowedHosts
from plimsoll.policy.client_limits import ClientLimits
from plimsoll.settings import Settings
from tests.api.edge.bodies import KIB, Client, body_of, error_of
from tests.fakes import DEADLINE_S, TEST_HOSTS, FakeClock, FakeOpener, FakeServer, metric
from tests.server.served import any_config

ONE, TWO, ADMIN = "first-key-0123456789", "second-key-0123456789", "admin-key-0123456789"
KEYS = f"embed:{ONE},embed:{TWO},admin:{ADMIN}"
BODY = {"input": "a ship"}  # of four tokens


@contextmanager
def serving(keys: str | None = KEYS, **limits: float) -> Iterator[TestClient]:
    """A server with these limits for each client; `server` and `clock` of the client are its."""
    clock, of_each = FakeClock(), ClientLimits(**limits)
    access = AccessRules(
        None if keys is None else Keys(keys, of_each, clock),
        AllowedHosts(TEST_HOSTS.split(",")),
        clients=Clients(of_each, clock),
    )
    server = FakeServer(FakeOpener(), access=access)
    with TestClient(server.app, raise_server_exceptions=False) as client:
        client.server, client.access, client.clock = server, access, clock
        try:
            yield client
        finally:
            server.model.released.set()
            server.close()


def post(client: TestClient, key: str = ONE, path: str = "/embed", body: Any = BODY) -> Any:
    return client.post(path, json=body, headers={"X-API-Key": key})


def statuses(client: TestClient, n_requests: int, key: str = ONE) -> list[int]:
    return [post(client, key).status_code for _ in range(n_requests)]


# --- requests a second ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_client_above_its_rate_is_told_when_to_come_back(path: str):
    """In the dialect's own shape, by which its library retries."""
    with serving(requests_per_s=0.25) as client:
        assert post(client, path=path).status_code == 200
        answer = post(client, path=path)
        client.clock.now_s += 4
        later = post(client, path=path)

    assert (answer.status_code, later.status_code) == (429, 200)
    assert error_of(answer)["code"] == "request_rate"
    assert error_of(answer)["type"] == "rate_limit_error"
    assert "0.25 requests a second" in error_of(answer)["message"]
    assert 3 <= int(answer.headers["retry-after"]) <= 5


def test_each_key_has_its_own_rate():
    """A client that is refused takes nothing from the others."""
    with serving(requests_per_s=2) as client:
        assert statuses(client, 3) == [200, 200, 429]
        assert statuses(client, 3, TWO) == [200, 200, 429]
        client.clock.now_s += 0.5
        assert statuses(client, 2) == [200, 429]


def test_a_key_with_a_limit_of_its_own_keeps_that():
    """More than the others, less, or none."""
    keys = f"embed:{ONE} requests_per_s=3,embed:{TWO} requests_per_s=0,admin:{ADMIN}"
    with serving(keys, requests_per_s=1) as client:
        assert statuses(client, 4) == [200, 200, 200, 429]
        assert statuses(client, 9, TWO) == [200] * 9
        assert statuses(client, 2, ADMIN) == [200, 429]


def test_a_limit_that_is_changed_in_the_file_counts_within_a_second(tmp_path: Path):
    """Without a restart, and the client's account goes on."""
    file = tmp_path / "keys"
    file.write_text(f"embed:{ONE}\n", encoding="utf-8")
    file.chmod(0o600)
    with serving(str(file), requests_per_s=0.01) as client:
        assert statuses(client, 2) == [200, 429]
        file.write_text(f"embed:{ONE} requests_per_s=1000\n", encoding="utf-8")
        client.clock.now_s += LOOK_S
        assert statuses(client, 9) == [200] * 9


def test_without_keys_each_address_has_its_own_rate():
    """The port does not matter: a client opens as many connections as it wants."""
    with serving(None, requests_per_s=1) as client:

        def status(host: str, port: int) -> int:
            sender = Client(body_of(KIB), headers={"host": "test"})
            scope = {**sender.scope, "client": (host, port)}
            run = client.server.app(scope, sender.receive, sender.send)
            asyncio.run(asyncio.wait_for(run, DEADLINE_S))
            return sender.status

        found = [status(*peer) for peer in (("192.0.2.1", 1), ("192.0.2.1", 2), ("192.0.2.2", 1))]
    assert found == [200, 429, 200]


def test_what_watches_the_server_is_not_counted():
    """A scrape or a probe that is refused looks like an outage, and the page shows the cause."""
    with serving(requests_per_s=0.01, concurrency=1) as client:
        client.server.model.released.clear()
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(post, client, ADMIN)
            assert client.server.model.encoding.wait(DEADLINE_S)
            for path in ("/health", "/metrics", "/status", "/bottleneck", "/health/live", "/"):
                for _ in range(3):
                    answer = client.get(path, headers={"X-API-Key": ADMIN})
                    assert answer.status_code == 200, path
            assert client.get("/v1/models", headers={"X-API-Key": ADMIN}).status_code == 429
            client.server.model.released.set()
            assert held.result().status_code == 200


def test_what_is_counted_is_what_the_document_says_may_be_refused():
    """A generated client has to know, and one of a page that watches need not."""
    with serving() as client:
        document = client.get("/openapi.json", headers={"X-API-Key": ONE}).json()
        routes = {
            (method.lower(), route.path.replace(":path}", "}")): route
            for route in iter_route_contexts(client.server.app.routes)
            for method in route.methods or ()
        }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            told = str(operation["responses"].get("429", ""))
            assert ("request_rate" in told) == is_counted(routes[method, path]), (method, path)


# --- tokens a second ------------------------------------------------------------------------


def test_tokens_are_charged_when_they_are_known_and_the_next_request_waits():
    """The first of them passes, however large; the debt is told to the second."""
    with serving(tokens_per_s=2) as client:
        first = post(client, body={"input": ["a ship"] * 5})  # 20 tokens: ten seconds
        answer = post(client)
        others = statuses(client, 1, TWO)
        client.clock.now_s += 9.1
        later = statuses(client, 2)

    assert (first.status_code, answer.status_code) == (200, 429)
    assert error_of(answer)["code"] == "token_rate"
    assert "the next 9 s" in error_of(answer)["message"]
    assert others == [200]
    assert later == [200, 429]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a ship"] * 9}),
        ("/rank", {"query": "a ship", "documents": ["a ship"] * 9}),
        ("/collections/ships/documents", {"id": "x", "text": "a ship " * 9}),
        ("/collections/ships/search", {"query": "a ship " * 9}),
    ],
)
def test_every_route_that_embeds_is_charged(path: str, body: dict[str, Any]):
    """A limit that a document store or a search goes around is none."""
    with serving(f"admin:{ADMIN} tokens_per_s=1") as client:
        client.put("/collections/ships", json={}, headers={"X-API-Key": ADMIN})
        first = post(client, ADMIN, path, body)
        second = post(client, ADMIN, path, body)

    assert (first.status_code, second.status_code) == (200, 429)
    assert error_of(second)["code"] == "token_rate"


def test_what_only_counts_or_is_refused_is_not_charged():
    """A client pays for what runs."""
    with serving(tokens_per_s=1) as client:
        for path, body in (
            ("/embed?explain=true", {"input": ["a ship"] * 9}),
            ("/embed", {"input": ["a ship"] * 9, "encoder": "bm25"}),
            ("/embed", {"input": ["a ship"] * 9, "dimensions": 3000}),
        ):
            post(client, path=path, body=body)
        assert statuses(client, 2) == [200, 429]


# --- requests under way ---------------------------------------------------------------------


def test_so_many_requests_of_a_client_run_at_once():
    """One more is refused while they run, and no longer."""
    with serving(concurrency=2) as client, ThreadPoolExecutor(2) as pool:
        client.server.model.released.clear()
        held = [pool.submit(post, client, body={"input": f"ship {word}"}) for word in "ab"]
        wait_for(client, n_under_way=2)
        refused = post(client)
        client.server.model.released.set()
        answers = [each.result().status_code for each in held]
        after = statuses(client, 3)

    assert answers == [200, 200]
    assert error_of(refused)["code"] == "concurrency_limit"
    assert int(refused.headers["retry-after"]) >= 1
    assert after == [200, 200, 200]


def wait_for(client: TestClient, n_under_way: int) -> None:
    """Until so many requests of the first key have been let in."""
    clients: Clients = client.access.clients
    account = clients.account_of(client.access.keys.find(ONE.encode()).digest)
    asyncio.run(_until(lambda: account.n_under_way == n_under_way))


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.001)


def test_a_request_that_fails_or_is_refused_gives_its_place_back():
    """A place that is lost at every failure would lock its client out for good."""
    with serving(concurrency=1) as client:
        client.server.model.error = ZeroDivisionError("x")
        failed = post(client)
        client.server.model.error = None
        wrong = post(client, body={"input": 5})
        nowhere = post(client, path="/nowhere")
        after = statuses(client, 1)

    assert (failed.status_code, wrong.status_code, nowhere.status_code) == (500, 400, 404)
    assert after == [200]


def test_a_client_that_hangs_up_gives_its_place_back():
    """Its library opens the next connection at once."""
    with serving(concurrency=1) as client:
        client.server.model.released.clear()

        async def hang_up() -> None:
            await asyncio.to_thread(client.server.model.encoding.wait, DEADLINE_S)

        headers = {"host": "test", "x-api-key": ONE}
        Client(body_of(KIB), headers=headers, then=hang_up).call(client.server)
        client.server.model.released.set()
        assert statuses(client, 1) == [200]


# --- how it is refused ----------------------------------------------------------------------


def test_no_byte_of_a_refused_body_is_read_before_the_answer():
    """What is refused costs no memory, however large it would have been."""
    with serving(requests_per_s=0.01) as client:
        assert statuses(client, 1) == [200]
        n_read: list[int] = []
        sender = Client(body_of(256 * KIB), headers={"host": "test", "x-api-key": ONE})

        async def send(message: dict) -> None:
            n_read.append(sender.n_received)
            await sender.send(message)

        run = client.server.app(sender.scope, sender.receive, send)
        asyncio.run(asyncio.wait_for(run, DEADLINE_S))

    assert (sender.status, n_read[0]) == (429, 0)
    assert sender.error["code"] == "request_rate"


def test_refusals_are_counted_by_their_code():
    """The operator sees which limit is met, and how often."""
    with serving(requests_per_s=1) as client:
        statuses(client, 4)
        page = client.get("/metrics", headers={"X-API-Key": TWO}).text

    assert metric(page, 'plimsoll_errors_total{code="request_rate"}') == 3
    refused = 'plimsoll_requests_total{kind="none",model="none",route="/embed",status="429"}'
    assert metric(page, refused) == 3


# --- proxies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "client"),
    [
        ("127.0.0.1,::1", "127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1,::1", "192.0.2.1", "192.0.2.7", "192.0.2.1"),  # says so itself
        ("10.0.0.0/8", "10.1.2.3", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.0/8", "10.1.2.3", "192.0.2.9, 192.0.2.7, 10.0.0.1", "192.0.2.7"),
        ("10.0.0.0/8", "127.0.0.1", "192.0.2.7", "127.0.0.1"),
        ("none", "127.0.0.1", "192.0.2.7", "127.0.0.1"),
        ("*", "192.0.2.1", "192.0.2.7", "192.0.2.7"),
    ],
)
def test_a_proxy_that_is_trusted_says_who_the_client_is(
    proxies: str, peer: str, forwarded: str, client: str
):
    """Else all clients behind it would be one; and one that is not trusted could be anyone."""
    app = FastAPI()

    @app.get("/")
    def whose(request: Request) -> str:
        return request.client.host

    config = any_config(Settings(proxies=proxies), app)
    config.load()
    with TestClient(config.loaded_app, client=(peer, 1234)) as browser:
        answer = browser.get("/", headers={"X-Forwarded-For": forwarded})
    assert answer.json() == client

"""What the project's HAProxy configuration does with requests, before servers that are told how."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from plimsoll.settings import Settings
from tests.acceptance.balancer import CONFIG, Balancer, haproxy
from tests.acceptance.containers import free_port
from tests.running_server import DEADLINE_S

pytestmark = pytest.mark.acceptance

FITS = 200_000  # bytes of a body that HAProxy can send again
TOO_LONG = 400_000


class StandIn:
    """A server that is ready, and answers each request with `status`. Owns a socket and threads."""

    def __init__(self, address: str, port: int) -> None:
        self.status = 200
        self._place = (address, port)
        self.asked: list[tuple[str, dict[str, str], int]] = []  # path, header, bytes of the body
        stand_in = self

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/health/ready":
                    self._send(200)
                else:
                    self._note(0)

            def do_POST(self) -> None:
                self._note(len(self.rfile.read(int(self.headers["Content-Length"]))))

            def _note(self, n_bytes: int) -> None:
                header = {name.lower(): text for name, text in self.headers.items()}
                stand_in.asked.append((self.path, header, n_bytes))
                self._send(stand_in.status)

            def _send(self, status: int) -> None:
                body = json.dumps({"by": address}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._answering = Answering
        self.open()

    def open(self) -> None:
        """Serve, at first or again."""
        self._server = ThreadingHTTPServer(self._place, self._answering)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # HAProxy resets a connection once it knows
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass(frozen=True)
class Place:
    """Two replicas and an owner, the balancer before them, and a client of it."""

    replicas: list[StandIn]
    owner: StandIn
    balancer: Balancer
    client: httpx.Client

    def reset(self) -> None:
        """As at the start."""
        for one in (*self.replicas, self.owner):
            one.status = 200
            one.asked.clear()


@contextmanager
def stand_in(address: str, port: int) -> Iterator[StandIn]:
    """One for the length of a block."""
    made = StandIn(address, port)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    command, port = haproxy(), free_port()
    addresses = ["127.0.0.2", "127.0.0.3"]
    with ExitStack() as held:
        replicas = [held.enter_context(stand_in(address, port)) for address in addresses]
        owner = held.enter_context(stand_in("127.0.0.4", port))
        folder = tmp_path_factory.mktemp("balancer")
        balancer = held.enter_context(Balancer(command, folder, port, addresses, "127.0.0.4"))
        balancer.wait_for(2)
        client = held.enter_context(
            httpx.Client(base_url=balancer.url, timeout=DEADLINE_S, trust_env=False)
        )
        yield Place(replicas, owner, balancer, client)


@pytest.fixture
def place(started: Place) -> Place:
    started.reset()
    return started


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("n_bytes", [20, FITS])
def test_what_a_replica_refuses_goes_to_another_one(place: Place, status: int, n_bytes: int):
    """A client sees a refusal only where two of them have no room."""
    place.replicas[0].status = status

    answers = [place.client.post("/embed", content=b"x" * n_bytes) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert place.replicas[0].asked
    assert {n for one in place.replicas for _, _, n in one.asked} == {n_bytes}


@pytest.mark.parametrize("status", [429, 503])
def test_it_is_retried_once(place: Place, status: int):
    """More would multiply the load where all of them are full; the client is told to come back."""
    for replica in place.replicas:
        replica.status = status

    answer = place.client.post("/embed", content=b"x")

    assert answer.status_code == status
    assert [len(replica.asked) for replica in place.replicas] == [1, 1]


def test_a_body_that_is_longer_than_the_buffer_is_not_retried(place: Place):
    """The limit that the page names: HAProxy has not kept the beginning."""
    for replica in place.replicas:
        replica.status = 503

    answer = place.client.post("/embed", content=b"x" * TOO_LONG)

    assert answer.status_code == 503
    assert [n for one in place.replicas for _, _, n in one.asked] == [TOO_LONG]


@pytest.mark.parametrize("n_bytes", [20, TOO_LONG])
def test_what_cannot_reach_a_replica_goes_to_another_one(place: Place, n_bytes: int):
    """Of any length: nothing of it has been sent. HAProxy has not yet seen that it is gone."""
    before = place.balancer.n_retried()
    place.replicas[0].close()
    try:
        answers = [place.client.post("/embed", content=b"x" * n_bytes) for _ in range(4)]
    finally:
        place.replicas[0].open()
        place.balancer.wait_for(2)

    assert [answer.status_code for answer in answers] == [200] * 4
    assert place.balancer.n_retried() > before


@pytest.mark.parametrize("status", [400, 413, 500])
def test_other_answers_are_passed_on(place: Place, status: int):
    """Another replica would say the same, or do the same harm."""
    for replica in place.replicas:
        replica.status = status

    assert place.client.post("/embed", content=b"x").status_code == status
    assert sum(len(replica.asked) for replica in place.replicas) == 1


@pytest.mark.parametrize(
    "path", ["/collections/a/documents", "/migrations", "/links/a/pull", "/hooks/a/run", "/status"]
)
def test_what_belongs_to_collections_goes_to_their_owner_once(place: Place, path: str):
    """A change is never made twice, and never by a server that has another file."""
    place.owner.status = 503

    answer = place.client.post(path, content=b"x")

    assert (answer.status_code, answer.json()) == (503, {"by": "127.0.0.4"})
    assert [asked[0] for asked in place.owner.asked] == [path]
    assert not any(replica.asked for replica in place.replicas)


def test_a_replica_is_told_the_client_and_the_request(place: Place):
    """Its limits count clients by this, and its log names the request as the client does."""
    place.client.post("/embed", content=b"x", headers={"X-Request-ID": "mine"})
    place.client.post("/embed", content=b"x")

    headers = [header for one in place.replicas for _, header, _ in one.asked]
    assert {header["x-forwarded-for"] for header in headers} == {"127.0.0.1"}
    ids = [header["x-request-id"] for header in headers]
    assert "mine" in ids
    assert sorted(map(len, ids)) == [4, 36]


def test_metrics_are_nobodys_through_the_balancer(place: Place):
    """Each request would get another server's counts, which seem to go up and down."""
    assert place.client.get("/metrics").status_code == 404
    assert not any(replica.asked for replica in place.replicas)


def test_without_replicas_clients_are_told_when_to_come_back(tmp_path: Path):
    """In the shape that Plimsoll's own refusals have: their libraries read it."""
    with (
        Balancer(haproxy(), tmp_path, free_port(), ["127.0.0.2"], "127.0.0.2") as balancer,
        httpx.Client(
            transport=httpx.HTTPTransport(retries=100), timeout=DEADLINE_S, trust_env=False
        ) as client,
    ):
        answer = client.post(f"{balancer.url}/v1/embeddings", json={"input": "a"})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == "no_replica"


def test_its_limits_are_those_of_the_server():
    """It ends idle connections first, and waits as long as a replica may take."""
    text = CONFIG.read_text("utf-8")
    seconds = {name: int(value) for name, value in re.findall(r"timeout ([\w-]+) (\d+)s", text)}
    [body_s] = re.findall(r"wait-for-body time (\d+)s", text)
    settings = Settings()
    assert seconds["http-request"] == settings.header_timeout_s
    assert int(body_s) == settings.body_timeout_s
    assert seconds["client"] == settings.send_timeout_s
    assert seconds["http-keep-alive"] < settings.keep_alive_s
    [most] = set(re.findall(r" maxconn (\d+) pool-max-conn (\d+)", text))
    assert sum(map(int, most)) < settings.client_connections
    assert seconds["server"] > settings.load_wait_s + settings.queue_s + settings.queue_timeout_s

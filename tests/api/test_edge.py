"""Bodies on their way in: admitted before they are read, timed, measured before they are parsed."""

import asyncio
import gc
import json
import socket
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn

from app.api import edge
from app.api.json_body import MAX_DEPTH, MAX_VALUES
from app.api.json_cost import json_cost
from app.errors import MemoryPressureError, PlimsollError, QueueFullError, TooLargeError
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric

KIB, MIB = 1 << 10, 1 << 20
ROUTE = "/embed"
FULL = QueueFullError("full", retry_after_s=10)


class RecordingGate:
    """Admits up to `most_bytes`, then raises `error`; notes what is asked of it."""

    def __init__(self, most_bytes: int = 1 << 60, error: PlimsollError = FULL) -> None:
        self.asked: list[tuple[str, int]] = []
        self.held_bytes = 0
        self._most_bytes = most_bytes
        self._error = error

    def reserve(self, n_bytes: int) -> "RecordingGate":
        self._hold("reserve", n_bytes)
        return self

    def grow(self, total_bytes: int) -> None:
        self._hold("grow", total_bytes)

    async def wait_for_room(self, n_bytes: int) -> None:
        """Waiting is the real gate's matter."""

    async def wait_to_grow(self, total_bytes: int) -> None:
        """Likewise."""

    def shrink(self, total_bytes: int) -> None:
        self.held_bytes = min(self.held_bytes, total_bytes)

    def release(self) -> None:
        assert self.held_bytes, "released twice, or what was never reserved"
        self.held_bytes = 0

    def _hold(self, word: str, n_bytes: int) -> None:
        self.asked.append((word, n_bytes))
        if n_bytes > self._most_bytes:
            raise self._error
        self.held_bytes = n_bytes


@dataclass
class Client:
    """The other end of an ASGI application: what it sends, and what it was sent."""

    body: bytes = b""
    chunk_bytes: int = 64 * KIB
    headers: dict[str, str] = field(default_factory=dict)
    declares: bool = True
    then: Callable[[], Awaitable[object]] | None = None  # after the body; then it hangs up
    path: str = ROUTE
    n_received: int = 0  # bytes that the application took
    sent: list[dict] = field(default_factory=list)

    @property
    def scope(self) -> dict:
        length = {"content-length": str(len(self.body))} if self.declares else {}
        headers = {"content-type": "application/json", **length, **self.headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("test", 1),
            "server": ("test", 80),
        }

    async def receive(self) -> dict:
        if self.n_received == len(self.body):
            if self.then is None:
                await asyncio.Event().wait()
            await self.then()
            return {"type": "http.disconnect"}
        chunk = self.body[self.n_received : self.n_received + self.chunk_bytes]
        self.n_received += len(chunk)
        more = self.n_received < len(self.body)
        return {"type": "http.request", "body": chunk, "more_body": more}

    async def send(self, message: dict) -> None:
        self.sent.append(message)

    def call(self, server: FakeServer) -> None:
        """One request, from its first byte to the end of its answer."""
        run = server.app(self.scope, self.receive, self.send)
        asyncio.run(asyncio.wait_for(run, DEADLINE_S))

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def answer_headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def error(self) -> dict:
        assert [message["type"] for message in self.sent[1:]] == ["http.response.body"] * (
            len(self.sent) - 1
        )
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))["error"]


@contextmanager
def serving(
    gate: RecordingGate | None = None, opener: FakeOpener | None = None, **options: object
) -> Iterator[FakeServer]:
    options = {"body_limit_bytes": 8 * MIB, **options}
    server = FakeServer(opener or FakeOpener(), body_gate=gate, **options)
    try:
        yield server
    finally:
        server.close()


def body_of(n_bytes: int, text: str = "a") -> bytes:
    """A request with one text, of `n_bytes` in all."""
    frame = len('{"input":""}')
    return f'{{"input":"{text * (n_bytes - frame)}"}}'.encode()


def breaking_opener() -> FakeOpener:
    """Opens a model that meets something nobody foresaw."""
    opener = FakeOpener()
    opener.next_model.error = ZeroDivisionError("x")
    return opener


# --- admitted before it is read -------------------------------------------------------------


def test_a_body_is_reserved_by_its_length_before_a_byte_of_it_is_read():
    """Once it has been read, its memory has been spent."""
    gate = RecordingGate()

    class Watching(Client):
        async def receive(self) -> dict:
            assert gate.asked[:1] == [("reserve", 100 * KIB)]
            return await super().receive()

    with serving(gate) as server:
        client = Watching(body_of(100 * KIB))
        client.call(server)

    assert client.status == 200
    assert gate.asked[1:] == [("grow", 100 * KIB + json_cost(client.body).parsed_bytes)]


def test_a_body_without_a_length_is_reserved_in_steps():
    """Each step once, rounded up, never beyond what a body may have."""
    gate = RecordingGate()
    client = Client(body_of(700 * KIB), declares=False)

    with serving(gate, body_limit_bytes=720 * KIB) as server:
        client.call(server)

    assert client.status == 200
    asked = [("reserve", 256 * KIB), ("grow", 512 * KIB), ("grow", 720 * KIB)]
    assert gate.asked[:3] == asked
    assert len(gate.asked) == 4  # the last for parsing


def test_parsing_is_reserved_before_it_begins():
    """A text of one-byte characters with one emoji takes four bytes for each."""
    gate = RecordingGate()
    body = body_of(100 * KIB).replace(b"aaaa", "🚢".encode(), 1)

    with serving(gate) as server:
        client = Client(body)
        client.call(server)

    assert client.status == 200
    assert gate.asked[-1] == ("grow", len(body) + json_cost(body).parsed_bytes)
    assert gate.asked[-1][1] > 5 * len(body)


def test_a_body_that_there_is_no_room_to_parse_is_refused_unparsed():
    """It has been read whole, so that its connection may serve the next request."""
    gate = RecordingGate(most_bytes=150 * KIB)

    with serving(gate) as server:
        client = Client(body_of(100 * KIB))
        client.call(server)

    assert (client.status, client.error["code"]) == (429, "queue_full")
    assert b"connection" not in client.answer_headers
    assert gate.held_bytes == 0


def test_small_bodies_pass_without_being_asked():
    """Most requests are; a reservation for each would cost more than it protects."""
    gate = RecordingGate(most_bytes=0)

    with serving(gate) as server:
        client = Client(body_of(64 * KIB - 1))
        client.call(server)

    assert (client.status, gate.asked) == (200, [])


def test_a_reservation_is_held_until_the_answer_has_been_sent():
    """The texts are alive as long, and so is the answer."""
    gate = RecordingGate()
    held = []

    class Watching(Client):
        async def send(self, message: dict) -> None:
            held.append(gate.held_bytes)
            await super().send(message)

    with serving(gate) as server:
        Watching(body_of(100 * KIB)).call(server)

    assert len(held) == 2
    assert min(held) >= 100 * KIB
    assert gate.held_bytes == 0


# --- given back, however it ends ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (body_of(100 * KIB), 200),
        (body_of(100 * KIB)[:-1], 400),
        (body_of(100 * KIB)[:-1] + b',"colour":1}', 400),
        (b"[" * 100 * KIB, 400),
        (b'{"input":[' + b"{}," * MIB + b"{}]}", 413),
        (body_of(9 * MIB), 413),
        (body_of(100 * KIB), 500),
    ],
    ids=["fine", "no JSON", "wrong field", "deep", "many", "too large", "internal"],
)
def test_a_reservation_is_given_back_whatever_the_answer(body: bytes, status: int):
    """One that leaks makes the server smaller for ever."""
    gate = RecordingGate()
    client = Client(body, declares=False)

    with serving(gate, breaking_opener() if status == 500 else None) as server:
        client.call(server)

    assert client.status == status
    assert gate.asked
    assert gate.held_bytes == 0


def test_a_reservation_is_given_back_when_the_client_goes_in_the_middle_of_its_body():
    """Half a body is no request."""
    gate = RecordingGate()

    class Leaving(Client):
        async def receive(self) -> dict:
            if self.n_received > 200 * KIB:
                return {"type": "http.disconnect"}
            return await super().receive()

    with serving(gate) as server:
        client = Leaving(body_of(MIB))
        client.call(server)
        page = server.telemetry.render().decode()

    assert client.sent == []
    assert (gate.asked, gate.held_bytes) == ([("reserve", MIB)], 0)
    assert metric(page, f'plimsoll_requests_total{{kind="none",route="{ROUTE}",status="499"}}') == 1


def test_a_reservation_is_given_back_when_the_client_goes_while_it_is_computed():
    """Nobody will read the answer; others wait for the memory."""
    gate = RecordingGate()
    opener = FakeOpener()
    model = opener.next_model
    model.released.clear()
    server = FakeServer(opener, body_gate=gate)
    client = Client(
        body_of(100 * KIB), then=lambda: asyncio.to_thread(model.encoding.wait, DEADLINE_S)
    )

    async def hang_up_during_the_first_wave() -> None:
        request = server.app(client.scope, client.receive, client.send)
        try:
            await asyncio.wait_for(request, DEADLINE_S)
            assert gate.held_bytes == 0
        finally:
            model.released.set()
            await asyncio.to_thread(server.close)

    asyncio.run(hang_up_during_the_first_wave())

    assert client.sent == []
    assert gate.asked


def test_a_reservation_is_given_back_when_the_server_cancels_the_request():
    """As it does at the end of its patience when it shuts down."""
    gate = RecordingGate()

    async def cancel_in_the_middle(server: FakeServer) -> None:
        waiting = asyncio.Event()

        class Stalling(Client):
            async def receive(self) -> dict:
                if self.n_received:
                    waiting.set()
                    await asyncio.Event().wait()
                return await super().receive()

        client = Stalling(body_of(MIB))
        request = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await waiting.wait()
        assert gate.held_bytes == MIB
        request.cancel()
        await asyncio.wait((request,))
        assert request.cancelled()

    with serving(gate) as server:
        asyncio.run(cancel_in_the_middle(server))

    assert gate.held_bytes == 0


class HeldThread(Executor):
    """A thread whose work waits until it is released."""

    def __init__(self) -> None:
        self.n_jobs = 0
        self.started, self.released = threading.Event(), threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def submit(self, work: Callable, /, *arguments: object, **options: object) -> Future:
        def held() -> object:
            self.started.set()
            assert self.released.wait(DEADLINE_S)
            return work(*arguments)

        self.n_jobs += 1
        return self._thread.submit(held)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._thread.shutdown(wait)


@pytest.mark.parametrize("body", [body_of(300 * KIB), b"[" * 300 * KIB], ids=["fine", "refused"])
def test_a_reservation_is_held_as_long_as_a_thread_reads_the_body(body: bytes):
    """A thread cannot be cancelled: what it works on takes memory though the client has gone."""
    gate = RecordingGate()
    thread = HeldThread()

    async def hang_up_while_it_is_scanned(server: FakeServer) -> None:
        gone = asyncio.Event()

        async def wait_for_the_thread() -> None:
            await asyncio.to_thread(thread.started.wait, DEADLINE_S)
            gone.set()

        client = Client(body, then=wait_for_the_thread)
        request = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await gone.wait()
        for _ in range(20):  # turns of the loop, in which a request that does not wait would end
            await asyncio.sleep(0)
        assert not request.done()
        assert gate.held_bytes == 300 * KIB
        thread.released.set()
        await asyncio.wait_for(request, DEADLINE_S)
        assert client.sent == []

    with serving(gate) as server:
        server.app.state.parsing = thread
        try:
            asyncio.run(hang_up_while_it_is_scanned(server))
        finally:
            thread.released.set()
            thread.shutdown()

    assert gate.held_bytes == 0


def test_large_bodies_are_scanned_and_parsed_in_the_thread_and_small_ones_are_not():
    """The event loop must answer probes meanwhile; a small body is done before a thread begins."""
    thread = HeldThread()
    thread.released.set()

    with serving() as server:
        server.app.state.parsing = thread
        Client(body_of(256 * KIB)).call(server)
        n_small = thread.n_jobs
        Client(body_of(256 * KIB + 1)).call(server)
        thread.shutdown()

    assert (n_small, thread.n_jobs) == (0, 2)


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code", "waits"),
    [
        (FULL, 429, "queue_full", True),
        (MemoryPressureError("no room", retry_after_s=10), 503, "memory_pressure", True),
        (TooLargeError("at most 5 MiB"), 413, "too_large_for_budget", False),
    ],
)
@pytest.mark.parametrize("declares", [True, False])
def test_a_refused_body_is_answered_first_and_then_read_to_its_end(
    error: PlimsollError, status: int, code: str, waits: bool, declares: bool
):
    """A client that still writes into a closed connection sees a reset and never the reason."""
    gate = RecordingGate(300 * KIB, error)
    client = Client(body_of(2 * MIB), declares=declares)

    with serving(gate) as server:
        client.call(server)
        page = server.telemetry.render().decode()

    assert (client.status, client.error["code"]) == (status, code)
    assert client.error["message"] == str(error)
    assert client.answer_headers[b"connection"] == b"close"
    assert (b"retry-after" in client.answer_headers) == waits
    assert client.n_received == len(client.body)
    assert [message.get("more_body") for message in client.sent[1:]] == [True, None]
    assert gate.held_bytes == 0
    assert metric(page, f'plimsoll_errors_total{{code="{code}"}}') == 1


def test_a_refused_body_is_read_on_no_further_than_a_body_may_be_long():
    """Politeness has an end."""
    client = Client(body_of(40 * MIB), declares=False)

    with serving(body_limit_bytes=MIB) as server:
        client.call(server)

    assert (client.status, client.error["code"]) == (413, "body_too_large")
    assert MIB < client.n_received < 3 * MIB


def test_a_refused_body_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    """The client has its answer; the connection is closed."""
    monkeypatch.setattr(edge, "DISCARD_S", 0)

    class Stalling(Client):
        async def receive(self) -> dict:
            await asyncio.Event().wait()
            raise AssertionError

    with serving(RecordingGate(0)) as server:
        client = Stalling(body_of(MIB))
        client.call(server)

    assert client.status == 429
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


def test_a_client_that_asks_before_it_sends_is_answered_and_not_read():
    """curl sends "Expect: 100-continue" with large bodies: after a refusal there comes none."""
    with serving(RecordingGate(0)) as server:
        client = Client(body_of(MIB), headers={"expect": "100-continue"})
        client.call(server)

    assert client.status == 429
    assert client.n_received == 0


def test_a_body_that_comes_too_slowly_is_ended():
    """A connection that trickles holds its memory, and a hundred of them hold all of it."""

    class Stalling(Client):
        async def receive(self) -> dict:
            if self.n_received > 200 * KIB:
                self.body = self.body[: self.n_received]
                if not self.sent:
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}
            return await super().receive()

    gate = RecordingGate()
    with serving(gate, body_timeout_s=0) as server:
        client = Stalling(body_of(MIB))
        client.call(server)

    assert (client.status, client.error["code"]) == (408, "slow_body")
    assert "PLIMSOLL_BODY_TIMEOUT_S" in client.error["message"]
    assert client.answer_headers[b"connection"] == b"close"
    assert gate.held_bytes == 0


def test_the_time_for_a_body_does_not_end_a_request_that_is_computed():
    """Only the body's arrival is timed: an answer may take as long as it takes."""
    with serving(body_timeout_s=0) as server:  # past when the body is there at once
        client = Client(body_of(KIB))
        client.call(server)

    assert client.status == 200


@contextmanager
def listening(server: FakeServer) -> Iterator[tuple[str, int]]:
    """The application behind uvicorn on a real socket, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uvicorn_server = uvicorn.Server(uvicorn.Config(server.app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            uvicorn_server.should_exit = True
            thread.join()


def test_over_a_socket_a_client_that_sends_everything_first_still_reads_its_answer():
    """Many clients do: without somebody who reads, they would see a reset connection."""
    body = body_of(32 * MIB)  # more than the sockets hold

    with (
        serving(RecordingGate(0), body_limit_bytes=64 * MIB) as server,
        listening(server) as address,
        socket.create_connection(address, DEADLINE_S) as connection,
    ):
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(64 * KIB), b""))  # up to its end

    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "queue_full"


def test_over_a_socket_the_next_request_after_a_refusal_is_served():
    """On a connection of its own, as the client was told."""
    body, headers = body_of(MIB), {"content-type": "application/json"}

    with (
        serving(RecordingGate(0)) as server,
        listening(server) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=DEADLINE_S) as client,
    ):
        refused = client.post(ROUTE, content=body, headers=headers)
        answered = client.post(ROUTE, json={"input": "x"})

    assert (refused.status_code, answered.status_code) == (429, 200)


# --- measured before it is parsed -----------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [KIB, 100 * KIB, MIB])
def test_a_body_may_be_nested_so_deep_and_no_deeper(n_bytes: int):
    """Whatever its size; what is deeper than anything meant costs a parser its stack."""

    def nested(depth: int) -> bytes:
        lists = "[" * (depth - 1) + "]" * (depth - 1)
        return f'{{"input":{lists}{" " * n_bytes}}}'.encode()

    with serving() as server:
        deepest, deeper = Client(nested(MAX_DEPTH)), Client(nested(MAX_DEPTH + 1))
        deepest.call(server)
        deeper.call(server)

    assert deepest.error["param"] == "input"
    assert (deeper.status, deeper.error["code"]) == (400, "invalid_request")
    assert f"more than {MAX_DEPTH} lists and objects" in deeper.error["message"]


def test_brackets_in_a_text_are_no_depth():
    """Program text is text."""
    with serving() as server:
        small, large = Client(body_of(KIB, "[")), Client(body_of(100 * KIB, "{"))
        small.call(server)
        large.call(server)

    assert (small.status, large.status) == (200, 200)


def test_a_body_of_too_many_values_is_refused_with_the_numbers():
    """Each costs twenty times its JSON; the client learns what would pass."""
    body = b'{"input":[' + b'"",' * MAX_VALUES + b'""]}'

    with serving() as server:
        client = Client(body)
        client.call(server)

    assert (client.status, client.error["code"]) == (413, "body_too_large")
    assert f"{MAX_VALUES:,} values" in client.error["message"]
    assert "send fewer texts" in client.error["message"]
    assert b"connection" not in client.answer_headers


def test_half_a_million_words_are_taken():
    """A dictionary in one request is a legitimate use."""
    body = b'{"input":[' + b'"harbour",' * 500_000 + b"5]}"

    with serving() as server:
        client = Client(body)
        client.call(server)

    assert client.status == 400  # for the 5, so that nothing is computed
    assert client.error["param"] == "input"


@pytest.mark.parametrize(
    "body",
    [b"[" + b"{}," * (4 * MIB // 3) + b"{}]", b"[" * 4 * MIB, b'{"a":' * (4 * MIB // 5)],
    ids=["empty objects", "nested lists", "nested objects"],
)
def test_a_body_made_to_explode_is_refused_before_it_does(body: bytes):
    """Parsed, each of these takes ten to thirty times its size, within one call of the parser."""
    with serving() as server:
        Client(body_of(KIB)).call(server)  # what a first request sets up
        client = Client(body)
        tracemalloc.start()
        try:
            client.call(server)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert client.status in (400, 413)
    assert peak_bytes < len(body) + 8 * MIB


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (body_of(4 * MIB), 200),
        (body_of(4 * MIB)[:-1] + b',"colour":1}', 400),
        (b'{"input":["' + b"a" * 4 * MIB + b'",5]}', 400),
        (body_of(4 * MIB)[:-1], 400),
        (b"[" * 4 * MIB, 400),
        (body_of(9 * MIB), 413),
        (body_of(4 * MIB), 500),
    ],
    ids=["fine", "wrong field", "wrong item", "no JSON", "deep", "too large", "internal"],
)
def test_nothing_of_a_request_is_kept_after_its_answer(
    body: bytes, status: int, monkeypatch: pytest.MonkeyPatch
):
    """Not until the garbage collector comes round either: the reservation has been given back."""
    monkeypatch.setattr(edge.log, "disabled", True)  # pytest keeps what is logged
    opener = breaking_opener() if status == 500 else FakeOpener()
    server = FakeServer(opener, body_limit_bytes=8 * MIB)
    Client(body).call(server)  # what a first request sets up
    client = Client(body)
    scope = client.scope  # uvicorn keeps it until the connection's next request

    async def call() -> int:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            await server.app(scope, client.receive, client.send)
            await asyncio.to_thread(server.close)  # its threads let go of what they did last
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()

    kept_bytes = asyncio.run(asyncio.wait_for(call(), DEADLINE_S))

    assert client.status == status
    assert kept_bytes < 256 * KIB

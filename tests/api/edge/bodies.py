"""Requests whose bodies a test sends piece by piece, and what they meet on the way in."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from plimsoll.errors import PlimsollError, QueueFullError
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer

KIB, MIB = 1 << 10, 1 << 20
ROUTE = "/embed"
LIMIT_BYTES = MIB  # of the `server` fixture and of FakeServer
JSON = {"content-type": "application/json"}
FULL = QueueFullError("full", retry_after_s=10)


class Bodies:
    """What bodies ask to keep; admits up to `most_bytes`, then raises `error`."""

    def __init__(self, most_bytes: int = 1 << 60, error: PlimsollError = FULL) -> None:
        self.asked: list[int] = []
        self.held_bytes = 0
        self.n_left = 0
        self.most_bytes = most_bytes
        self.error = error

    def permit(self, gate: AdmissionGate) -> "RecordingPermit":
        """One whose body is admitted here, and whose texts are admitted by the gate."""
        return RecordingPermit(gate, self)


class RecordingPermit(RequestPermit):
    """A permit that notes what its body asks for."""

    def __init__(self, gate: AdmissionGate, bodies: Bodies) -> None:
        super().__init__(gate)
        self._bodies = bodies

    def keep(self, n_bytes: int) -> None:
        """Note it, and refuse what is over the limit."""
        self._bodies.asked.append(n_bytes)
        if n_bytes > self._bodies.most_bytes:
            raise self._bodies.error
        super().keep(n_bytes)
        self._bodies.held_bytes = self.kept_bytes

    def shrink(self, n_bytes: int) -> None:
        """Note what is left."""
        super().shrink(n_bytes)
        self._bodies.held_bytes = self.kept_bytes

    def leave(self) -> None:
        """Note that nothing is left."""
        super().leave()
        self._bodies.held_bytes = 0
        self._bodies.n_left += 1


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
    bodies: Bodies | None = None, opener: FakeOpener | None = None, **options: object
) -> Iterator[FakeServer]:
    options = {"body_limit_bytes": 8 * MIB, **options}
    bodies = bodies or Bodies()
    server = FakeServer(opener or FakeOpener(), new_permit=bodies.permit, **options)
    try:
        yield server
    finally:
        server.close()


def body_of(n_bytes: int, text: str = "a") -> bytes:
    """A request with one text, of `n_bytes` in all."""
    frame = len('{"input":""}')
    return f'{{"input":"{text * (n_bytes - frame)}"}}'.encode()


def breaking_opener() -> FakeOpener:
    """Opens a model that fails in an unforeseen way."""
    opener = FakeOpener()
    opener.next_model.error = ZeroDivisionError("x")
    return opener


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


def error_of(response: httpx.Response) -> dict:
    """The error in a response of Plimsoll's own shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    kinds = {429: "rate_limit_error", **dict.fromkeys(range(500, 600), "server_error")}
    kind = kinds.get(response.status_code, "invalid_request_error")
    assert body["error"]["type"] == kind
    return body["error"]

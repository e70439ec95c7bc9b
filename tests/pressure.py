"""A server over fake models whose memory a test sets, and the ways to press on it.

Of a budget of 100 MiB the line takes 70 and rest 10: 60 MiB are there for requests, 75 for BM25.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep

import httpx
from fastapi.testclient import TestClient

from plimsoll.errors import EncodeMemoryError
from plimsoll.machine.memory import Budget, MemorySample, MemoryUsage
from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import Demand
from plimsoll.policy.priority import Priority
from tests.fakes import DEADLINE_S, FakeModel, FakeOpener, FakeServer

MIB = 1 << 20
BUDGET, FLOOR = 100 * MIB, 10 * MIB
ROOM = 60 * MIB
QUEUE_TOKENS = 8192  # that may wait at least, whatever the rate


class FakeMemory:
    """What a MemoryMonitor says, as a test sets it."""

    limits = ()

    def __init__(self, budget_bytes: int = BUDGET, used_bytes: int = FLOOR) -> None:
        self.budget = Budget(budget_bytes, "a test")
        self.used_bytes = used_bytes

    def sample(self) -> MemorySample:
        used, budget = self.used_bytes, self.budget.budget_bytes
        return MemorySample(used, used, used, budget, "group")

    def usage(self) -> MemoryUsage:
        return MemoryUsage(self.used_bytes, self.budget.budget_bytes)


class HeavyModel(FakeModel):
    """One whose runs take 5 MiB a token: 12 tokens are all the room there is."""

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        return 5 * MIB * sum(lengths)


@contextmanager
def serving(
    model: FakeModel | None = None,
    *,
    loads: bool = True,
    queue_timeout_s: float = 0,
    memory: FakeMemory | None = None,
    **options: object,
) -> Iterator[tuple[FakeServer, TestClient]]:
    """A server and its client. Unless it `loads`, requests find the model loading."""
    opener = FakeOpener()
    opener.next_model = model or FakeModel()
    if not loads:
        opener.released.clear()
    server = FakeServer(
        opener,
        load_wait_s=DEADLINE_S if loads else 0,
        monitor=memory or FakeMemory(),
        queue_s=1,
        queue_timeout_s=queue_timeout_s,
        **options,
    )
    with TestClient(server.app) as client:
        try:
            yield server, client
        finally:
            opener.released.set()
            server.close()  # before the event loop, which the engine's thread reports to


def take_room(server: FakeServer, n_bytes: int = ROOM) -> Permit:
    """Another request holds memory, all of it below the line if not told otherwise."""
    permit = Permit()
    server.core.governor.admission.reserve(permit, Demand(0, n_bytes))
    return permit


def fill_queue(
    server: FakeServer,
    n_tokens: int = QUEUE_TOKENS,
    priority: Priority = Priority.INTERACTIVE,
) -> Permit:
    """Another request has so many tokens in the queue."""
    permit = Permit()
    server.core.governor.admission.reserve(permit, Demand(n_tokens, 0, priority=priority))
    return permit


def open_breaker(server: FakeServer) -> None:
    """Memory has failed three times."""
    for _ in range(3):
        server.core.governor.breaker.record_failure()


@contextmanager
def under_pressure(reason: str, **options: object) -> Iterator[tuple[FakeServer, TestClient]]:
    """A server whose primary answer is not to be had for one of the REASONS."""
    model = FakeModel()
    with serving(model, loads=reason != "model_loading", **options) as (server, client):
        if reason == "memory_pressure":
            take_room(server)
        elif reason == "breaker_open":
            open_breaker(server)
        elif reason == "out_of_memory":
            model.error = EncodeMemoryError("no memory to compute with")
        yield server, client


REASONS = ["memory_pressure", "breaker_open", "out_of_memory", "model_loading"]


def _wait_for_the_run(server: FakeServer) -> None:
    """Admission is told of a run's end just after its rows have been delivered."""
    deadline_s = monotonic() + DEADLINE_S
    while server.core.governor.admission.run_bytes and monotonic() < deadline_s:
        sleep(0.001)


def assert_nothing_is_held(server: FakeServer) -> None:
    """Whatever was reserved has been given back."""
    _wait_for_the_run(server)
    admission = server.core.governor.admission
    assert (admission.held_bytes, admission.run_bytes, admission.backlog.queue_tokens) == (0, 0, 0)
    assert not server.core.governor.waiting


def assert_only_the_pressure_is_left(server: FakeServer, reason: str | None) -> None:
    """What a request reserved has been given back; what presses stands."""
    _wait_for_the_run(server)
    admission = server.core.governor.admission
    assert admission.held_bytes == (ROOM if reason == "memory_pressure" else 0)
    assert (admission.run_bytes, admission.backlog.queue_tokens) == (0, 0)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


def post_scope(path: str) -> dict:
    """An ASGI scope of a JSON request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
        "client": ("test", 1),
        "server": ("test", 80),
    }


async def call(
    app: object,
    path: str,
    body: dict,
    *,
    hang_up: Callable[[], object] | None = None,
    on_send: Callable[[dict], None] = lambda message: None,
    method: str = "POST",
) -> None:
    """One request without a client library. The client is gone once `hang_up`, in a thread, ends.

    on_send: sees each message of the reply at the moment that it is sent.
    """
    body_message = {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    messages = iter([body_message])

    async def receive() -> dict:
        if (message := next(messages, None)) is not None:
            return message
        if hang_up is None:
            await asyncio.Event().wait()
        await asyncio.to_thread(hang_up)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        on_send(message)

    await app({**post_scope(path), "method": method}, receive, send)

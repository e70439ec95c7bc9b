"""A request's id: in its answer of any status, and in every log line written for it."""

import asyncio
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from plimsoll import errors
from plimsoll.api.edge.install import install
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.errors import EncodeMemoryError
from plimsoll.policy import runs
from plimsoll.policy.governor import Governor
from plimsoll.serving.gate import AdmissionGate
from plimsoll.telemetry.logs import configure
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import DEADLINE_S, TEST_ACCESS, FakeOpener, FakeServer, metric
from tests.pressure import BUDGET, FakeMemory

MIB = 1 << 20
NEW_ID = re.compile("[0-9a-f]{32}")
LOG = logging.getLogger("test")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    yield server
    server.close()


@pytest.fixture
def client(server: FakeServer) -> TestClient:
    return TestClient(server.app, raise_server_exceptions=False)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict]]]:
    """What has been logged so far, as machines get it."""
    stream, level = io.StringIO(), logging.root.level
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    configure("info", "json")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.root.setLevel(level)


def ids_of(response: httpx.Response) -> list[str]:
    return response.headers.get_list("x-request-id")


# --- in the answer --------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["7", "a/b c=d;~!", "x" * 128])
def test_a_client_gets_its_own_id_back(client: TestClient, given: str):
    """So that it finds its request in the server's log."""
    response = client.post("/embed", json={"input": "a"}, headers={"X-Request-Id": given})

    assert ids_of(response) == [given]


def test_a_request_without_an_id_gets_one_of_its_own(client: TestClient):
    """Every request can be asked after, and no two are mistaken for each other."""
    ids = [ids_of(client.get("/health/live")) for _ in range(2)]

    assert all(len(found) == 1 and NEW_ID.fullmatch(found[0]) for found in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b" ",
        b" a",
        b"a ",
        b"a\nb",
        b"a\r\nset-cookie: b",
        b"a\tb",
        b"a\x00b",
        b"\x1b[2J",
        b"\x7f",
        "höchst".encode(),
        "höchst".encode("latin-1"),
        b"x" * 129,
        b"x" * 60_000,
    ],
)
def test_an_id_that_could_do_harm_is_replaced(
    client: TestClient, log_lines: Callable[[], list[dict]], given: bytes
):
    """It goes into a header and into the log, where it must not be anything but an id."""
    response = client.get("/v1/models", headers=[(b"X-Request-Id", given)])

    (found,) = ids_of(response)
    assert response.status_code == 200
    assert NEW_ID.fullmatch(found)
    assert [line["request_id"] for line in log_lines() if "request_id" in line] == [found]


def test_several_ids_are_as_good_as_none(client: TestClient):
    """The log could use only one, and which would be a guess."""
    response = client.get("/health", headers=[(b"X-Request-Id", b"a"), (b"X-Request-Id", b"b")])

    (found,) = ids_of(response)
    assert NEW_ID.fullmatch(found)


def never(server: FakeServer) -> None:
    """Nothing to prepare."""


def break_model(server: FakeServer) -> None:
    """The next text meets a bug."""
    server.model.error = ZeroDivisionError("a bug")


def starve_model(server: FakeServer) -> None:
    """The next text finds no memory."""
    server.model.error = EncodeMemoryError("none left")


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "prepare"),
    [
        (404, "GET", "/nowhere", b"", never),
        (405, "GET", "/embed", b"", never),
        (400, "POST", "/embed", b"{", never),
        (400, "POST", "/embed", b'{"input": []}', never),
        (413, "POST", "/embed", b" " * (2 * MIB), never),
        (500, "POST", "/embed", b'{"input": "a"}', break_model),
        (503, "POST", "/embed", b'{"input": "a", "fallback": "none"}', starve_model),
    ],
)
def test_every_error_carries_the_id(
    server: FakeServer,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    method: str,
    path: str,
    body: bytes,
    prepare: Callable[[FakeServer], None],
):
    """It is what a client sends to its operator, who finds out what went wrong."""
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0)
    prepare(server)
    headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}

    response = client.request(method, path, content=body, headers=headers)

    assert (response.status_code, ids_of(response)) == (status, ["mine"])


def test_a_body_that_comes_too_slowly_is_ended_with_its_id():
    """That answer is given by the edge, before any route is found."""
    server, sent = FakeServer(FakeOpener(), body_timeout_s=0), []
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/embed",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"mine")],
    }

    async def receive() -> dict:
        if not sent:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(server.app(scope, receive, send), DEADLINE_S))
    server.close()

    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"x-request-id"] == b"mine"


# --- in the log -----------------------------------------------------------------------------


def test_an_access_line_says_in_fields_what_the_request_was(
    client: TestClient, log_lines: Callable[[], list[dict]]
):
    """A log is searched and counted by fields, not by the words of a message."""
    headers = {"X-Request-Id": "mine"}
    client.post("/embed", json={"input": ["a b", "c"]}, headers=headers)
    client.post("/embed", json={"input": ["a"], "encoder": "bm25"}, headers=headers)
    client.get("/nowhere", headers=headers)

    dense, sparse, lost = [line for line in log_lines() if line["logger"] == "plimsoll.access"]
    about = {"method": "POST", "path": "/embed", "status": 200, "kind": "dense", "degraded": None}
    assert dense.items() >= (about | {"request_id": "mine", "texts": 2, "tokens": 7}).items()
    assert dense["duration_ms"] >= 0
    assert dense["message"].startswith("POST /embed 200 ")
    assert dense["message"].endswith(" texts=2 tokens=7")
    assert "trace_id" not in dense
    assert (sparse["kind"], sparse["texts"], sparse["tokens"]) == ("sparse", 1, None)
    assert lost["status"] == 404
    assert (lost["kind"], lost["texts"], lost["tokens"]) == ("none", None, None)
    assert dense["code"] is None


@pytest.mark.parametrize(
    ("error", "status", "code", "level"),
    [
        (errors.QueueFullError("x", retry_after_s=1), 429, "queue_full", "info"),
        (errors.UnknownModelError("x"), 404, "model_not_found", "info"),
        (errors.ModelDownloadError("x"), 503, "model_unavailable", "warning"),
        (ZeroDivisionError("x"), 500, "internal_error", "warning"),
    ],
)
def test_an_access_line_of_a_failure_says_its_code_and_whose_it_is(
    server: FakeServer,
    client: TestClient,
    log_lines: Callable[[], list[dict]],
    error: Exception,
    status: int,
    code: str,
    level: str,
):
    """A log at `warning` has what the server is to blame for, and the code is what to search."""
    server.model.error = error

    client.post("/embed", json={"input": "a"})

    *_, line = log_lines()  # an unforeseen error has another one, with its traceback
    assert (line["status"], line["code"], line["level"]) == (status, code, level)
    assert line["message"].endswith(f" code={code}")


def test_a_probe_that_is_told_to_wait_is_no_warning(
    server: FakeServer, client: TestClient, log_lines: Callable[[], list[dict]]
):
    """It asks every few seconds; that the server is not ready has a line of its own."""
    server.core.drain.started = True

    assert client.get("/health/ready").status_code == 503

    assert log_lines() == []


def test_an_access_line_says_why_an_answer_is_not_the_primary_one(
    server: FakeServer,
    client: TestClient,
    log_lines: Callable[[], list[dict]],
    monkeypatch: pytest.MonkeyPatch,
):
    """Nothing degrades silently."""
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0)
    starve_model(server)

    client.post("/embed", json={"input": "a"})

    (line,) = [line for line in log_lines() if line["logger"] == "plimsoll.access"]
    assert (line["kind"], line["degraded"]) == ("sparse", "out_of_memory")
    assert line["message"].endswith(" texts=1 degraded=out_of_memory")


def test_neither_a_text_nor_a_key_is_in_a_line(
    server: FakeServer, client: TestClient, log_lines: Callable[[], list[dict]]
):
    """Logs are kept for long and read by many."""
    headers = {"Authorization": "Bearer zanzibar", "X-Api-Key": "zanzibar"}
    client.post("/embed", json={"input": ["zanzibar", ""]}, headers=headers)
    client.post("/embed?explain=true&zanzibar", json={"input": "zanzibar"}, headers=headers)
    client.post("/embed", json={"input": 1, "zanzibar": "zanzibar"}, headers=headers)
    client.post("/rank", json={"query": "zanzibar", "documents": ["zanzibar"]}, headers=headers)

    lines = log_lines()
    assert len([line for line in lines if line["logger"] == "plimsoll.access"]) == 4
    assert "zanzibar" not in json.dumps(lines)


def test_lines_of_two_requests_at_once_carry_their_own_ids(
    log_lines: Callable[[], list[dict]],
):
    """Also those from threads: else the log of a busy server is of no use."""
    app, parsing = FastAPI(), ThreadPoolExecutor(1)
    in_thread = threading.Barrier(2, timeout=DEADLINE_S)

    def work(name: str) -> None:
        in_thread.wait()
        LOG.info("%s in a thread", name)

    @app.get("/work/{name}")
    async def route(name: str) -> None:
        LOG.info("%s before", name)
        await asyncio.to_thread(work, name)
        await asyncio.create_task(later(name))

    async def later(name: str) -> None:
        LOG.info("%s in a task", name)

    @app.get("/wait/{name}")
    def wait(name: str) -> None:
        work(name)

    async def both(path: str) -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.gather(
                *(client.get(f"{path}/{name}", headers={"X-Request-Id": name}) for name in "ab")
            )

    governor = Governor(monotonic, budget_bytes=BUDGET, cores=1)
    gate = AdmissionGate(
        governor, FakeMemory().usage, lambda limits: None, queue_timeout_s=DEADLINE_S
    )
    install(
        app,
        Telemetry("test"),
        RecentRequests(),
        new_permit=gate.permit,
        body_limit_bytes=MIB,
        body_timeout_s=DEADLINE_S,
        parsing=parsing,
        access=TEST_ACCESS,
    )
    asyncio.run(both("/work"))
    asyncio.run(both("/wait"))
    LOG.info("after")
    parsing.shutdown()

    lines = log_lines()
    written = [line for line in lines if line["logger"] == "test"]
    assert [line["request_id"] for line in written[:-1]] == [
        line["message"][0] for line in written[:-1]
    ]
    assert len(written) == 2 * 4 + 1
    assert "request_id" not in written[-1]
    access = [line for line in lines if line["logger"] == "plimsoll.access"]
    assert [line["request_id"] for line in access] == [line["path"][-1] for line in access]
    assert len(access) == 4


def test_the_opening_of_a_model_carries_the_id_of_the_request_that_asked_for_it(
    client: TestClient, log_lines: Callable[[], list[dict]]
):
    """It explains why that request took so long."""
    client.post("/embed", json={"input": "a"}, headers={"X-Request-Id": "first"})

    (line,) = [line for line in log_lines() if line["message"].startswith("opened ")]
    assert line["request_id"] == "first"


def test_lines_of_a_run_carry_the_ids_of_all_its_requests(
    server: FakeServer,
    client: TestClient,
    log_lines: Callable[[], list[dict]],
    monkeypatch: pytest.MonkeyPatch,
):
    """The engine works for several requests at once, and one line may concern them all."""
    monkeypatch.setattr(runs, "FIRST_PAUSE_S", 0)
    model = server.model
    model.released.clear()

    def ask(name: str) -> httpx.Response:
        body = {"input": name, "fallback": "none"}
        return client.post("/embed", json=body, headers={"X-Request-Id": name})

    def queued_tokens() -> float:
        return metric(server.telemetry.render().decode(), "plimsoll_queue_tokens")

    with ThreadPoolExecutor(3) as threads:
        ahead = threads.submit(ask, "ahead")
        assert model.encoding.wait(DEADLINE_S)
        behind = []
        for name in ("left", "right"):
            behind.append(threads.submit(ask, name))
            while queued_tokens() < 3 * len(behind):
                assert not behind[-1].done()
        model.error = EncodeMemoryError("none left")
        model.released.set()
        assert [answer.result().status_code for answer in (ahead, *behind)] == [503] * 3

    lines = [line for line in log_lines() if line["logger"] == "plimsoll.serving.engine_runs"]
    assert {line["request_id"] for line in lines if "run of 2 texts" in line["message"]} == {
        "left,right"
    }
    failed = [line["request_id"] for line in lines if line["level"] == "error"]
    assert failed == ["ahead", "left", "right"]

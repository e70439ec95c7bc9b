"""How failures leave: one shape, a status for each, and a connection that still answers."""

import inspect
import json
import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from app import errors
from app.api.boundary import STATUS, code_of, retry_after, status_of
from app.api.edge import BodyTooLargeError
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric
from tests.running_server import RunningServer

LIMIT_BYTES = 1 << 20  # of the `server` fixture and of FakeServer
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response) -> dict:
    """The error in a response of the one shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    kind = "invalid_request_error" if response.status_code < 500 else "server_error"
    assert body["error"]["type"] == kind
    return body["error"]


@pytest.fixture
def fake() -> Iterator[tuple[FakeServer, TestClient]]:
    server = FakeServer(FakeOpener())
    with TestClient(server.app) as client:
        try:
            yield server, client
        finally:
            server.close()  # before the event loop, which the engine's thread reports to


# --- the table ------------------------------------------------------------------------------


def _error_classes() -> list[type[errors.PlimsollError]]:
    return [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.PlimsollError) and found is not errors.PlimsollError
    ]


@pytest.mark.parametrize("kind", _error_classes())
def test_every_error_has_a_status(kind: type[errors.PlimsollError]):
    """An error class without one would leave as a 500 that tells nobody what to do."""
    assert any(issubclass(kind, listed) for listed in STATUS)


def test_no_row_of_the_table_hides_another():
    """The first class that fits gives the status, so a base must stand below what it bases."""
    listed = list(STATUS)
    for place, kind in enumerate(listed):
        assert not any(issubclass(kind, above) for above in listed[:place]), kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequestError("x"), 400, "invalid_request"),
        (errors.EmptyTextError("x"), 400, "empty_text"),
        (errors.TextTooLongError("x"), 400, "too_long"),
        (errors.UnknownModelError("x"), 404, "model_not_found"),
        (errors.ModelLoadingError("x", retry_after_s=3), 503, "model_loading"),
        (errors.ModelNotFoundError("x"), 503, "model_unavailable"),
        (errors.ModelDownloadError("x"), 503, "model_unavailable"),
        (errors.CacheSpaceError("x"), 503, "model_unavailable"),
        (errors.CacheCorruptError("x"), 503, "model_unavailable"),
        (errors.GGUFTruncatedError("x", offset=1), 503, "model_unavailable"),
        (errors.NonFiniteError("x"), 500, "internal_error"),
        (errors.EncodeMemoryError("x"), 503, "out_of_memory"),
        (errors.QueueFullError("x", retry_after_s=1), 429, "queue_full"),
        (errors.MemoryPressureError("x", retry_after_s=1), 503, "memory_pressure"),
        (errors.BreakerOpenError("x", retry_after_s=1), 503, "breaker_open"),
        (errors.OverloadError("x", retry_after_s=1), 503, "overloaded"),
        (errors.TooLargeError("x"), 413, "too_large_for_budget"),
        (BodyTooLargeError("x"), 413, "body_too_large"),
        (errors.SlowBodyError("x"), 408, "slow_body"),
        (ZeroDivisionError("x"), 500, "internal_error"),
    ],
)
def test_statuses_and_codes_are_those_that_clients_rely_on(
    error: Exception, status: int, code: str
):
    """A client retries by the status and branches by the code; neither may drift."""
    assert (status_of(error), code_of(error)) == (status, code)


# --- when to come back ----------------------------------------------------------------------


def test_clients_refused_together_come_back_apart():
    """Whole seconds, a fifth around what was measured; together they would be refused again."""
    chance = random.Random(0).random
    waits = [
        int(retry_after(errors.QueueFullError("x", retry_after_s=20), chance)) for _ in range(1000)
    ]

    assert set(waits) == set(range(16, 25))
    assert sum(waits) / len(waits) == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("chance", [0, 0.5, 1])
@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (errors.MemoryPressureError("x", retry_after_s=0), 1, 1),
        (errors.MemoryPressureError("x", retry_after_s=-3), 1, 1),
        (errors.BreakerOpenError("x", retry_after_s=1e9), 60, 60),
        (errors.BreakerOpenError("x", retry_after_s=float("inf")), 60, 60),
        (errors.ModelLoadingError("x", retry_after_s=10), 8, 12),
        (errors.EncodeMemoryError("x"), 1, 1),
    ],
)
def test_the_time_to_come_back_has_bounds(
    error: errors.PlimsollError, least: int, most: int, chance: float
):
    """Never at once, and never so late that a client gives up."""
    assert least <= int(retry_after(error, lambda: chance)) <= most


@pytest.mark.parametrize(
    "error",
    [
        errors.TooLargeError("x"),
        errors.SlowBodyError("x"),
        errors.InvalidRequestError("x"),
        errors.ModelNotFoundError("x"),
        errors.NonFiniteError("x"),
    ],
)
def test_what_waiting_would_not_mend_has_no_time_to_come_back(error: errors.PlimsollError):
    """A client that retries by itself would send the same for ever."""
    assert retry_after(error, lambda: 0.5) is None


def test_an_overload_leaves_with_its_time_to_come_back(fake: tuple[FakeServer, TestClient]):
    """Through the whole application, in the header that clients know."""
    server, client = fake
    client.post("/embed", json={"input": "a"})
    server.slot._model.error = errors.QueueFullError("too much", retry_after_s=40)

    response = client.post("/embed", json={"input": "a"})

    assert response.status_code == 429
    assert 32 <= int(response.headers["retry-after"]) <= 48
    assert error_of(response)["message"] == "too much"


# --- routes, methods, types -----------------------------------------------------------------


def test_an_unknown_route_is_not_found(client: TestClient):
    """In the one shape too, with where to look."""
    response = client.post("/v1/embedding", json={"input": "x"})

    assert response.status_code == 404
    error = error_of(response)
    assert error["code"] == "http_404"
    assert "/v1/embedding" in error["message"]
    assert "/docs" in error["message"]


def test_a_wrong_method_is_told_which_one_is_right(client: TestClient):
    """Opening /embed in a browser is the first thing many people do."""
    response = client.get("/embed")

    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    error = error_of(response)
    assert error["code"] == "http_405"
    assert "GET" in error["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_body_that_is_not_sent_as_json_is_told_so(
    client: TestClient, path: str, content_type: str | None
):
    """curl -d says form data; "field required" for a field that is there would mislead."""
    headers = {"content-type": content_type} if content_type else {}

    response = client.post(path, content=b'{"input": "x"}', headers=headers)

    assert response.status_code == 400
    message = error_of(response)["message"]
    assert "Content-Type: application/json" in message
    assert repr(content_type or "") in message


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/x+json"])
def test_json_by_its_other_names_is_read(client: TestClient, content_type: str):
    """Many clients send a charset."""
    body = '{"input": "höchst"}'.encode()

    response = client.post("/embed", content=body, headers={"content-type": content_type})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"input": "x"', b"{'input': 'x'}", b'{"input": NaN}', b"\xff\xfe{}"]
)
def test_a_body_that_is_no_json_is_told_so(client: TestClient, body: bytes):
    """A parser's traceback would help nobody."""
    response = client.post("/embed", content=body, headers=JSON)

    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "invalid_request"
    assert "JSON" in error["message"]


def test_an_unforeseen_error_leaves_in_the_one_shape_and_in_the_log(
    fake: tuple[FakeServer, TestClient], caplog: pytest.LogCaptureFixture
):
    """A bug must be found in the log, and its message must not reach a client."""
    server, client = fake
    client.post("/embed", json={"input": "a"})
    server.slot._model.error = ZeroDivisionError("secret detail")

    response = client.post("/embed", json={"input": "a"})

    assert response.status_code == 500
    error = error_of(response)
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    assert "ZeroDivisionError: secret detail" in caplog.text
    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_errors_total{code="internal_error"}') == 1
    server.slot._model.error = None
    assert client.post("/embed", json={"input": "a"}).status_code == 200


# --- the body limit -------------------------------------------------------------------------


def _chunks(n_bytes: int) -> Iterator[bytes]:
    for _ in range(n_bytes // 65536):
        yield b" " * 65536


def test_a_body_that_says_it_is_too_large_is_refused_unread(server: RunningServer):
    """By its declared length, before a byte of it takes memory."""
    with socket.create_connection(_address(server), timeout=DEADLINE_S) as connection:
        connection.sendall(_head(f"Content-Length: {LIMIT_BYTES + 1}"))
        answer = _read_answer(connection)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"PLIMSOLL_BODY_LIMIT_MIB" in answer


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_body_that_grows_too_large_is_refused_while_it_streams_in(
    server: RunningServer, path: str
):
    """Without a declared length, only counting helps; the client still gets its answer."""
    response = httpx.post(
        f"{server.url}{path}", content=_chunks(3 * LIMIT_BYTES), headers=JSON, timeout=DEADLINE_S
    )

    assert response.status_code == 413
    error = error_of(response)
    assert error["code"] == "body_too_large"
    assert "1 MiB" in error["message"]
    again = httpx.post(f"{server.url}/embed", json={"input": "x"}, timeout=DEADLINE_S)
    assert again.status_code == 200


def test_a_body_of_just_the_limit_is_taken(fake: tuple[FakeServer, TestClient]):
    """The limit is the largest size that passes, chunked or not."""
    _, client = fake
    body = b'{"input": "' + b"a" * (LIMIT_BYTES - 13) + b'"}'
    assert len(body) == LIMIT_BYTES

    assert client.post("/embed", content=body, headers=JSON).status_code == 200
    assert client.post("/embed", content=body + b" ", headers=JSON).status_code == 413


def test_a_body_limit_is_counted(fake: tuple[FakeServer, TestClient]):
    """Whoever sets the limit sees how often it is met."""
    _, client = fake
    client.post("/embed", content=b" " * (LIMIT_BYTES + 1), headers=JSON)

    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_errors_total{code="body_too_large"}') == 1


def test_a_client_that_ends_in_the_middle_of_its_body_harms_nobody(server: RunningServer):
    """Half a body is no request; nothing is computed, nothing fails."""
    with socket.create_connection(_address(server), timeout=DEADLINE_S) as connection:
        connection.sendall(_head("Content-Length: 1000") + b'{"input": "half')

    answer = httpx.post(f"{server.url}/embed", json={"input": "x"}, timeout=DEADLINE_S)
    assert answer.status_code == 200
    assert "Traceback" not in server.log


def _address(server: RunningServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return str(parts.hostname), int(parts.port or 0)


def _head(*lines: str) -> bytes:
    head = ["POST /embed HTTP/1.1", "Host: test", "Content-Type: application/json", *lines, "", ""]
    return "\r\n".join(head).encode()


def _read_answer(connection: socket.socket) -> bytes:
    answer = b""
    while not _is_whole(answer):
        received = connection.recv(65536)
        if not received:
            break
        answer += received
    return answer


def _is_whole(answer: bytes) -> bool:
    _, _, body = answer.partition(b"\r\n\r\n")
    try:
        return bool(json.loads(body))
    except ValueError:
        return False

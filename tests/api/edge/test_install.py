"""The edge around the whole application: routes, media types, limits, over sockets too."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from tests.api.edge.bodies import (
    JSON,
    KIB,
    LIMIT_BYTES,
    MIB,
    ROUTE,
    Bodies,
    body_of,
    error_of,
    serving,
)
from tests.fakes import DEADLINE_S, FakeServer, metric
from tests.running_server import RunningServer

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

    assert response.status_code == 415
    assert error_of(response)["code"] == "unsupported_media_type"
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
    """A parser's traceback would not help."""
    response = client.post("/embed", content=body, headers=JSON)

    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "invalid_request"
    assert "JSON" in error["message"]


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
    assert b"PLIMSOLL_BODY_LIMIT" in answer


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
    """The operator who sets the limit sees how often it is met."""
    _, client = fake
    client.post("/embed", content=b" " * (LIMIT_BYTES + 1), headers=JSON)

    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_errors_total{code="body_too_large"}') == 1


def test_a_client_that_ends_in_the_middle_of_its_body_does_no_harm(server: RunningServer):
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
    head = [
        "POST /embed HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        *lines,
        "",
        "",
    ]
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


# --- refused over a socket -------------------------------------------------------------------


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
    """Many clients do: if nothing read on, they would see a reset connection."""
    body = body_of(32 * MIB)  # more than the sockets hold

    with (
        serving(Bodies(0), body_limit_bytes=64 * MIB) as server,
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
        serving(Bodies(0)) as server,
        listening(server) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}", timeout=DEADLINE_S) as client,
    ):
        refused = client.post(ROUTE, content=body, headers=headers)
        answered = client.post(ROUTE, json={"input": "x"})

    assert (refused.status_code, answered.status_code) == (429, 200)

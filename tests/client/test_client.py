"""The two clients over httpx: what goes out, what comes back, and a real server at the end."""

import asyncio
import re
import socket
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from plimsoll import AsyncClient, Client
from plimsoll.client.asking import FIRST_PAUSE_S
from plimsoll.errors import InvalidRequestError, NoAnswerError, RefusedError
from tests.running_server import DEADLINE_S, RunningServer
from tests.small_models import TINY
from tests.synthetic import write_synthetic

KEY = "client-key-0123456789-0123456789"
KINDS = ("sync", "async")
Reply = Callable[[httpx.Request], httpx.Response]


def called(kind: str, name: str, *arguments: Any, url: str, **options: Any) -> Any:
    """What a method gives, of `Client` or, awaited, of `AsyncClient`."""
    terms = {each: options.pop(each) for each in (*options,) if each in TERMS}
    transport = httpx.MockTransport(terms.pop("reply")) if "reply" in terms else None

    async def awaited() -> Any:
        http = transport and httpx.AsyncClient(transport=transport)
        async with AsyncClient(url, http=http, **terms) as client:
            return await getattr(client, name)(*arguments, **options)

    if kind == "async":
        return asyncio.run(awaited())
    with Client(url, http=transport and httpx.Client(transport=transport), **terms) as client:
        return getattr(client, name)(*arguments, **options)


TERMS = ("key", "headers", "max_retries", "on_wait", "reply")


@pytest.mark.parametrize("kind", KINDS)
def test_address_key_and_headers_go_along(kind: str):
    """A server may stand behind a path of a proxy, and ask for a key."""
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"status": "ok"})

    health = called(
        kind, "health", url="http://a.example/below/", key="k", headers={"X-Team": "ships"},
        reply=reply,
    )  # fmt: skip

    assert health == {"status": "ok"}
    assert str(seen[0].url) == "http://a.example/below/health"
    assert (seen[0].headers["authorization"], seen[0].headers["x-team"]) == ("Bearer k", "ships")


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_with_a_time_is_asked_again(kind: str):
    """Over httpx as in the rules: the header is read whatever its case."""
    answers = [httpx.Response(429, headers={"Retry-After": "0"}), httpx.Response(200, json=[1])]
    told: list[float] = []

    found = called(
        kind, "request", "POST", "/x", {}, url="http://a.example",
        reply=lambda request: answers.pop(0), on_wait=lambda error, seconds: told.append(seconds),
    )  # fmt: skip

    assert (found, told) == ([1], [FIRST_PAUSE_S])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "sent"),
    [(httpx.ConnectError("refused"), False), (httpx.ReadError("reset"), True)],
)
def test_what_the_network_does_is_one_error(kind: str, error: Exception, sent: bool):
    """A caller needs no second library's errors; it says what to do."""

    def reply(request: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(NoAnswerError, match="plimsoll serve") as lost:
        called(kind, "health", url="http://a.example", reply=reply, max_retries=0)
    assert lost.value.sent is sent


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_goes_on_sending_is_left_at_the_deadline(kind: str, slow_server: str):
    """httpx's own limit begins anew with every byte."""
    with pytest.raises(NoAnswerError):
        called(kind, "health", url=slow_server, deadline_s=0.3)


@pytest.fixture
def slow_server() -> Iterator[str]:
    """The address of a server that sends a byte each tenth of a second, and never the last."""
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not over.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join(DEADLINE_S)


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a.example", "http://", ""])
def test_an_address_that_is_none_is_told_at_once(url: str):
    with pytest.raises(InvalidRequestError, match=re.escape(repr(url))):
        Client(url)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("name", "value"), [("X-Team", "secr\u00eft"), ("X-Team", "secret\nX: c"), ("X Team", "secret")]
)
def test_a_header_that_is_none_is_told_without_its_value(kind: Any, name: str, value: str):
    """It may be a key with a character too many, copied from a page."""
    with pytest.raises(InvalidRequestError, match=name) as raised:
        kind("http://a.example", headers={name: value})
    assert "secr" not in str(raised.value)


# --- a real server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a small model that asks for a key."""
    folder = tmp_path_factory.mktemp("keyed")
    model = write_synthetic(folder / "tiny.gguf", arch="bert", shape=TINY)
    options = ("--model", str(model), "--cache-dir", str(folder / "cache"), "--cache-on-tmpfs")
    with RunningServer(folder, *options, PLIMSOLL_API_KEYS=f"admin:{KEY}") as server:
        yield server


def by_hand(server: RunningServer, texts: list[str]) -> np.ndarray:
    """The vectors of one request, without the client."""
    body = {"input": texts, "encoding_format": "base64"}
    reply = httpx.post(
        f"{server.url}/embed",
        json=body,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=DEADLINE_S,
    )
    return np.stack([np.frombuffer(b64decode(row), "<f4") for row in reply.json()["embeddings"]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_server_gives_the_bits_of_one_request(kind: str, keyed: RunningServer):
    """However many requests the client makes of a list."""
    texts = [f"ship {n} " * (n % 7 + 1) for n in range(600)]

    found = called(kind, "embed", texts, url=keyed.url, key=KEY)

    assert found.complete().tobytes() == by_hand(keyed, texts).tobytes()
    assert (found.model, found.errors, found.fingerprint[:3]) == ("tiny", (), "v1:")


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_server_says_what_has_no_vector(kind: str, keyed: RunningServer):
    found = called(kind, "embed", ["ship", " "], url=keyed.url, key=KEY)

    assert [(error.index, error.code) for error in found.errors] == [(1, "empty_text")]
    assert np.isnan(found.vectors[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_key_is_a_refusal(kind: str, keyed: RunningServer):
    with pytest.raises(RefusedError) as refused:
        called(kind, "embed", "ship", url=keyed.url, key="wrong")
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_ranked_stored_and_found(kind: str, keyed: RunningServer):
    """What each route of the server answers is read into its record."""

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        return called(kind, name, *arguments, url=keyed.url, key=KEY, **options)

    ranking = call("rank", "a ship", ["tea", "a ship", " "], top_k=2, priority="interactive")
    assert ranking.results[0].index == 1
    assert (ranking.kind, ranking.degraded) == ("dense", None)
    assert [error.index for error in ranking.errors] == [2]

    name = f"ships-{kind}"
    call("request", "PUT", f"/collections/{name}", {})
    lines = (
        b'{"id": "a", "text": "a ship", "metadata": {"year": 1876}}\n{"id": "b", "text": "tea"}\n'
    )
    stored = call("request", "POST", f"/collections/{name}/documents", lines=lines)
    assert stored["added"] == 2
    results = call("search", name, "a ship", where={"year": {"$gte": 1870}})
    [found] = results.results
    assert (found.id, found.text, found.metadata) == ("a", "a ship", {"year": 1876})
    assert (results.mode, results.degraded) == ("dense", None)
    assert call("health")["status"] == "ok"


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_preferred_to_words(kind: str, keyed: RunningServer):
    """Words come only where memory is short."""
    found = called(kind, "embed_or_words", ["a ship"], url=keyed.url, key=KEY, priority="bulk")
    assert found.complete().shape == (1, TINY.hidden)


def test_a_server_that_is_not_there_is_said(tmp_path: Path):
    with Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(NoAnswerError):
        client.health()

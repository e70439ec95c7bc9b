"""Bodies measured before they are parsed, parsed in a thread where large, and not kept."""

import asyncio
import gc
import json
import tracemalloc

import pytest

from plimsoll.api.edge import middleware
from plimsoll.api.edge.json_body import JSONLimits
from tests.api.edge.bodies import (
    KIB,
    MIB,
    Bodies,
    Client,
    HeldThread,
    body_of,
    breaking_opener,
    serving,
)
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer

TEXTS = ["a ship"] * 3
MAX_DEPTH, MAX_VALUES = JSONLimits().depth, JSONLimits().n_values

# --- measured before it is parsed -----------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [KIB, 100 * KIB, MIB])
def test_a_body_may_be_nested_so_deep_and_no_deeper(n_bytes: int):
    """At any size; what is deeper than anything meant costs a parser its stack."""

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


# --- as an operator sets it -----------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [KIB, 100 * KIB])
def test_another_depth_is_kept_at_any_size(n_bytes: int):
    """Also where the body is too small to be worth a scan otherwise."""

    def nested(depth: int) -> bytes:
        lists = "[" * (depth - 1) + "]" * (depth - 1)
        return f'{{"input":{lists}{" " * n_bytes}}}'.encode()

    with serving(json_limits=JSONLimits(depth=10)) as server:
        deepest, deeper = Client(nested(10)), Client(nested(11))
        deepest.call(server)
        deeper.call(server)

    assert deepest.error["param"] == "input"
    assert (deeper.status, deeper.error["code"]) == (400, "invalid_request")
    assert "more than 10 lists and objects" in deeper.error["message"]
    assert "PLIMSOLL_JSON_DEPTH" in deeper.error["message"]


def test_another_number_of_values_is_kept():
    """The object, its key and its list are three of them."""

    def texts(n_texts: int) -> bytes:
        return b'{"input":[' + b'"",' * (n_texts - 1) + b"5]}"

    with serving(json_limits=JSONLimits(n_values=100_000)) as server:
        most, more = Client(texts(100_000 - 3)), Client(texts(100_001 - 3))
        most.call(server)
        more.call(server)

    assert most.status == 400  # for the 5, so that nothing is computed
    assert (more.status, more.error["code"]) == (413, "body_too_large")
    assert "100,000 values (PLIMSOLL_JSON_VALUES)" in more.error["message"]


@pytest.mark.parametrize(
    ("path", "field", "rest"),
    [
        ("/embed", "input", {}),
        ("/v1/embeddings", "input", {}),
        ("/rank", "documents", {"query": "a ship"}),
    ],
)
def test_a_request_may_have_so_many_texts_and_no_more(path: str, field: str, rest: dict):
    """In every dialect, by the name that it has for them; a text by itself is one."""

    def sent(texts: object) -> Client:
        client = Client(json.dumps({field: texts, **rest}).encode(), path=path)
        client.call(server)
        return client

    with serving(json_limits=JSONLimits(n_texts=3)) as server:
        most, more, tokens = sent(["a ship"] * 3), sent(["a ship"] * 4), sent([1, 2, 3, 4])

    assert most.status == 200
    assert (more.status, more.error["code"]) == (413, "body_too_large")
    assert f"{field} has 4 texts and 3 is the most" in more.error["message"]
    assert "PLIMSOLL_TEXTS_LIMIT" in more.error["message"]
    assert tokens.status == 400  # one text, which is refused for another reason


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei/embed", {"inputs": TEXTS}),
        ("/tei/rerank", {"query": "a ship", "texts": TEXTS}),
        ("/tei/similarity", {"inputs": {"source_sentence": "a ship", "sentences": TEXTS}}),
        ("/api/embed", {"model": "fake", "input": TEXTS}),
        ("/v2/embed", {"model": "fake", "input_type": "search_query", "texts": TEXTS}),
    ],
)
@pytest.mark.parametrize(("n_texts", "is_taken"), [(len(TEXTS), True), (len(TEXTS) - 1, False)])
def test_the_dialects_of_others_keep_to_the_number_of_texts_too(
    path: str, body: dict, n_texts: int, is_taken: bool
):
    """Each says so in its own shape; a client would go around a limit that one of them lacks."""
    with serving(json_limits=JSONLimits(n_texts=n_texts)) as server:
        client = Client(json.dumps(body).encode(), path=path)
        client.call(server)

    answer = b"".join(message["body"] for message in client.sent[1:])
    assert (client.status == 200) == is_taken, answer
    assert (b"PLIMSOLL_TEXTS_LIMIT" in answer) != is_taken


# --- in the thread --------------------------------------------------------------------------


@pytest.mark.parametrize("body", [body_of(300 * KIB), b"[" * 300 * KIB], ids=["fine", "refused"])
def test_a_reservation_is_held_as_long_as_a_thread_reads_the_body(body: bytes):
    """A thread cannot be cancelled: what it works on takes memory though the client has gone."""
    bodies = Bodies()
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
        assert bodies.held_bytes == 300 * KIB
        thread.released.set()
        await asyncio.wait_for(request, DEADLINE_S)
        assert client.sent == []

    with serving(bodies) as server:
        server.app.state.parsing = thread
        try:
            asyncio.run(hang_up_while_it_is_scanned(server))
        finally:
            thread.released.set()
            thread.shutdown()

    assert bodies.held_bytes == 0


def test_large_bodies_are_scanned_and_parsed_in_the_thread_and_small_ones_are_not():
    """The event loop must answer probes in between; a small body is done before a thread begins."""
    thread = HeldThread()
    thread.released.set()

    with serving() as server:
        server.app.state.parsing = thread
        Client(body_of(256 * KIB)).call(server)
        n_small = thread.n_jobs
        Client(body_of(256 * KIB + 1)).call(server)
        thread.shutdown()

    assert (n_small, thread.n_jobs) == (0, 2)


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
    monkeypatch.setattr(middleware.log, "disabled", True)  # pytest keeps what is logged
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

"""What a client may take of a connection before there is a request, and what it is told then."""

import asyncio
import json
import logging
import socket
import ssl
from contextlib import suppress

import h11
import pytest
from starlette.types import Receive, Scope, Send

from tests.running_server import DEADLINE_S
from tests.server.served import REQUEST, Application, HeldApp, Served, served, with_limits

GET = b"GET /one HTTP/1.1\r\nHost: test\r\n\r\n"
SHORT_S = 0.05
OF_16_KIB = b"x" * (16 << 10)


def error_of(answer: bytes) -> dict[str, str]:
    """The error of one answer, whose connection closes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    found: dict[str, str] = json.loads(body)["error"]
    return found


def answered(*data: bytes, header_s: float = 10.0) -> tuple[bytes, Served]:
    """All that comes for these bytes, by a server that has let go of everything then."""

    async def scenario() -> tuple[bytes, Served]:
        async with served(Application(), with_limits(header_s=header_s)) as server:
            answer = await (await server.connect()).all(*data)
            await server.all_gone()
            assert server.n_open == 0
            return answer, server

    return asyncio.run(scenario())


# --- size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /one HTTP/1.1\r\nHost: test\r\nX-Long: " + OF_16_KIB + b"\r\n\r\n",
        b"GET /one HTTP/1.1\r\nHost: test\r\nX-Long: " + OF_16_KIB,
        b"GET /" + OF_16_KIB + b" HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /one HTTP/1.1\r\nHost: test\r\n" + b"A: b\r\n" * 4000 + b"\r\n",
    ],
    ids=["whole", "not whole", "a long path", "many fields"],
)
def test_a_header_over_the_limit_is_refused_with_its_setting(request_bytes: bytes):
    """Also one that comes at once and whole, which h11 would take."""
    answer, server = answered(request_bytes)

    assert answer.startswith(b"HTTP/1.1 431 ")
    error = error_of(answer)
    assert error["code"] == "header_too_large"
    assert "16 KiB (PLIMSOLL_HEADER_LIMIT)" in error["message"]
    assert server.n_ended("header_too_large") == 1


def test_a_header_just_below_the_limit_is_served():
    """The limit is on the header alone, not on what comes behind it."""
    filler = b"X-Long: " + b"x" * (15 << 10) + b"\r\n"
    body = b"y" * (64 << 10)
    head = b"POST /one HTTP/1.1\r\nHost: test\r\nConnection: close\r\n" + filler
    answer, _ = answered(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    assert answer.startswith(b"HTTP/1.1 200 ")


# --- time ---------------------------------------------------------------------------------------


def test_a_header_that_comes_slowly_ends_with_408():
    """uvicorn waits for it for ever."""
    answer, server = answered(GET[:-2], header_s=SHORT_S)

    assert answer.startswith(b"HTTP/1.1 408 ")
    error = error_of(answer)
    assert error["code"] == "slow_header"
    assert "PLIMSOLL_HEADER_TIMEOUT_S" in error["message"]
    assert server.n_ended("slow_header") == 1


def test_a_byte_at_a_time_gives_no_more_time():
    """Each byte would begin the wait anew for a client that sends a few of them a minute."""

    async def scenario() -> bytes:
        async with served(Application(), with_limits(header_s=SHORT_S)) as server:
            client = await server.connect()
            reading = asyncio.create_task(client.reader.read())
            while not reading.done():
                client.writer.write(b"G")
                await asyncio.sleep(0.005)
            client.writer.close()
            return await reading

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 408 ")


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word():
    """A browser's spare connection would take an answer for that of its next request."""
    answer, server = answered(header_s=SHORT_S)

    assert answer == b""
    assert server.n_ended("silent") == 1


def test_the_second_header_of_a_connection_has_its_time_too():
    """The time of an idle connection ends with the first byte, and uvicorn's care with it."""
    answer, server = answered(GET, GET[:-2], header_s=SHORT_S)

    first, _, second = answer.partition(b"/one")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second[second.index(b"HTTP/1.1") :].startswith(b"HTTP/1.1 408 ")
    assert server.n_ended("slow_header") == 1


def test_a_connection_that_is_used_again_is_idle_in_between():
    """The time for headers is not that of an idle connection, which is longer."""

    async def scenario() -> list[bytes]:
        async with served(Application(), with_limits(header_s=SHORT_S)) as server:
            client = await server.connect()
            answers = []
            for _ in range(2):
                client.writer.write(GET)
                answers.append(await client.reader.readuntil(b"/one\r\n"))
                await client.reader.readuntil(b"0\r\n\r\n")
                await asyncio.sleep(3 * SHORT_S)
            client.writer.close()
            return answers

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in asyncio.run(scenario()))


class Hasty:
    """Answers before it has read the body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


def test_a_body_that_no_route_reads_does_not_hold_its_connection():
    """Each byte of it ends uvicorn's time for idle connections, and there was no other."""

    async def scenario() -> None:
        async with served(Hasty(), with_limits(header_s=SHORT_S)) as server:
            client = await server.connect()
            client.writer.write(b"GET /one HTTP/1.1\r\nHost: test\r\nContent-Length: 9999\r\n\r\n")
            await client.reader.readuntil(b"answer")
            reading = asyncio.create_task(client.reader.read())
            while not reading.done():
                client.writer.write(b"x")
                await asyncio.sleep(0.005)
            with suppress(ConnectionResetError):  # by what was sent meanwhile
                await reading

    asyncio.run(scenario())


def test_a_connection_is_timed_again_once_the_rest_of_a_body_has_come():
    """It came after the answer, with which uvicorn's time for idle connections began and ended."""

    async def scenario() -> bool:
        async with served(Hasty()) as server:
            client = await server.connect()
            client.writer.write(b"GET /one HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\n")
            await client.reader.readuntil(b"answer")
            (connection,) = server.state.connections
            client.writer.write(b"12345")
            while connection.conn.their_state is not h11.IDLE:
                await asyncio.sleep(0.005)
            return connection.timeout_keep_alive_task is not None

    assert asyncio.run(scenario())


def test_a_client_that_leaves_the_end_of_its_answer_is_let_go_too():
    """So little is left that uvicorn takes the answer for sent; closing would wait for it."""

    async def scenario() -> Served:
        async with served(Application(size=32 << 20), with_limits(send_s=SHORT_S)) as server:
            with socket.create_connection((server.host, server.port)) as client:
                while not server.n_open:
                    await asyncio.sleep(0.005)
                (connection,) = server.state.connections
                # As uvicorn's, only that the kernel's steps are smaller than these.
                connection.transport.set_write_buffer_limits(high=16 << 20, low=8 << 20)
                client.sendall(GET)
                client.setblocking(False)
                while not 0 < connection.transport.get_write_buffer_size() < 8 << 20:
                    with suppress(BlockingIOError):
                        client.recv(256 << 10)
                    await asyncio.sleep(0)
                await server.all_gone()
            return server

    assert asyncio.run(scenario()).n_ended("slow_reader") == 1


def test_a_client_that_does_not_read_its_answer_is_let_go():
    """Its answer would stay in memory for as long as it likes."""

    async def scenario() -> Served:
        app = Application(size=32 << 20)  # more than the kernel holds for both sides
        async with served(app, with_limits(send_s=SHORT_S)) as server:
            with socket.create_connection((server.host, server.port)) as client:
                client.sendall(GET)
                while not server.n_open:
                    await asyncio.sleep(0.005)
                await server.all_gone()
            return server

    assert asyncio.run(scenario()).n_ended("slow_reader") == 1


def test_a_client_that_reads_slowly_gets_its_whole_answer():
    """It takes longer than the limit, which is for those who take nothing."""

    async def scenario() -> int:
        app = Application(size=16 << 20)
        async with served(app, with_limits(send_s=1.0)) as server:
            client = await server.connect()
            client.writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            received = 0
            while piece := await client.reader.read(256 << 10):
                received += len(piece)
                await asyncio.sleep(0.02)
            client.writer.close()
            return received

    assert asyncio.run(scenario()) > 16 << 20


# --- what is no request -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)),
        b"\r\n\r\n",
        b"HELO example.org\r\n\r\n",
        b"GET /one HTTP/1.1\r\nHost : test\r\n\r\n",
        b"GET /one HTTP/1.1\r\n\r\n",
        b"POST /one HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["bytes", "nothing", "SMTP", "a space", "no host", "two lengths", "HTTP/2"],
)
def test_what_is_no_request_gets_400(data: bytes):
    """In the shape of every other error, and the connection closes."""
    answer, server = answered(data)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_of(answer)["code"] == "malformed_request"
    assert server.n_ended("malformed_request") == 1


@pytest.mark.parametrize("asks_first", [False, True])
def test_a_broken_piece_of_a_body_ends_its_request(asks_first: bool):
    """What is under way hears that its client is gone, and the client why.

    Nothing else is written behind that, not even to one that asked whether it may send.
    """

    async def scenario() -> tuple[bytes, bool]:
        app = Application()
        async with served(app) as server:
            head = b"POST /one HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n"
            head += b"Expect: 100-continue\r\n" if asks_first else b""
            answer = await (await server.connect()).all(head + b"\r\nnot a size\r\n")
            async with asyncio.timeout(DEADLINE_S):
                await app.gone.wait()
            return answer, bool(app.asked)

    answer, was_served = asyncio.run(scenario())

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not was_served


def test_a_client_that_speaks_tls_is_told_from_others(caplog: pytest.LogCaptureFixture):
    """The log names what people get wrong most: https:// in an address of this port."""
    hello = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="example.org").do_handshake()
    with caplog.at_level(logging.WARNING, "plimsoll"):
        answer, _ = answered(hello.read())

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "use http:// in its address" in error_of(answer)["message"]
    assert "127.0.0.1" in caplog.text
    assert "TLS" in caplog.text


def test_a_refused_client_that_goes_on_sending_reads_why():
    """One that writes into a closed connection sees a reset instead of its answer."""
    answer, _ = answered(b"\x00", *[b"more" * 1024] * 50)

    assert error_of(answer)["code"] == "malformed_request"


def test_a_refused_client_that_sends_without_end_is_let_go():
    """The moment that it has to read its answer ends, and so does what is read of it."""

    async def scenario() -> None:
        async with served(Application()) as server:
            client = await server.connect()
            client.writer.write(b"\x00")
            while server.state.connections or not server.n_ended("malformed_request"):
                client.writer.write(bytes(1 << 16))
                await asyncio.sleep(0.001)
            client.writer.close()

    asyncio.run(scenario())


def test_what_comes_behind_the_last_request_of_a_connection_is_not_read():
    """Some clients put an empty line there, and the answer is none of its business."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with served(app) as server:
            client = await server.connect()
            client.writer.write(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
            await app.asked.wait()
            client.writer.write(b"\r\n")
            await asyncio.sleep(SHORT_S)
            app.released.set()
            return await client.all()

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 200 ")


# --- one after another --------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order():
    """Some clients send the next one before they have the answer."""
    paths = [b"/%d" % number for number in range(50)]
    requests = [GET.replace(b"/one", path) for path in paths[:-1]]
    last = GET.replace(b"/one", paths[-1]).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer, _ = answered(b"".join(requests) + last)

    assert answer.count(b"HTTP/1.1 200 ") == len(paths)
    places = [answer.index(b"\r\n%s\r\n" % path) for path in paths]
    assert places == sorted(places)


def test_what_is_no_request_behind_one_that_is_ends_the_connection_after_its_answer():
    """The first has done nothing wrong."""
    answer, _ = answered(REQUEST + b"\x00\x01")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 400 " in answer

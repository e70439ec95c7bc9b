"""How the server ends: what signals do, and what becomes of requests under way."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from uvicorn import Server

from plimsoll.api.edge.refusals import Refusals
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.server.connections import Connections
from plimsoll.server.last_answers import LastAnswers
from plimsoll.server.notify import ServiceManager
from plimsoll.server.run import DrainTimes, PlimsollServer, http_config
from plimsoll.serving.core import Drain
from plimsoll.settings import Settings
from plimsoll.telemetry.metrics import Telemetry
from tests.logged import own_records
from tests.running_server import DEADLINE_S, RunningServer
from tests.server.served import LIMITS, REQUEST, Client, HeldApp

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
# A request whose body never comes whole; it is under way once it is told to send that.
UNFINISHED = (
    b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
)


class EndingServer:
    """The server over an application that answers when it is let, in this process."""

    def __init__(self, app: HeldApp, times: DrainTimes) -> None:
        self.drain = Drain()
        telemetry = Telemetry("test")
        refusals = Refusals(telemetry.requests, RecentRequests(), lambda: 0.5)
        connections = Connections(LIMITS, refusals, telemetry.connections)
        config = http_config(LastAnswers(app, self.drain), Settings(), connections)
        config.lifespan = "off"  # the application is none that knows of it
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()
        self.server: Server = PlimsollServer(config, self.drain, times, ServiceManager(None))
        self.serving: asyncio.Task[None]

    async def connect(self) -> Client:
        """A connection to it."""
        return Client(*await asyncio.open_connection(*self.address))

    def signal(self) -> None:
        """As the handler of a signal does."""
        self.server.handle_exit(signal.SIGTERM, None)

    async def has_stopped_listening(self) -> None:
        """Wait until no connection is taken any more."""
        while self.listening.fileno() >= 0:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def ending(
    app: HeldApp, *, delay_s: float = 0, finish_s: float = DEADLINE_S
) -> AsyncIterator[EndingServer]:
    """A server that the block ends; it is awaited."""
    async with asyncio.timeout(DEADLINE_S):
        found = EndingServer(app, DrainTimes(delay_s, finish_s))
        found.serving = asyncio.create_task(found.server.serve([found.listening]))
        while not found.server.started:
            await asyncio.sleep(0.005)
        yield found
        await found.serving


def test_a_request_under_way_is_answered_and_its_connection_said_to_close():
    """A client that would use it again comes to another server instead."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with ending(app) as server:
            client = await server.connect()
            client.writer.write(REQUEST)
            await app.asked.wait()
            server.signal()
            await server.has_stopped_listening()
            app.released.set()
            return await client.all()

    answer = asyncio.run(scenario())

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_request_that_comes_over_an_open_connection_is_answered():
    """It was on its way when the server began to end."""

    async def scenario() -> bytes:
        app = HeldApp()
        app.released.set()
        async with ending(app) as server:
            client = await server.connect()
            client.writer.write(GET)
            await client.reader.readuntil(b"answer\r\n0\r\n\r\n")
            server.signal()
            await server.has_stopped_listening()
            return await client.all(GET)

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_waits_to_be_accepted_is_taken_before_the_server_stops_listening():
    """The kernel has opened it, so its client believes in it, and would see a reset."""

    async def scenario() -> list[bytes]:
        app = HeldApp()
        app.released.set()
        async with ending(app) as server:
            server.signal()
            loop = asyncio.get_running_loop()
            # No turn of the loop lies between: the server has not seen them.
            waiting = [socket.create_connection(server.address) for _ in range(20)]
            for client in waiting:
                client.sendall(GET)
                client.setblocking(False)
            loop.remove_reader(server.listening.fileno())  # nor will it see them by itself
            answers = [await loop.sock_recv(client, 4096) for client in waiting]
            for client in waiting:
                client.close()
            return answers

    answers = asyncio.run(scenario())

    assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 20


def test_an_idle_connection_does_not_hold_the_end_up():
    """Neither one that has been used nor one on which nothing ever came."""

    async def scenario() -> list[bytes]:
        app = HeldApp()
        app.released.set()
        async with ending(app) as server:
            used, silent = await server.connect(), await server.connect()
            used.writer.write(GET)
            await used.reader.readuntil(b"answer\r\n0\r\n\r\n")
            server.signal()
            return [await used.all(), await silent.all()]

    assert asyncio.run(scenario()) == [b"", b""]


def test_one_that_has_just_been_refused_does_not_keep_others_from_their_answer():
    """It stands open for a moment, to be read, and nothing may be written to it any more."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with ending(app) as server:
            refused, client = await server.connect(), await server.connect()
            client.writer.write(REQUEST)
            await app.asked.wait()
            refused.writer.write(b"\x16\x03\x01")  # no HTTP, but the begin of a TLS hello
            await refused.reader.readexactly(12)
            server.signal()
            server.signal()
            answer = await client.all()
            refused.writer.close()
            return answer

    answer = asyncio.run(scenario())

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"stopping"' in answer


def test_with_a_delay_the_server_says_that_it_ends_and_still_takes_connections():
    """A balancer needs a moment to see that, and sends new clients meanwhile."""

    async def scenario() -> bytes:
        app = HeldApp()
        app.released.set()
        async with ending(app, delay_s=DEADLINE_S) as server:
            server.signal()
            while not server.server.should_exit or not server.drain.started:
                await asyncio.sleep(0.005)
            answer = await (await server.connect()).all(GET)
            server.signal()
            return answer

    answer = asyncio.run(scenario())

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize("is_hurried", [False, True], ids=["after its time", "by a second signal"])
def test_what_does_not_finish_gets_503_and_its_work_is_dropped(
    is_hurried: bool, caplog: pytest.LogCaptureFixture
):
    """No traceback, no 500: its client is told to come again."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with ending(app, finish_s=DEADLINE_S if is_hurried else 0) as server:
            client = await server.connect()
            client.writer.write(REQUEST)
            await app.asked.wait()
            server.signal()
            if is_hurried:
                await server.has_stopped_listening()
                server.signal()
            answer = await client.all()
            await app.gone.wait()
            return answer

    answer = asyncio.run(scenario())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 6\r\n" in head.lower()  # 5 s, and half of a tenth
    assert json.loads(body)["error"]["code"] == "stopping"
    said = [record for record in own_records(caplog) if "are ended" in record.getMessage()]
    why = "after a second signal, SIGTERM" if is_hurried else "PLIMSOLL_DRAIN_S"
    assert why in said[0].getMessage()
    assert not [record for record in caplog.records if record.exc_info]


def test_work_that_does_not_heed_its_clients_end_is_cancelled_in_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """The very last means; uvicorn would log a traceback and send 500."""
    monkeypatch.setattr("plimsoll.server.run.END_S", 0.05)

    class DeafApp(HeldApp):
        async def __call__(self, scope, receive, send) -> None:
            self.asked.set()
            await asyncio.Event().wait()

    async def scenario() -> bytes:
        app = DeafApp()
        async with ending(app, finish_s=0) as server:
            client = await server.connect()
            client.writer.write(REQUEST)
            await app.asked.wait()
            server.signal()
            return await client.all()

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 503 ")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_terminal_that_closes_ends_the_server_as_other_signals_do(
    tmp_path: Path, options: list[str]
):
    """By default SIGHUP kills at once, in the middle of requests."""
    as_usual = ["env", "--default-signal=HUP"]  # also where the tests run under nohup
    with RunningServer(tmp_path, *options, prefix=as_usual) as server:
        server.process.send_signal(signal.SIGHUP)
        code = server.wait()

    assert code == 0
    assert "Finished server process" in server.log


def test_nohup_keeps_the_server(tmp_path: Path, options: list[str]):
    """It ignores the signal for what it starts, which must not undo that."""
    with RunningServer(tmp_path, *options, prefix=["nohup"]) as server:
        server.process.send_signal(signal.SIGHUP)
        answer = httpx.get(f"{server.url}/health/live", timeout=DEADLINE_S)
        server.terminate()
        code = server.wait()

    assert (answer.status_code, code) == (200, 0)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_server_at_once(
    sign: signal.Signals, tmp_path: Path, options: list[str]
):
    """The first waits for requests under way, here one whose body never comes whole."""
    with RunningServer(tmp_path, *options) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as client:
            client.sendall(UNFINISHED)
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # the request is under way
            server.process.send_signal(sign)
            server.wait_for_line("Shutting down")
            server.process.send_signal(sign)
            answer = client.recv(4096)
            code = server.wait()

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert code == 128 + sign
    assert f"after a second signal, {sign.name}" in server.log
    assert "Finished server process" in server.log
    assert not re.search(r"Traceback|Exception|\b500\b", server.log)


def test_the_server_is_not_ready_from_the_first_signal_on(tmp_path: Path, options: list[str]):
    """Over the connections that it still takes: a balancer asks there."""
    with RunningServer(tmp_path, *options, "--drain-delay-s", "60") as server:
        server.terminate()
        server.wait_for_line("Shutting down")
        ready = httpx.get(f"{server.url}/health/ready", timeout=DEADLINE_S)
        answer = httpx.post(f"{server.url}/embed", json={"input": "a ship"}, timeout=DEADLINE_S)
        server.terminate()
        code = server.wait()

    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    assert code == 128 + signal.SIGTERM

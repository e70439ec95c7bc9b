"""The HTTP server itself: what it speaks, where it listens, how long it waits."""

import asyncio
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from plimsoll.server import INTERIM_ANSWER, STARTUP_FAILURE, http_config, listen
from plimsoll.settings import Settings
from tests.logged import own_records
from tests.running_server import DEADLINE_S, ROOT, SERVE, RunningServer, environment
from tests.small_models import TINY
from tests.synthetic import write_synthetic

BODY = {"input": "a ship"}
# What java.net.http.HttpClient sends with each request over plain HTTP unless it is told not to.
JAVA = {
    "Connection": "Upgrade, HTTP2-Settings",
    "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade": "h2c",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a server that is there at once."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_synthetic(folder / "tiny.gguf", arch="bert", shape=TINY)
    return ["--model", str(file), "--cache-dir", str(folder / "cache")]


def test_what_only_some_servers_need_is_not_loaded(tmp_path: Path):
    """Clients of webhooks, plug-ins, tables and files: other servers neither wait for them nor hold
    them in memory.
    """
    program = (
        "import sys, pathlib; from plimsoll.composition.application import create_app; "
        "from plimsoll.settings import Settings; "
        "create_app(Settings(cache_dir=pathlib.Path(sys.argv[1]))); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()

    assert "plimsoll.migration.hooks.configuration" in loaded
    needless = {"httpx", "packaging", "pluggy", "psycopg", "pyarrow", "rich"}
    assert needless.intersection(loaded) == set()


@pytest.fixture(scope="module")
def java_server(
    options: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server beside an httptools that ends it when it is imported, with short patience."""
    folder = tmp_path_factory.mktemp("java")
    (folder / "httptools.py").write_text("raise SystemExit('httptools was taken unasked')\n")
    variables = {"PYTHONPATH": f"{folder}:{ROOT}", "PLIMSOLL_KEEP_ALIVE_S": "1"}
    with RunningServer(folder, *options, **variables) as server:
        yield server


def test_javas_client_is_answered_beside_httptools(java_server: RunningServer):
    """It offers HTTP/2 in each request; httptools takes that for the end of the request."""
    with httpx.Client(base_url=java_server.url, timeout=DEADLINE_S) as client:
        answers = [client.post("/embed", json=BODY, headers=JAVA) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(answer.json()["embeddings"][0] for answer in answers)
    assert "upgrade" not in java_server.log.lower()


def test_a_websocket_is_not_opened(java_server: RunningServer):
    """There is no route for one; the request is answered as any other."""
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }

    assert httpx.get(f"{java_server.url}/health/live", headers=headers).status_code == 200


def test_an_idle_connection_is_closed_after_the_time_that_is_set(java_server: RunningServer):
    """A client that never comes back must not hold a connection for ever."""
    parts = urlsplit(java_server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        answer = b""
        while received := connection.recv(65536):
            answer += received

    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in answer.lower()


def test_an_idle_connection_outlives_a_balancers_patience():
    """Balancers keep theirs for 60 seconds and more; the side that sends must close first."""
    config = http_config(FastAPI(), Settings())

    assert config.timeout_keep_alive == 75
    assert http_config(FastAPI(), Settings(keep_alive_s=90)).timeout_keep_alive == 90


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_the_unspecified_address_takes_both_families(tmp_path: Path, options: list[str]):
    """`::` is how people ask for every address there is."""
    with RunningServer(tmp_path, *options, "--host", "[::]", "--allow-anonymous") as server:
        port = urlsplit(server.url).port
        addresses = [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
        answers = [httpx.post(f"{url}/embed", json=BODY, timeout=DEADLINE_S) for url in addresses]
        server.terminate()
        code = server.wait()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert code == 0


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_that_is_taken_ends_a_server_of_both_families(tmp_path: Path, options: list[str]):
    """With one line, as on any other address."""
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        port = str(listener.getsockname()[1])
        reach = ("--host", "::", "--port", port, "--allow-anonymous")
        with pytest.raises(RuntimeError, match="in use") as failed:
            RunningServer(tmp_path, *options, *reach)

    assert "Traceback" not in str(failed.value)


# --- connections that are shut on one side --------------------------------------------------


class HeldApp:
    """Answers when it is let; notes whether its client hung up before."""

    def __init__(self) -> None:
        self.asked, self.released, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        while (await receive()).get("more_body"):
            pass
        self.asked.set()
        hung_up, released = (asyncio.ensure_future(w) for w in (receive(), self.released.wait()))
        await asyncio.wait((hung_up, released), return_when=asyncio.FIRST_COMPLETED)
        if not released.done():
            self.gone.set()
        for task in (hung_up, released):
            task.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[Connection]:
    """A connection to `app`, served as the server serves it."""
    config = http_config(app, Settings())
    config.load()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config, ServerState(), {})

    async with asyncio.timeout(DEADLINE_S):
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                yield reader, writer
            finally:
                writer.close()


REQUEST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}"


def test_a_client_that_shuts_its_sending_side_gets_its_answer():
    """As `nc -N` and simple scripts do once they have sent all that they have to say."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with connected(app) as (reader, writer):
            writer.write(REQUEST)
            writer.write_eof()
            await app.asked.wait()
            interim = await reader.readexactly(len(INTERIM_ANSWER))
            app.released.set()
            return interim + await reader.read()  # to the end: the connection is closed

    answer = asyncio.run(scenario())

    assert answer.startswith(INTERIM_ANSWER + b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1") == 2
    assert b"answer" in answer


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_hangs_up_is_known_to_be_gone(version: bytes):
    """Its work is dropped; the end of its sending looks the same as that of one who waits."""

    async def scenario() -> None:
        app = HeldApp()
        async with connected(app) as (_, writer):
            writer.write(REQUEST.replace(b"HTTP/1.1", b"HTTP/" + version))
            await app.asked.wait()
            writer.close()
            await app.gone.wait()

    asyncio.run(scenario())


def test_a_client_that_shuts_its_side_within_its_body_is_gone():
    """What it asked for will never be whole."""

    async def scenario() -> bytes:
        async with connected(HeldApp()) as (reader, writer):
            writer.write(REQUEST[:-1])
            writer.write_eof()
            return await reader.read()

    assert INTERIM_ANSWER not in asyncio.run(scenario())


# --- signals --------------------------------------------------------------------------------


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


def test_a_second_interrupt_ends_the_server_at_once(tmp_path: Path, options: list[str]):
    """The first waits for requests under way, here one whose body never comes whole."""
    with RunningServer(tmp_path, *options) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as client:
            client.sendall(
                b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
            )
            assert client.recv(100).startswith(b"HTTP/1.1 100")  # the request is under way
            server.process.send_signal(signal.SIGINT)
            server.wait_for_line("Shutting down")
            server.process.send_signal(signal.SIGINT)
            code = server.wait()

    assert code == 130
    assert "stopped at once by a second SIGINT" in server.log


def test_a_target_in_absolute_form_is_the_path_in_it(java_server: RunningServer):
    """Clients that take the server for a proxy send it, and every server has to take it."""
    parts = urlsplit(java_server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S) as connection:
        connection.sendall(
            b"GET http://test/health/live?x=1 HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = b""
        while received := connection.recv(65536):
            answer += received

    assert answer.startswith(b"HTTP/1.1 200")


# --- who may reach it --------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_keys_a_server_for_others_does_not_start(host: str, options: list[str]):
    """With one line that says what to set; an open port is found within hours."""
    command = [*SERVE, *options, "--host", host]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"PLIMSOLL_HOST is {host}" in done.stderr
    assert "PLIMSOLL_API_KEYS" in done.stderr
    assert "PLIMSOLL_ALLOW_ANONYMOUS=true" in done.stderr


def test_with_keys_a_server_for_others_starts_and_asks_for_one(tmp_path: Path, options: list[str]):
    """The keys keep strangers out; nothing else has to be said."""
    key = "a-key-of-the-test-0123456789"
    variables = {"PLIMSOLL_HOST": "0.0.0.0", "PLIMSOLL_API_KEYS": f"embed:{key}"}
    with RunningServer(tmp_path, *options, "--log-level", "debug", **variables) as server:
        url = f"http://127.0.0.1:{urlsplit(server.url).port}"
        stranger = httpx.post(f"{url}/embed", json=BODY, timeout=DEADLINE_S)
        headers = {"X-API-Key": key}
        client = httpx.post(f"{url}/embed", json=BODY, headers=headers, timeout=DEADLINE_S)
        server.terminate()
        server.wait()

    assert (stranger.status_code, client.status_code) == (401, 200)
    assert key not in server.log


def test_a_server_does_not_start_with_keys_that_are_none(tmp_path: Path, options: list[str]):
    """A slip in the list must not lock clients out unseen, and must not be printed."""
    with pytest.raises(RuntimeError, match="entry 2") as failed:
        RunningServer(tmp_path, *options, PLIMSOLL_API_KEYS="embed:long-enough-0123456,hunter2")

    assert "Traceback" not in str(failed.value)
    assert "hunter2" not in str(failed.value)


# --- where it cannot listen -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ({"port": None}, "address already in use; stop what uses it"),
        ({"host": "no-such-host.invalid"}, "cannot listen on port 0 of no-such-host.invalid"),
        ({"host": "192.0.2.1"}, "set PLIMSOLL_HOST"),
    ],
    ids=["a port in use", "an unknown host", "another machine's address"],
)
def test_where_it_cannot_listen_it_says_so_in_one_line(
    place: dict[str, str | None], told: str, caplog: pytest.LogCaptureFixture
):
    """Before anything is fetched or started; a supervisor sees the exit code."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if "port" in place else 0
        with pytest.raises(SystemExit) as ended:
            listen(Settings(host=place.get("host") or "127.0.0.1", port=port))

    assert ended.value.code == STARTUP_FAILURE
    [record] = own_records(caplog)
    assert told in record.getMessage()


def test_a_name_of_this_machine_is_listened_on():
    """Whether or not it has an IPv6 address too."""
    sockets = listen(Settings(host="localhost", port=0))
    assert {found.getsockname()[0] for found in sockets} <= {"127.0.0.1", "::1"}
    assert sockets
    for found in sockets:
        found.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_body_of_a_reply_does_not_wait_until_its_head_is_acknowledged(host: str):
    """A client that has nothing to send does so after 40 ms, four times what a query takes."""
    (listening,) = listen(Settings(host=host, port=0))
    port = listening.getsockname()[1]
    with listening, socket.create_connection(("127.0.0.1", port)):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_welcome_names_a_command_that_works(options: list[str], tmp_path: Path):
    """The first thing that a person does is to copy it."""
    with RunningServer(tmp_path, *options, "--welcome") as server:
        while " stop " not in server.log:  # its last line
            assert httpx.get(f"{server.url}/health/live").status_code == 200
        [told] = re.findall(r"^ *try +curl (.*)$", server.log, flags=re.MULTILINE)
        _, url, _, header, _, body = shlex.split(told)
        headers = dict([header.split(": ")])
        reply = httpx.post(url, content=body, headers=headers, timeout=DEADLINE_S)

    assert url == f"{server.url}/embed"
    assert reply.status_code == 200
    assert f"kill {server.process.pid}\n" in server.log

"""The HTTP server itself: what it speaks, how long it waits, whom it serves."""

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from plimsoll.settings import Settings
from tests.running_server import DEADLINE_S, ROOT, SERVE, RunningServer, environment
from tests.server.served import any_config

BODY = {"input": "a ship"}
# What java.net.http.HttpClient sends with each request over plain HTTP unless it is told not to.
JAVA = {
    "Connection": "Upgrade, HTTP2-Settings",
    "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade": "h2c",
}


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
    assert any_config(Settings()).timeout_keep_alive == 75
    assert any_config(Settings(keep_alive_s=90)).timeout_keep_alive == 90


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

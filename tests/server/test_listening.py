"""Where the server listens, and what it says where it cannot."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from plimsoll.errors import SettingsError
from plimsoll.server.listening import (
    STARTUP_FAILURE,
    claim,
    given_sockets,
    let_none_connect,
    listen,
)
from plimsoll.settings import Settings
from tests.logged import own_records
from tests.running_server import DEADLINE_S, SERVE, RunningServer, environment


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


# --- sockets of a service manager -----------------------------------------------------------

# Becomes its arguments with the process's own socket as systemd gives it.
AS_SYSTEMD = """
import os, socket, sys
listening = socket.create_server(("127.0.0.1", 0)) if sys.argv[1] == "tcp" else None
if listening is None:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(sys.argv[1]); listening.listen()
os.dup2(listening.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_that_systemd_gives_is_served(tmp_path: Path, options: list[str]):
    """Clients wait in it while the server restarts, where they would be refused otherwise."""
    prefix = [sys.executable, "-c", AS_SYSTEMD, "tcp"]
    # A port of its own would be refused: it is below 1024, or taken.
    with RunningServer(tmp_path, *options, "--host", "192.0.2.1", prefix=prefix) as server:
        answer = httpx.get(f"{server.url}/health/live", timeout=DEADLINE_S)
        server.terminate()
        code = server.wait()

    assert (answer.status_code, code) == (200, 0)


def test_a_socket_in_the_file_system_is_served(tmp_path: Path, options: list[str]):
    """For a proxy on the same machine; who may use it is a matter of the file's permissions."""
    path = tmp_path / "plimsoll.socket"
    command = [sys.executable, "-c", AS_SYSTEMD, str(path), *SERVE, *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    try:
        while "running on the socket" not in (line := process.stderr.readline()):
            assert line, "the server did not start"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=DEADLINE_S) as own:
            answer = own.post("http://localhost/embed", json={"input": "a ship"})
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)

    assert answer.status_code == 200
    assert process.returncode == 0


def test_what_is_given_to_another_process_is_not_taken():
    """The variables are inherited by what a service starts; descriptor 3 is something else here."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "PATH": "/bin"}

    assert given_sockets(environ, os.getpid()) == []
    assert environ == {"PATH": "/bin"}


def test_a_given_socket_that_strangers_reach_needs_keys_too(monkeypatch: pytest.MonkeyPatch):
    """The unit file must not open what the settings keep closed."""
    given = socket.create_server(("0.0.0.0", 0))
    monkeypatch.setattr("plimsoll.server.listening.given_sockets", lambda *_: [given])
    with given, pytest.raises(SettingsError, match=r"service manager gives is on 0\.0\.0\.0"):
        claim(Settings())


def test_a_given_descriptor_that_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch):
    """With Accept=yes systemd gives connections, one to each process."""
    one, other = socket.socketpair()
    monkeypatch.setattr("plimsoll.server.listening.FIRST_GIVEN", one.detach())
    with other, pytest.raises(SettingsError, match="Accept=no"):
        given_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}, os.getpid())


# --- two servers ----------------------------------------------------------------------------


def test_a_second_server_says_whose_folders_it_shares(tmp_path: Path, options: list[str]):
    """Weights may be shared and collections must not; a server that was killed leaves no mark."""
    data = {"PLIMSOLL_DATA_DIR": str(tmp_path / "data")}
    (tmp_path / "data").mkdir()
    with RunningServer(tmp_path, *options, **data) as first:
        with RunningServer(tmp_path, *options, **data) as second:
            second.terminate()
            second.wait()
        first.process.kill()
        first.wait()
        with RunningServer(tmp_path, *options, **data) as third:
            third.terminate()
            third.wait()

    who = f"another server (process {first.process.pid}, {first.url}) uses "
    assert f"{who}{tmp_path / 'data'} too" in second.log
    assert second.log.count(who) == 2
    assert "another server" not in first.log + third.log


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such filter")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_who_has_connected_is_served_and_no_further_one_connects(host: str):
    """Between the last look at what waits and the end, a socket would reset who came meanwhile."""
    if host != "127.0.0.1" and not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")
    [listening] = listen(Settings(host=host, port=0, allow_anonymous=True))
    place = ("127.0.0.1" if host == "127.0.0.1" else "::1", listening.getsockname()[1])
    with listening, socket.create_connection(place, timeout=DEADLINE_S) as early:
        let_none_connect(listening)
        with pytest.raises(TimeoutError):
            socket.create_connection(place, timeout=0.3)
        early.sendall(b"a request")
        taken, _ = listening.accept()
        with taken:
            assert taken.recv(100) == b"a request"
            taken.sendall(b"an answer")
            assert early.recv(100) == b"an answer"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, timeout=DEADLINE_S)

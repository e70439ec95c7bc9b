"""What a service manager is told, by systemd's own protocol."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plimsoll.server.notify import ServiceManager
from tests.logged import own_records
from tests.running_server import DEADLINE_S, RunningServer


class Manager:
    """Listens as systemd does."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening

    def next(self) -> list[str]:
        """The lines of the next message."""
        return self._listening.recv(4096).decode().splitlines()

    def wait_for(self, line: str) -> list[str]:
        """The lines of the next message that has this one."""
        while line not in (lines := self.next()):
            pass
        return lines


@contextmanager
def manager(address: str) -> Iterator[Manager]:
    """One that is reached at `address`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(DEADLINE_S)
        listening.bind(address)
        yield Manager(listening)


def test_the_manager_hears_when_the_server_is_ready_alive_and_stopping(
    tmp_path: Path, options: list[str]
):
    """What depends on the service starts when it serves; a loop that hangs is restarted."""
    path = str(tmp_path / "notify")
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "300000", "PLIMSOLL_DRAIN_S": "7"}
    with manager(path) as heard, RunningServer(tmp_path, *options, **variables) as server:
        ready = heard.wait_for("READY=1")
        alive = [heard.wait_for("WATCHDOG=1") for _ in range(3)]
        server.terminate()
        stopping = heard.wait_for("STOPPING=1")
        code = server.wait()

    assert f"STATUS=serving at {server.url}" in ready
    assert len(alive) == 3
    [extended] = [line for line in stopping if line.startswith("EXTEND_TIMEOUT_USEC=")]
    assert int(extended.partition("=")[2]) > 7e6
    assert code == 0


def test_a_manager_in_the_abstract_name_space_hears_too():
    """systemd's user instances and containers use such names."""
    name = f"plimsoll-test-{os.getpid()}"
    with manager(f"\0{name}") as heard:
        ServiceManager(f"@{name}").ready("http://127.0.0.1:8080")

        assert heard.next()[0] == "READY=1"


def test_the_variables_do_not_reach_what_the_server_starts():
    """A hook that speaks to the manager would speak for the server."""
    environ = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_PID": "1",
        "WATCHDOG_USEC": "1000000",
        "PATH": "/bin",
    }
    ServiceManager.of(environ, os.getpid())

    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/no", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ],
    ids=["no manager", "no socket", "another process"],
)
def test_without_a_watch_nothing_is_said_again_and_again(environ: dict[str, str]):
    """The task that would do so ends at once."""
    own = ServiceManager.of(environ, os.getpid())

    asyncio.run(asyncio.wait_for(own.keep_alive(), DEADLINE_S))


def test_a_manager_that_is_gone_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The clients are served all the same."""
    ServiceManager(str(tmp_path / "gone")).ready("http://127.0.0.1:8080")

    [record] = own_records(caplog)
    assert "cannot tell" in record.getMessage()

"""How many connections may be open, who counts as one client, and what the log says of the rest."""

import asyncio
import errno
import logging

import pytest

from plimsoll.api.edge.clients import client_of
from plimsoll.machine.descriptors import allow_descriptors
from plimsoll.server.connections import LOG_PAUSE_S, MOST_LINGERING
from plimsoll.server.run import limits_of
from plimsoll.settings import Settings
from tests.logged import own_records
from tests.server.served import Application, Client, Served, served, with_limits
from tests.server.test_protocol import GET, error_of

LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


async def opened(server: Served, number: int) -> list[Client]:
    """So many connections, which the server has counted."""
    clients = [await server.connect() for _ in range(number)]
    while server.n_open < number:
        await asyncio.sleep(0.005)
    return clients


@pytest.mark.parametrize(
    ("limits", "status", "code", "setting"),
    [
        ({"most": 3}, 503, "too_many_connections", "PLIMSOLL_CONNECTIONS"),
        (
            {"most_per_client": 3},
            429,
            "too_many_client_connections",
            "PLIMSOLL_CLIENT_CONNECTIONS",
        ),
    ],
    ids=["in all", "of a client"],
)
def test_one_connection_too_many_is_refused_and_the_next_served_when_one_has_closed(
    limits: dict[str, int], status: int, code: str, setting: str
):
    """With the setting to raise, and when to come again."""

    async def scenario() -> tuple[bytes, bytes, bytes, float]:
        async with served(Application(), with_limits(**limits)) as server:
            clients = await opened(server, 3)
            refused = await (await server.connect()).all(GET)
            kept = await clients[0].all(LAST)
            clients[1].writer.close()
            while server.n_open > 1:
                await asyncio.sleep(0.005)
            later = await (await server.connect()).all(LAST)
            return refused, kept, later, server.n_ended(code)

    refused, kept, later, n_ended = asyncio.run(scenario())

    assert refused.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nretry-after: 6\r\n" in refused.lower()  # 5 s, and half of a tenth
    error = error_of(refused)
    assert error["code"] == code
    assert setting in error["message"]
    assert kept.startswith(b"HTTP/1.1 200 ")
    assert later.startswith(b"HTTP/1.1 200 ")
    assert n_ended == 1


def test_what_is_refused_does_not_pile_up():
    """Refused clients get a moment to read why, but only so many at once."""

    async def scenario() -> tuple[int, float, float]:
        async with served(Application(), with_limits(most=1)) as server:
            await opened(server, 1)
            refused = MOST_LINGERING + 20
            clients = [await server.connect() for _ in range(refused)]
            while server.n_ended("too_many_connections") < refused:
                await asyncio.sleep(0.005)
            n_left = len(server.state.connections)
            for client in clients:
                client.writer.close()
            return n_left, server.n_open, refused

    n_left, n_counted, _ = asyncio.run(scenario())

    assert n_left <= 1 + MOST_LINGERING
    assert n_counted == 1


def test_a_refused_client_that_resets_the_connection_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Of ten thousand one does so between its answer and the end of what is sent to it."""

    def reset(transport: asyncio.Transport) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", reset)

    async def scenario() -> None:
        async with served(Application(), with_limits(most=1)) as server:
            await opened(server, 1)
            refused = await server.connect()
            async with asyncio.timeout(10):
                assert (await refused.reader.read()).startswith(b"HTTP/1.1 503 ")
            assert len(server.state.connections) == 1

    asyncio.run(scenario())

    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::1", True),
        (None, None, True),
    ],
)
def test_who_counts_as_one_client(one: str | None, other: str | None, is_same: bool):
    """A site with IPv6 has as many addresses as it likes, all of one /64."""
    assert (client_of(one) == client_of(other)) is is_same


def test_the_log_has_the_first_of_a_kind_and_then_one_line_in_a_while(
    caplog: pytest.LogCaptureFixture,
):
    """A flood must not fill the disk of who writes the log down."""

    async def scenario() -> None:
        async with served(Application()) as server:
            for _ in range(5):
                await (await server.connect()).all(b"\x00")
            server.clock.now_s += LOG_PAUSE_S
            await (await server.connect()).all(b"\x00")

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())

    first, second = [record.getMessage() for record in own_records(caplog)]
    assert "malformed_request" in first
    assert "more of this kind" not in first
    assert "(4 more of this kind since it was last said)" in second


def test_where_the_system_allows_fewer_files_fewer_connections_are_taken(
    caplog: pytest.LogCaptureFixture,
):
    """Out of descriptors the server could not even refuse, nor read its own files."""
    limits = limits_of(Settings(connections=1000, client_connections=800), n_descriptors=1024)

    assert limits.most == 1024 - MOST_LINGERING - 256
    assert limits.most_per_client == limits.most
    [record] = own_records(caplog)
    assert "LimitNOFILE" in record.getMessage()


def test_the_soft_limit_on_files_is_raised_as_far_as_it_may_be(monkeypatch: pytest.MonkeyPatch):
    """Shells and service managers leave it at 1024 and allow far more."""
    raised = []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr("resource.setrlimit", lambda kind, limits: raised.append(limits))

    assert [allow_descriptors(wanted) for wanted in (500, 2000, 9000)] == [1024, 2000, 4096]
    assert raised == [(2000, 4096), (4096, 4096)]

"""A body of JSON lines that comes in parts."""

import asyncio
from collections.abc import Sequence

import pytest
from starlette.requests import Request
from starlette.types import Message

from plimsoll.api.edge.body import BodyLimits, IncomingBody
from plimsoll.api.edge.json_lines import TURN_LINES, JSONLine, json_lines
from plimsoll.errors import SlowBodyError
from plimsoll.policy.costs import MOST_LINE_BYTES
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer


@pytest.fixture
def server():
    server = FakeServer(FakeOpener())
    yield server
    server.close()


def read(
    server: FakeServer, parts: Sequence[bytes], *, timeout_s: float = DEADLINE_S, ends: bool = True
) -> list[JSONLine]:
    """The lines of a body that comes in these parts; where it does not end, nothing more comes."""
    return asyncio.run(taken(server, parts, timeout_s=timeout_s, ends=ends))


async def taken(
    server: FakeServer, parts: Sequence[bytes], *, timeout_s: float = DEADLINE_S, ends: bool = True
) -> list[JSONLine]:
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": not ends or place < len(parts) - 1}
        for place, part in enumerate(parts)
    ]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    scope = {"type": "http", "headers": [], "method": "POST", "path": "/", "app": server.app}
    permit = server.core.gate.permit()
    body = IncomingBody(scope, receive, permit, BodyLimits(64, timeout_s))
    request = Request({**scope, "state": {"permit": permit, "incoming": body}}, body.receive)
    try:
        return [line async for line in json_lines(request)]
    finally:
        permit.leave()


def told(lines: list[JSONLine]) -> list[tuple[int, object]]:
    return [(line.number, line.value) for line in lines]


def test_lines_are_the_same_however_the_body_is_cut(server: FakeServer):
    """Within a line, within a character, within CR LF; the last needs no end; blank ones count."""
    body = '{"a": 1}\r\n\n  \n"ä船"\n[5]'.encode()
    expected = [(1, {"a": 1}), (4, "ä船"), (5, [5])]

    assert told(read(server, [body])) == expected
    assert told(read(server, [body + b"\n"])) == expected
    for cut in range(1, len(body)):
        assert told(read(server, [body[:cut], b"", body[cut:]])) == expected
    assert told(read(server, [bytes([byte]) for byte in body])) == expected


def test_a_line_that_is_too_long_is_passed_over(server: FakeServer):
    """However long it goes on, no more than its beginning is kept; the next one is read."""
    long = [b'"' + b"x" * (1 << 19)] * 9
    lines = read(server, [b"1\n", *long, b'"\n2\n'])

    assert [line.number for line in lines] == [1, 2, 3]
    assert [line.error is None for line in lines] == [True, False, True]
    assert str(MOST_LINE_BYTES >> 20) in str(lines[1].error)


@pytest.mark.parametrize("line", [b"1\n", b"no JSON\n", b"\n"])
def test_others_have_their_turn_between_lines(server: FakeServer, line: bytes):
    """A part has tens of thousands of them, of which none may be worth waiting for."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def read_beside() -> None:
        counting = asyncio.ensure_future(count_turns())
        await taken(server, [line * 10 * TURN_LINES])
        counting.cancel()

    asyncio.run(read_beside())

    assert turns >= 10


def test_a_body_of_no_lines_has_none(server: FakeServer):
    assert read(server, [b""]) == read(server, [b"\n \n"]) == []


def test_a_client_that_stops_sending_is_not_waited_for(server: FakeServer):
    """Each part has its time: a long list may take longer than any body."""
    with pytest.raises(SlowBodyError):
        read(server, [b"1\n"], timeout_s=0.01, ends=False)

"""One request over a connection of its own, for what httpx cannot do.

A server may refuse a big body before it has read it, and closes the connection then. httpx
listens only when it has sent everything, and loses the refusal to the reset that follows; here
the reply is read while the body is still being sent. And a client can hang up here.
"""

import asyncio
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import h11

from plimsoll.bench.load.replies import Answer, ReplyReader

CHUNK_BYTES = 64 * 1024


class NoReplyError(Exception):
    """The server did not answer; the message is a cause to count."""


@dataclass(frozen=True)
class Target:
    """Where a request goes."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str]


def retry_after_of(value: str | None) -> int | None:
    """Seconds of a Retry-After header; None where it is missing or no whole number."""
    return int(value) if value is not None and value.isascii() and value.isdigit() else None


async def post(target: Target, content: bytes) -> Answer:
    """Send a body while listening for the reply. Raises NoReplyError."""
    loop = asyncio.get_running_loop()
    connection = h11.Connection(h11.CLIENT)
    with closing(await _connect(target)) as connected:
        head = _head(connection, target, len(content))
        sending = asyncio.create_task(_send(connected, head, content))
        try:
            return await _receive(loop, connected, connection)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def hang_up(target: Target, content: bytes) -> None:
    """Send a request and close the connection at once. Raises NoReplyError."""
    with closing(await _connect(target)) as connected:
        head = _head(h11.Connection(h11.CLIENT), target, len(content))
        try:
            await _send(connected, head, content)
        except OSError:
            raise NoReplyError("connection lost") from None


async def _connect(target: Target) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for family, kind, protocol, _, address in found:
        connected = socket.socket(family, kind, protocol)
        connected.setblocking(False)
        try:
            await loop.sock_connect(connected, address)
        except OSError:
            connected.close()
        except BaseException:
            connected.close()
            raise
        else:
            return connected
    raise NoReplyError("no connection")


def _head(connection: h11.Connection, target: Target, n_bytes: int) -> bytes:
    headers = {
        "Host": f"{target.host}:{target.port}",
        **target.headers,
        "Content-Length": str(n_bytes),
        "Connection": "close",
    }
    request = h11.Request(method="POST", target=target.path, headers=list(headers.items()))
    return connection.send(request) or b""


async def _send(connected: socket.socket, head: bytes, content: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, head)
    await loop.sock_sendall(connected, content)


async def _receive(
    loop: asyncio.AbstractEventLoop, connected: socket.socket, connection: h11.Connection
) -> Answer:
    reader = ReplyReader()
    answer: Answer | None = None
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await loop.sock_recv(connected, CHUNK_BYTES))
            elif isinstance(event, h11.Response):
                headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
                retry_after_s = retry_after_of(headers.get("retry-after"))
                answer = Answer(event.status_code, retry_after_s, reader)
            elif isinstance(event, h11.Data):
                reader.feed(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise NoReplyError("connection lost")
    except (OSError, h11.RemoteProtocolError):
        # A refusal's body may be lost to the reset, but its status has come.
        if answer is None or answer.status < 400:
            raise NoReplyError("connection lost") from None
    assert answer is not None  # h11 gives no end without a beginning
    return answer

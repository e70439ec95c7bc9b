"""An ASGI application behind the server's own protocol, in this process, and clients that write
bytes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from plimsoll.api.edge.refusals import Refusals
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.server.connections import ConnectionLimits, Connections
from plimsoll.server.run import http_config, limits_of
from plimsoll.settings import Settings
from plimsoll.telemetry.metrics import Telemetry
from tests.fakes import FakeClock, metric
from tests.running_server import DEADLINE_S

MANY_DESCRIPTORS = 1 << 20
LIMITS = limits_of(Settings(), MANY_DESCRIPTORS)
REQUEST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}"


class Application:
    """Answers each request with its path, and `size` bytes more; keeps what it was asked."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.asked: list[str] = []
        self.gone = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        if message["type"] == "http.disconnect":
            self.gone.set()
            return
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = scope["path"].encode() + bytes(self.size)
        await send({"type": "http.response.body", "body": body})


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


@dataclass
class Served:
    """An application that is served, where, and what is counted of its connections."""

    host: str
    port: int
    telemetry: Telemetry
    state: ServerState
    clock: FakeClock
    clients: list["Client"] = field(default_factory=list)

    async def connect(self) -> "Client":
        """Open a connection, which is closed with the server at the latest."""
        self.clients.append(Client(*await asyncio.open_connection(self.host, self.port)))
        return self.clients[-1]

    @property
    def n_open(self) -> float:
        """Connections that are counted as open."""
        return metric(self.telemetry.render().decode(), "plimsoll_connections")

    def n_ended(self, reason: str) -> float:
        """Connections that were ended for a reason."""
        series = f'plimsoll_connections_ended_total{{reason="{reason}"}}'
        return metric(self.telemetry.render().decode(), series)

    async def all_gone(self) -> None:
        """Wait until no connection is left."""
        while self.state.connections:
            await asyncio.sleep(0.005)


@dataclass
class Client:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def all(self, *data: bytes) -> bytes:
        """Send, and give what comes until the server has closed; then close too."""
        for piece in data:
            self.writer.write(piece)
        received = await self.reader.read()
        self.writer.close()
        return received


@asynccontextmanager
async def served(app: ASGIApp, limits: ConnectionLimits = LIMITS) -> AsyncIterator[Served]:
    """Serve `app` as the server serves it, for a block that ends before a deadline."""
    telemetry, clock, state = Telemetry("test"), FakeClock(), ServerState()
    refusals = Refusals(telemetry.requests, RecentRequests(), lambda: 0.5)
    connections = Connections(limits, refusals, telemetry.connections, clock)
    config = http_config(app, Settings(), connections)
    config.load()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(config, state, {})

    async with asyncio.timeout(DEADLINE_S):
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            found = Served(host, port, telemetry, state, clock)
            yield found
            server.close()
            for client in found.clients:
                client.writer.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await found.all_gone()


def any_config(settings: Settings, app: FastAPI | None = None) -> uvicorn.Config:
    """How uvicorn would serve an application, or an empty one, with these settings."""
    telemetry = Telemetry("test")
    refusals = Refusals(telemetry.requests, RecentRequests())
    connections = Connections(LIMITS, refusals, telemetry.connections)
    return http_config(app or FastAPI(), settings, connections)


def with_limits(**limits: float) -> ConnectionLimits:
    """The default limits, but for these."""
    return replace(LIMITS, **limits)

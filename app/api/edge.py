"""The outermost layer of a request: its body's way in, last-resort errors, log line and counts.

A body is admitted before it is read, counted while it streams in, and timed. What is refused gets
its answer at once; the rest that the client still sends is read and dropped for a while, since a
client that writes into a closed connection sees a reset instead of its answer.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PlimsollError, SlowBodyError, TooLargeError
from app.telemetry import Telemetry

log = logging.getLogger("plimsoll.access")

GATE_FROM_BYTES = 64 << 10  # a smaller body is not worth a reservation
GROW_BYTES = 256 << 10  # steps of a body that does not say its length
DISCARD_S = 5.0
# For log and metrics: nginx's status of a client that hung up before its answer.
CLIENT_GONE = 499


class Reservation(Protocol):
    """Memory set aside for one request, until its response has been sent."""

    def grow(self, total_bytes: int) -> None:
        """Set aside `total_bytes` in all, never less than before.

        Raises OverloadError or TooLargeError, and keeps what there was.
        """

    def release(self) -> None:
        """Give it back. Called once."""


class BodyGate(Protocol):
    """Admits bodies. Called on the event loop alone."""

    def reserve(self, n_bytes: int) -> Reservation:
        """Set memory aside for a body. Raises OverloadError or TooLargeError."""


class UnlimitedBodies:
    """The gate that is always open; also the reservation behind it."""

    def reserve(self, n_bytes: int) -> Reservation:
        """Admit it."""
        return self

    def grow(self, total_bytes: int) -> None:
        """Let it grow."""

    def release(self) -> None:
        """Nothing was held."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, and how long it may take to arrive whole."""

    limit_bytes: int
    timeout_s: float


class BodyTooLargeError(TooLargeError):
    """A body over a limit that is not the budget's."""

    code = "body_too_large"


class _Body:
    """The body of one request on its way in. Owns its reservation, `scope["state"]` shows it."""

    def __init__(self, scope: Scope, receive: Receive, gate: BodyGate, limits: BodyLimits) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        self._state = scope["state"]
        self._state["reservation"] = None
        self._receive = receive
        self._gate = gate
        self._limits = limits
        self._declared_bytes = int(length) if length.isdigit() else 0
        self._waits_for_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self._deadline_s = asyncio.get_running_loop().time() + limits.timeout_s
        self._reserved_bytes = 0
        self._received_bytes = 0
        self._whole = False
        self.refused = False

    async def receive(self) -> Message:
        """The next message to the application.

        Raises TooLargeError, SlowBodyError, and OverloadError from the gate.
        """
        if self._whole:  # what comes now is that the client has gone
            return await self._receive()
        try:
            self._admit(max(self._declared_bytes, self._received_bytes))
            message = await self._next_in_time()
            self._admit(self._received_bytes)
        except PlimsollError:
            self.refused = True
            raise
        return message

    def release(self) -> None:
        """Give the reservation back."""
        if self._state["reservation"] is not None:
            self._state["reservation"].release()
            self._state["reservation"] = None

    async def discard(self) -> None:
        """Read on until the client has sent everything or sees that it need not."""
        if self._waits_for_continue and not self._received_bytes:
            return  # it asked first, and has its answer
        most_bytes = self._received_bytes + self._limits.limit_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while not self._whole and self._received_bytes < most_bytes:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message

    async def _next_in_time(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline_s):
                return await self._next()
        except TimeoutError:
            raise SlowBodyError(
                f"after {self._limits.timeout_s:g} s (PLIMSOLL_BODY_TIMEOUT_S) only "
                f"{self._received_bytes} bytes of the body had arrived; send fewer texts at a time"
            ) from None

    def _admit(self, n_bytes: int) -> None:
        if n_bytes > self._limits.limit_bytes:
            raise BodyTooLargeError(
                f"the body is larger than {self._limits.limit_bytes >> 20} MiB "
                "(PLIMSOLL_BODY_LIMIT_MIB); send fewer texts at a time"
            )
        if n_bytes < GATE_FROM_BYTES or n_bytes <= self._reserved_bytes:
            return
        if n_bytes > self._declared_bytes:
            n_bytes = min(-(-n_bytes // GROW_BYTES) * GROW_BYTES, self._limits.limit_bytes)
        if self._state["reservation"] is None:
            self._state["reservation"] = self._gate.reserve(n_bytes)
        else:
            self._state["reservation"].grow(n_bytes)
        self._reserved_bytes = n_bytes


class Edge:
    """ASGI middleware around everything else.

    Bodies pass the gate and the limits on their way in; an error that nobody foresaw becomes an
    answer; each request is logged and counted. `reply` counts an error and renders it.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        reply: Callable[[Exception], Response],
        gate: BodyGate,
        limits: BodyLimits,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._reply = reply
        self._gate = gate
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        status = 0
        # What the reply holds in memory counts until it has been sent.
        releases = ExitStack()
        scope["state"] = {
            **scope.get("state", {}), "kind": "none", "note": "", "releases": releases
        }  # fmt: skip
        body = _Body(scope, receive, self._gate, self._limits)

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if body.refused:
                    close = (b"connection", b"close")
                    message = {**message, "headers": [*message["headers"], close]}
            elif body.refused:
                # The client has its whole answer; the connection stays open to read on.
                message = {**message, "more_body": True}
            await send(message)

        try:
            await self._app(scope, body.receive, noting_send)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            answer = self._reply(error)
            if status:
                raise
            error.__traceback__ = None  # its frames hold the request, and some of them the error
            answer.headers["connection"] = "close"
            await answer(scope, receive, noting_send)
        finally:
            body.release()
            releases.close()
            self._finish(scope, status, perf_counter() - start)
        if body.refused:
            await body.discard()
            await send({"type": "http.response.body", "body": b""})

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        # A path that is no route must not make a time series of its own.
        route = getattr(scope.get("route"), "path", "other")
        kind = scope["state"]["kind"]
        self._telemetry.requests.labels(route, str(status), kind).inc()
        level = logging.DEBUG if route.startswith(("/health", "/metrics")) else logging.INFO
        log.log(
            level,
            "%s %s %d %.1f ms%s",
            scope["method"], scope["path"], status, seconds * 1000, scope["state"]["note"],
        )  # fmt: skip

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
from typing import TYPE_CHECKING, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.recent import RecentRequests
from app.api.request_id import HEADER, request_id_of
from app.current_request import CurrentRequest, serving
from app.errors import PlimsollError, SlowBodyError, TooLargeError
from app.telemetry import Telemetry

if TYPE_CHECKING:  # needs the extra
    from app.tracing import RequestTracer

log = logging.getLogger("plimsoll.access")

GATE_FROM_BYTES = 64 << 10  # a smaller body is not worth a reservation
GROW_BYTES = 256 << 10  # steps of a body that does not say its length
DISCARD_S = 5.0
# Routes that are asked again and again by whoever looks: not worth a line or a trace each time.
QUIET_ROUTES = ("/health", "/metrics", "/status", "/pages")
# For log and metrics: nginx's status of a client that hung up before its answer.
CLIENT_GONE = 499
# What is said of a request in log, metrics and traces, until a route knows better.
UNANSWERED = {"kind": "none", "texts": None, "tokens": None, "degraded": None}


class Reservation(Protocol):
    """Memory set aside for one request, until its response has been sent."""

    def grow(self, total_bytes: int) -> None:
        """Set aside `total_bytes` in all, never less than before.

        Raises OverloadError or TooLargeError, and keeps what there was.
        """

    async def wait_to_grow(self, total_bytes: int) -> None:
        """Return once `grow` might succeed, or when that took too long."""

    def shrink(self, total_bytes: int) -> None:
        """Keep `total_bytes`, give back what is above."""

    def release(self) -> None:
        """Give it back. Called once."""


class BodyGate(Protocol):
    """Admits bodies. Called on the event loop alone."""

    def reserve(self, n_bytes: int) -> Reservation:
        """Set memory aside for a body. Raises OverloadError or TooLargeError."""

    async def wait_for_room(self, n_bytes: int) -> None:
        """Return once `reserve` might succeed, or when that took too long."""


class UnlimitedBodies:
    """The gate that is always open; also the reservation behind it."""

    def reserve(self, n_bytes: int) -> Reservation:
        """Admit it."""
        return self

    def grow(self, total_bytes: int) -> None:
        """Let it grow."""

    async def wait_for_room(self, n_bytes: int) -> None:
        """There is room."""

    async def wait_to_grow(self, total_bytes: int) -> None:
        """There is room."""

    def shrink(self, total_bytes: int) -> None:
        """Nothing was held."""

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
            if self._declared_bytes >= GATE_FROM_BYTES and not self._received_bytes:
                # Until then the client is held back by its own unread bytes.
                await self._gate.wait_for_room(self._declared_bytes)
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
    answer; each request is named, logged, counted and traced. `reply` counts an error and renders
    it.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        recent: RecentRequests,
        reply: Callable[[Exception], Response],
        gate: BodyGate,
        limits: BodyLimits,
        tracer: "RequestTracer | None" = None,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._recent = recent
        self._reply = reply
        self._gate = gate
        self._limits = limits
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, trace = scope["headers"], None
        if self._tracer is not None and not scope["path"].startswith(QUIET_ROUTES):
            trace = self._tracer.begin(scope["method"], scope["path"], scope["scheme"], headers)
        request = CurrentRequest(request_id_of(headers), trace)
        with serving(request):
            await self._serve(request, scope, receive, send)

    async def _serve(
        self, request: CurrentRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        start = perf_counter()
        status = 0
        # What the reply holds in memory counts until it has been sent.
        releases = ExitStack()
        scope["state"] = {**scope.get("state", {}), **UNANSWERED, "releases": releases}
        body = _Body(scope, receive, self._gate, self._limits)

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (HEADER, request.id.encode("ascii"))]
                if body.refused:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
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
            self._finish(request, scope, status, perf_counter() - start)
        if body.refused:
            await body.discard()
            await send({"type": "http.response.body", "body": b""})

    def _finish(self, request: CurrentRequest, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", None)
        # A path that is no route must not make a time series of its own.
        route = path or "other"
        about = {name: scope["state"][name] for name in UNANSWERED}
        kind = about["kind"]
        self._telemetry.requests.labels(route, str(status), kind).inc()
        self._telemetry.request_seconds.labels(route).observe(seconds)
        self._recent.note_reply(kind, status, seconds)
        level = logging.DEBUG if route.startswith(QUIET_ROUTES) else logging.INFO
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            **about,
        }
        note = "".join(
            f" {name}={about[name]}"
            for name in ("texts", "tokens", "degraded")
            if about[name] is not None
        )
        log.log(
            level,
            "%s %s %d %.1f ms%s",
            scope["method"], scope["path"], status, seconds * 1000, note,
            extra={"fields": fields},
        )  # fmt: skip
        if request.trace is not None:
            request.trace.end(status, path, request_id=request.id, **about)

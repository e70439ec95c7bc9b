"""The outermost layer of a request: its name, log line, counts, trace, and last-resort errors.

What is refused while its body comes in gets its answer at once; the rest that the client still
sends is read and dropped for a while, since a client that writes into a closed connection sees a
reset instead of its answer.
"""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plimsoll.api.edge.body import BodyLimits, IncomingBody
from plimsoll.api.edge.refusals import Refusals
from plimsoll.api.edge.refused_lines import RefusedLines
from plimsoll.api.edge.request_id import HEADER, request_id_of
from plimsoll.api.edge.target import routed
from plimsoll.api.operations.recent import RecentRequests, Source
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.current_request import CurrentRequest, serving
from plimsoll.telemetry.requests import RequestMetrics

if TYPE_CHECKING:  # needs the extra
    from plimsoll.telemetry.tracing import RequestTrace, RequestTracer

log = logging.getLogger("plimsoll.access")

# Routes that probes and pages ask again and again: not worth a line or a trace each time.
QUIET_ROUTES = (
    "/health", "/metrics", "/status", "/pages", "/tei/health", "/tei/ping", "/tei/metrics",
)  # fmt: skip
# For log and metrics: nginx's status of a client that hung up before its answer.
CLIENT_GONE = 499
CLIENT_GONE_CODE = "client_gone"
# What is said of a request in log, metrics and traces, until a route knows better.
UNANSWERED = {"kind": "none", "texts": None, "tokens": None, "degraded": None, "code": None}
# What stands behind a line where it is known. left_out: lines before this one, of a flood.
NOTED = ("texts", "tokens", "degraded", "code", "left_out")


class _OutgoingAnswer:
    """The answer to one request on its way out. Owns its status: 0 until it has begun."""

    def __init__(self, request_id: str, body: IncomingBody, send: Send) -> None:
        self._request_id = request_id
        self._body = body
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass a message of the application on, with what every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (HEADER, self._request_id.encode("ascii"))]
            if self._body.refused:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif self._body.refused:
            # The client has its whole answer; the connection stays open to read on.
            message = {**message, "more_body": True}
        await self._send(message)


class Edge:
    """ASGI middleware around everything else.

    Bodies pass admission and the limits on their way in; an unforeseen error becomes an answer;
    each request is named, logged, counted and traced. new_permit: for each request one.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        recent: RecentRequests,
        refusals: Refusals,
        new_permit: Callable[[], RequestPermit],
        limits: BodyLimits,
        tracer: "RequestTracer | None" = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._recent = recent
        self._refusals = refusals
        self._new_permit = new_permit
        self._limits = limits
        self._tracer = tracer
        self._refused_lines = RefusedLines()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, trace = scope["headers"], None
        if self._tracer is not None and not routed(scope)["path"].startswith(QUIET_ROUTES):
            trace = self._tracer.begin(scope["method"], scope["path"], scope["scheme"], headers)
        request = CurrentRequest(request_id_of(headers), trace.trace_id if trace else None)
        with serving(request):
            await self._serve(request, trace, scope, receive, send)

    async def _serve(
        self,
        request: CurrentRequest,
        trace: "RequestTrace | None",
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        start = perf_counter()
        # What the request and its reply hold in memory counts until the reply has been sent.
        permit = self._new_permit()
        body = IncomingBody(scope, receive, permit, self._limits)
        about = {**UNANSWERED, "permit": permit, "incoming": body}
        scope["state"] = {**scope.get("state", {}), **about}
        answer = _OutgoingAnswer(request.id, body, send)
        asked = routed(scope)
        try:
            await self._app(asked, body.receive, answer.send)
        except ClientDisconnect:
            answer.status = CLIENT_GONE
            scope["state"]["code"] = CLIENT_GONE_CODE
        except Exception as error:
            log.exception("%s %s failed", scope["method"], scope["path"])
            response = self._refusals.answer(error, asked)
            if answer.status:
                raise
            error.__traceback__ = None  # its frames hold the request, and some of them the error
            response.headers["connection"] = "close"
            await response(scope, receive, answer.send)
        finally:
            permit.leave()
            path = getattr(asked.get("route"), "path", None)
            self._finish(request, trace, scope, path, answer.status, perf_counter() - start)
            await body.close()
        if body.refused:
            await body.discard()
            await send({"type": "http.response.body", "body": b""})

    def _finish(
        self,
        request: CurrentRequest,
        trace: "RequestTrace | None",
        scope: Scope,
        path: str | None,
        status: int,
        seconds: float,
    ) -> None:
        """Log, count and trace a request; `path`: that of its route, None where there is none."""
        # A path that is no route must not make a time series of its own.
        route = path or "other"
        about = {name: scope["state"][name] for name in UNANSWERED} | {"model": request.model}
        kind = about["kind"]
        self._metrics.answered(route, status, kind, request.model, seconds)
        self._recent.note_reply(Source(route, request.model), kind, status, seconds)
        if trace is not None:
            trace.end(request, status, path, **about)
        if scope["state"].get("is_turned_away"):
            n_left_out = self._refused_lines.take()
            if n_left_out is None:
                return
            about["left_out"] = n_left_out or None
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            **about,
        }
        note = "".join(f" {name}={about[name]}" for name in NOTED if about.get(name) is not None)
        log.log(
            _level(route, status, about["code"]),
            "%s %s %d %.1f ms%s",
            scope["method"], scope["path"], status, seconds * 1000, note,
            extra={"fields": fields},
        )  # fmt: skip


def _level(route: str, status: int, code: str | None) -> int:
    """How much an access line matters. A probe that is told "not ready" is no failure: no code."""
    if status >= 500 and code is not None:
        return logging.WARNING
    is_quiet = code is None and route.startswith(QUIET_ROUTES)
    return logging.DEBUG if is_quiet else logging.INFO

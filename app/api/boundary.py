"""What every dialect shares at the edge: JSON in and out, errors, limits, one log line.

Errors leave as `{"error": {"message", "type", "param", "code"}}`. Status codes live in
STATUS alone; a test fails when an error class has none.
"""

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import FailFast, StrictStr
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypeAliasType

from app import errors
from app.serving.service import Embeddings
from app.telemetry import Telemetry

log = logging.getLogger("plimsoll.access")

InputType = Literal["search_document", "search_query", "classification", "clustering"]
Encoding = Literal["float", "base64"]
# Every error becomes an object: those of a body that is wrong throughout would take hundreds of
# times its memory. So a list ends at its first error, and fields are counted.
Texts = TypeAliasType("Texts", Annotated[list[StrictStr], FailFast()])
MAX_FIELDS = 64

# Most specific first: the first class that fits gives the status.
STATUS: dict[type[errors.PlimsollError], int] = {
    errors.UnknownModelError: 404,
    errors.RequestError: 400,
    errors.ModelError: 503,
    errors.GGUFError: 503,
    errors.CacheError: 503,
    errors.EncodeError: 500,
    errors.SettingsError: 500,
}

# For log and metrics: nginx's status of a client that hung up before its answer.
CLIENT_GONE = 499


def status_of(error: errors.PlimsollError) -> int:
    """The status code an error leaves with."""
    return next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)


def code_of(error: errors.PlimsollError) -> str:
    """The error's machine-readable name."""
    if isinstance(error, errors.RequestError):
        return error.code
    if isinstance(error, errors.ModelLoadingError):
        return "model_loading"
    if isinstance(error, (errors.ModelError, errors.GGUFError, errors.CacheError)):
        return "model_unavailable"
    return "internal_error"


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """The one shape of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def json_response(
    content: object, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """JSON of plain values and float32 arrays, each number as short as float32 allows."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, "application/json")


def embeddings_response(
    request: Request,
    result: Embeddings,
    content: Callable[[], object],
    headers: dict[str, str] | None = None,
) -> Response:
    """Render an answer made of vectors, noting for log line and metrics what it was."""
    request.state.kind = "dense"
    request.state.note = f" texts={len(result.vectors)} tokens={result.n_tokens}"
    with _telemetry(request).stage("render"):
        return json_response(content(), headers=headers)


def vector_field(vector: np.ndarray, encoding: Encoding) -> np.ndarray | str:
    """A float32 vector as a JSON list, or as base64 of its little-endian bytes."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector


class StrictJSONRoute(APIRoute):
    """Parses bodies strictly: UTF-8, no NaN, no lone surrogates, bounded depth.

    Drops the work of a client that hangs up.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler over a request whose `json` is strict."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            # FastAPI would turn a body over the limit into a 400 of its own.
            await strict.body()
            return await _while_connected(request.receive, handler(strict))

        return handle


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """Await `work`, whose request has been read, and cancel it when the client hangs up.

    Raises ClientDisconnect: nobody is left to answer.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.wait((answer, gone))


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                with _telemetry(self).stage("parse"):
                    self._json = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                # FastAPI turns only this type into a validation error.
                raise json.JSONDecodeError(error.msg, "", error.pos) from error
            if isinstance(self._json, dict) and len(self._json) > MAX_FIELDS:
                raise HTTPException(400, f"the body has more than {MAX_FIELDS} fields")
        return self._json


def install(app: FastAPI, telemetry: Telemetry, *, body_limit_bytes: int) -> None:
    """Put the edge around an application: one shape for failures, limits, log, counts."""
    app.state.telemetry = telemetry
    app.add_middleware(Edge, telemetry=telemetry, body_limit_bytes=body_limit_bytes)

    async def plimsoll_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.PlimsollError)  # noqa: S101 - registered for it
        status, code = status_of(error), code_of(error)
        telemetry.errors.labels(code).inc()
        headers = {}
        if isinstance(error, errors.ModelLoadingError):
            headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
        param = error.param if isinstance(error, errors.RequestError) else None
        body = error_body(status, str(error), code=code, param=param)
        return Response(body, status, headers, "application/json")

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        telemetry.errors.labels("invalid_request").inc()
        message, param = _explain(request, error)
        body = error_body(400, message, code="invalid_request", param=param)
        return Response(body, 400, media_type="application/json")

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        telemetry.errors.labels(f"http_{error.status_code}").inc()
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no route {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}; see /docs"
        body = error_body(error.status_code, message, code=f"http_{error.status_code}")
        return Response(body, error.status_code, error.headers, "application/json")

    app.add_exception_handler(errors.PlimsollError, plimsoll_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


def _telemetry(request: Request) -> Telemetry:
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry


def _explain(request: Request, error: RequestValidationError) -> tuple[str, str | None]:
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first.get('ctx', {}).get('error', '')}", None
    content_type = request.headers.get("content-type", "")
    if "json" not in content_type:
        return (
            f"send JSON with the header Content-Type: application/json, not {content_type!r}",
            None,
        )
    if len(first["loc"]) == 1:
        return f"the body must be a JSON object: {first['msg']}", None
    param = str(first["loc"][1])
    # A field of several types has errors of each; the first that names an item says most.
    of_items = [e for e in found if e["loc"][1] == param and isinstance(e["loc"][-1], int)]
    best = of_items[0] if of_items else first
    item = f"[{best['loc'][-1]}]" if of_items else ""
    return f"{param}{item}: {best['msg']}", param


class Edge:
    """ASGI middleware: body limit while it streams in, last-resort errors, log line, counts."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, *, body_limit_bytes: int) -> None:
        self._app = app
        self._telemetry = telemetry
        self._limit = body_limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        status = 0
        scope["state"] = {**scope.get("state", {}), "kind": "none", "note": ""}
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _BodyTooLargeError
            return message

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _declared_length(scope) > self._limit:
                raise _BodyTooLargeError
            await self._app(scope, limited_receive, noting_send)
        except _BodyTooLargeError:
            self._telemetry.errors.labels("body_too_large").inc()
            await _send_error(
                noting_send,
                413,
                f"the body is larger than {self._limit >> 20} MiB (PLIMSOLL_BODY_LIMIT_MIB); send "
                "fewer texts at a time",
                "body_too_large",
            )
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            self._telemetry.errors.labels("internal_error").inc()
            if status:
                raise
            await _send_error(
                noting_send, 500, "an internal error; the server's log has it", "internal_error"
            )
        finally:
            self._finish(scope, status, perf_counter() - start)

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


class _BodyTooLargeError(Exception):
    """The body passed the limit while it was read."""


def _declared_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


async def _send_error(send: Send, status: int, message: str, code: str) -> None:
    body = error_body(status, message, code=code)
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""What every dialect shares at the edge: JSON in and out, errors, limits, one log line.

Errors leave as `{"error": {"message", "type", "param", "code"}}`. Status codes live in
STATUS alone; a test fails when an error class has none.
"""

import base64
import random
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, FailFast, StrictStr
from starlette.exceptions import HTTPException
from typing_extensions import TypeAliasType

from app import errors
from app.api.edge import BodyGate, BodyLimits, BodyTooLargeError, Edge
from app.api.json_body import StrictJSONRoute as StrictJSONRoute
from app.api.recent import RecentRequests
from app.serving.tasks import Degraded, Embeddings, Ranking, SparseEmbeddings
from app.telemetry import Telemetry

if TYPE_CHECKING:  # needs the extra
    from app.tracing import RequestTracer

InputType = Literal["search_document", "search_query", "classification", "clustering"]
Encoding = Literal["float", "base64"]
# Every error becomes an object: those of a list that is wrong throughout would take hundreds of
# times its memory. So a list ends at its first error.
Texts = TypeAliasType("Texts", Annotated[list[StrictStr], FailFast()])
RETRY_AFTER_MOST_S = 60


class Truncated(BaseModel):
    """A text that was cut to the model's token limit."""

    index: int
    tokens: int
    kept: int


class DegradedAnswer(BaseModel):
    """Why this is not the primary answer, and when to ask for that again."""

    reason: str
    retry_after_s: float


# Most specific first: the first class that fits gives the status.
STATUS: dict[type[errors.PlimsollError], int] = {
    errors.UnknownModelError: 404,
    errors.RequestError: 400,
    errors.ModelError: 503,
    errors.GGUFError: 503,
    errors.CacheError: 503,
    errors.EncodeMemoryError: 503,
    errors.EncodeError: 500,
    errors.QueueFullError: 429,
    errors.OverloadError: 503,
    errors.TooLargeError: 413,
    errors.SlowBodyError: 408,
    errors.SettingsError: 500,
}

# The codes of those errors that do not carry their own; likewise.
INTERNAL = "internal_error"
_CODES: dict[type[errors.PlimsollError], str] = {
    errors.ModelLoadingError: "model_loading",
    errors.ModelError: "model_unavailable",
    errors.GGUFError: "model_unavailable",
    errors.CacheError: "model_unavailable",
    errors.EncodeMemoryError: "out_of_memory",
    errors.TooLargeError: "too_large_for_budget",
    errors.SlowBodyError: "slow_body",
}


def status_of(error: Exception) -> int:
    """The status code an error leaves with."""
    return next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)


def code_of(error: Exception) -> str:
    """The error's machine-readable name."""
    if isinstance(error, (errors.RequestError, errors.OverloadError, BodyTooLargeError)):
        return error.code
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), INTERNAL)


def retry_after(error: Exception, chance: Callable[[], float]) -> str | None:
    """Whole seconds from 1 to 60 after which to try again, None where that would not help.

    ± 20 % by `chance`, from 0 to 1: clients refused together must not come back together.
    """
    if isinstance(error, (errors.ModelLoadingError, errors.OverloadError)):
        seconds = error.retry_after_s
    elif isinstance(error, errors.EncodeMemoryError):
        seconds = 1.0
    else:
        return None
    spread = seconds * (0.8 + 0.4 * chance())
    return str(round(min(RETRY_AFTER_MOST_S, max(1, spread))))


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """The one shape of an error."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def message_of(error: Exception) -> str:
    """What an error says to its client; of one that nobody foresaw, nothing of its own."""
    is_ours = isinstance(error, errors.PlimsollError)
    return str(error) if is_ours else "an internal error; the server's log has it"


def lasting_message_of(error: Exception) -> str:
    """What may be kept of it: an error of a request quotes it, so its class has to do."""
    is_quoting = isinstance(error, errors.RequestError)
    return (type(error).__doc__ or "") if is_quoting else message_of(error)


def error_response(error: Exception, chance: Callable[[], float]) -> Response:
    """An error as its client sees it."""
    message = message_of(error)
    param = error.param if isinstance(error, errors.RequestError) else None
    wait = retry_after(error, chance)
    headers = None if wait is None else {"Retry-After": wait}
    status = status_of(error)
    body = error_body(status, message, code=code_of(error), param=param)
    return Response(body, status, headers, "application/json")


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
    _note(request, "dense", len(result.vectors), result.n_tokens)
    return _rendered(request, content, headers)


def sparse_response(
    request: Request, result: SparseEmbeddings, content: Callable[[], object]
) -> Response:
    """Render sparse vectors, likewise; a header says where they are not what was asked for."""
    _note(request, "sparse", len(result.vectors), None, result.degraded)
    return _rendered(request, content, _degraded_header(result.degraded))


def ranking_response(request: Request, result: Ranking, content: Callable[[], object]) -> Response:
    """Render an order of documents, likewise."""
    kind = "dense" if result.kind == "dense" else "sparse"
    _note(request, kind, len(result.results), result.n_tokens, result.degraded)
    return _rendered(request, content, _degraded_header(result.degraded))


def dense_only(result: Embeddings | SparseEmbeddings) -> Embeddings:
    """The answer to a task without a fallback, as dialects ask for it."""
    assert isinstance(result, Embeddings)  # noqa: S101 - sparse is given where it is allowed
    return result


def releases_of(request: Request) -> ExitStack:
    """Where a use case leaves what is to be given back once the reply has been sent."""
    releases: ExitStack = request.state.releases
    return releases


def _note(
    request: Request,
    kind: str,
    n_texts: int,
    n_tokens: int | None,
    degraded: Degraded | None = None,
) -> None:
    """Tell the edge what the answer is."""
    state = request.state
    state.kind, state.texts, state.tokens = kind, n_texts, n_tokens
    state.degraded = degraded and degraded.reason


def _rendered(
    request: Request, content: Callable[[], object], headers: dict[str, str] | None
) -> Response:
    with _telemetry(request).stage("render"):
        return json_response(content(), headers=headers)


def _degraded_header(degraded: Degraded | None) -> dict[str, str] | None:
    return None if degraded is None else {"X-Plimsoll-Degraded": degraded.reason}


def vector_field(vector: np.ndarray, encoding: Encoding) -> np.ndarray | str:
    """A float32 vector as a JSON list, or as base64 of its little-endian bytes."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector


def install(
    app: FastAPI,
    telemetry: Telemetry,
    recent: RecentRequests,
    *,
    body_gate: BodyGate,
    body_limit_bytes: int,
    body_timeout_s: float,
    parsing: Executor,
    tracer: "RequestTracer | None" = None,
    chance: Callable[[], float] = random.random,
) -> None:
    """Put the edge around an application: one shape for failures, limits, log, counts.

    parsing: one thread for large bodies; whoever installs the edge ends it.
    chance: a number from 0 to 1, which spreads the times at which clients come back.
    """
    app.state.telemetry = telemetry
    app.state.parsing = parsing

    def reply(error: Exception) -> Response:
        telemetry.errors.labels(code_of(error)).inc()
        recent.note_error(status_of(error), code_of(error), lasting_message_of(error))
        return error_response(error, chance)

    limits = BodyLimits(body_limit_bytes, body_timeout_s)
    app.add_middleware(
        Edge,
        telemetry=telemetry,
        recent=recent,
        reply=reply,
        gate=body_gate,
        limits=limits,
        tracer=tracer,
    )

    async def plimsoll_error(request: Request, error: Exception) -> Response:
        return reply(error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        message, param = _explain(error)
        return reply(errors.InvalidRequestError(message, param=param))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        code, phrase = f"http_{error.status_code}", HTTPStatus(error.status_code).phrase
        telemetry.errors.labels(code).inc()
        recent.note_error(error.status_code, code, phrase)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no route {request.url.path}; /docs lists what there is"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}; see /docs"
        body = error_body(error.status_code, message, code=code)
        return Response(body, error.status_code, error.headers, "application/json")

    app.add_exception_handler(errors.PlimsollError, plimsoll_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


def _telemetry(request: Request) -> Telemetry:
    telemetry: Telemetry = request.app.state.telemetry
    return telemetry


def _explain(error: RequestValidationError) -> tuple[str, str | None]:
    found = error.errors()
    first = found[0]
    if len(first["loc"]) == 1:
        return f"the body must be a JSON object: {first['msg']}", None
    param = str(first["loc"][1])
    # A field of several types has errors of each; the first that names an item says most.
    of_items = [e for e in found if e["loc"][1] == param and isinstance(e["loc"][-1], int)]
    best = of_items[0] if of_items else first
    item = f"[{best['loc'][-1]}]" if of_items else ""
    return f"{param}{item}: {best['msg']}", param

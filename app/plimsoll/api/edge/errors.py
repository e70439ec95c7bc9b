"""Turn any exception into a refusal: a status, a code, a message, and when to try again.

A refusal has no shape: each dialect renders its own. One table has the status of every error of
ours, whose code is its own; a test fails when an error class has no status.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.types import Scope

from plimsoll import errors
from plimsoll.api.edge.content_encoding import ACCEPTED
from plimsoll.policy.return_times import told_s

SHOULD = "Input should be "  # how pydantic begins to say what a field takes
OPENAI_ROUTE = "/embeddings"  # what OpenAI's clients put behind their base address

# Most specific first: the first class that fits gives the status.
STATUS: dict[type[errors.PlimsollError], int] = {
    errors.UnknownModelError: 404,
    errors.UnknownCollectionError: 404,
    errors.UnknownDocumentError: 404,
    errors.CollectionConflictError: 409,
    errors.UnknownMigrationError: 404,
    errors.MigrationStateError: 409,
    errors.UnknownLinkError: 404,
    errors.LinkStateError: 409,
    errors.VerdictError: 409,
    errors.UnknownHookError: 404,
    errors.HookStoppedError: 409,
    errors.SpaceMismatchError: 409,
    errors.EmptyTextError: 400,
    errors.TextTooLongError: 400,
    errors.TokenIdsError: 400,
    errors.UnsupportedEncodingError: 415,
    errors.MediaTypeError: 415,
    errors.MissingKeyError: 401,
    errors.InvalidKeyError: 401,
    errors.AdminKeyError: 403,
    errors.OriginError: 403,
    errors.HostError: 421,
    errors.MalformedRequestError: 400,
    errors.HeaderTooLargeError: 431,
    errors.RequestError: 400,
    errors.ModelLoadingError: 503,
    errors.ModelError: 503,
    errors.GGUFError: 503,
    errors.CacheError: 503,
    errors.HookError: 500,
    errors.StoreError: 503,
    errors.OutsideMismatchError: 409,
    errors.OutsideError: 503,
    errors.EncodeMemoryError: 503,
    errors.EncodeError: 500,
    errors.QueueFullError: 429,
    errors.MemoryPressureError: 503,
    errors.BreakerOpenError: 503,
    errors.ClientConnectionLimitError: 429,
    errors.ConnectionLimitError: 503,
    errors.StoppingError: 503,
    errors.SearchStoppedError: 503,
    errors.IngestStoppedError: 503,
    errors.ConcurrencyLimitError: 429,
    errors.RequestRateError: 429,
    errors.TokenRateError: 429,
    errors.OverloadError: 503,
    errors.BodyTooLargeError: 413,
    errors.TooLargeError: 413,
    errors.SlowHeaderError: 408,
    errors.SlowBodyError: 408,
    errors.ServerError: 500,
    errors.SettingsError: 500,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request has no answer, before a dialect gives it a shape.

    message: it has `retry_after_s` too.
    param: the field that is at fault. retry_after_s: None where waiting would not help.
    headers: those that belong to the status, as `Allow` to 405.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal_of(error: Exception, scope: Scope, chance: Callable[[], float]) -> Refusal:
    """What the client of the request in `scope` is told of `error`.

    chance: a number from 0 to 1, which spreads the times at which clients come back.
    """
    if isinstance(error, HTTPException):
        code, message = f"http_{error.status_code}", _http_message(error, scope)
        return Refusal(error.status_code, code, message, headers=error.headers or {})
    if isinstance(error, RequestValidationError):
        message, param = _explain(error)
        error = errors.InvalidRequestError(message, param=param)
    status, message, seconds = status_of(error), _message_of(error), retry_after_s(error, chance)
    return Refusal(
        status,
        code_of(error),
        message if seconds is None else f"{message}; retry in {seconds} s",
        error.param if isinstance(error, errors.RequestError) else None,
        seconds,
        _headers_of(error, status),
    )


def _headers_of(error: Exception, status: int) -> Mapping[str, str]:
    """What RFC 9110 has a status say of what the client may do instead."""
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.UnsupportedEncodingError):
        return {"Accept-Encoding": ACCEPTED}
    return {}


def status_of(error: Exception) -> int:
    """The status code an error leaves with."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def code_of(error: Exception) -> str:
    """The error's machine-readable name."""
    return error.code if isinstance(error, errors.PlimsollError) else errors.PlimsollError.code


def retry_after_s(error: Exception, chance: Callable[[], float]) -> int | None:
    """Whole seconds after which to try again, None where that would not help.

    chance: as `refusal_of` has it: clients refused together must not come back together.
    """
    seconds = error.retry_after_s if isinstance(error, errors.PlimsollError) else None
    return None if seconds is None else told_s(seconds, chance())


def lasting_message_of(error: Exception) -> str:
    """What may be kept of an error: one that quotes its request is kept by its kind alone."""
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code).phrase
    if isinstance(error, RequestValidationError):
        return errors.InvalidRequestError.__doc__ or ""
    if isinstance(error, errors.RequestError):
        return type(error).__doc__ or ""
    return _message_of(error)


def _message_of(error: Exception) -> str:
    """An error of ours speaks for itself; what an unforeseen one says stays in the log."""
    is_ours = isinstance(error, errors.PlimsollError)
    return str(error) if is_ours else "an internal error; the server's log has it"


def _http_message(error: HTTPException, scope: Scope) -> str:
    if error.status_code == 404 and error.detail != HTTPStatus.NOT_FOUND.phrase:
        return str(error.detail)
    path = URL(scope=scope).path
    if error.status_code == 404 and path.endswith(OPENAI_ROUTE):
        return (
            f"there is no route {path}; embeddings in OpenAI's shape are at POST "
            f"/v1{OPENAI_ROUTE}: let the client's base address end in /v1"
        )
    if error.status_code == 404:
        return f"there is no route {path}; /docs lists what there is"
    if error.status_code == 405:
        return f"{path} does not take {scope['method']}; see /docs"
    return str(error.detail)


def _explain(error: RequestValidationError) -> tuple[str, str | None]:
    """What is wrong with a body, and the field that is at fault."""
    found = error.errors()
    first = found[0]
    if len(first["loc"]) == 1:
        return f"the body must be a JSON object: {first['msg']}", None
    param = str(first["loc"][1])
    # A field of several types has errors of each; the first that names an item says most.
    of_field = [e for e in found if e["loc"][1:2] == first["loc"][1:2]]
    of_items = [e for e in of_field if isinstance(e["loc"][-1], int)]
    if of_items:
        return f"{param}[{of_items[0]['loc'][-1]}]: {of_items[0]['msg']}", param
    of_value = [e["msg"] for e in of_field if e.get("input") is first.get("input")]
    kinds = dict.fromkeys(m.removeprefix(SHOULD) for m in of_value if m.startswith(SHOULD))
    kinds.pop("None", None)  # of a header, which cannot be sent
    message = SHOULD + ", or ".join(kinds) if len(kinds) > 1 else first["msg"]
    return f"{param}: {message}", param

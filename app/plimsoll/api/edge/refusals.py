"""Answer what is refused or fails, in the shape of the dialect that the client speaks."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import orjson
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.types import Scope

from plimsoll.api.edge.errors import Refusal, lasting_message_of, refusal_of
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.telemetry.requests import RequestMetrics

RenderRefusal: TypeAlias = Callable[[Refusal], object]
"""A dialect's shape of an error: plain values, which become JSON."""
RestateRefusal: TypeAlias = Callable[[Refusal], Refusal]
"""The refusal with the status that a dialect's clients know for it."""


def as_it_is(refusal: Refusal) -> Refusal:
    """The refusal with our own status."""
    return refusal


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """A dialect's form of an error: its schema, what renders a refusal so, and its statuses."""

    schema: type[BaseModel]
    render: RenderRefusal
    restate: RestateRefusal = as_it_is


ErrorType: TypeAlias = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class ErrorFields(BaseModel):
    """What went wrong, and whose fault it was."""

    message: str
    type: Annotated[ErrorType, Field(description="OpenAI's word for the status.")]
    param: Annotated[str | None, Field(description="The field that is at fault.")]
    code: Annotated[str, Field(description="The error's name, for programs.")]


class ErrorBody(BaseModel):
    """Plimsoll's own shape: that of OpenAI, so that a client of either reads both."""

    error: ErrorFields


def native_error(refusal: Refusal) -> object:
    """A refusal as an `ErrorBody`."""
    return {
        "error": {
            "message": refusal.message,
            "type": _type_of(refusal.status),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def _type_of(status: int) -> ErrorType:
    """OpenAI's word for a status: its clients tell by it whose fault it was."""
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


NATIVE = ErrorShape(ErrorBody, native_error)


class Refusals:
    """Owns which shape belongs to which routes; counts and remembers what it answers.

    chance: a number from 0 to 1, which spreads the times at which clients come back.
    """

    def __init__(
        self,
        metrics: RequestMetrics,
        recent: RecentRequests,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._metrics = metrics
        self._recent = recent
        self._chance = chance
        self._shapes: dict[str, tuple[RenderRefusal, RestateRefusal]] = {}

    def register(
        self, prefix: str, render: RenderRefusal, restate: RestateRefusal = as_it_is
    ) -> None:
        """Render with `render` what goes wrong at `prefix`, as "/v2", and at all paths below it.

        restate: gives it another status. The longest prefix that fits a path counts; where none
        does, it is Plimsoll's own.
        Raises ValueError for a prefix that is taken or could fit no path.
        """
        if prefix in self._shapes or not prefix.startswith("/") or prefix.endswith("/"):
            raise ValueError(f"{prefix!r} is registered already, or is not of the form '/prefix'")
        self._shapes[prefix] = (render, restate)

    def answer(self, error: Exception, scope: Scope) -> Response:
        """The response to the request in `scope`, which ended in `error`.

        Writes the code into its state, for the access line.
        """
        render, restate = self._shape(scope["path"])
        refusal = restate(refusal_of(error, scope, self._chance))
        scope.setdefault("state", {})["code"] = refusal.code
        self._metrics.failed(refusal.code)
        self._recent.note_error(refusal.status, refusal.code, lasting_message_of(error))
        headers = dict(refusal.headers)
        if refusal.retry_after_s is not None:
            headers["Retry-After"] = str(refusal.retry_after_s)
        body = orjson.dumps(render(refusal))
        return Response(body, refusal.status, headers, "application/json")

    def _shape(self, path: str) -> tuple[RenderRefusal, RestateRefusal]:
        fitting = (prefix for prefix in self._shapes if f"{path}/".startswith(f"{prefix}/"))
        prefix = max(fitting, key=len, default=None)
        return (native_error, as_it_is) if prefix is None else self._shapes[prefix]

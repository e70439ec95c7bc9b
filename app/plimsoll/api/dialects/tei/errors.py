"""TEI's two shapes of an error, and the status that its clients know for each of ours.

Source: TEI 1.9's router/src/lib.rs and router/src/http/server.rs. Its OpenAPI document calls the
kinds in small letters in its examples, and in capitals, as the server sends them, in its schema.
"""

from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field

from plimsoll.api.edge.errors import Refusal
from plimsoll.api.edge.refusals import ErrorShape

BASE = "/tei"  # of every path of this dialect
OPENAI_PATHS = (f"{BASE}/v1", f"{BASE}/embeddings")  # what they begin is in OpenAI's shape
ErrorType: TypeAlias = Literal[
    "Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"
]
STATUSES: dict[ErrorType, int] = {
    "Empty": 400,
    "Validation": 413,
    "Tokenizer": 422,
    "Backend": 424,
    "Overloaded": 429,
    "Unhealthy": 503,
}
# By our code. What keeps clients out (401, 403, 421), is no route (404, 405) or does not come to an
# end (408) has no kind of TEI's: it keeps its status.
KINDS: dict[str, ErrorType] = {
    "empty_text": "Empty",
    "invalid_request": "Validation",
    "unsupported_media_type": "Validation",
    "unsupported_encoding": "Validation",
    "too_long": "Validation",
    "body_too_large": "Validation",
    "too_large_for_budget": "Validation",
    "token_ids": "Tokenizer",
    "internal_error": "Backend",
    "model_unavailable": "Backend",
    "queue_full": "Overloaded",
    "request_rate": "Overloaded",
    "token_rate": "Overloaded",
    "concurrency_limit": "Overloaded",
    "too_many_client_connections": "Overloaded",
    "memory_pressure": "Overloaded",
    "breaker_open": "Overloaded",
    "out_of_memory": "Overloaded",
    "model_loading": "Unhealthy",
    "too_many_connections": "Unhealthy",
    "stopping": "Unhealthy",
}
Message = Annotated[str, Field(description="What went wrong, and what to do.")]


class TEIError(BaseModel):
    """An error of any route but those in OpenAI's shape."""

    error: Message
    error_type: ErrorType


class TEIOpenAIError(BaseModel):
    """An error of a route in OpenAI's shape. TEI sends `type`; its document has `error_type`."""

    message: Message
    code: Annotated[int, Field(description="The status.")]
    type: ErrorType
    error_type: ErrorType


def kind_of(refusal: Refusal) -> ErrorType:
    """TEI's word for a refusal."""
    return KINDS.get(refusal.code, "Validation")


def restate(refusal: Refusal) -> Refusal:
    """The refusal with TEI's status."""
    kind = KINDS.get(refusal.code)
    return refusal if kind is None else replace(refusal, status=STATUSES[kind])


def _error(refusal: Refusal) -> object:
    return {"error": refusal.message, "error_type": kind_of(refusal)}


def _openai_error(refusal: Refusal) -> object:
    kind = kind_of(refusal)
    return {"message": refusal.message, "code": refusal.status, "type": kind, "error_type": kind}


ERRORS = ErrorShape(TEIError, _error, restate)
OPENAI_ERRORS = ErrorShape(TEIOpenAIError, _openai_error, restate)

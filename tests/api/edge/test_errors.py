"""Status and code of every error, and when to come back."""

import inspect
import random

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from plimsoll import errors
from plimsoll.api.edge.errors import (
    STATUS,
    Refusal,
    code_of,
    lasting_message_of,
    refusal_of,
    retry_after_s,
    status_of,
)
from tests.pressure import post_scope

# --- the table ------------------------------------------------------------------------------


def _error_classes() -> list[type[errors.PlimsollError]]:
    return [
        found
        for _, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.PlimsollError) and found is not errors.PlimsollError
    ]


@pytest.mark.parametrize("kind", _error_classes())
def test_every_error_has_a_status(kind: type[errors.PlimsollError]):
    """An error class without one would leave as a 500 that does not say what to do."""
    assert any(issubclass(kind, listed) for listed in STATUS)


def test_every_code_has_a_row_of_the_table():
    """Documentation and OpenAPI are held to the rows: a code without one would stand in neither."""
    with_a_code = {kind for kind in _error_classes() if "code" in vars(kind)}
    assert len(with_a_code) > 30
    assert with_a_code <= set(STATUS)


def test_no_row_of_the_table_hides_another():
    """The first class that fits gives the status, so a base must stand below what it bases."""
    listed = list(STATUS)
    for place, kind in enumerate(listed):
        assert not any(issubclass(kind, above) for above in listed[:place]), kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequestError("x"), 400, "invalid_request"),
        (errors.EmptyTextError("x"), 400, "empty_text"),
        (errors.TextTooLongError("x"), 400, "too_long"),
        (errors.UnknownModelError("x"), 404, "model_not_found"),
        (errors.ModelLoadingError("x", retry_after_s=3), 503, "model_loading"),
        (errors.ModelNotFoundError("x"), 503, "model_unavailable"),
        (errors.ModelDownloadError("x"), 503, "model_unavailable"),
        (errors.CacheSpaceError("x"), 503, "model_unavailable"),
        (errors.CacheCorruptError("x"), 503, "model_unavailable"),
        (errors.GGUFTruncatedError("x", offset=1), 503, "model_unavailable"),
        (errors.NonFiniteError("x"), 500, "internal_error"),
        (errors.EncodeMemoryError("x"), 503, "out_of_memory"),
        (errors.QueueFullError("x", retry_after_s=1), 429, "queue_full"),
        (errors.MemoryPressureError("x", retry_after_s=1), 503, "memory_pressure"),
        (errors.BreakerOpenError("x", retry_after_s=1), 503, "breaker_open"),
        (errors.OverloadError("x", retry_after_s=1), 503, "overloaded"),
        (errors.TooLargeError("x"), 413, "too_large_for_budget"),
        (errors.BodyTooLargeError("x"), 413, "body_too_large"),
        (errors.SlowBodyError("x"), 408, "slow_body"),
        (errors.SlowHeaderError("x"), 408, "slow_header"),
        (errors.HeaderTooLargeError("x"), 431, "header_too_large"),
        (errors.MalformedRequestError("x"), 400, "malformed_request"),
        (errors.ConnectionLimitError("x", retry_after_s=1), 503, "too_many_connections"),
        (
            errors.ClientConnectionLimitError("x", retry_after_s=1),
            429,
            "too_many_client_connections",
        ),
        (errors.StoppingError("x", retry_after_s=1), 503, "stopping"),
        (ZeroDivisionError("x"), 500, "internal_error"),
    ],
)
def test_statuses_and_codes_are_those_that_clients_rely_on(
    error: Exception, status: int, code: str
):
    """A client retries by the status and branches by the code; neither may drift."""
    assert (status_of(error), code_of(error)) == (status, code)


# --- when to come back ----------------------------------------------------------------------


def test_clients_refused_together_come_back_apart():
    """Whole seconds, never before what was measured; together they would be refused again."""
    chance = random.Random(0).random
    waits = [
        retry_after_s(errors.QueueFullError("x", retry_after_s=20), chance) for _ in range(1000)
    ]

    assert set(waits) - {20} == {21, 22}


@pytest.mark.parametrize("chance", [0, 0.5, 1])
@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (errors.MemoryPressureError("x", retry_after_s=0), 1, 1),
        (errors.MemoryPressureError("x", retry_after_s=-3), 1, 1),
        (errors.BreakerOpenError("x", retry_after_s=1e9), 120, 120),
        (errors.BreakerOpenError("x", retry_after_s=float("inf")), 120, 120),
        (errors.BreakerOpenError("x", retry_after_s=59), 59, 60),
        (errors.ModelLoadingError("x", retry_after_s=10), 10, 11),
        (errors.EncodeMemoryError("x"), 1, 2),
    ],
)
def test_the_time_to_come_back_has_bounds(
    error: errors.PlimsollError, least: int, most: int, chance: float
):
    """Never at once, and never so late that a client gives up."""
    assert least <= retry_after_s(error, lambda: chance) <= most


@pytest.mark.parametrize(
    "error",
    [
        errors.TooLargeError("x"),
        errors.SlowBodyError("x"),
        errors.InvalidRequestError("x"),
        errors.ModelNotFoundError("x"),
        errors.NonFiniteError("x"),
    ],
)
def test_what_waiting_would_not_mend_has_no_time_to_come_back(error: errors.PlimsollError):
    """A client that retries by itself would send the same for ever."""
    assert retry_after_s(error, lambda: 0.5) is None


# --- what is said ---------------------------------------------------------------------------


def scope_of(method: str = "POST", path: str = "/embed") -> dict:
    return {**post_scope(path), "method": method}


def test_a_refusal_has_what_any_dialect_may_want_to_say():
    """A dialect renders it without knowing an error class."""
    error = errors.QueueFullError("8192 tokens wait", retry_after_s=20)

    refusal = refusal_of(error, scope_of(), lambda: 0.5)

    message = "8192 tokens wait; retry in 21 s"
    assert refusal == Refusal(429, "queue_full", message, retry_after_s=21)


def test_a_refusal_names_the_field_at_fault():
    """Forms mark it."""
    error = errors.UnknownModelError("not served", param="model")

    refusal = refusal_of(error, scope_of(), lambda: 0.5)

    assert refusal == Refusal(404, "model_not_found", "not served", param="model")


def test_a_wrong_method_keeps_the_header_of_the_right_one():
    """HTTP demands `Allow` of a 405 in any dialect."""
    error = HTTPException(405, headers={"Allow": "POST"})

    refusal = refusal_of(error, scope_of("GET"), lambda: 0.5)

    message = "/embed does not take GET; see /docs"
    assert refusal == Refusal(405, "http_405", message, headers={"Allow": "POST"})


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (errors.InvalidRequestError("'my secret' is wrong"), errors.InvalidRequestError.__doc__),
        (
            RequestValidationError([{"loc": ("body", "input"), "msg": "'my secret'"}]),
            errors.InvalidRequestError.__doc__,
        ),
        (HTTPException(404, "my secret"), "Not Found"),
        (ZeroDivisionError("my secret"), "an internal error; the server's log has it"),
        (errors.QueueFullError("8192 tokens wait", retry_after_s=1), "8192 tokens wait"),
    ],
)
def test_what_is_kept_of_an_error_quotes_no_request(error: Exception, kept: str):
    """The status page shows it to every visitor."""
    assert lasting_message_of(error) == kept

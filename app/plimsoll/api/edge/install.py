"""Put the edge around an application."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from plimsoll.api.edge.access import methods_at
from plimsoll.api.edge.body import BodyLimits
from plimsoll.api.edge.guard import AccessRules, Guard
from plimsoll.api.edge.json_body import JSONLimits
from plimsoll.api.edge.middleware import Edge
from plimsoll.api.edge.refusals import Refusals
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.errors import PlimsollError
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.metrics import Telemetry

if TYPE_CHECKING:  # needs the extra
    from plimsoll.telemetry.tracing import RequestTracer


def install(
    app: FastAPI,
    telemetry: Telemetry,
    recent: RecentRequests,
    *,
    new_permit: Callable[[], RequestPermit],
    body_limit_bytes: int,
    body_timeout_s: float,
    parsing: Executor,
    access: AccessRules,
    json_limits: JSONLimits | None = None,
    tracer: "RequestTracer | None" = None,
) -> Refusals:
    """Put limits, refusals, log and counts around `app`; returns where dialects register theirs.

    parsing: one thread for the JSON of large bodies and large replies; the caller ends it.
    access: which clients are answered.
    json_limits: what a body may hold; None: as much as without settings.
    """
    app.state.telemetry = telemetry
    app.state.parsing = parsing
    app.state.json_limits = json_limits or JSONLimits()
    refusals = Refusals(telemetry.requests, recent)
    app.add_middleware(Guard, refusals=refusals, rules=access)
    app.add_middleware(  # the last that is added is the outermost
        Edge,
        metrics=telemetry.requests,
        recent=recent,
        refusals=refusals,
        new_permit=new_permit,
        limits=BodyLimits(body_limit_bytes, body_timeout_s),
        tracer=tracer,
    )

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            # The framework names the methods of one route, and a path may have several.
            error.headers = {"Allow": ", ".join(sorted(methods_at(request.scope)))}
        return refusals.answer(error, request.scope)

    for kind in (PlimsollError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)
    return refusals

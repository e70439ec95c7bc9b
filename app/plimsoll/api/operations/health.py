"""Routes for operators: health, readiness, metrics. None of them opens a model."""

from time import monotonic
from typing import Any

from fastapi import APIRouter, Request, Response

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.documented import OF_A_KEY, OF_AN_ADMIN_KEY, documented
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.operations.bottleneck_fields import BottleneckReport
from plimsoll.api.operations.health_fields import Health, Live, NotReady, Ready, health_of
from plimsoll.api.replies import json_response
from plimsoll.serving.core import ServingCore
from plimsoll.serving.state import show
from plimsoll.telemetry.metrics import Telemetry, media_type

PROMETHEUS: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


def router(
    core: ServingCore,
    telemetry: Telemetry,
    *,
    version: str,
    metrics_open: bool,
    has_keys: bool = False,
) -> APIRouter:
    """Routes that only look.

    metrics_open: a scrape needs no key. has_keys: what is open to everyone names no path or host.
    """
    routes = APIRouter(tags=["operations"])
    refused = documented(NATIVE)
    refused_without_key = documented(NATIVE, OF_A_KEY)
    refused_scrape = refused if metrics_open else refused_without_key
    started_s = monotonic()

    @routes.get(
        "/health",
        response_model=Health,
        response_description="What is so now.",
        responses=refused_without_key,
        summary="State of the server, its models and its memory",
    )
    @needs(Access.EMBED, is_counted=False)
    async def get_health() -> Response:
        uptime_s = monotonic() - started_s
        return json_response(health_of(core.state(), version=version, uptime_s=uptime_s))

    @routes.get(
        "/health/live",
        response_description="The process answers.",
        responses=refused,
        summary="200 while the process answers",
    )
    @needs(Access.OPEN)
    async def get_liveness() -> Live:
        return Live()

    @routes.get(
        "/health/ready",
        response_model=Ready,
        response_description="Requests to the default model are answered.",
        responses={**refused, 503: {"model": NotReady, "description": NotReady.__doc__}},
        summary="200 while requests are answered, else 503",
    )
    @needs(Access.OPEN)
    async def get_readiness() -> Response:
        unready = core.state().unready
        if unready is None:
            return json_response(Ready())
        reason = "GET /health says why, to a key" if has_keys else unready.message
        return json_response(NotReady(unready.status, reason), 503)

    @routes.get(
        "/bottleneck",
        response_model=BottleneckReport,
        response_description="The verdict, its evidence, and the trials.",
        responses=documented(NATIVE, OF_AN_ADMIN_KEY),
        summary="What limits throughput, why, and what was tried",
    )
    @needs(Access.ADMIN, is_counted=False)
    async def get_bottleneck() -> Response:
        return json_response(core.state().bottleneck, headers={"Cache-Control": "no-store"})

    @routes.get(
        "/metrics",
        response_class=Response,
        response_description="The text format, in the version that `Accept` asks for.",
        responses={
            200: {"content": PROMETHEUS},
            **refused_scrape,
        },
        summary="Prometheus metrics",
    )
    @needs(Access.OPEN if metrics_open else Access.EMBED, is_counted=False)
    async def get_metrics(request: Request) -> Response:
        return metrics_response(request, core, telemetry)

    return routes


def metrics_response(request: Request, core: ServingCore, telemetry: Telemetry) -> Response:
    """Every metric as it is now, in the version of the text format that the request accepts."""
    show(core.state(), telemetry)
    kind = media_type(request.headers.get("accept", ""))
    return Response(telemetry.render(), media_type=kind)

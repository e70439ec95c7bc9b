"""Routes for operators: health, readiness, metrics. None of them opens the model."""

from collections.abc import Callable
from time import monotonic
from typing import Any

from fastapi import APIRouter, Response

from app.api.boundary import json_response
from app.memory.monitor import MemoryMonitor
from app.serving.slot import ModelSlot, ModelState
from app.telemetry import CONTENT_TYPE, Telemetry


def router(
    slot: ModelSlot,
    monitor: MemoryMonitor,
    telemetry: Telemetry,
    *,
    version: str,
    draining: Callable[[], bool],
) -> APIRouter:
    """Routes that only look."""
    routes = APIRouter(tags=["operations"])
    started_s = monotonic()

    def unready() -> str | None:
        if draining():
            return "draining"
        if slot.state is ModelState.FAILED:
            return "unavailable"
        # Before the first open there is nothing to answer from while the model loads.
        if slot.state is ModelState.LOADING and slot.traits is None:
            return "starting"
        return None

    @routes.get("/health", summary="State of the server, its model and its memory")
    async def health() -> Response:
        sample = monitor.sample()
        traits = slot.traits
        return json_response(
            {
                "status": unready() or "ok",
                "version": version,
                "uptime_s": round(monotonic() - started_s, 3),
                "model": {
                    "name": slot.name,
                    "state": slot.state.value,
                    "fingerprint": traits.fingerprint() if traits else None,
                    "dimensions": traits.dimensions if traits else None,
                    "token_limit": traits.token_limit if traits else None,
                    "compute": traits.compute if traits else None,
                    "error": str(slot.error) if slot.error else None,
                    "loaded_bytes": slot.progress[0],
                    "total_bytes": slot.progress[1],
                },
                "memory": {
                    "used_bytes": sample.used_bytes,
                    "resident_bytes": sample.resident_bytes,
                    "working_set_bytes": sample.working_set_bytes,
                    "budget_bytes": sample.budget_bytes,
                    "utilization_ratio": round(sample.utilization_ratio, 4),
                    "budget_source": monitor.budget.source,
                    "scope": sample.scope,
                },
            }
        )

    @routes.get("/health/live", summary="200 while the process answers")
    async def live() -> dict[str, Any]:
        return {"status": "live"}

    @routes.get("/health/ready", summary="200 while requests are answered, else 503")
    async def ready() -> Response:
        reason = unready()
        return json_response({"status": reason or "ready"}, 503 if reason else 200)

    @routes.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(telemetry.render(), media_type=CONTENT_TYPE)

    return routes

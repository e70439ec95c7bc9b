"""Routes for operators: health, readiness, metrics. None of them opens a model."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from fastapi import APIRouter, Response

from app.api.boundary import json_response
from app.memory.monitor import MemoryMonitor
from app.memory.slots import ModelState
from app.serving.core import ServingCore
from app.serving.served_model import ServedModel
from app.telemetry import CONTENT_TYPE, Telemetry


def router(
    models: Sequence[ServedModel],
    core: ServingCore,
    monitor: MemoryMonitor,
    telemetry: Telemetry,
    *,
    version: str,
    draining: Callable[[], bool],
) -> APIRouter:
    """Routes that only look. `models`: the default first, which decides about readiness."""
    routes = APIRouter(tags=["operations"])
    default = models[0]
    started_s = monotonic()

    def unready() -> str | None:
        if draining():
            return "draining"
        if default.slot.state is ModelState.FAILED:
            return "unavailable"
        # Before the first open there is nothing to answer from while the model loads.
        if default.slot.state is ModelState.LOADING and default.traits is None:
            return "starting"
        return None

    @routes.get("/health", summary="State of the server, its models and its memory")
    async def health() -> Response:
        sample = monitor.sample()
        return json_response(
            {
                "status": unready() or "ok",
                "version": version,
                "uptime_s": round(monotonic() - started_s, 3),
                "model": _model(default),
                "models": [_model(model) for model in models],
                "memory": {
                    "used_bytes": sample.used_bytes,
                    "resident_bytes": sample.resident_bytes,
                    "working_set_bytes": sample.working_set_bytes,
                    "budget_bytes": sample.budget_bytes,
                    "utilization_ratio": round(sample.utilization_ratio, 4),
                    "budget_source": monitor.budget.source,
                    "scope": sample.scope,
                    "limits": [
                        {"source": source, "limit_bytes": limit_bytes}
                        for source, limit_bytes in monitor.limits
                    ],
                    "pressure_ratio": sample.pressure_ratio,
                    "refaults_per_s": round(core.watch.rates.refaults_per_s, 1),
                    "oom_kills": sample.oom_kills,
                    "predicted_bytes": core.gate.admission.predicted_bytes,
                    "line_bytes": core.gate.admission.line_bytes,
                },
                "cpu": core.watch.load,
                "ladder_step": core.watch.step,
                "breaker": core.breaker.snapshot(),
                "plan": core.watch.plan,
                "bottleneck": {
                    "kind": core.resolver.bottleneck.kind.value,
                    "reason": ", ".join(core.resolver.bottleneck.reasons),
                },
                "queue": {
                    "tokens": core.gate.admission.queue_tokens,
                    "limit_tokens": core.gate.admission.queue_limit_tokens,
                    "tokens_per_s": round(core.gate.admission.tokens_per_s, 1),
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

    @routes.get("/bottleneck", summary="What limits throughput, why, and what was tried")
    async def bottleneck() -> Response:
        return json_response(core.resolver.report(), headers={"Cache-Control": "no-store"})

    @routes.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(telemetry.render(), media_type=CONTENT_TYPE)

    return routes


def _model(model: ServedModel) -> dict[str, Any]:
    slot, traits = model.slot, model.traits
    return {
        "name": slot.name,
        "state": slot.state.value,
        "fingerprint": traits.fingerprint() if traits else None,
        "dimensions": traits.dimensions if traits else None,
        "token_limit": traits.token_limit if traits else None,
        "compute": traits.compute if traits else None,
        "error": str(slot.error) if slot.error else None,
        "loaded_bytes": slot.progress[0],
        "total_bytes": slot.progress[1],
    }

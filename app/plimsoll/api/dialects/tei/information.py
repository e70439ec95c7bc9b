"""TEI's routes about the server, and the ones that Plimsoll does not have."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from plimsoll.api.dialects.tei.errors import BASE, ERRORS, TEIError
from plimsoll.api.dialects.tei.fields import (
    MOST_CLIENT_TEXTS,
    EmbeddingModel,
    ModelType,
    TEIInfo,
)
from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import OF_A_CLIENT, OF_A_KEY, OF_THE_DEFAULT_MODEL, documented
from plimsoll.api.operations.health import PROMETHEUS, metrics_response
from plimsoll.api.replies import json_response
from plimsoll.policy.runs import GROWN_TOKENS, MOST_TEXTS
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

# GGUF's poolings by TEI's words.
POOLINGS = {"MEAN": "mean", "CLS": "cls", "LAST": "last_token"}
TOKENIZING_THREADS = 1
LACKING = {
    "/predict": "it serves no model that classifies",
    "/vertex": f"POST {BASE}/embed takes what its instances hold",
    "/invocations": f"POST {BASE} answers the same",
}


def router(
    core: ServingCore, telemetry: Telemetry, *, version: str, metrics_open: bool, has_keys: bool
) -> APIRouter:
    """Routes that only look; /info opens a model that never was open."""
    routes = APIRouter(prefix=BASE)

    @routes.get(
        "/info",
        response_description="What is served, and within which limits.",
        responses=documented(ERRORS, OF_A_CLIENT, OF_THE_DEFAULT_MODEL),
        summary="The default model and the server's limits",
    )
    async def tei_info(request: Request) -> TEIInfo:
        traits = await core.service.traits(None, permit_of(request))
        queue_tokens = core.governor.admission.backlog.queue_limit_tokens
        return TEIInfo(
            model_id=traits.name,
            model_sha=traits.content_sha256,
            model_dtype=traits.compute,
            served_model_name=traits.name,
            model_type=ModelType(
                embedding=EmbeddingModel.model_validate(
                    {"pooling": POOLINGS[traits.architecture.pooling.name]}
                )
            ),
            max_concurrent_requests=max(1, queue_tokens // traits.token_limit),
            max_input_length=traits.token_limit,
            max_batch_tokens=GROWN_TOKENS,
            max_batch_requests=MOST_TEXTS,
            max_client_batch_size=MOST_CLIENT_TEXTS,
            auto_truncate=True,
            tokenization_workers=TOKENIZING_THREADS,
            version=version,
        )

    of_health: dict[str, Any] = {
        "response_class": Response,
        "response_description": "Requests to the default model are answered.",
        "responses": {
            200: {"content": {"text/plain": {"schema": {"type": "string", "maxLength": 0}}}},
            **documented(ERRORS),
            503: {"model": TEIError, "description": "They are not, for now."},
        },
    }

    @routes.get("/health", summary="200 while requests are answered, else 503", **of_health)
    @needs(Access.OPEN)
    async def tei_health() -> Response:
        unready = core.state().unready
        if unready is None:
            return Response(media_type="text/plain")
        reason = "GET /health says why, to a key" if has_keys else unready.message
        return json_response({"error": reason, "error_type": "Unhealthy"}, 503)

    @routes.get("", summary="The same, at the base itself", **of_health)
    @needs(Access.OPEN)
    async def tei_health_at_base() -> Response:
        return await tei_health()

    @routes.get("/ping", summary="The same, where AWS SageMaker asks for it", **of_health)
    @needs(Access.OPEN)
    async def tei_ping() -> Response:
        return await tei_health()

    @routes.get(
        "/metrics",
        response_class=Response,
        response_description="Plimsoll's metrics, by Plimsoll's names.",
        responses={
            200: {"content": PROMETHEUS},
            **(documented(ERRORS) if metrics_open else documented(ERRORS, OF_A_KEY)),
        },
        summary="Prometheus metrics, as of GET /metrics",
    )
    @needs(Access.OPEN if metrics_open else Access.EMBED, is_counted=False)
    async def tei_metrics(request: Request) -> Response:
        return metrics_response(request, core, telemetry)

    def lack(path: str, reason: str) -> None:
        @routes.post(path, include_in_schema=False)
        async def lacking() -> None:
            raise HTTPException(404, f"Plimsoll has no {BASE}{path}: {reason}")

    for path, reason in LACKING.items():
        lack(path, reason)
    return routes

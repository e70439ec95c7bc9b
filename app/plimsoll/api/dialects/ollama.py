"""Ollama's dialect: POST /api/embed and /api/embeddings, GET /api/tags and /api/version.

Its clients send any Content-Type, `options` that mean nothing to an encoder, and a name with
`:latest` behind it. A request without a text opens the model, or closes it with `keep_alive` 0.
The source is Ollama's own server/routes.go.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel

from plimsoll.api.edge.access import reads_any_content_type
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import OF_A_CLIENT, OF_A_MODEL, OF_A_TEXT, OF_ANY_BODY, documented
from plimsoll.api.edge.errors import Refusal
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import ErrorShape
from plimsoll.api.fields import PriorityHeader
from plimsoll.api.ollama_fields import (
    EXAMPLES,
    OLDER_EXAMPLES,
    OllamaEmbeddingsRequest,
    OllamaEmbeddingsResponse,
    OllamaEmbedRequest,
    OllamaEmbedResponse,
    OllamaModel,
    OllamaTags,
    OllamaVersion,
)
from plimsoll.api.replies import VECTOR_HEADERS, embeddings_response, json_response, vector_headers
from plimsoll.errors import UnknownModelError
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first

LATEST = ":latest"
# Clients look at it for the routes that they may use; the first version with `dimensions`.
API_VERSION = "0.11.11"
NANOSECONDS = 1_000_000_000
OF_TEXTS = {"required": False}  # an answer without a vector names no space


class OllamaError(BaseModel):
    """Ollama's shape of an error; its JavaScript client shows no other."""

    error: str


def ollama_error(refusal: Refusal) -> object:
    """A refusal as an `OllamaError`."""
    return {"error": refusal.message}


ERRORS = ErrorShape(OllamaError, ollama_error)


class ServedModel(Protocol):
    """A model of the server."""

    @property
    def name(self) -> str:
        """Its own name."""


class ServedModels(Protocol):
    """The models of the server, as far as this dialect speaks of them."""

    @property
    def names(self) -> Sequence[str]:
        """Every name that clients may use, the default model's own first."""

    def find(self, name: str | None) -> ServedModel:
        """A model by any of its names, in any case. Raises UnknownModelError."""


def router(
    service: EmbeddingService, models: ServedModels, *, created: int, version: str
) -> APIRouter:
    """Routes over the use case and the models that it has.

    created: the server's start in Unix time. version: Plimsoll's own.
    """
    routes = APIRouter(prefix="/api", route_class=StrictJSONRoute, tags=["ollama"])
    for_vectors: dict[str, Any] = {
        "response_description": "A vector for each text.",
        "responses": {
            200: {"headers": {name: header | OF_TEXTS for name, header in VECTOR_HEADERS.items()}},
            **documented(ERRORS, OF_ANY_BODY, OF_A_MODEL, OF_A_TEXT),
        },
    }
    started = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")

    @routes.post(
        "/embed",
        response_model=OllamaEmbedResponse,
        summary="Embed texts, in Ollama's shape",
        **for_vectors,
    )
    @reads_any_content_type
    async def ollama_embed(
        body: Annotated[OllamaEmbedRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        start_s = perf_counter()
        model, called = _model_of(models, body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts or body.input == "":
            await service.open_model(model, permit_of(request), body.keep_alive)
            return json_response({"model": called, "embeddings": []})
        task = EmbedTask(
            texts,
            dimensions=body.dimensions if (body.dimensions or 0) > 0 else None,
            truncate=body.truncate,
            model=model,
            priority=priority,
            keep_alive_s=body.keep_alive,
        )
        result = await service.embed_dense(task, permit_of(request))
        # This dialect has no errors per text.
        raise_first(result.failures, lambda index: f"input[{index}]", param="input")
        total_s = perf_counter() - start_s
        return await embeddings_response(
            request, result, lambda: _render(result, called, total_s), vector_headers(result)
        )

    @routes.post(
        "/embeddings",
        response_model=OllamaEmbeddingsResponse,
        summary="Embed one text, as Ollama's older clients ask for it",
        **for_vectors,
    )
    @reads_any_content_type
    async def ollama_embeddings(
        body: Annotated[OllamaEmbeddingsRequest, Body(openapi_examples=OLDER_EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        model, _ = _model_of(models, body.model)
        if not body.prompt:
            await service.open_model(model, permit_of(request), body.keep_alive)
            return json_response({"embedding": []})
        task = EmbedTask(
            [body.prompt], model=model, priority=priority, keep_alive_s=body.keep_alive
        )
        result = await service.embed_dense(task, permit_of(request))
        raise_first(result.failures, lambda _: "prompt", param="prompt")
        return await embeddings_response(
            request, result, lambda: {"embedding": result.vectors[0]}, vector_headers(result)
        )

    @routes.get(
        "/tags",
        response_description="The names.",
        responses=documented(ERRORS, OF_A_CLIENT),
        summary="Every name of the models that are served, in Ollama's shape",
    )
    async def ollama_tags() -> OllamaTags:
        tags = dict.fromkeys(name if ":" in name else name + LATEST for name in models.names)
        return OllamaTags(
            models=[OllamaModel(name=tag, model=tag, modified_at=started) for tag in tags]
        )

    @routes.get(
        "/version",
        response_description="The version.",
        responses=documented(ERRORS, OF_A_CLIENT),
        summary="Which version of Ollama's API is spoken",
    )
    async def ollama_version() -> OllamaVersion:
        return OllamaVersion(version=API_VERSION, plimsoll=version)

    return routes


def _model_of(models: ServedModels, asked: str | None) -> tuple[str, str]:
    """The own name of the model that is asked for, and what the answer calls it.

    Raises UnknownModelError.
    """
    try:
        name = models.find(asked).name
    except UnknownModelError:
        if asked is None or not asked.lower().endswith(LATEST):
            raise
        name = models.find(asked[: -len(LATEST)]).name
    return name, asked or name


def _render(result: Embeddings, called: str, total_s: float) -> dict[str, Any]:
    return {
        "model": called,
        "embeddings": LongList(result.vectors),
        "total_duration": int(total_s * NANOSECONDS),
        "load_duration": int(result.loading_s * NANOSECONDS),
        "prompt_eval_count": result.n_tokens,
    }

"""Plimsoll's own dialect: POST /embed."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from app.api.boundary import (
    DegradedAnswer,
    Encoding,
    InputType,
    StrictJSONRoute,
    Texts,
    Truncated,
    embeddings_response,
    json_response,
    releases_of,
    sparse_response,
    vector_field,
)
from app.serving.service import EmbeddingService
from app.serving.tasks import Embeddings, EmbedTask, SparseEmbeddings


class EmbedRequest(BaseModel):
    """What to embed and how."""

    model_config = ConfigDict(extra="forbid")

    input: Annotated[StrictStr | Texts, Field(description="A text, or a list of any length.")]
    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    input_type: Annotated[
        InputType | None,
        Field(description="Task prefix, for models trained with one; null: the text as it is."),
    ] = None
    dimensions: Annotated[
        StrictInt | None, Field(ge=1, description="Values a vector; null: all of the model's.")
    ] = None
    truncate: Annotated[
        StrictBool,
        Field(description="Cut texts to the token limit and say so; false: refuse them."),
    ] = True
    encoding_format: Annotated[
        Encoding, Field(description="base64 is that of little-endian float32.")
    ] = "float"
    encoder: Annotated[
        Literal["dense", "bm25"],
        Field(description="bm25: sparse vectors of words instead of the model's, at any time."),
    ] = "dense"
    fallback: Annotated[
        Literal["bm25", "none"],
        Field(description="Under memory pressure, answer with bm25 and say so; none: 503 instead."),
    ] = "bm25"


class TextError(BaseModel):
    """Why a text has no vector."""

    index: int
    code: str
    message: str


class Usage(BaseModel):
    """What the request cost."""

    tokens: int


class EmbedResponse(BaseModel):
    """`embeddings[i]` is null exactly when `errors` has index i."""

    kind: Literal["dense"]
    model: str
    fingerprint: Annotated[
        str, Field(description="Names the vector space: compare vectors only where it is equal.")
    ]
    input_type: InputType | None
    compute: str
    dimensions: int
    embeddings: list[list[float] | str | None]
    usage: Usage
    truncated: list[Truncated]
    errors: list[TextError]
    warnings: list[str]
    degraded: None


class SparseVectorFields(BaseModel):
    """Words by number, ascending."""

    indices: list[int]
    values: list[float]


class SparseResponse(BaseModel):
    """BM25 vectors, never in a field for dense ones; `degraded` is null where they were asked for.

    They fit an index of fastembed's Qdrant/bm25, whose side applies the inverse document frequency.
    """

    kind: Literal["sparse"]
    encoder: Literal["bm25"]
    fingerprint: str
    sparse: list[SparseVectorFields]
    degraded: DegradedAnswer | None


class ExplainResponse(BaseModel):
    """What would become of the request now, and the numbers that decide it; nothing has run."""

    kind: Literal["explanation"]
    outcome: Annotated[
        Literal["admit", "wait", "queue_full", "too_large", "breaker_open", "model_loading"],
        Field(description="wait: for memory, then the fallback."),
    ]
    step: Annotated[int, Field(description="Of the memory ladder, 0 to 4.")]
    n_texts: int
    n_tokens: Annotated[int, Field(description="Exact, of the texts that would run.")]
    longest_tokens: int
    predicted_bytes: Annotated[int, Field(description="At the request's peak.")]
    predicted_s: Annotated[float, Field(description="Until its last vector.")]
    headroom_bytes: int
    largest_bytes: Annotated[int, Field(description="What an idle server could give.")]
    queue_tokens: int
    tokens_per_s: float
    retry_after_s: float


def router(service: EmbeddingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["embeddings"])

    @routes.post(
        "/embed",
        response_model=EmbedResponse | SparseResponse | ExplainResponse,
        summary="Embed one text or a list",
    )
    async def embed(
        body: EmbedRequest,
        request: Request,
        explain: Annotated[
            bool, Query(description="Say what would become of it; run nothing.")
        ] = False,
    ) -> Response:
        task = EmbedTask(
            texts=[body.input] if isinstance(body.input, str) else body.input,
            input_type=body.input_type,
            dimensions=body.dimensions,
            truncate=body.truncate,
            model=body.model,
            encoder=body.encoder,
            fallback=body.fallback,
        )
        if explain:
            explanation = await service.explain(task)
            return json_response({"kind": "explanation", **asdict(explanation)})
        result = await service.embed(task, releases_of(request))
        if isinstance(result, SparseEmbeddings):
            return sparse_response(request, result, lambda: _render_sparse(result))
        return embeddings_response(request, result, lambda: _render(result, body.encoding_format))

    return routes


def _render_sparse(result: SparseEmbeddings) -> dict[str, Any]:
    return {
        "kind": "sparse",
        "encoder": "bm25",
        "fingerprint": result.fingerprint,
        "sparse": [
            {"indices": vector.indices, "values": vector.values} for vector in result.vectors
        ],
        "degraded": result.degraded,
    }


def _render(result: Embeddings, encoding: Encoding) -> dict[str, Any]:
    return {
        "kind": "dense",
        "model": result.traits.name,
        "fingerprint": result.fingerprint,
        "input_type": result.input_type,
        "compute": result.traits.compute,
        "dimensions": result.dimensions,
        "embeddings": [
            None if vector is None else vector_field(vector, encoding) for vector in result.vectors
        ],
        "usage": {"tokens": result.n_tokens},
        "truncated": result.truncated,
        "errors": result.failures,
        "warnings": result.warnings,
        "degraded": None,
    }

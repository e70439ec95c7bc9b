"""Plimsoll's own dialect: POST /embed."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import OF_A_BODY, OF_A_MODEL, documented
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import (
    Count,
    DegradedAnswer,
    InputType,
    OrDefault,
    PriorityHeader,
    TextError,
    Texts,
    Truncated,
)
from plimsoll.api.replies import (
    DEGRADED_HEADERS,
    embeddings_response,
    json_response,
    sparse_response,
)
from plimsoll.api.vector_encodings import VectorEncoding, vector_field
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask, Encoder, Fallback, SparseEmbeddings


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
        Count | None, Field(description="Values a vector; null: all of the model's.")
    ] = None
    truncate: Annotated[
        OrDefault[StrictBool],
        Field(description="Cut texts to the token limit and say so; false: refuse them."),
    ] = True
    encoding_format: Annotated[
        OrDefault[VectorEncoding],
        Field(
            description="base64 is that of little-endian float32; int8 and uint8 are whole numbers "
            "of a fixed scale, binary and ubinary bytes of eight signs each."
        ),
    ] = "float"
    encoder: Annotated[
        OrDefault[Encoder],
        Field(description="bm25: sparse vectors of words instead of the model's, at any time."),
    ] = "dense"
    fallback: Annotated[
        OrDefault[Fallback],
        Field(description="Under memory pressure, answer with bm25 and say so; none: 503 instead."),
    ] = "bm25"


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
        Literal[
            "admit", "wait", "no_room", "queue_full", "too_large", "breaker_open", "model_loading"
        ],
        Field(description="wait: for memory, then the fallback; no_room: the fallback at once."),
    ]
    step: Annotated[int, Field(description="Of the memory ladder, 0 to 4.")]
    n_texts: int
    n_tokens: Annotated[int, Field(description="Exact, of the texts that would run.")]
    longest_tokens: int
    predicted_bytes: Annotated[int, Field(description="At the request's peak.")]
    predicted_s: Annotated[float, Field(description="Until its last vector.")]
    headroom_bytes: int
    largest_bytes: Annotated[int, Field(description="What an idle server could give.")]
    queue_tokens: Annotated[
        int, Field(description="Of others, that run before its last: its class, the other's share.")
    ]
    tokens_per_s: float
    retry_after_s: float


Answer = Annotated[EmbedResponse | SparseResponse | ExplainResponse, Field(discriminator="kind")]
EXAMPLES: dict[str, Example] = {
    "list": {
        "summary": "A list of texts",
        "value": {"input": ["A mark on a hull", "How deep may a ship be loaded?"]},
    },
    "one": {"summary": "One text", "value": {"input": "A mark on a hull"}},
    "words": {
        "summary": "Sparse vectors of words, at any time and without a model",
        "value": {"input": ["A mark on a hull"], "encoder": "bm25"},
    },
}


def router(service: EmbeddingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["embeddings"])

    @routes.post(
        "/embed",
        response_model=Answer,
        response_description="Dense vectors, or what stands in their place: `kind` says which.",
        responses={200: {"headers": DEGRADED_HEADERS}, **documented(NATIVE, OF_A_BODY, OF_A_MODEL)},
        summary="Embed one text or a list",
    )
    async def embed(
        body: Annotated[EmbedRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        explain: Annotated[
            bool, Query(description="Say what would become of it; run nothing.")
        ] = False,
        priority: PriorityHeader = None,
    ) -> Response:
        task = EmbedTask(
            texts=[body.input] if isinstance(body.input, str) else body.input,
            input_type=body.input_type,
            dimensions=body.dimensions,
            truncate=body.truncate,
            model=body.model,
            encoder=body.encoder,
            fallback=body.fallback,
            priority=priority,
        )
        if explain:
            explanation = await service.explain(task, permit_of(request))
            return json_response({"kind": "explanation", **asdict(explanation)})
        result = await service.embed(task, permit_of(request))
        if isinstance(result, SparseEmbeddings):
            return await sparse_response(request, result, lambda: _render_sparse(result))
        return await embeddings_response(
            request, result, lambda: _render(result, body.encoding_format)
        )

    return routes


def _render_sparse(result: SparseEmbeddings) -> dict[str, Any]:
    return {
        "kind": "sparse",
        "encoder": "bm25",
        "fingerprint": result.fingerprint,
        "sparse": LongList(
            {"indices": vector.indices, "values": vector.values} for vector in result.vectors
        ),
        "degraded": result.degraded,
    }


def _render(result: Embeddings, encoding: VectorEncoding) -> dict[str, Any]:
    return {
        "kind": "dense",
        "model": result.traits.name,
        "fingerprint": result.fingerprint,
        "input_type": result.input_type,
        "compute": result.traits.compute,
        "dimensions": result.dimensions,
        "embeddings": LongList(
            None if vector is None else vector_field(vector, encoding) for vector in result.vectors
        ),
        "usage": {"tokens": result.n_tokens},
        "truncated": LongList(result.truncated),
        "errors": LongList(result.failures),
        "warnings": result.warnings,
        "degraded": None,
    }

"""Plimsoll's own dialect: POST /embed."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from app.api.boundary import (
    Encoding,
    InputType,
    StrictJSONRoute,
    Texts,
    embeddings_response,
    vector_field,
)
from app.serving.service import Embeddings, EmbeddingService, EmbedTask


class EmbedRequest(BaseModel):
    """What to embed and how."""

    model_config = ConfigDict(extra="forbid")

    input: Annotated[StrictStr | Texts, Field(description="A text, or a list of any length.")]
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


class Truncated(BaseModel):
    """A text that was cut."""

    index: int
    tokens: int
    kept: int


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


def router(service: EmbeddingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["embeddings"])

    @routes.post("/embed", response_model=EmbedResponse, summary="Embed one text or a list")
    async def embed(body: EmbedRequest, request: Request) -> Response:
        texts = [body.input] if isinstance(body.input, str) else body.input
        task = EmbedTask(texts, body.input_type, body.dimensions, body.truncate)
        result = await service.embed(task)
        return embeddings_response(request, result, lambda: _render(result, body.encoding_format))

    return routes


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

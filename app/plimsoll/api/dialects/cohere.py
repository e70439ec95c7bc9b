"""Cohere's dialect: POST /v2/embed, as Cohere's and vLLM's clients speak it.

Vectors in several types at once, by the rules of vector_encodings.py. Texts alone: images and
mixed inputs are refused, beside texts too, for the reply would leave them out. Other unknown fields
are ignored.
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, FailFast, Field, StrictStr, model_validator

from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import OF_A_BODY, OF_A_MODEL, OF_A_TEXT, documented
from plimsoll.api.edge.errors import Refusal
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import ErrorShape
from plimsoll.api.fields import Count, InputType, OrDefault, PriorityHeader, Texts, Truncate, cut_of
from plimsoll.api.replies import VECTOR_HEADERS, embeddings_response, vector_headers
from plimsoll.api.vector_encodings import VectorEncoding, vector_field
from plimsoll.errors import InvalidRequestError
from plimsoll.policy.costs import json_bytes
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first
from plimsoll.telemetry.current_request import current_request

Floats = list[list[float]]  # a field of the answer is called float
EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
NOT_TEXTS = ("images", "inputs")


class CohereError(BaseModel):
    """Cohere's shape of an error."""

    id: Annotated[str, Field(description="The request's, as of X-Request-Id.")]
    message: str


def cohere_error(refusal: Refusal) -> object:
    """A refusal as a `CohereError`."""
    return {"id": _request_id(), "message": refusal.message}


ERRORS = ErrorShape(CohereError, cohere_error)


class CohereEmbedRequest(BaseModel):
    """Cohere's embed request."""

    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    texts: Annotated[Texts, Field(description="Texts to embed, any number.")]
    input_type: Annotated[
        InputType | None, Field(description="Task prefix; null: the texts as they are.")
    ] = None
    embedding_types: Annotated[
        OrDefault[Annotated[list[EmbeddingType], FailFast(), Field(min_length=1)]],
        Field(description="The types to answer with, each text's vector in all of them."),
    ] = ["float"]
    output_dimension: Annotated[
        Count | None, Field(description="Values a vector; null: all of the model's.")
    ] = None
    truncate: Annotated[
        OrDefault[Truncate],
        Field(description="The side of a long text that goes; NONE refuses it."),
    ] = "END"
    max_tokens: Annotated[
        Count | None,
        Field(
            description="Not followed: a text is cut at the model's limit. Where that is higher, "
            "`meta.warnings` says so."
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _has_texts_alone(cls, fields: Any) -> Any:
        """Raises InvalidRequestError."""
        for name in NOT_TEXTS:
            if isinstance(fields, dict) and fields.get(name):
                raise InvalidRequestError(
                    f"{name} are not embedded here: send texts alone, in `texts`", param=name
                )
        return fields


class EmbeddingsByType(BaseModel):
    """The vectors in each type that was asked for, in the order of the texts."""

    float: Floats | None = None
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class APIVersion(BaseModel):
    """Of Cohere's API."""

    version: Literal["2"]


class BilledUnits(BaseModel):
    """What the request cost."""

    input_tokens: int


class CohereMeta(BaseModel):
    """What is said about the answer."""

    api_version: APIVersion
    billed_units: BilledUnits
    warnings: list[str] | None = None


class CohereEmbedResponse(BaseModel):
    """Cohere's answer."""

    id: Annotated[str, Field(description="The request's, as of X-Request-Id.")]
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"]


EXAMPLES: dict[str, Example] = {
    "search": {
        "summary": "Documents of a search, in two types",
        "value": {
            "texts": ["A mark on a hull", "How deep may a ship be loaded?"],
            "input_type": "search_document",
            "embedding_types": ["float", "ubinary"],
        },
    },
}


def router(service: EmbeddingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(prefix="/v2", route_class=StrictJSONRoute, tags=["cohere"])

    @routes.post(
        "/embed",
        response_model=CohereEmbedResponse,
        response_description="A vector for each text, in each type.",
        responses={
            200: {"headers": VECTOR_HEADERS},
            **documented(ERRORS, OF_A_BODY, OF_A_MODEL, OF_A_TEXT),
        },
        summary="Embed texts, in Cohere's shape",
    )
    async def cohere_embed(
        body: Annotated[CohereEmbedRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        if not body.texts:
            raise InvalidRequestError("texts is an empty list; send at least one", param="texts")
        types = list(dict.fromkeys(body.embedding_types))
        task = EmbedTask(
            body.texts,
            body.input_type,
            body.output_dimension,
            body.truncate != "NONE",
            body.model,
            priority=priority,
            cut=cut_of(body.truncate),
            encodings=len(types),
            echoed_bytes=json_bytes(body.texts),
        )
        result = await service.embed_dense(task, permit_of(request))
        # This dialect has no errors per text.
        raise_first(result.failures, lambda index: f"texts[{index}]", param="texts")
        return await embeddings_response(
            request, result, lambda: _render(result, body, types), vector_headers(result)
        )

    return routes


def _render(
    result: Embeddings, body: CohereEmbedRequest, types: list[EmbeddingType]
) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"input_tokens": result.n_tokens},
    }
    warnings = [*result.warnings, *_unfollowed(body.max_tokens, result.traits.token_limit)]
    if warnings:
        meta["warnings"] = warnings
    return {
        "id": _request_id(),
        "embeddings": {kind: _of_type(result, kind) for kind in types},
        "texts": LongList(body.texts),
        "meta": meta,
        "response_type": "embeddings_by_type",
    }


def _unfollowed(max_tokens: int | None, limit: int) -> list[str]:
    if max_tokens is None or max_tokens >= limit:
        return []
    return [f"max_tokens is not followed: texts are cut at the model's limit of {limit} tokens"]


def _of_type(result: Embeddings, kind: VectorEncoding) -> LongList:
    return LongList(vector_field(row, kind) for row in result.vectors if row is not None)


def _request_id() -> str:
    """Names the request in log lines too; an example in the documentation has none."""
    request = current_request()
    return "" if request is None else request.id

"""OpenAI's dialect: POST /v1/embeddings and GET /v1/models.

Clients ask for base64 by default and some of them read nothing else. Unknown fields are
ignored, as OpenAI's own server does with most. Token ids are refused: they are another
tokenizer's. `input_type` and `truncate` may be sent besides.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, FailFast, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from typing_extensions import TypeAliasType

from app.api.boundary import (
    Encoding,
    InputType,
    StrictJSONRoute,
    Texts,
    dense_only,
    embeddings_response,
    releases_of,
    vector_field,
)
from app.encoder.model import EmbeddingModel
from app.errors import InvalidRequestError, NonFiniteError
from app.memory.resources import ResourceManager
from app.serving.service import EmbeddingService
from app.serving.tasks import Embeddings, EmbedTask

MAX_INPUTS = 2048  # OpenAI's own limit

TokenIds = TypeAliasType("TokenIds", Annotated[list[StrictInt | StrictFloat], FailFast()])
TokenIdLists = TypeAliasType("TokenIdLists", Annotated[list[TokenIds], FailFast()])


class EmbeddingsRequest(BaseModel):
    """OpenAI's embeddings request."""

    input: Annotated[
        StrictStr | Texts | TokenIds | TokenIdLists,
        Field(description="A text or up to 2048 of them. Token ids are refused."),
    ]
    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    encoding_format: Encoding = "float"
    dimensions: Annotated[StrictInt | None, Field(ge=1)] = None
    user: StrictStr | None = None
    input_type: InputType | None = None
    truncate: StrictBool = True


def router(
    service: EmbeddingService, models: ResourceManager[EmbeddingModel], *, created: int
) -> APIRouter:
    """Routes over the use case and the models that it has; `created` is a Unix time."""
    routes = APIRouter(prefix="/v1", route_class=StrictJSONRoute, tags=["openai"])

    @routes.post("/embeddings", summary="Embed texts, in OpenAI's shape")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        texts = _texts(body.input)
        task = EmbedTask(texts, body.input_type, body.dimensions, body.truncate, body.model)
        result = dense_only(await service.embed(task, releases_of(request)))
        _raise_first(result)
        headers = {"X-Plimsoll-Fingerprint": result.fingerprint}
        if result.truncated:
            headers["X-Plimsoll-Truncated"] = str(len(result.truncated))
        return embeddings_response(
            request, result, lambda: _render(result, body.encoding_format), headers
        )

    @routes.get("/models", summary="Every name of the models that are served")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, created) for name in models.names]}

    @routes.get("/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        models.find(name)
        return _model(name, created)

    return routes


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "plimsoll"}


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if any(not isinstance(text, str) for text in texts):
        raise InvalidRequestError(
            "input holds token ids, which come from another model's tokenizer; send texts "
            "(langchain-openai: check_embedding_ctx_length=False)",
            param="input",
        )
    if len(texts) > MAX_INPUTS:
        raise InvalidRequestError(
            f"input has {len(texts)} texts and this route takes {MAX_INPUTS}; POST /embed takes "
            "lists of any length",
            param="input",
        )
    return texts


def _raise_first(result: Embeddings) -> None:
    """This dialect has no errors per text: the first bad one fails the request."""
    if not result.failures:
        return
    first = min(result.failures, key=lambda failure: failure.index)
    message = f"input[{first.index}]: {first.message}"
    if first.code == "non_finite":
        raise NonFiniteError(message)
    raise InvalidRequestError(message, param="input")


def _render(result: Embeddings, encoding: Encoding) -> dict[str, Any]:
    rows = [vector for vector in result.vectors if vector is not None]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector_field(row, encoding)}
            for index, row in enumerate(rows)
        ],
        "model": result.traits.name,
        "usage": {"prompt_tokens": result.n_tokens, "total_tokens": result.n_tokens},
        "truncated": result.truncated,
        "warnings": result.warnings,
    }

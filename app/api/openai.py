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
    embeddings_response,
    vector_field,
)
from app.errors import InvalidRequestError, NonFiniteError, UnknownModelError
from app.serving.service import Embeddings, EmbeddingService, EmbedTask

MAX_INPUTS = 2048  # OpenAI's own limit

TokenIds = TypeAliasType("TokenIds", Annotated[list[StrictInt | StrictFloat], FailFast()])
TokenIdLists = TypeAliasType("TokenIdLists", Annotated[list[TokenIds], FailFast()])


class EmbeddingsRequest(BaseModel):
    """OpenAI's embeddings request."""

    input: Annotated[
        StrictStr | Texts | TokenIds | TokenIdLists,
        Field(description="A text or up to 2048 of them. Token ids are refused."),
    ]
    model: Annotated[StrictStr | None, Field(description="As GET /v1/models lists it.")] = None
    encoding_format: Encoding = "float"
    dimensions: Annotated[StrictInt | None, Field(ge=1)] = None
    user: StrictStr | None = None
    input_type: InputType | None = None
    truncate: StrictBool = True


def router(service: EmbeddingService, *, model_names: tuple[str, ...], created: int) -> APIRouter:
    """Routes over the use case. `model_names`: what clients may call the model, its own first."""
    routes = APIRouter(prefix="/v1", route_class=StrictJSONRoute, tags=["openai"])
    accepted = {name.lower() for name in model_names}

    def check_model(name: str | None) -> None:
        if name is not None and name.lower() not in accepted:
            raise UnknownModelError(
                f"this server serves {model_names[0]!r}, not {name!r}; see GET /v1/models",
                param="model",
            )

    @routes.post("/embeddings", summary="Embed texts, in OpenAI's shape")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        texts = _texts(body.input)
        check_model(body.model)
        task = EmbedTask(texts, body.input_type, body.dimensions, body.truncate)
        result = await service.embed(task)
        _raise_first(result)
        headers = {"X-Plimsoll-Fingerprint": result.fingerprint}
        if result.truncated:
            headers["X-Plimsoll-Truncated"] = str(len(result.truncated))
        return embeddings_response(
            request, result, lambda: _render(result, body.encoding_format), headers
        )

    @routes.get("/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, created) for name in model_names]}

    @routes.get("/models/{name:path}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        check_model(name)
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

"""OpenAI's dialect: POST /v1/embeddings and GET /v1/models.

Clients ask for base64 by default and some of them read nothing else. Unknown fields are
ignored, as OpenAI's own server does with most. Token ids are refused: they are another
tokenizer's. `input_type` and `truncate` may be sent besides.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, FailFast, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_MODEL,
    OF_A_MODEL_NAME,
    OF_A_TEXT,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import Count, Encoding, InputType, OrDefault, PriorityHeader, Truncated
from plimsoll.api.replies import embeddings_response, vector_field
from plimsoll.errors import InvalidRequestError
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first

MAX_INPUTS = 2048  # OpenAI's own limit
ERRORS = NATIVE  # which was made after OpenAI's

TextsToLimit = TypeAliasType(
    "TextsToLimit",
    Annotated[
        list[StrictStr],
        FailFast(),
        Field(json_schema_extra={"minItems": 1, "maxItems": MAX_INPUTS}),
    ],
)
TokenIds = TypeAliasType("TokenIds", Annotated[list[StrictInt | StrictFloat], FailFast()])
TokenIdLists = TypeAliasType("TokenIdLists", Annotated[list[TokenIds], FailFast()])


class EmbeddingsRequest(BaseModel):
    """OpenAI's embeddings request."""

    input: Annotated[
        # The last two only to be refused in words that help.
        StrictStr | TextsToLimit | SkipJsonSchema[TokenIds | TokenIdLists],
        Field(description="A text or up to 2048 of them. Token ids are refused."),
    ]
    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    encoding_format: Annotated[
        OrDefault[Encoding], Field(description="base64 is that of little-endian float32.")
    ] = "float"
    dimensions: Annotated[
        Count | None, Field(description="Values a vector; null: all of the model's.")
    ] = None
    user: Annotated[StrictStr | None, Field(description="Not looked at.")] = None
    input_type: Annotated[
        InputType | None, Field(description="Not OpenAI's: as of POST /embed.")
    ] = None
    truncate: Annotated[
        OrDefault[StrictBool], Field(description="Not OpenAI's: as of POST /embed.")
    ] = True


class EmbeddingItem(BaseModel):
    """The vector of a text, by its place in the input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class TokenUsage(BaseModel):
    """What the request cost; both are the same."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's answer, with `truncated` and `warnings` besides."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: TokenUsage
    truncated: list[Truncated]
    warnings: list[str]


class Model(BaseModel):
    """A name that clients may use."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When the server started, in Unix time.")]
    owned_by: Literal["plimsoll"] = "plimsoll"


class ModelList(BaseModel):
    """Every name, the default model's own first."""

    object: Literal["list"] = "list"
    data: list[Model]


EXAMPLES: dict[str, Example] = {
    "list": {
        "summary": "A list of texts",
        "value": {"input": ["A mark on a hull", "How deep may a ship be loaded?"]},
    },
    "base64": {
        "summary": "One text, as OpenAI's own clients ask for it",
        "value": {"input": "A mark on a hull", "encoding_format": "base64"},
    },
}
HEADERS = {
    "X-Plimsoll-Fingerprint": {
        "description": "Names the vector space: compare vectors only where it is equal.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Plimsoll-Truncated": {
        "description": "How many texts were cut to the token limit; missing where none was.",
        "schema": {"type": "integer", "minimum": 1},
    },
}


class ServedModels(Protocol):
    """The models of the server, as far as this dialect speaks of them."""

    @property
    def names(self) -> Sequence[str]:
        """Every name that clients may use."""

    def find(self, name: str) -> object:
        """Raises UnknownModelError for a name that is not among them, in any case."""


def router(service: EmbeddingService, models: ServedModels, *, created: int) -> APIRouter:
    """Routes over the use case and the models that it has; `created` is a Unix time."""
    routes = APIRouter(prefix="/v1", route_class=StrictJSONRoute, tags=["openai"])

    @routes.post(
        "/embeddings",
        response_model=EmbeddingsResponse,
        response_description="A vector for each text.",
        responses={
            200: {"headers": HEADERS},
            **documented(ERRORS, OF_A_BODY, OF_A_MODEL, OF_A_TEXT),
        },
        summary="Embed texts, in OpenAI's shape",
    )
    async def create_embeddings(
        body: Annotated[EmbeddingsRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        task = EmbedTask(
            _texts(body.input),
            body.input_type,
            body.dimensions,
            body.truncate,
            body.model,
            priority=priority,
        )
        result = await service.embed_dense(task, permit_of(request))
        # This dialect has no errors per text.
        raise_first(result.failures, lambda index: f"input[{index}]", param="input")
        headers = {"X-Plimsoll-Fingerprint": result.fingerprint}
        if result.truncated:
            headers["X-Plimsoll-Truncated"] = str(len(result.truncated))
        return await embeddings_response(
            request, result, lambda: _render(result, body.encoding_format), headers
        )

    @routes.get(
        "/models",
        response_description="The names.",
        responses=documented(ERRORS, OF_A_CLIENT),
        summary="Every name of the models that are served",
    )
    async def list_models() -> ModelList:
        return ModelList(data=[Model(id=name, created=created) for name in models.names])

    @routes.get(
        "/models/{name:path}",
        response_description="It is served.",
        responses=documented(ERRORS, OF_A_CLIENT, OF_A_MODEL_NAME),
        summary="One model",
    )
    async def retrieve_model(
        name: Annotated[
            str,
            Path(
                description="As GET /v1/models lists it, in any case.",
                openapi_examples={"default": {"value": models.names[0]}},
            ),
        ],
    ) -> Model:
        models.find(name)
        return Model(id=name, created=created)

    return routes


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


def _render(result: Embeddings, encoding: Encoding) -> dict[str, Any]:
    rows = [vector for vector in result.vectors if vector is not None]
    return {
        "object": "list",
        "data": LongList(
            {"object": "embedding", "index": index, "embedding": vector_field(row, encoding)}
            for index, row in enumerate(rows)
        ),
        "model": result.traits.name,
        "usage": {"prompt_tokens": result.n_tokens, "total_tokens": result.n_tokens},
        "truncated": LongList(result.truncated),
        "warnings": result.warnings,
    }

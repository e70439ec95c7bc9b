"""What OpenAI's embeddings routes take and give, with what other servers' clients send there."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from fastapi.openapi.models import Example
from pydantic import BaseModel, FailFast, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeAliasType

from plimsoll.api.fields import Encoding, InputType, OrDefault, Truncate, Truncated, WrittenCount

MAX_INPUTS = 2048  # OpenAI's own limit

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

# As NVIDIA's, Voyage's and Jina's clients call them, beside ours.
AnyInputType = InputType | Literal["query", "passage", "document"]
INPUT_TYPES: Mapping[str, str] = MappingProxyType(
    {"query": "search_query", "passage": "search_document", "document": "search_document"}
)


class EmbeddingsRequest(BaseModel):
    """OpenAI's embeddings request."""

    input: Annotated[
        # The last two are for servers that are set to take them.
        StrictStr | TextsToLimit | SkipJsonSchema[TokenIds | TokenIdLists],
        Field(
            description="A text or up to 2048 of them. Token ids are refused, unless "
            "PLIMSOLL_ACCEPT_TOKEN_IDS is on."
        ),
    ]
    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    encoding_format: Annotated[
        OrDefault[Encoding], Field(description="base64 is that of little-endian float32.")
    ] = "float"
    dimensions: Annotated[
        WrittenCount | None, Field(description="Values a vector; null: all of the model's.")
    ] = None
    user: Annotated[StrictStr | None, Field(description="Not looked at.")] = None
    input_type: Annotated[
        AnyInputType | None,
        Field(
            description="Not OpenAI's: as of POST /embed; query is search_query, passage and "
            "document are search_document."
        ),
    ] = None
    truncate: Annotated[
        OrDefault[StrictBool | Truncate],
        Field(
            description="Not OpenAI's: as of POST /embed, or the side of a long text that goes; "
            "NONE refuses it."
        ),
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


class BaseAddress(BaseModel):
    """That this is the address which clients of OpenAI's API are given."""

    object: Literal["api"] = "api"
    routes: list[str] = ["POST /v1/embeddings", "GET /v1/models"]


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

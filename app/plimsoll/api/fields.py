"""Fields that several dialects take or give."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import Header, Path
from pydantic import (
    BaseModel,
    BeforeValidator,
    FailFast,
    Field,
    GetCoreSchemaHandler,
    StrictInt,
    StrictStr,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticUseDefault
from pydantic_core.core_schema import (
    CoreSchema,
    no_info_before_validator_function,
    nullable_schema,
)
from typing_extensions import TypeAliasType

from plimsoll.corpora.records import COLLECTION_NAME, MOST_DIMENSIONS
from plimsoll.encoder.tokenizer import Cut
from plimsoll.policy.priority import INTERACTIVE_TOKENS, Priority

T = TypeVar("T")

InputType = Literal["search_document", "search_query", "classification", "clustering"]
Encoding = Literal["float", "base64"]
# Every error becomes an object: those of a list that is wrong throughout would take hundreds of
# times its memory. So a list ends at its first error. The use cases refuse an empty one in words
# that say more than pydantic's.
Texts = TypeAliasType(
    "Texts", Annotated[list[StrictStr], FailFast(), Field(json_schema_extra={"minItems": 1})]
)


class _NullIsDefault:
    """Reads null as if the field had been left out; the schema says that null is taken."""

    def __get_pydantic_core_schema__(self, kind: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(kind)
        return no_info_before_validator_function(
            _default_of_null, schema, json_schema_input_schema=nullable_schema(schema)
        )


def _default_of_null(value: object) -> object:
    if value is None:
        raise PydanticUseDefault
    return value


def _as_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON has one kind of number: to JSON Schema, and to some clients' writers, 384.0 is an integer.
Whole = Annotated[StrictInt, BeforeValidator(_as_whole)]
Count = Annotated[StrictInt, Field(ge=1), BeforeValidator(_as_whole)]


MOST_DIGITS = 9


def _as_read(value: object) -> object:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MOST_DIGITS:
        return int(value)
    return _as_whole(value)


# Likewise as text, which some clients send where a form had the number.
WrittenCount = Annotated[
    StrictInt,
    Field(ge=1),
    BeforeValidator(
        _as_read,
        json_schema_input_type=Annotated[int, Field(ge=1)]
        | Annotated[str, Field(pattern=r"^0*[1-9][0-9]*$", max_length=MOST_DIGITS)],
    ),
]
# Of what a long text loses, as NVIDIA and Cohere write it.
Truncate = Literal["NONE", "START", "END"]


def cut_of(truncate: Truncate) -> Cut:
    """The side of a text that goes; of NONE it does not matter."""
    return "start" if truncate == "START" else "end"


# Some clients write null for every option that their caller did not set.
OrDefault = Annotated[T, _NullIsDefault()]


MOST_RESULTS = 1000
# The bounds beside each other: a `le` over a Count stands in the schema by a name that is none.
Dimensions = Annotated[StrictInt, Field(ge=1, le=MOST_DIMENSIONS), BeforeValidator(_as_whole)]
ResultCount = Annotated[StrictInt, Field(ge=1, le=MOST_RESULTS), BeforeValidator(_as_whole)]
TokenId = Annotated[StrictInt, Field(ge=0), BeforeValidator(_as_whole)]
CollectionName = Annotated[
    str,
    Path(
        pattern=COLLECTION_NAME,
        description="A letter or digit, then up to 63 of those and `_`, `.` and `-`.",
        openapi_examples={"made": {"value": "ships"}},
    ),
]

PriorityHeader = Annotated[
    Priority | SkipJsonSchema[None],
    Header(
        alias="X-Priority",
        description="interactive: before bulk; bulk: when none of that waits, and a quarter of "
        f"the time besides; missing: interactive up to {INTERACTIVE_TOKENS} tokens, bulk above.",
    ),
]


class Truncated(BaseModel):
    """A text that was cut to the model's token limit."""

    index: int
    tokens: int
    kept: int


class TextError(BaseModel):
    """Why a text has no vector."""

    index: int
    code: str
    message: str


class SpaceFields(BaseModel):
    """A vector space."""

    model: Annotated[
        str | None, Field(description="null: a foreign space, or that of bridged vectors.")
    ]
    fingerprint: str
    dimensions: int


class DegradedAnswer(BaseModel):
    """Why this is not the primary answer, and when to ask for that again."""

    reason: str
    retry_after_s: float

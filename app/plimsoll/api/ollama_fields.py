"""What Ollama's routes take and give, and how long a model shall stay open by Go's durations."""

import re
from math import inf
from typing import Annotated, Any

from fastapi.openapi.models import Example
from pydantic import BaseModel, BeforeValidator, FailFast, Field, StrictBool, StrictFloat, StrictStr
from typing_extensions import TypeAliasType

from plimsoll.api.fields import OrDefault, Whole

_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
# A number of seconds, or numbers with units one after another, as time.ParseDuration reads them.
DURATION = rf"^[+-]?({_NUMBER}|({_NUMBER}(ns|us|µs|ms|s|m|h))+)$"
MOST_CHARACTERS = 32
UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>ns|us|µs|ms|s|m|h)?")


def _seconds(value: object) -> object:
    """Seconds of a duration; below 0: for ever. Anything else is left for the schema to refuse."""
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS or not re.fullmatch(DURATION, value):
            return value
        seconds = sum(
            float(part["number"]) * UNIT_S[part["unit"] or "s"] for part in _PART.finditer(value)
        )
        value = -seconds if value.startswith("-") else seconds
    if isinstance(value, int | float) and not isinstance(value, bool):
        return inf if value < 0 else float(value)
    return value


KeepAlive = Annotated[
    Annotated[
        StrictFloat,
        BeforeValidator(
            _seconds,
            json_schema_input_type=float
            | Annotated[str, Field(pattern=DURATION, max_length=MOST_CHARACTERS)],
        ),
    ]
    | None,
    Field(
        description="Seconds, or a duration such as 5m, for which the model stays open without a "
        "request after this one: 0 closes it at once unless another request uses it, below 0 it "
        "stays until memory or another model needs its room; null: as the server is set."
    ),
]

ModelName = Annotated[
    StrictStr | None,
    Field(
        description="As GET /api/tags lists it, with or without :latest; null: the default.",
    ),
]
Options = Annotated[dict[str, Any] | None, Field(description="Of generation; not looked at.")]


# Of any number, none included; the first item that is no text is told, not all of them.
AnyTexts = TypeAliasType("AnyTexts", Annotated[list[StrictStr], FailFast()])


class OllamaEmbedRequest(BaseModel):
    """Ollama's embed request."""

    model: ModelName = None
    input: Annotated[
        StrictStr | AnyTexts | None,
        Field(description="A text or a list of them; none: the model is opened."),
    ] = None
    truncate: Annotated[
        OrDefault[StrictBool], Field(description="Cut texts to the token limit; false: refuse.")
    ] = True
    dimensions: Annotated[
        Whole | None,
        Field(description="Values a vector; null, and what is below 1: all of the model's."),
    ] = None
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaEmbeddingsRequest(BaseModel):
    """The request of Ollama's older route, with one text."""

    model: ModelName = None
    prompt: Annotated[StrictStr | None, Field(description="A text; none: the model is opened.")] = (
        None
    )
    options: Options = None
    keep_alive: KeepAlive = None


class OllamaEmbedResponse(BaseModel):
    """Ollama's answer; times in nanoseconds, missing where there was no text."""

    model: Annotated[str, Field(description="As the request names it.")]
    embeddings: list[list[float]]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: Annotated[int | None, Field(description="Tokens.")] = None


class OllamaEmbeddingsResponse(BaseModel):
    """The answer of Ollama's older route; a unit vector here too."""

    embedding: list[float]


class OllamaModelDetails(BaseModel):
    """What a model is, as far as that is known before it has been open."""

    parent_model: str = ""
    format: str = "gguf"
    family: str = ""
    families: list[str] = []
    parameter_size: str = ""
    quantization_level: str = ""


class OllamaModel(BaseModel):
    """A name that clients may use."""

    name: str
    model: str
    modified_at: Annotated[str, Field(description="When the server started.")]
    size: Annotated[int, Field(description="0: not said here.")] = 0
    digest: Annotated[str, Field(description="Empty: not said here.")] = ""
    details: OllamaModelDetails = OllamaModelDetails()


class OllamaTags(BaseModel):
    """Every name, the default model's own first."""

    models: list[OllamaModel]


class OllamaVersion(BaseModel):
    """The version of Ollama's API that is spoken here, and Plimsoll's own."""

    version: str
    plimsoll: str


EXAMPLES: dict[str, Example] = {
    "list": {
        "summary": "A list of texts",
        "value": {"input": ["A mark on a hull", "How deep may a ship be loaded?"]},
    },
    "close": {"summary": "Give the model's memory back", "value": {"keep_alive": 0}},
}
OLDER_EXAMPLES: dict[str, Example] = {
    "one": {"summary": "One text", "value": {"prompt": "A mark on a hull"}}
}

"""What TEI's routes take and give, and how what they take becomes texts and input types.

Unknown fields are ignored, as TEI ignores them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, FailFast, Field, StrictBool, StrictStr
from typing_extensions import TypeAliasType

from plimsoll.api.fields import Count, Encoding, InputType, OrDefault, TokenId
from plimsoll.errors import EmptyTextError, InvalidRequestError, quoted

MOST_CLIENT_TEXTS = 2048  # of a request; TEI has 32 unless told otherwise
# Names of prompts in sentence-transformers' configurations, beside the input types themselves.
PROMPTS: dict[str, InputType] = {
    "query": "search_query",
    "document": "search_document",
    "passage": "search_document",
    **{name: name for name in get_args(InputType)},
}

# The side of a long text that goes, by TEI's name of it.
CUT: dict[str, Literal["start", "end"]] = {"Left": "start", "Right": "end"}

TokenIds = TypeAliasType("TokenIds", Annotated[list[TokenId], FailFast()])
TextOrIds: TypeAlias = StrictStr | TokenIds
TextsOrIds = TypeAliasType("TextsOrIds", Annotated[list[TextOrIds], FailFast()])
PlainTexts = TypeAliasType("PlainTexts", Annotated[list[StrictStr], FailFast()])
ListsOfIds = TypeAliasType("ListsOfIds", Annotated[list[TokenIds], FailFast()])

Inputs = Annotated[
    StrictStr | TextsOrIds | TokenIds,
    Field(description=f"A text or up to {MOST_CLIENT_TEXTS}; ids of tokens may stand for a text."),
]


def _capitalized(value: object) -> object:
    return value.capitalize() if isinstance(value, str) else value


Truncate = Annotated[
    OrDefault[StrictBool],
    Field(description="Cut texts to the token limit; false: refuse longer ones."),
]
TruncationDirection = Annotated[
    OrDefault[Literal["Left", "Right"]],
    BeforeValidator(_capitalized),
    Field(description="Left: of a text that is cut, keep the end."),
]
PromptName = Annotated[
    StrictStr | None,
    Field(description="The task: query, document, passage, or an input type of POST /embed."),
]
Dimensions = Annotated[Count | None, Field(description="Values a vector; null: all.")]


class TEIEmbedRequest(BaseModel):
    """What to embed and how."""

    inputs: Inputs
    truncate: Truncate = True
    truncation_direction: TruncationDirection = "Right"
    prompt_name: PromptName = None
    normalize: Annotated[
        OrDefault[StrictBool], Field(description="false: vectors as they are pooled.")
    ] = True
    dimensions: Dimensions = None


class TEIEmbedAllRequest(BaseModel):
    """Of what to give the states of all tokens."""

    inputs: Inputs
    truncate: Truncate = True
    truncation_direction: TruncationDirection = "Right"
    prompt_name: PromptName = None


class TEIEmbedSparseRequest(BaseModel):
    """What to encode with BM25. Texts of any length are read whole: nothing is ever cut."""

    inputs: Inputs
    truncate: Truncate = True
    truncation_direction: TruncationDirection = "Right"
    prompt_name: Annotated[
        StrictStr | None,
        Field(description="query: every word has the value 1.0; else a document's values."),
    ] = None


class SparseValue(BaseModel):
    """A word by its number."""

    index: int
    value: float


class TEIRerankRequest(BaseModel):
    """A query and texts to put in order for it."""

    query: StrictStr
    texts: PlainTexts
    truncate: Truncate = True
    truncation_direction: TruncationDirection = "Right"
    raw_scores: Annotated[
        OrDefault[StrictBool],
        Field(description="Scores are cosines; else (1 + cosine) / 2, from 0 to 1."),
    ] = False
    return_text: OrDefault[StrictBool] = False


class TEIRank(BaseModel):
    """A text by its place in the list that was sent."""

    index: int
    text: Annotated[str | None, Field(description="Where `return_text` asks for it.")] = None
    score: float


class SimilarityInputs(BaseModel):
    """A text and others to compare with it."""

    source_sentence: StrictStr
    sentences: PlainTexts


class SimilarityParameters(BaseModel):
    """How they are embedded."""

    truncate: Truncate = True
    truncation_direction: TruncationDirection = "Right"
    prompt_name: PromptName = None


class TEISimilarityRequest(BaseModel):
    """What to compare."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TEITokenizeRequest(BaseModel):
    """Of what to give the tokens."""

    inputs: Annotated[
        StrictStr | PlainTexts, Field(description=f"A text or up to {MOST_CLIENT_TEXTS}.")
    ]
    add_special_tokens: OrDefault[StrictBool] = True
    prompt_name: PromptName = None


class SimpleToken(BaseModel):
    """A token; `start` and `stop` are bytes of the text in UTF-8, null for special ones."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TEIDecodeRequest(BaseModel):
    """Ids to turn into texts."""

    ids: Annotated[
        TokenIds | ListsOfIds,
        Field(description=f"Of one text, or up to {MOST_CLIENT_TEXTS} lists."),
    ]
    skip_special_tokens: OrDefault[StrictBool] = True


class TEIOpenAIRequest(BaseModel):
    """OpenAI's embeddings request, as TEI takes it."""

    input: Inputs
    model: Annotated[
        StrictStr | None,
        Field(description="A name of a served model; any other is ignored, as TEI ignores all."),
    ] = None
    encoding_format: OrDefault[Encoding] = "float"
    dimensions: Dimensions = None
    user: Annotated[StrictStr | None, Field(description="Not looked at.")] = None


class TEIOpenAIEmbedding(BaseModel):
    """The vector of a text, by its place in the input."""

    object: Literal["embedding"]
    embedding: list[float] | str
    index: int


class TEIOpenAIUsage(BaseModel):
    """What the request cost; both are the same."""

    prompt_tokens: int
    total_tokens: int


class TEIOpenAIResponse(BaseModel):
    """OpenAI's answer, as TEI gives it."""

    object: Literal["list"]
    data: list[TEIOpenAIEmbedding]
    model: str
    usage: TEIOpenAIUsage


class EmbeddingModel(BaseModel):
    """How a model's token states become a vector."""

    pooling: Literal["cls", "mean", "last_token"]


class ModelType(BaseModel):
    """What kind of model is served."""

    embedding: EmbeddingModel


class TEIInfo(BaseModel):
    """The default model and the server's limits."""

    model_id: str
    model_sha: Annotated[str, Field(description="Of the model's tensors: their SHA-256.")]
    model_dtype: Annotated[str, Field(description="In which it is computed.")]
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: Annotated[
        int, Field(description="Texts of the greatest length that may wait; of shorter ones more.")
    ]
    max_input_length: Annotated[int, Field(description="Tokens a text.")]
    max_batch_tokens: Annotated[int, Field(description="Of a run; a longer text runs alone.")]
    max_batch_requests: Annotated[int, Field(description="Texts of a run.")]
    max_client_batch_size: Annotated[int, Field(description="Texts of a request.")]
    auto_truncate: Annotated[bool, Field(description="What `truncate` is where it is left out.")]
    tokenization_workers: int
    version: Annotated[str, Field(description="Plimsoll's own.")]
    sha: None = None
    docker_label: None = None


def input_type_of(prompt_name: str | None) -> InputType | None:
    """The input type that a prompt stands for. Raises InvalidRequestError."""
    if prompt_name is None:
        return None
    found = PROMPTS.get(prompt_name)
    if found is None:
        raise InvalidRequestError(
            f"`prompt_name` is {quoted(prompt_name)}; there are {', '.join(PROMPTS)}",
            param="prompt_name",
        )
    return found


def listed(
    inputs: str | Sequence[str | Sequence[int]] | Sequence[int], field: str
) -> list[str | Sequence[int]]:
    """One text, or ids of one, as a list of itself; a list as it is.

    field: their name. Raises EmptyTextError for no input and for an empty one, InvalidRequestError
    for too many.
    """
    found: list[str | Sequence[int]]
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        found = [inputs]  # type: ignore[list-item]
    else:
        found = list(inputs)  # type: ignore[arg-type]
    check_number(len(found), field)
    for index, each in enumerate(found):
        if not len(each):
            raise EmptyTextError(f"`{field}` cannot be empty: number {index} is", param=field)
    return found


def check_number(n_texts: int, field: str) -> None:
    """Raises EmptyTextError for no text, InvalidRequestError for too many."""
    if not n_texts:
        raise EmptyTextError(f"`{field}` cannot be empty", param=field)
    if n_texts > MOST_CLIENT_TEXTS:
        raise InvalidRequestError(
            f"batch size {n_texts} > maximum allowed batch size {MOST_CLIENT_TEXTS}; send fewer at "
            "a time",
            param=field,
        )

"""What routes of migrations take."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, StrictBool, StrictStr
from typing_extensions import TypeAliasType

from plimsoll.api.fields import Dimensions, OrDefault
from plimsoll.corpora.records import MOST_DIMENSIONS
from plimsoll.migration.bridges import BridgeWish

MOST_QUERIES = 1000

HookNames = TypeAliasType(
    "HookNames",
    Annotated[list[Annotated[StrictStr, Field(min_length=1, max_length=64)]], Field(max_length=64)],
)
Why = Annotated[
    OrDefault[Annotated[StrictStr, Field(max_length=1000)]],
    Field(description="For the audit: who asks is noted as this request's id."),
]


class JudgedQueryFields(BaseModel):
    """A query whose answers are known."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[StrictStr, Field(min_length=1)]
    relevant: Annotated[
        dict[str, Annotated[FiniteFloat, Field(gt=0)]],
        Field(min_length=1, description="Grades by document id: more is better."),
    ]
    old_vector: Annotated[
        list[FiniteFloat] | None,
        FailFast(),
        Field(
            max_length=MOST_DIMENSIONS,
            description="The query in the old version's space, where no model here embeds into it.",
        ),
    ] = None


JudgedQueries = TypeAliasType(
    "JudgedQueries",
    Annotated[list[JudgedQueryFields], FailFast(), Field(max_length=MOST_QUERIES)],
)


class MigrationRequest(BaseModel):
    """Which collection moves to which model."""

    model_config = ConfigDict(extra="forbid")

    collection: StrictStr
    model: Annotated[StrictStr, Field(description="As GET /v1/models lists it.")]
    dimensions: Annotated[
        Dimensions | None,
        Field(description="Values a vector; null: all of the model's."),
    ] = None
    queries: Annotated[
        OrDefault[JudgedQueries], Field(description="Judged queries for the verdict.")
    ] = []
    hooks: Annotated[
        OrDefault[HookNames],
        Field(description="Names of hooks, as GET /hooks lists them, behind those always asked."),
    ] = []
    bridge: Annotated[
        OrDefault[BridgeWish],
        Field(
            description="Whether searches find documents by bridged vectors until they are "
            "embedded: gated refuses a bridge of little worth, forced does not."
        ),
    ] = "none"
    start: Annotated[
        OrDefault[StrictBool], Field(description="false: plan only; resume begins it.")
    ] = True
    progressive: Annotated[
        OrDefault[StrictBool],
        Field(
            description="true: from now until cut-over searches read the new version for documents "
            "that have a vector of it, and the old one for the rest."
        ),
    ] = False
    why: Why = ""


class ChangeRequest(BaseModel):
    """Why a migration's state changes."""

    model_config = ConfigDict(extra="forbid")

    why: Why = ""


class CutoverRequest(ChangeRequest):
    """Whether the verdict is asked."""

    force: Annotated[
        OrDefault[StrictBool], Field(description="true: also where the verdict is not go.")
    ] = False


class ShadowRequest(ChangeRequest):
    """How many live searches are compared."""

    share: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            le=1,
            strict=True,
            description="Of the searches by meaning, those that the new version is asked too; 0: "
            "none.",
        ),
    ]


class ProgressiveRequest(ChangeRequest):
    """Whether searches read the new version before cut-over."""

    on: StrictBool


class ValidateRequest(ChangeRequest):
    """By which queries to judge."""

    queries: Annotated[
        JudgedQueries | None, Field(description="null: those that the migration has.")
    ] = None


def queries_json(queries: list[JudgedQueryFields]) -> list[Mapping[str, Any]]:
    """As the journal keeps them."""
    return [query.model_dump(exclude_none=True) for query in queries]

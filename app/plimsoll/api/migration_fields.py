"""What routes of migrations give, and the numbers and names in their paths."""

from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, Field

from plimsoll.api.fields import SpaceFields
from plimsoll.migration.bridge_map import KindName
from plimsoll.migration.bridges import BridgeState
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.hooks.records import Outcome as HookOutcome
from plimsoll.migration.states import MigrationState
from plimsoll.migration.status import WayBack
from plimsoll.migration.verdict import Decision, Outcome

# What a number of JSON holds exactly everywhere.
MOST_NUMBER = 2**53 - 1

MigrationNumber = Annotated[
    int, Path(ge=1, le=MOST_NUMBER, openapi_examples={"first": {"value": 1}})
]
HookName = Annotated[
    str,
    Path(min_length=1, max_length=64, openapi_examples={"memory": {"value": "validate-memory"}}),
]


class CheckFields(BaseModel):
    """One question of a verdict."""

    name: str
    outcome: Annotated[Outcome, Field(description="noted: told, and does not decide.")]
    message: str
    figures: dict[str, Any]
    warns: Annotated[bool, Field(description="People have to know it before a cut-over.")]


class VerdictFields(BaseModel):
    """What speaks for the new version, and what against it."""

    decision: Decision
    reasons: Annotated[list[str], Field(description="What kept it from a go.")]
    warnings: Annotated[list[str], Field(description="What would get worse all the same.")]
    checks: list[CheckFields]
    judged_at: str
    seed: int


class QuarantineFields(BaseModel):
    """A document that has no new vector, and why."""

    id: str
    reason: str
    attempts: int
    has_old_vector: bool


class ChangeFields(BaseModel):
    """A change of state."""

    at: str
    who: str
    before: MigrationState | None
    after: MigrationState
    why: str


class HookOutcomeFields(BaseModel):
    """What a hook answered last, in one run."""

    hook: str
    moment: Moment
    attempt: Annotated[int, Field(description="2 and more after a server that died.")]
    outcome: Annotated[
        HookOutcome,
        Field(description="stopped: it said no; failed: it gave no answer."),
    ]
    reason: str
    figures: dict[str, Any]
    at: Annotated[
        str, Field(description="When its last attempt began; empty of one that is tried.")
    ]
    seconds: Annotated[float | None, Field(description="Of its last answer.")]


class WatchFields(BaseModel):
    """Searches since a cut-over, which take it back where they are too bad."""

    searches: int
    unanswered: int
    compared: Annotated[int, Field(description="With the old version's answer.")]
    agreement: Annotated[
        float | None,
        Field(description="Of both versions' first 10, in the mean, beyond chance; at most 1."),
    ]
    least_agreement: Annotated[
        float | None,
        Field(description="What takes it back, where it is surely less; null: nothing does."),
    ]
    ends_in_s: float
    stays: Annotated[
        str | None,
        Field(description="Why it is not taken back although it is too bad."),
    ]


class ShadowFields(BaseModel):
    """What live searches say of the new version, of all comparisons so far.

    A mean is null where there was nothing to take it of.
    """

    share: Annotated[
        float, Field(description="Of searches that are compared now; 0: it has ended.")
    ]
    compared: int
    mean_overlap: Annotated[
        float | None,
        Field(description="Of the first 10, or as many as were asked for, that both have."),
    ]
    least_overlap: float | None
    rank_agreement: Annotated[
        float | None, Field(description="Rank-biased overlap of these (p = 0.9), in the mean.")
    ]
    old_mean_ms: Annotated[float | None, Field(description="Of answers that clients waited for.")]
    new_mean_ms: Annotated[
        float | None, Field(description="Of answers that stood back for those of clients.")
    ]
    old_empty: Annotated[int, Field(description="The old version found nothing.")]
    new_empty: int
    failed: Annotated[int, Field(description="The new version gave no answer.")]
    last_failure: Annotated[str | None, Field(description="The code of its last error.")]


class BridgeFiguresFields(BaseModel):
    """What a bridge is worth, by documents that it was not fitted on."""

    documents: Annotated[int, Field(description="That it was fitted and measured on.")]
    depth: Annotated[int, Field(description="Nearest of these that stand for 10 among all.")]
    kind: KindName
    strength: Annotated[float | None, Field(description="Of a regression.")]
    retention: Annotated[
        float, Field(description="Share of the new vectors' nearest that bridged ones find.")
    ]
    standard_error: float
    least: Annotated[float, Field(description="Of the retention's 95 % interval.")]
    most: float
    cosine: Annotated[float, Field(description="Mean, of bridged vectors and the real ones.")]
    fit_s: float
    row_s: Annotated[float, Field(description="Seconds to bridge a vector.")]
    queries: Annotated[int, Field(description="Judged ones that these documents answer.")]
    real_ndcg_at_10: Annotated[float | None, Field(description="Among these documents.")]
    bridged_ndcg_at_10: float | None


class BridgeFields(BaseModel):
    """What became of the bridge that a migration was to have."""

    state: BridgeState
    forced: bool
    vectors: Annotated[int, Field(description="Documents that are found by a bridged one now.")]
    reason: Annotated[str | None, Field(description="Why it was refused, or had to be forced.")]
    figures: BridgeFiguresFields | None


class MigrationFields(BaseModel):
    """A migration as it is now; counts are 0 once a version of it is gone."""

    id: int
    collection: str
    state: MigrationState
    source: SpaceFields
    target: SpaceFields
    created_at: str
    documents: int
    vectors: Annotated[int, Field(description="Of the new version.")]
    embedded: Annotated[int, Field(description="By the migration itself.")]
    skipped: Annotated[int, Field(description="Changed or gone while they were embedded.")]
    quarantined: int
    tokens: int
    rows_per_s: Annotated[float | None, Field(description="Over the last minute.")]
    tokens_per_s: float | None
    eta_s: float | None
    yielding: Annotated[
        str | None, Field(description="Why nothing is embedded now; null: it goes on.")
    ]
    yields: Annotated[int, Field(description="How often that was, in the run under way.")]
    failure: Annotated[str | None, Field(description="Why it stopped.")]
    rollback: Annotated[
        WayBack,
        Field(
            description="exact: what is written goes into the old version too; none: only one "
            "version is left."
        ),
    ]
    without_old_vector: int
    watch: Annotated[WatchFields | None, Field(description="null: it is not watched now.")]
    progressive: Annotated[
        bool, Field(description="Searches read both versions; their replies say so in `parts`.")
    ]
    shadow: Annotated[
        ShadowFields | None, Field(description="null: no share of searches was to be compared.")
    ]
    bridge: Annotated[BridgeFields | None, Field(description="null: it was to have none.")]
    judged_queries: int
    judged_queries_sha256: Annotated[
        str, Field(description="Of their content: the same queries have the same.")
    ]
    verdict: VerdictFields | None
    quarantine: Annotated[list[QuarantineFields], Field(description="The first hundred.")]
    named_hooks: Annotated[list[str], Field(description="That it began with.")]
    hooks: Annotated[list[HookOutcomeFields], Field(description="The last hundred.")]
    changes: list[ChangeFields]


class ProgressFields(BaseModel):
    """How far a migration was at the end of some seconds in which it stored something."""

    second: Annotated[int, Field(description="Since 1970: when these seconds began.")]
    n_embedded: int
    n_tokens: int


class MigrationReport(BaseModel):
    """All about a migration, and how far it was when."""

    migration: MigrationFields
    progress: list[ProgressFields]


class MigrationList(BaseModel):
    """Every migration, the newest first."""

    migrations: list[MigrationFields]

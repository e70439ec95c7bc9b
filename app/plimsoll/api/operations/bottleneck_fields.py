"""The schema of what /bottleneck answers, which tuning/resolver.py makes."""

from typing import Annotated

from pydantic import BaseModel, Field

from plimsoll.policy.scheduler import Cap
from plimsoll.tuning.bottleneck import Kind
from plimsoll.tuning.verdict import Measure, Outcome


class TrialFields(BaseModel):
    """Something that was tried against a bottleneck."""

    ago_s: float
    action: str
    kind: Kind
    change: str
    before: Measure
    after: Measure | None
    outcome: Annotated[Outcome | None, Field(description="null: under way.")]
    reason: str


class BottleneckReport(BaseModel):
    """What limits throughput, why, what was tried against it, and what you could do."""

    kind: Kind
    named_for_s: float
    reasons: list[str]
    what_you_could_do: list[str]
    scores: dict[str, float]
    evidence: Annotated[
        dict[str, float | bool | dict[str, float] | None] | None,
        Field(description="Measured over the last seconds; null before the first."),
    ]
    caps: Annotated[list[Cap], Field(description="What is asked of the parallelism.")]
    plan_reasons: Annotated[
        list[str], Field(description="Why parallelism and step of the memory ladder are not free.")
    ]
    actions: Annotated[list[TrialFields], Field(description="What was tried, the newest last.")]

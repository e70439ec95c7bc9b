"""The verdict on a new version: checks with their figures, and what they add up to. Pure.

go: every check that decides has passed. no_go: one has failed. inconclusive: none has failed, and
what would show that searches stay as good is missing, such as judged queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["passed", "failed", "undecided", "noted"]
"""noted: told, and does not decide."""

Decision: TypeAlias = Literal["go", "no_go", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One question, its answer in words, and every figure behind it.

    warns: people have to know it before a cut-over, also where the decision is go.
    """

    name: str
    outcome: Outcome
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    warns: bool = False


@dataclass(frozen=True)
class Verdict:
    """What was found, when, and what it was drawn by.

    reasons: what kept it from a go. warnings: what would get worse all the same.
    """

    decision: Decision
    reasons: list[str]
    warnings: list[str]
    checks: list[Check]
    judged_at: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def decide(checks: Sequence[Check], judged_at: str, seed: int) -> Verdict:
    """Add checks up."""
    outcomes = {check.outcome for check in checks}
    decision: Decision = "go"
    if "undecided" in outcomes:
        decision = "inconclusive"
    if "failed" in outcomes:
        decision = "no_go"
    wanting = ("failed", "undecided") if decision != "go" else ()
    reasons = [
        f"{check.name}: {check.message}"
        for outcome in wanting
        for check in checks
        if check.outcome == outcome
    ]
    warnings = [f"{check.name}: {check.message}" for check in checks if check.warns]
    return Verdict(decision, reasons, warnings, list(checks), judged_at, seed)

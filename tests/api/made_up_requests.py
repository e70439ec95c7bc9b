"""Requests that schemathesis makes from an OpenAPI document, and what came of them.

Its examples, the edges of every schema, random bodies good and bad, methods that are no operation,
and requests that follow from one another.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from schemathesis import Response
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.specs.openapi.schemas import OpenApiSchema

PHASES = ("examples", "coverage", "fuzzing", "stateful")


@dataclass
class Outcome:
    """What came of a run: answers by status, and what the checks complained of."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def config(*, most_examples: int, phases: tuple[str, ...]) -> SchemathesisConfig:
    """At most so many random requests an operation, the same each time."""
    return SchemathesisConfig.from_dict(
        {
            "continue-on-failure": True,
            "generation": {
                "max-examples": most_examples,
                "deterministic": True,
                "database": "none",
            },
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
        }
    )


def run(schema: OpenApiSchema, is_fine: Callable[[str, Response], bool]) -> Outcome:
    """Try every operation.

    is_fine: whether an answer that a check complains of is right all the same, by the check's name.
    """
    outcome = Outcome()
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            _take(outcome, event, is_fine)
    return outcome


def _take(
    outcome: Outcome, event: events.ScenarioFinished, is_fine: Callable[[str, Response], bool]
) -> None:
    recorder = event.recorder
    for case, interaction in recorder.interactions.items():
        assert interaction.response is not None
        outcome.statuses[interaction.response.status_code] += 1
        for check in recorder.checks.get(case, []):
            failed = check.failure_info
            if failed is not None and not is_fine(check.name, interaction.response):
                outcome.failures.append(f"{check.name}: {failed.failure}\n{failed.code_sample}")

"""Made-up requests against the document: every answer is one that it promises, and none is 5xx.

schemathesis makes them from the document: its examples, the edges of every schema, random bodies
good and bad, methods that are no operation, and requests that follow from one another.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import schemathesis
from schemathesis import Response
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from tests.fakes import FakeOpener, FakeServer

# A body that fits the schema may be refused for what only the model knows.
ONLY_THE_MODEL_KNOWS = {
    "empty_text": "which texts have no token",
    "too_long": "how many tokens a text has",
}
MODEL_FIELDS = {"dimensions", "version"}  # how many there are; which ones of a collection
# Or for what its fields, the conditions in it, and its path mean together.
RELATED_FIELDS = {"space", "filter", "migration"}


@dataclass
class Outcome:
    """What came of a run: answers by status, and what the checks complained of."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    yield server
    server.close()


def run(server: FakeServer, *, most_examples: int, phases: tuple[str, ...]) -> Outcome:
    """Try every operation, with at most so many random requests each."""
    everything = ("examples", "coverage", "fuzzing", "stateful")
    config = SchemathesisConfig.from_dict(
        {
            "continue-on-failure": True,
            "generation": {
                "max-examples": most_examples,
                "deterministic": True,
                "database": "none",
            },
            "phases": {phase: {"enabled": phase in phases} for phase in everything},
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app, config=config)
    outcome = Outcome()
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            _take(outcome, event)
    return outcome


def _take(outcome: Outcome, event: events.ScenarioFinished) -> None:
    recorder = event.recorder
    for case, interaction in recorder.interactions.items():
        assert interaction.response is not None
        outcome.statuses[interaction.response.status_code] += 1
        for check in recorder.checks.get(case, []):
            failed = check.failure_info
            if failed is None or _is_refused(check.name, interaction.response):
                continue
            if not _is_the_models(check.name, interaction.response.json()):
                outcome.failures.append(f"{check.name}: {failed.failure}\n{failed.code_sample}")


def _is_refused(check: str, response: Response) -> bool:
    """Whether a bad body was refused in another way than a status that the check knows.

    As too large, before it was looked into; or, of documents, line by line.
    """
    if check != "negative_data_rejection":
        return False
    return response.status_code == 413 or response.json().get("failed", 0) > 0


def _is_the_models(check: str, answer: dict[str, dict[str, str]]) -> bool:
    """Whether a body that fits the schema was refused for what no schema could say."""
    if check == "ensure_resource_availability":
        return True  # it takes any id of a path for the one that a list of documents has made
    if check != "positive_data_acceptance":
        return False
    error = answer["error"]
    if error["code"] in ONLY_THE_MODEL_KNOWS:
        return True
    return error["param"] in MODEL_FIELDS | RELATED_FIELDS


def test_the_server_keeps_to_its_document(server: FakeServer):
    """A generated client sees nothing else; a gateway that checks answers stops no true one."""
    outcome = run(server, most_examples=5, phases=("examples", "coverage"))

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert outcome.statuses.total() > 250
    assert {200, 400, 404, 405} <= set(outcome.statuses)


@pytest.mark.oracles
def test_the_server_keeps_to_its_document_in_three_thousand_cases(server: FakeServer):
    """The same with random bodies, which find what no edge of the schema does."""
    outcome = run(server, most_examples=280, phases=("examples", "coverage", "fuzzing", "stateful"))

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert outcome.statuses.total() >= 3000

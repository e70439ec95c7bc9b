"""Made-up requests against the document: every answer is one that it promises, and none is 5xx."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis import Response

from tests.api.made_up_requests import Outcome, config, run
from tests.fakes import FakeOpener, FakeServer

# A body that fits the schema may be refused for what only the model knows.
ONLY_THE_MODEL_KNOWS = {
    "empty_text": "which texts have no token",
    "too_long": "how many tokens a text has",
}
MODEL_FIELDS = {"dimensions", "version"}  # how many there are; which ones of a collection
# Or for what its fields, the conditions in it, and its path mean together.
RELATED_FIELDS = {"space", "filter", "migration"}
# TEI's errors name no field. What they say of what only the model knows, and of how many texts
# there may be, for which its clients expect another status than for a list of another type.
TEIS_KINDS = {"Empty", "Tokenizer"}
TEIS_FIELDS = ("dimensions is", "`prompt_name` is")
# The same in the message alone, of dialects whose errors have neither code nor field.
SAID_OF_THE_MODEL = re.compile(
    r"the text has no tokens|tokens and the limit is|^dimensions is \d+; "
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    yield server
    server.close()


def try_document(server: FakeServer, *, most_examples: int, phases: tuple[str, ...]) -> Outcome:
    """Try every operation, with at most so many random requests each."""
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", server.app, config=config(most_examples=most_examples, phases=phases)
    )
    return run(schema, _is_fine)


def _is_fine(check: str, response: Response) -> bool:
    return _is_refused(check, response) or _is_the_models(check, response.json())


def _is_refused(check: str, response: Response) -> bool:
    """Whether a bad body was refused in another way than a status that the check knows.

    As too large, before it was looked into, as TEI refuses all that is not valid; or, of documents,
    line by line.
    """
    if check != "negative_data_rejection":
        return False
    return response.status_code == 413 or response.json().get("failed", 0) > 0


def _is_the_models(check: str, answer: dict[str, Any]) -> bool:
    """Whether a body that fits the schema was refused for what no schema could say."""
    if check == "ensure_resource_availability":
        return True  # it takes any id of a path for the one that a list of documents has made
    if check != "positive_data_acceptance":
        return False
    if "error_type" in answer:
        message = str(answer.get("error", answer.get("message")))
        return answer["error_type"] in TEIS_KINDS or message.startswith(TEIS_FIELDS)
    error = answer.get("error", answer.get("message"))
    if isinstance(error, str):
        return SAID_OF_THE_MODEL.search(error) is not None
    if error["code"] in ONLY_THE_MODEL_KNOWS:
        return True
    return error["param"] in MODEL_FIELDS | RELATED_FIELDS


def test_the_server_keeps_to_its_document(server: FakeServer):
    """A generated client sees nothing else; a gateway that checks answers stops no true one."""
    outcome = try_document(server, most_examples=5, phases=("examples", "coverage"))

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert outcome.statuses.total() > 250
    assert {200, 400, 404, 405} <= set(outcome.statuses)


@pytest.mark.oracles
def test_the_server_keeps_to_its_document_in_three_thousand_cases(server: FakeServer):
    """The same with random bodies, which find what no edge of the schema does."""
    outcome = try_document(
        server, most_examples=200, phases=("examples", "coverage", "fuzzing", "stateful")
    )

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert outcome.statuses.total() >= 3000

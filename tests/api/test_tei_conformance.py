"""TEI's own document, as TEI 1.9.3 writes it, against the routes below /tei.

A client that was generated from it, or that was written against TEI, sees no answer that the
document does not promise. /predict is left out: no served model classifies.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis import Response
from schemathesis.python.asgi import shutdown_lifespans

from plimsoll.composition.application import create_app
from tests.api.made_up_requests import Outcome, config, run
from tests.evaluation_data import evaluation_file
from tests.small_models import TINY, small_settings
from tests.synthetic import write_synthetic

# What a body that fits the document may be refused for: texts without a token, ids that the
# vocabulary lacks, and values that only the model knows.
KINDS = {"Empty", "Tokenizer"}
FIELDS = ("dimensions", "`prompt_name` is")


def document() -> dict[str, Any]:
    """TEI's document with its paths below /tei.

    Without its examples and defaults, which hold numbers and null as text.
    """
    text = evaluation_file("tei-openapi.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, object_hook=_without_examples)
    found["paths"] = {
        f"/tei{path}": methods for path, methods in found["paths"].items() if path != "/predict"
    }
    return found


def _without_examples(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in ("example", "default")}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[FastAPI]:
    """A server with a real model, small enough to be asked thousands of times.

    schemathesis starts it.
    """
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    yield create_app(small_settings(tmp_path, file, idle_unload_s=0))
    shutdown_lifespans()


def try_document(app: FastAPI, *, most_examples: int, phases: tuple[str, ...]) -> Outcome:
    """Try every operation, with at most so many random requests each."""
    schema = schemathesis.openapi.from_dict(
        document(), config=config(most_examples=most_examples, phases=phases)
    )
    schema.app = app
    return run(schema, _is_fine)


def _is_fine(check: str, response: Response) -> bool:
    if check == "negative_data_rejection":
        # Which TEI has for all that is not valid; and null is taken for a field left out.
        return response.status_code == 413 or b"null" in (response.request.body or b"")
    if check != "positive_data_acceptance":
        return False
    body = response.json()
    message = str(body.get("error", body.get("message")))
    return body["error_type"] in KINDS or message.startswith(FIELDS)


def test_the_server_keeps_to_teis_document(app: FastAPI):
    """Statuses, types of content and every field of every answer."""
    outcome = try_document(app, most_examples=5, phases=("examples", "coverage"))

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert {200, 400, 405, 413, 422} <= set(outcome.statuses)


@pytest.mark.oracles
def test_the_server_keeps_to_teis_document_in_three_thousand_cases(app: FastAPI):
    """The same with random bodies."""
    outcome = try_document(app, most_examples=330, phases=("examples", "coverage", "fuzzing"))

    assert outcome.failures == []
    assert {status for status in outcome.statuses if status >= 500} == set()
    assert outcome.statuses[200] >= 500
    assert outcome.statuses.total() >= 3000

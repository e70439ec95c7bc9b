"""The OpenAPI document: FastAPI's own, with what is true of every route and without what never is.

What a route may refuse is said at the route, by edge/documented.py.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from plimsoll.api.dialects import cohere, ollama, tei
from plimsoll.api.edge.documented import examples_of
from plimsoll.api.edge.refusals import NATIVE

DESCRIPTION = """\
Text embeddings inside a memory budget.

Every `GET` route answers `HEAD` too, and a slash at a path's end or a second one in a row changes
nothing (but in the id of a document). A path that is no route is answered 404 with the code
`http_404`, another method 405 with `http_405` and `Allow`.
"""
TAGS = [
    {"name": "embeddings", "description": "Plimsoll's own answer, which leaves nothing out."},
    {"name": "ranking", "description": "The order of documents for a query."},
    {"name": "collections", "description": "Documents that are kept, and search in them."},
    {"name": "migrations", "description": "Moves of a collection to another model, and back."},
    {"name": "links", "description": "Tables and files elsewhere that collections mirror."},
    {"name": "tei", "description": "What clients of Text Embeddings Inference speak."},
    {"name": "openai", "description": "What clients of OpenAI's API speak."},
    {"name": "ollama", "description": "What clients of Ollama speak."},
    {"name": "cohere", "description": "What clients of Cohere's API speak."},
    {"name": "operations", "description": "What the server does. None of these opens a model."},
]
SECURITY_SCHEMES = {
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "OpenAI's clients send it so.",
    },
    "X-API-Key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
# Either of them or none.
SECURITY: list[dict[str, list[str]]] = [{"Bearer": []}, {"X-API-Key": []}, {}]
REQUEST_ID = {
    "description": "The client's own where it sent one, else a new one; it stands in the log.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[ -~]{1,128}$"},
}
# Of errors; that of OpenAI is NATIVE.
SHAPES = (NATIVE, ollama.ERRORS, cohere.ERRORS, tei.ERRORS, tei.OPENAI_ERRORS)


class DocumentedAPI(FastAPI):
    """FastAPI, with this document at /openapi.json and no pages of its own."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            _complete(document)
            _drop_unnamed_schemas(document)
            self.openapi_schema = document
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The name of the function behind a route: generated clients call their methods so."""
    return route.name


def _complete(document: dict[str, Any]) -> None:
    components = document["components"]
    components["examples"] = {
        name: example for shape in SHAPES for name, example in examples_of(shape).items()
    }
    components["headers"] = {"X-Request-Id": REQUEST_ID}
    components["securitySchemes"] = SECURITY_SCHEMES
    document["security"] = SECURITY
    for operation in _operations(document):
        _drop_frameworks_422(operation["responses"])  # ours has another status or shape
        if "401" not in operation["responses"]:
            operation["security"] = []  # open to everyone
        for response in operation["responses"].values():
            headers = response.setdefault("headers", {})
            headers["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}


def _drop_frameworks_422(responses: dict[str, Any]) -> None:
    if "HTTPValidationError" in _references(responses.get("422", {})):
        del responses["422"]


def _drop_unnamed_schemas(document: dict[str, Any]) -> None:
    """Leave out schemas that nothing refers to, such as that of the 422."""
    schemas = document["components"]["schemas"]
    while unnamed := schemas.keys() - _references(document):
        for name in unnamed:
            del schemas[name]


def _references(part: object) -> set[str]:
    """The names of the schemas that `part` refers to."""
    if isinstance(part, dict):
        parts: Iterable[object] = part.values()
        found = {str(part["$ref"]).rpartition("/")[2]} if "$ref" in part else set()
    elif isinstance(part, list):
        parts, found = part, set()
    else:
        return set()
    return found.union(*map(_references, parts))


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()

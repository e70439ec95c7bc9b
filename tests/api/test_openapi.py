"""The OpenAPI document: what generated clients, gateways and readers of /docs go by.

That the server keeps to it is tried with made-up requests in test_conformance.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from plimsoll import errors
from plimsoll.api.dialects import cohere, ollama, tei
from plimsoll.api.dialects.cohere import CohereEmbedResponse
from plimsoll.api.dialects.native import Answer
from plimsoll.api.dialects.rank import RankResponse
from plimsoll.api.edge.access import Access, needed_by
from plimsoll.api.edge.documented import OF_ANY_ROUTE, documented, examples_of
from plimsoll.api.edge.errors import STATUS
from plimsoll.api.edge.refusals import NATIVE, ErrorBody, ErrorShape
from plimsoll.api.ollama_fields import OllamaEmbeddingsResponse, OllamaEmbedResponse
from plimsoll.api.openai_fields import EmbeddingsResponse
from plimsoll.api.operations.bottleneck_fields import BottleneckReport
from tests.fakes import FakeOpener, FakeServer

# Only ever raised as one of its kinds.
ABSTRACT = {errors.OverloadError}
VERBS = (
    "pause", "resume", "cancel", "validate", "cutover", "rollback", "purge",
    "shadow", "progressive",
)  # fmt: skip
OPERATIONS = {
    "embed": "POST /embed",
    "rank": "POST /rank",
    "put_collection": "PUT /collections/{name}",
    "get_collections": "GET /collections",
    "get_collection": "GET /collections/{name}",
    "delete_collection": "DELETE /collections/{name}",
    "search_collection": "POST /collections/{name}/search",
    "put_documents": "POST /collections/{name}/documents",
    "list_documents": "GET /collections/{name}/documents",
    "get_document": "GET /collections/{name}/documents/{id}",
    "delete_document": "DELETE /collections/{name}/documents/{id}",
    "examine_collection": "GET /collections/{name}/doctor",
    "plan_migration": "POST /collections/{name}/plan",
    "begin_migration": "POST /migrations",
    "get_migrations": "GET /migrations",
    "get_migration": "GET /migrations/{number}",
    "watch_migration": "GET /migrations/{number}/events",
    "pause_migration": "POST /migrations/{number}/pause",
    "resume_migration": "POST /migrations/{number}/resume",
    "cancel_migration": "POST /migrations/{number}/cancel",
    "validate_migration": "POST /migrations/{number}/validate",
    "cut_over_migration": "POST /migrations/{number}/cutover",
    "roll_back_migration": "POST /migrations/{number}/rollback",
    "purge_migration": "POST /migrations/{number}/purge",
    "shadow_migration": "POST /migrations/{number}/shadow",
    "progressive_migration": "POST /migrations/{number}/progressive",
    "get_links": "GET /links",
    "get_link": "GET /links/{name}",
    "examine_link": "GET /links/{name}/doctor",
    "pull_link": "POST /links/{name}/pull",
    "push_link": "POST /links/{name}/push",
    "unlink": "POST /links/{name}/unlink",
    "report_migration": "GET /migrations/{number}/report",
    "get_hooks": "GET /hooks",
    "run_hook": "POST /hooks/{name}/run",
    "create_embeddings": "POST /v1/embeddings",
    "tei_embed": "POST /tei/embed",
    "tei_embed_at_base": "POST /tei",
    "tei_embed_all": "POST /tei/embed_all",
    "tei_embed_sparse": "POST /tei/embed_sparse",
    "tei_rerank": "POST /tei/rerank",
    "tei_similarity": "POST /tei/similarity",
    "tei_tokenize": "POST /tei/tokenize",
    "tei_decode": "POST /tei/decode",
    "tei_create_embeddings": "POST /tei/v1/embeddings",
    "tei_info": "GET /tei/info",
    "tei_create_embeddings_without_version": "POST /tei/embeddings",
    "tei_health": "GET /tei/health",
    "tei_health_at_base": "GET /tei",
    "tei_ping": "GET /tei/ping",
    "tei_metrics": "GET /tei/metrics",
    "create_deployment_embeddings": "POST /openai/deployments/{name}/embeddings",
    "get_base_address": "GET /v1",
    "list_models_without_version": "GET /models",
    "ollama_embed": "POST /api/embed",
    "ollama_embeddings": "POST /api/embeddings",
    "ollama_tags": "GET /api/tags",
    "ollama_version": "GET /api/version",
    "cohere_embed": "POST /v2/embed",
    "list_models": "GET /v1/models",
    "retrieve_model": "GET /v1/models/{name}",
    "get_health": "GET /health",
    "get_liveness": "GET /health/live",
    "get_readiness": "GET /health/ready",
    "get_bottleneck": "GET /bottleneck",
    "get_metrics": "GET /metrics",
    "get_status_page": "GET /",
    "get_status": "GET /status",
}

# What they ask for depends on which models there are, and on where a migration stands.
NEEDS_ANOTHER_STATE = {
    "POST /migrations",
    "POST /collections/{name}/plan",
    *(f"POST /migrations/{{number}}/{verb}" for verb in VERBS),
    *(f"POST /links/{{name}}/{verb}" for verb in ("pull", "push", "unlink")),
}
COHERE_BODY = {"texts": ["a ship"], "embedding_types": [
    "float", "int8", "uint8", "binary", "ubinary", "base64",
]}  # fmt: skip
# A link leads to a database; tests/links/ has one.
NEEDS_A_LINK = "/links/{name}"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    server = FakeServer(FakeOpener())
    with TestClient(server.app) as client:
        # What the examples of paths name.
        client.put("/collections/ships", json={})
        client.post("/collections/ships/documents", json={"id": "load-line", "text": "a line"})
        move = {"collection": "ships", "model": "fake", "dimensions": 2, "start": False}
        client.post("/migrations", json=move)
        yield client
    server.close()


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation, with its method and path."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What `part` refers to, or itself."""
    if "$ref" not in part:
        return part
    found = document
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


# --- operations -----------------------------------------------------------------------------


def test_operations_keep_their_names(document: dict[str, Any]):
    """Generated clients call their methods so; another name breaks every program that has one."""
    named = {operation["operationId"]: route for route, operation in operations(document)}
    assert named == OPERATIONS


def test_every_operation_says_what_it_does_and_what_it_answers(document: dict[str, Any]):
    """An answer without a schema is `any` in a typed client."""
    tags = {tag["name"] for tag in document["tags"]}
    for route, operation in operations(document):
        assert operation["summary"], route
        assert set(operation["tags"]) <= tags, route
        for status, response in operation["responses"].items():
            assert response["description"], (route, status)
            assert response["content"], (route, status)
            for content in response["content"].values():
                assert content["schema"], (route, status)


def test_pages_and_metrics_are_not_documented_as_json(document: dict[str, Any]):
    """A client would try to parse them."""
    answers = {
        route: list(operation["responses"]["200"]["content"])
        for route, operation in operations(document)
    }
    assert answers["GET /"] == ["text/html"]
    assert answers["GET /metrics"] == answers["GET /tei/metrics"] == ["text/plain"]
    assert answers["GET /tei/health"] == answers["GET /tei"] == ["text/plain"]  # and empty
    assert answers["GET /tei/ping"] == ["text/plain"]
    assert answers["GET /migrations/{number}/events"] == ["text/event-stream"]
    others = [types for types in answers.values() if not types[0].startswith("text/")]
    assert len(others) == len(answers) - 7
    assert all(types == ["application/json"] for types in others)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]):
    """A generator stops at a reference that dangles, and makes a class of a schema left over."""
    found = set(references(document))
    for reference in found:
        assert resolved(document, {"$ref": reference})
    named = {name.rpartition("/")[2] for name in found if "/schemas/" in name}
    assert named == set(document["components"]["schemas"])


def test_a_key_may_be_given_in_either_header(document: dict[str, Any]):
    """/docs then has a button to enter one."""
    schemes = document["components"]["securitySchemes"]
    assert (schemes["Bearer"]["type"], schemes["Bearer"]["scheme"]) == ("http", "bearer")
    assert (schemes["X-API-Key"]["in"], schemes["X-API-Key"]["name"]) == ("header", "X-API-Key")
    assert {name for way in document["security"] for name in way} <= set(schemes)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in STATUS if kind not in ABSTRACT])
def test_every_error_of_the_table_stands_in_the_document(
    document: dict[str, Any], kind: type[errors.PlimsollError]
):
    """A client that was generated without it cannot tell it from a fault of the network."""
    shown = set[str]()
    for _, operation in operations(document):
        for response in operation["responses"].values():  # TEI has other statuses
            shown |= set(response["content"].get("application/json", {}).get("examples", {}))
    assert kind.code in shown, f"give {kind.__name__} a place in api/edge/documented.py"


def test_what_any_route_may_end_in_stands_at_every_route(document: dict[str, Any]):
    """Said once, it must not be forgotten at a route."""
    assert len(OF_ANY_ROUTE) >= 1
    for route, operation in operations(document):
        shape = tei.ERRORS if " /tei" in route else NATIVE
        common = {str(status) for status in documented(shape)}
        assert common <= set(operation["responses"]), route


def test_what_a_client_without_a_key_is_told_stands_where_it_comes(
    client: TestClient, document: dict[str, Any]
):
    """A route that is open needs no such case in a client, and every other one does."""
    needed = {
        (method, route.path.replace(":path}", "}")): needed_by(route)
        for route in iter_route_contexts(client.app.routes)
        for method in route.methods or ()
    }
    for route, operation in operations(document):
        access = needed[tuple(route.split())]
        told = set(operation["responses"])
        assert ("401" in told) == (access is not Access.OPEN), route
        admin = "admin_key_required" in str(operation["responses"].get("403", ""))
        assert admin == (access is Access.ADMIN), route


def test_what_never_comes_is_not_listed(document: dict[str, Any]):
    """FastAPI lists 422 by itself; and an operation that is there is not answered 405."""
    for route, operation in operations(document):
        never = {"405"} if " /tei" in route else {"422", "405"}
        assert not never & set(operation["responses"]), route
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_answer_has_its_id_and_a_refusal_for_now_its_time(document: dict[str, Any]):
    """What to quote in a report, and when to come back."""
    for route, operation in operations(document):
        for status, response in operation["responses"].items():
            headers = response["headers"]
            assert resolved(document, headers["X-Request-Id"])["required"], (route, status)
            if status == "429":
                assert headers["Retry-After"]["required"]
    embed = document["paths"]["/embed"]["post"]["responses"]
    assert embed["503"]["headers"]["Retry-After"]["required"] is False  # of some codes alone
    assert not {"Retry-After"} & set(embed["400"]["headers"])


def test_examples_of_errors_have_the_shape_that_is_documented():
    """A reader copies them into a test of their own."""
    for name, example in examples_of(NATIVE).items():
        body = ErrorBody.model_validate(example["value"])
        assert name == f"ErrorBody.{body.error.code}"
        assert example["value"] == body.model_dump()


@pytest.mark.parametrize("shape", [ollama.ERRORS, cohere.ERRORS])
def test_so_have_those_of_each_dialect(shape: ErrorShape):
    """Likewise, and under a name of their own."""
    for name, example in examples_of(shape).items():
        assert name.startswith(f"{shape.schema.__name__}.")
        assert shape.schema.model_validate(example["value"]).model_dump() == example["value"]


# --- examples -------------------------------------------------------------------------------


def examples(content: dict[str, Any]) -> list[Any]:
    return [example["value"] for example in content.get("examples", {}).values()]


def filled(path: str, operation: dict[str, Any]) -> str:
    """A path with the example of each of its parameters."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            (value,) = examples(parameter)
            path = path.replace(f"{{{parameter['name']}}}", str(value))
    assert "{" not in path
    return path


def test_every_example_of_a_body_works_as_it_is(client: TestClient, document: dict[str, Any]):
    """A reader who presses Execute in /docs gets an answer."""
    for route, operation in operations(document):
        if "requestBody" not in operation or route in NEEDS_ANOTHER_STATE:
            continue
        method, path = route.split()
        path = filled(path, operation)
        bodies = examples(operation["requestBody"]["content"]["application/json"])
        assert bodies, route
        for body in bodies:
            assert client.request(method, path, json=body).status_code == 200, (route, body)


def test_every_example_of_a_path_works_as_it_is(client: TestClient, document: dict[str, Any]):
    """Likewise for the names in it."""
    for route, operation in operations(document):
        method, path = route.split()
        if method == "GET" and "{" in path and not path.startswith(NEEDS_A_LINK):
            assert client.get(filled(path, operation)).status_code == 200, path


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/embed", {"input": "a ship"}, Answer),
        ("/embed", {"input": ["a ship", "", "word " * 30]}, Answer),
        ("/embed", {"input": "a ship", "encoder": "bm25"}, Answer),
        ("/embed?explain=true", {"input": "a ship"}, Answer),
        ("/v1/embeddings", {"input": ["a ship", "word " * 30]}, EmbeddingsResponse),
        ("/rank", {"query": "a ship", "documents": ["sea", "", "word " * 30]}, RankResponse),
        ("/embed", {"input": "a ship", "encoding_format": "ubinary"}, Answer),
        ("/openai/deployments/fake/embeddings", {"input": "a ship"}, EmbeddingsResponse),
        ("/api/embed", {"input": "a ship"}, OllamaEmbedResponse),
        ("/api/embeddings", {"prompt": "a ship"}, OllamaEmbeddingsResponse),
        ("/v2/embed", COHERE_BODY, CohereEmbedResponse),
    ],
)
def test_answers_have_no_field_that_the_document_leaves_out(
    client: TestClient, path: str, body: dict[str, Any], shape: Any
):
    """These are rendered beside their schemas, for speed: a field added there must come here."""
    answer = client.post(path, json=body).json()
    adapter = TypeAdapter(shape)
    told = adapter.dump_python(adapter.validate_python(answer), mode="json", exclude_unset=True)
    assert told == answer


def test_the_bottleneck_has_no_field_that_the_document_leaves_out(client: TestClient):
    """Likewise."""
    answer = client.get("/bottleneck").json()
    assert BottleneckReport.model_validate(answer).model_dump(mode="json") == answer

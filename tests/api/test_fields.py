"""Fields that several dialects take, on every route that takes them."""

import pytest
from fastapi.testclient import TestClient

from tests.pressure import serving

BODIES = {
    "/embed": {"input": "a ship"},
    "/v1/embeddings": {"input": "a ship"},
    "/rank": {"query": "a ship", "documents": ["a sea", "a loaf"]},
}


def optional_fields(client: TestClient, path: str) -> dict[str, dict]:
    """Schemas of the fields that a route's body may leave out, as the document has them."""
    document = client.get("/openapi.json").json()
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    return {
        name: field
        for name, field in schema["properties"].items()
        if name not in schema["required"]
    }


@pytest.mark.parametrize("path", BODIES)
def test_null_is_the_default_of_each_optional_field(path: str):
    """Several clients write null for every option that their caller did not set."""
    with serving() as (_, client):
        nulls = dict.fromkeys(optional_fields(client, path))
        left_out = client.post(path, json=BODIES[path])
        null = client.post(path, json=BODIES[path] | nulls)

    assert left_out.status_code == 200
    assert nulls
    assert (null.status_code, null.json()) == (200, left_out.json())


@pytest.mark.parametrize("path", BODIES)
def test_the_document_says_that_each_optional_field_takes_null(path: str):
    """A client that is generated from it may send what the server takes."""
    with serving() as (_, client):
        fields = optional_fields(client, path)

    for name, field in fields.items():
        assert {"type": "null"} in field.get("anyOf", []), name


@pytest.mark.parametrize("path", BODIES)
def test_null_for_what_must_be_sent_is_refused(path: str):
    """There is no default for it."""
    with serving() as (_, client):
        answers = [client.post(path, json=BODIES[path] | {name: None}) for name in BODIES[path]]

    assert [answer.status_code for answer in answers] == [400] * len(answers)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/embed", "dimensions"), ("/v1/embeddings", "dimensions"), ("/rank", "top_k")],
)
def test_a_whole_number_may_be_written_with_a_point(path: str, name: str):
    """To JSON Schema 2.0 is an integer, and some languages write their numbers so; 2.5 is none."""
    with serving() as (_, client):
        whole, plain, half, none, true = (
            client.post(path, json=BODIES[path] | {name: value})
            for value in (2.0, 2, 2.5, 0.0, True)
        )

    assert (whole.status_code, whole.json()) == (200, plain.json())
    assert half.status_code == none.status_code == true.status_code == 400

"""What clients of OpenAI's API send in the wild, over a fake model."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.api.edge.bodies import error_of
from tests.fakes import FakeOpener, FakeServer

BODY = {"input": "a ship"}


@pytest.fixture
def client(fake: tuple[FakeServer, TestClient]) -> TestClient:
    return fake[1]


@pytest.fixture
def taking_ids() -> Iterator[TestClient]:
    """A server that is set to take token ids."""
    server = FakeServer(FakeOpener(), accept_token_ids=True)
    with TestClient(server.app) as client:
        yield client
    server.close()


def ask(client: TestClient, path: str = "/v1/embeddings", **fields: object) -> dict:
    answer = client.post(path, json=BODY | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"encoding_format": None},  # litellm, Dify
        {"truncate_prompt_tokens": -1, "priority": 0},  # vLLM's benchmark
        {"task": "retrieval.query", "late_chunking": False},  # Jina's
        {"user": "u", "extra": {"a": [1]}},
    ],
)
def test_fields_of_other_servers_change_nothing(client: TestClient, fields: dict):
    """OpenAI's server ignores most of what it does not know."""
    assert ask(client, **fields) == ask(client)


@pytest.mark.parametrize("written", [2, 2.0, "2", "002"])
def test_a_size_may_be_written_as_text(client: TestClient, written: object):
    """Forms of low-code tools send what was typed into them."""
    (item,) = ask(client, dimensions=written)["data"]
    assert len(item["embedding"]) == 2


@pytest.mark.parametrize("written", ["", "0", "2.0", "two", "-2", " 2", "٢", "9" * 10, True, 2.5])
def test_what_is_no_size_is_refused(client: TestClient, written: object):
    """Another size than the one that was meant would be stored."""
    answer = client.post("/v1/embeddings", json=BODY | {"dimensions": written})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "dimensions"


@pytest.mark.parametrize(
    ("sent", "ours"),
    [
        ("query", "search_query"),
        ("passage", "search_document"),
        ("document", "search_document"),
        ("clustering", "clustering"),
    ],
)
def test_an_input_type_of_nvidia_voyage_or_jina_is_one_of_ours(
    client: TestClient, sent: str, ours: str
):
    """The model's prefix depends on it; the warning shows which one was taken."""
    assert ask(client, input_type=sent) == ask(client, input_type=ours)
    assert ours in ask(client, input_type=sent)["warnings"][0]


@pytest.mark.parametrize(
    ("truncate", "cut"), [("START", "start"), ("END", "end"), (True, "end"), (None, "end")]
)
def test_the_side_that_is_cut_may_be_said(
    fake: tuple[FakeServer, TestClient], truncate: object, cut: str
):
    """As NVIDIA's servers take it."""
    server, client = fake
    answer = ask(client, input="word " * 30, truncate=truncate)

    assert [text["tokens"] for text in answer["truncated"]] == [32]
    assert server.model.cuts[-1] == cut


@pytest.mark.parametrize("truncate", ["NONE", False])
def test_a_long_text_may_be_refused_instead(client: TestClient, truncate: object):
    """So that no half of a document is taken for the whole."""
    body = {"input": "word " * 30, "truncate": truncate}
    answer = client.post("/v1/embeddings", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "too_long")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"truncate": "none"}, "a valid boolean, or 'NONE', 'START' or 'END'"),
        (
            {"input_type": "text"},
            "'search_document', 'search_query', 'classification' or 'clustering', "
            "or 'query', 'passage' or 'document'",
        ),
        ({"input": 5}, "a valid string, or a valid list"),
        ({"input": None}, "a valid string, or a valid list"),
        ({"dimensions": 0}, "greater than or equal to 1"),
    ],
)
def test_a_field_of_several_types_is_told_all_of_them(
    client: TestClient, fields: dict, message: str
):
    """With the first alone a client would think that there is no other."""
    answer = client.post("/v1/embeddings", json=BODY | fields)

    (field,) = fields
    assert answer.status_code == 400
    assert error_of(answer)["message"] == f"{field}: Input should be {message}"


def test_who_the_user_is_is_kept_nowhere(client: TestClient, caplog: pytest.LogCaptureFixture):
    """OpenAI asks for it to find abuse; here nobody looks, so nobody may find it."""
    caplog.set_level(0)
    ask(client, user="jane@example.org")
    client.post("/v1/embeddings", json=BODY | {"user": "jane@example.org", "model": "other"})
    client.post("/v1/embeddings", json=BODY | {"user": ["jane@example.org"]})

    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    everything += "".join(client.get(path).text for path in ("/status", "/metrics", "/health"))
    assert "POST /v1/embeddings" in caplog.text
    assert "jane" not in everything


# --- token ids ------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [[11, 14], [[11, 14], [13]], [[11.0, 14]]])
def test_ids_are_refused_unless_the_server_takes_them(client: TestClient, ids: list):
    """By default they are OpenAI's: vectors of them would be noise that looks fine."""
    answer = client.post("/v1/embeddings", json={"input": ids})

    assert answer.status_code == 400
    message = error_of(answer)["message"]
    assert "check_embedding_ctx_length=False" in message
    assert "PLIMSOLL_ACCEPT_TOKEN_IDS=true" in message


def test_ids_give_the_vectors_of_their_texts(taking_ids: TestClient):
    """A flat list is one text."""
    texts = ask(taking_ids, input=["a ship", "sea"])

    assert ask(taking_ids, input=[[11, 14], [13.0]]) == texts
    assert ask(taking_ids, input=[11, 14]) == ask(taking_ids, input="a ship")


def test_a_long_list_of_ids_is_cut_as_a_text_is(taking_ids: TestClient):
    """And said so."""
    answer = ask(taking_ids, input=[11] * 30)
    assert answer["truncated"] == [{"index": 0, "tokens": 32, "kept": 16}]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[11], []], "input[1]: the text has no tokens"),
        ([11, 1.5], "input holds 1.5, which is no token id"),
        (["a", 11], "input"),
        ([[11], "a"], "input"),
        ([True], "input"),
        ([[11]] * 2049, "2049 texts and this route takes 2048"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(taking_ids: TestClient, ids: list, message: str):
    """In words that say what is wrong with it."""
    answer = taking_ids.post("/v1/embeddings", json={"input": ids})

    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_an_id_beyond_all_numbers_is_refused(taking_ids: TestClient):
    """JSON has no largest number."""
    answer = taking_ids.post(
        "/v1/embeddings",
        content=b'{"input": [1e999]}',
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/"])
def test_a_slash_at_the_end_changes_nothing(client: TestClient, path: str):
    """Base addresses are written with one as often as without."""
    assert ask(client, path) == ask(client)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/models", "/models"])
def test_a_probe_of_the_address_finds_it(client: TestClient, method: str, path: str):
    """Tools ask before they save what was typed in."""
    assert client.request(method, path).status_code == 200


def test_models_are_listed_without_the_version_too(client: TestClient):
    """For the list that a tool shows; embeddings then say what the address lacks."""
    assert client.get("/models").json() == client.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/embeddings", "/v1/v1/embeddings", "/v1/embeddings/embeddings"])
def test_an_address_that_is_nearly_right_is_told_the_right_one(client: TestClient, path: str):
    """The commonest mistake with these clients is the base address."""
    answer = client.post(path, json=BODY)

    assert (answer.status_code, error_of(answer)["code"]) == (404, "http_404")
    assert "POST /v1/embeddings" in error_of(answer)["message"]
    assert "base address end in /v1" in error_of(answer)["message"]


@pytest.mark.parametrize("name", ["fake", "FAKE"])
def test_azures_clients_have_the_name_in_the_path(client: TestClient, name: str):
    """With the version of the API behind it; the body may hold another name of theirs."""
    path = f"/openai/deployments/{name}/embeddings?api-version=2024-10-21"
    assert ask(client, path, model="text-embedding-3-small") == ask(client)


def test_a_deployment_that_is_not_there_is_no_model(client: TestClient):
    """As in the body."""
    answer = client.post("/openai/deployments/ada/embeddings", json=BODY)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


def test_curl_without_a_type_is_told_what_to_add(client: TestClient):
    """`curl -d` alone says that it sends a form."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/v1/embeddings", content=b'{"input": "x"}', headers=headers)

    assert answer.status_code == 415
    assert "curl: add -H 'Content-Type: application/json'" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "content_type",
    ["application/x-ndjson", "application/jsonl; charset=utf-8", "application/vnd.api+json"],
)
def test_another_name_of_json_is_read_as_json(client: TestClient, content_type: str):
    """It was told to be no object, which it is; two lines are no JSON, and that is said."""
    headers = {"content-type": content_type}

    one, two = (
        client.post("/v1/embeddings", content=b'{"input": "a"}\n' * n, headers=headers)
        for n in (1, 2)
    )

    assert one.status_code == 200
    assert two.status_code == 400
    assert "not valid JSON" in error_of(two)["message"]

"""TEI's dialect, below /tei: what its clients send, and what they read.

That the document of TEI holds for it is tried in test_tei_conformance.py.
"""

import base64
from collections.abc import Iterator
from contextlib import closing

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from plimsoll import __version__
from plimsoll.api.dialects.tei.errors import KINDS, STATUSES
from plimsoll.api.dialects.tei.fields import MOST_CLIENT_TEXTS, PROMPTS
from plimsoll.composition.application import create_app
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.errors import EncodeError, ModelNotFoundError
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.policy.costs import token_spans_demand
from tests.fakes import NOT_FINITE_WORD, FakeOpener, FakeServer, metric
from tests.pressure import QUEUE_TOKENS, REASONS, fill_queue, serving, under_pressure
from tests.small_models import TINY, small_settings, write_e5

TEXTS = ["How deep may a ship be loaded?", "The Plimsoll line says so.", "A loaf of bread."]
TOOK = (
    "x-compute-tokens", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time",
)  # fmt: skip
LIMIT = 256  # tokens of the built-in model


def post(client: TestClient, path: str, **body: object) -> httpx.Response:
    return client.post(f"/tei{path}", json=body)


def answer(client: TestClient, path: str, **body: object) -> list:
    response = post(client, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of an error, which has TEI's two fields and nothing else."""
    body = response.json()
    assert set(body) == {"error", "error_type"}
    assert body["error"]
    return response.status_code, body["error_type"]


def native(client: TestClient, texts: list[str], **options: object) -> np.ndarray:
    """Vectors as Plimsoll's own route gives them."""
    response = client.post("/embed", json={"input": texts, **options})
    return np.float32(response.json()["embeddings"])


@pytest.fixture
def fake() -> Iterator[TestClient]:
    """A client of a server with a fake model; `server` of it is the server."""
    server = FakeServer(FakeOpener())
    with TestClient(server.app, raise_server_exceptions=False) as client:
        client.server = server
        yield client
    server.close()


@pytest.fixture(scope="module")
def e5_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A model with prefixes: a query's differs from a document's."""
    folder = tmp_path_factory.mktemp("e5")
    settings = small_settings(folder, write_e5(folder / "e5.gguf"), idle_unload_s=0)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def reference(builtin_file) -> Tokenizer:
    """The built-in model's tokenizer as its authors' library makes it, with ends."""
    with closing(FileSource(builtin_file)) as file:
        vocabulary = read_vocabulary(read_header(file).metadata)
    return BertWordPieceTokenizer(vocab=dict(vocabulary.ids), lowercase=True)._tokenizer


# --- vectors --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/embed", "/embed/"])
def test_vectors_are_those_of_embed_wherever_a_client_asks(client: TestClient, path: str):
    """Hugging Face's clients post to the base itself, others to /embed."""
    vectors = answer(client, path, inputs=TEXTS, truncate=True, normalize=True)

    np.testing.assert_allclose(vectors, native(client, TEXTS), atol=1e-6)


def test_one_text_is_answered_by_a_list_of_one_vector(client: TestClient):
    """As TEI does: a client takes the first of the list."""
    vectors = answer(client, "/embed", inputs=TEXTS[0])

    np.testing.assert_allclose(vectors, native(client, TEXTS[:1]), atol=1e-6)


@pytest.mark.parametrize(
    "path", ["/embed", "/embed_all", "/rerank", "/similarity", "/embed_sparse"]
)
def test_headers_say_what_it_took(client: TestClient, path: str):
    """In whole milliseconds, no part longer than the whole."""
    body = {
        "/rerank": {"query": TEXTS[0], "texts": TEXTS},
        "/similarity": {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}},
    }.get(path, {"inputs": TEXTS})
    headers = post(client, path, **body).headers

    tokens, total, *parts = (int(headers[name]) for name in TOOK)
    assert (tokens > 10) == (path != "/embed_sparse")
    assert all(0 <= part <= total for part in parts)


def test_headers_name_the_space_and_the_texts_that_were_cut(client: TestClient):
    """TEI's body has no place for either."""
    response = post(client, "/embed", inputs=["a ship", "ship " * 300])

    fingerprint = client.post("/embed", json={"input": "a ship"}).json()["fingerprint"]
    assert response.headers["x-plimsoll-fingerprint"] == fingerprint
    assert response.headers["x-plimsoll-truncated"] == "1"
    assert response.headers["x-compute-tokens"] == str(4 + LIMIT)


def test_vectors_that_are_not_normalised_point_the_same_way(client: TestClient):
    """`normalize: false` is for those who want the length too."""
    pooled = np.float32(answer(client, "/embed", inputs=TEXTS, normalize=False))

    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(pooled / lengths, native(client, TEXTS), atol=1e-6)


def test_fewer_dimensions_are_those_of_embed(client: TestClient):
    """Cut and then normalised, or only cut."""
    cut = answer(client, "/embed", inputs=TEXTS, dimensions=64)
    pooled = np.float32(answer(client, "/embed", inputs=TEXTS, dimensions=64, normalize=False))

    np.testing.assert_allclose(cut, native(client, TEXTS, dimensions=64), atol=1e-6)
    whole = np.float32(answer(client, "/embed", inputs=TEXTS, normalize=False))
    np.testing.assert_array_equal(pooled, whole[:, :64])


def test_states_of_all_tokens_pool_to_the_vector(client: TestClient):
    """The built-in model's vector is their mean; there is one for each token, ends included."""
    states = [np.float32(each) for each in answer(client, "/embed_all", inputs=TEXTS)]

    tokens = answer(client, "/tokenize", inputs=TEXTS)
    assert [each.shape for each in states] == [(len(each), 384) for each in tokens]
    means = np.stack([each.mean(axis=0) for each in states])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(means, native(client, TEXTS), atol=1e-6)


def test_a_left_cut_keeps_the_end_of_a_text(client: TestClient, reference: Tokenizer):
    """The tokens are those that the authors' library keeps."""
    text = " ".join(f"{word} {number}" for number in range(90) for word in ("ship", "loaded"))
    for direction in ("left", "right"):
        reference.enable_truncation(LIMIT, direction=direction)
        ids = reference.encode(text).ids
        assert len(ids) == LIMIT
        kept = answer(client, "/decode", ids=ids)[0]

        vectors = answer(client, "/embed", inputs=text, truncation_direction=direction.title())
        np.testing.assert_allclose(vectors, native(client, [kept]), atol=1e-6)
    reference.no_truncation()


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_a_prompt_is_a_task_prefix(e5_client: TestClient, name: str):
    """A text that goes in without the prefix it was trained with is found less well."""
    vectors = answer(e5_client, "/embed", inputs=TEXTS, prompt_name=name)

    expected = native(e5_client, TEXTS, input_type=PROMPTS[name])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    bare = native(e5_client, TEXTS)
    assert np.allclose(expected, bare) == (name in ("classification", "clustering"))


def test_a_left_cut_keeps_the_prompt(e5_client: TestClient):
    """Without it the vector would be of another task than the fingerprint says."""
    (prompt,) = answer(e5_client, "/tokenize", inputs="a", prompt_name="query")
    end = "a " * (TINY.context - len(prompt) + 1)  # as many as there is room for
    options = {"prompt_name": "query", "truncation_direction": "Left"}

    cut = answer(e5_client, "/embed", inputs="ship " * 600 + end, **options)

    np.testing.assert_array_equal(cut, answer(e5_client, "/embed", inputs=end, **options))
    whole = post(e5_client, "/embed", inputs=end, **options)
    assert "x-plimsoll-truncated" not in whole.headers


def test_ids_of_tokens_stand_for_their_text(client: TestClient):
    """With and without the ends, and beside a text: what /tokenize gives comes back."""
    (tokens,) = answer(client, "/tokenize", inputs=TEXTS[0])
    ids = [token["id"] for token in tokens]

    alone = answer(client, "/embed", inputs=ids)
    mixed = answer(client, "/embed", inputs=[TEXTS[1], ids, ids[1:-1]])

    np.testing.assert_allclose(alone, native(client, TEXTS[:1]), atol=1e-6)
    expected = native(client, [TEXTS[1], TEXTS[0], TEXTS[0]])
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


# --- OpenAI's shape -------------------------------------------------------------------------


def test_the_same_base_speaks_openais_shape(client: TestClient):
    """Whatever the model is called: TEI has one, and does not look."""
    expected = native(client, TEXTS)
    for model in (None, "text-embeddings-inference", "builtin"):
        found = answer(client, "/v1/embeddings", input=TEXTS, model=model)

        assert (found["object"], found["model"]) == ("list", "all-MiniLM-L6-v2")
        assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 10
        vectors = [item["embedding"] for item in found["data"]]
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    found = answer(client, "/v1/embeddings", input=TEXTS, encoding_format="base64")
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in found["data"]]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_openais_client_may_have_the_base_without_v1(fake: TestClient):
    """TEI's router has both; this one is not in its document."""
    asked = {"input": TEXTS, "encoding_format": "base64"}

    assert answer(fake, "/embeddings", **asked) == answer(fake, "/v1/embeddings", **asked)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_its_errors_have_the_shape_that_tei_gives_there(client: TestClient, path: str):
    """`type` as TEI sends it, and `error_type` as its document has it."""
    response = post(client, path, input=[])

    assert response.status_code == 400
    body = response.json()
    assert body.pop("message")
    assert body == {"code": 400, "type": "Empty", "error_type": "Empty"}


def test_openais_own_token_ids_are_refused(client: TestClient):
    """langchain-openai sends cl100k's unless told otherwise: they would be read as other words."""
    response = post(client, "/v1/embeddings", input=[[9906, 1917]])

    assert (response.status_code, response.json()["type"]) == (422, "Tokenizer")
    assert "check_embedding_ctx_length" in response.json()["message"]


# --- sparse vectors, ranks and likeness -----------------------------------------------------


@pytest.mark.parametrize(("prompt", "input_type"), [(None, None), ("query", "search_query")])
def test_sparse_vectors_are_bm25s(client: TestClient, prompt: str | None, input_type: str | None):
    """They fit an index of fastembed's Qdrant/bm25 as they are."""
    found = answer(client, "/embed_sparse", inputs=TEXTS, prompt_name=prompt)

    body = {"input": TEXTS, "encoder": "bm25", "input_type": input_type}
    expected = client.post("/embed", json=body).json()["sparse"]
    for words, vector in zip(found, expected, strict=True):
        assert [word["index"] for word in words] == vector["indices"]
        assert [word["value"] for word in words] == vector["values"]
    assert len(found[0]) == 4


def test_ranks_are_those_of_cosines(client: TestClient):
    """Best first. A score lies between 0 and 1, a raw one is the cosine."""
    body = {"query": TEXTS[0], "texts": TEXTS[1:]}
    raw = answer(client, "/rerank", **body, raw_scores=True)
    ranks = answer(client, "/rerank", **body, return_text=True)

    own = client.post("/rank", json={"query": TEXTS[0], "documents": TEXTS[1:]}).json()
    assert [each["index"] for each in raw] == [each["index"] for each in own["results"]]
    scores = [each["score"] for each in own["results"]]
    assert [each["score"] for each in raw] == pytest.approx(scores)
    assert [each["score"] for each in ranks] == pytest.approx([(1 + each) / 2 for each in scores])
    assert [each["text"] for each in ranks] == [TEXTS[1 + each["index"]] for each in ranks]
    assert "text" not in raw[0]


def test_likeness_is_the_cosine_with_the_source(client: TestClient):
    """In the order in which the sentences came."""
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    found = answer(client, "/similarity", inputs=inputs, parameters={"truncate": True})

    vectors = native(client, TEXTS)
    np.testing.assert_allclose(found, vectors @ vectors[0], atol=1e-6)


# --- tokens ---------------------------------------------------------------------------------

AWKWARD = [
    "Über Schiffe — 深い港 🚢 naïve",
    "A [SEP] in the middle",
    "x" * 20_000 + " ship " + "ß" * 9_000 + "é ship",
    "ship " * 10_000,
    "\u200b \u0301a",
]


@pytest.mark.parametrize("text", [*TEXTS, *AWKWARD])
def test_tokens_have_the_places_that_the_authors_library_gives(
    client: TestClient, reference: Tokenizer, text: str
):
    """In bytes, as TEI counts; a text far longer than the limit is not cut."""
    (found,) = answer(client, "/tokenize", inputs=text)

    expected = reference.encode(text)
    assert [each["id"] for each in found] == expected.ids
    assert [each["special"] for each in found] == [bool(n) for n in expected.special_tokens_mask]
    ends = {0, len(found) - 1}
    for place, (token, (start, stop)) in enumerate(zip(found, expected.offsets, strict=True)):
        if place in ends:
            assert (token["start"], token["stop"]) == (None, None)
            assert token["text"] == expected.tokens[place]
            continue
        before, inside = len(text[:start].encode()), len(text[start:stop].encode())
        assert (token["start"], token["stop"]) == (before, before + inside)
        assert token["text"] == text[start:stop]
    inner = answer(client, "/tokenize", inputs=[text], add_special_tokens=False)
    assert inner == [found[1:-1]]


@pytest.mark.parametrize("letter", [".", '"', "中", "a "])
def test_tokens_take_no_more_than_is_reserved_for_them(client: TestClient, letter: str):
    """Of punctuation alone every letter is a token, and the reply 70 times as large as the text."""
    text = letter * 50_000

    reply = post(client, "/tokenize", inputs=text).content

    n_arrays = 50_000 * 20 + len(text.encode())
    assert n_arrays + 2 * len(reply) <= token_spans_demand([text]).held_bytes


def test_tokens_of_a_prompt_come_first(e5_client: TestClient):
    """Their places count from the prompt's beginning, as TEI's do."""
    (found,) = answer(e5_client, "/tokenize", inputs="a", prompt_name="query")

    assert "".join(each["text"] for each in found[1:-1]) == "query:a"
    assert found[-2]["start"] == len("query: ")


def test_ids_are_told_as_words(client: TestClient):
    """Of one text or of several, special tokens left out unless asked for."""
    (tokens,) = answer(client, "/tokenize", inputs="Ships sail.")
    ids = [token["id"] for token in tokens]

    assert answer(client, "/decode", ids=ids) == ["ships sail."]
    assert answer(client, "/decode", ids=[ids, ids[1:2]]) == ["ships sail.", "ships"]
    (whole,) = answer(client, "/decode", ids=ids, skip_special_tokens=False)
    assert whole == "[CLS] ships sail. [SEP]"


# --- the server -----------------------------------------------------------------------------


def test_information_is_true(client: TestClient):
    """Clients cut their lists and texts by it."""
    found = client.get("/tei/info").json()

    assert found["model_id"] == found["served_model_name"] == "all-MiniLM-L6-v2"
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (found["model_dtype"], found["max_input_length"]) == ("float32", LIMIT)
    assert (found["auto_truncate"], found["version"]) == (True, __version__)
    most = found["max_client_batch_size"]
    assert post(client, "/embed_sparse", inputs=["a"] * most).status_code == 200
    too_many = post(client, "/embed_sparse", inputs=["a"] * (most + 1))
    assert refusal(too_many) == (413, "Validation")


@pytest.mark.parametrize("path", ["/tei/health", "/tei", "/tei/ping"])
def test_health_says_whether_requests_are_answered(fake: TestClient, path: str):
    """Empty where all is well, wherever TEI's router answers so."""
    well = fake.get(path)
    fake.server.core.drain.started = True
    ill = fake.get(path)

    assert (well.status_code, well.content) == (200, b"")
    assert refusal(ill) == (503, "Unhealthy")


def test_metrics_are_plimsolls(fake: TestClient):
    """At TEI's path, for a scrape that looks there."""
    fake.post("/tei/embed", json={"inputs": "a"})

    page = fake.get("/tei/metrics")

    assert page.headers["content-type"].startswith("text/plain")
    series = 'plimsoll_requests_total{kind="dense",model="fake",route="/tei/embed",status="200"}'
    assert metric(page.text, series) == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/predict", "it serves no model that classifies"),
        ("/vertex", "POST /tei/embed takes what its instances hold"),
        ("/invocations", "POST /tei answers the same"),
    ],
)
def test_what_is_not_there_is_said_to_be_missing(fake: TestClient, path: str, reason: str):
    """A client that was set up for a classifier or a cloud is told why it gets nothing."""
    lacking = post(fake, path, inputs="a")
    unknown = post(fake, "/nothing", inputs="a")

    assert refusal(lacking) == refusal(unknown) == (404, "Validation")
    assert lacking.json()["error"] == f"Plimsoll has no /tei{path}: {reason}"


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/embed", {"inputs": []}, (400, "Empty")),
        ("/embed", {"inputs": ""}, (400, "Empty")),
        ("/embed", {"inputs": ["a", ""]}, (400, "Empty")),
        ("/embed", {"inputs": ["a", " "]}, (400, "Empty")),
        ("/embed", {"inputs": [[]]}, (400, "Empty")),
        ("/rerank", {"query": "a", "texts": []}, (400, "Empty")),
        ("/rerank", {"query": "", "texts": ["a"]}, (400, "Empty")),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, (400, "Empty")),
        ("/tokenize", {"inputs": []}, (400, "Empty")),
        ("/decode", {"ids": []}, (400, "Empty")),
        ("/embed", {}, (413, "Validation")),
        ("/embed", {"inputs": 5}, (413, "Validation")),
        ("/embed", {"inputs": ["a", 5]}, (413, "Validation")),
        ("/embed", {"inputs": "a", "prompt_name": "no such"}, (413, "Validation")),
        ("/embed", {"inputs": "a", "truncation_direction": "Up"}, (413, "Validation")),
        ("/embed", {"inputs": "a", "dimensions": 0}, (413, "Validation")),
        ("/embed", {"inputs": "a", "dimensions": 5}, (413, "Validation")),
        ("/embed", {"inputs": "a " * 99, "truncate": False}, (413, "Validation")),
        ("/embed_all", {"inputs": "a " * 99, "truncate": False}, (413, "Validation")),
        ("/rerank", {"query": "a", "texts": ["a " * 99], "truncate": False}, (413, "Validation")),
        ("/embed", {"inputs": [500, 501]}, (422, "Tokenizer")),
        ("/decode", {"ids": [500]}, (422, "Tokenizer")),
        ("/embed", {"inputs": NOT_FINITE_WORD}, (424, "Backend")),
    ],
)
def test_a_request_that_cannot_be_answered_has_teis_status_and_kind(
    fake: TestClient, path: str, body: dict, expected: tuple[int, str]
):
    """Its clients tell by them whose fault it was. A list of vectors never comes with an error."""
    assert refusal(post(fake, path, **body)) == expected


@pytest.mark.parametrize("nothing", ["truncate", "normalize", "prompt_name", "dimensions"])
def test_null_means_that_a_field_was_left_out(fake: TestClient, nothing: str):
    """Hugging Face's clients write it for what their caller did not set; others add fields."""
    found = answer(fake, "/embed", inputs="a ship", **{nothing: None}, parameters={})

    assert found == answer(fake, "/embed", inputs="a ship")


ASKING = [
    ("", {"inputs": "a"}),
    ("/embed", {"inputs": ["a", "b"]}),
    ("/embed_all", {"inputs": "a"}),
    ("/rerank", {"query": "a", "texts": ["b"]}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
]


@pytest.mark.parametrize(("path", "body"), ASKING)
@pytest.mark.parametrize("reason", REASONS)
def test_under_pressure_a_client_is_told_when_to_come_back(reason: str, path: str, body: dict):
    """Never words in the place of vectors, nor an order by words: it could not tell."""
    with under_pressure(reason) as (_, client):
        response = post(client, path, **body)

    kind = "Unhealthy" if reason == "model_loading" else "Overloaded"
    assert refusal(response) == (STATUSES[kind], kind)
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("path", "body"), ASKING)
def test_a_full_queue_is_an_overload(path: str, body: dict):
    """With the time when it will have drained."""
    with serving() as (server, client):
        fill_queue(server, 2 * QUEUE_TOKENS + 800)
        response = post(client, path, **body)

    assert refusal(response) == (429, "Overloaded")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("reason", REASONS)
def test_sparse_vectors_need_no_model(reason: str):
    """So they are there when vectors are not."""
    with under_pressure(reason) as (_, client):
        assert len(answer(client, "/embed_sparse", inputs="a deep ship")[0]) == 2


@pytest.mark.parametrize("error", [EncodeError("broken"), ZeroDivisionError("secret")])
def test_what_fails_inside_is_the_backends(fake: TestClient, error: Exception):
    """TEI's clients know no 500."""
    fake.server.model.error = error

    response = post(fake, "/embed", inputs="a")

    assert refusal(response) == (424, "Backend")
    assert "secret" not in response.text


def test_a_model_that_cannot_be_opened_is_the_backends():
    """No time to come back is named: waiting does not help."""
    server = FakeServer(FakeOpener(*[ModelNotFoundError("there is no file")] * 3))
    with TestClient(server.app) as client:
        embed, info = post(client, "/embed", inputs="a"), client.get("/tei/info")
    server.close()

    assert refusal(embed) == refusal(info) == (424, "Backend")
    assert "retry-after" not in embed.headers


def test_every_code_that_a_route_may_end_in_has_a_kind_or_keeps_its_status(fake: TestClient):
    """One that is forgotten would leave with a status that TEI's clients do not know."""
    document = fake.get("/openapi.json").json()
    kept = {"missing_api_key", "invalid_api_key", "origin_not_allowed", "host_not_allowed"}
    kept |= {"slow_body", "slow_header", "malformed_request", "header_too_large"}
    shown = {
        code
        for path, methods in document["paths"].items()
        if path.startswith("/tei")
        for operation in methods.values()
        for response in operation["responses"].values()
        for code in response["content"].get("application/json", {}).get("examples", {})
    }
    assert shown == set(KINDS) | kept


def test_a_request_of_the_most_texts_is_answered(fake: TestClient):
    """As /info says."""
    assert len(answer(fake, "/embed", inputs=["a"] * MOST_CLIENT_TEXTS)) == MOST_CLIENT_TEXTS

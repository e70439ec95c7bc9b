"""POST /embed: what comes back for what is sent."""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll.composition.application import create_app
from plimsoll.encoder.engine import Engine
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric
from tests.pressure import post_scope
from tests.running_server import RunningServer
from tests.small_models import TINY, opened, small_settings, write_e5
from tests.synthetic import write_synthetic

BUILTIN_FINGERPRINT = "v1:c2216a09456cb2aa6751196932dd7bee"
TOKEN_LIMIT = 256
TEXTS = [
    "hello world",
    "What is a Plimsoll line?",
    "A mark on a ship's hull that shows how deep it may safely be loaded.",
    "hello world, hello harbour, hello sea",
    "in",
    "The quick brown fox jumps over the lazy dog. " * 9,
    "東京は日本の首都です。",
    "🚢⚓🌊 und Höchststände",
]


def embed(client: TestClient, **body: object) -> dict:
    response = client.post("/embed", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def vectors(answer: dict) -> np.ndarray:
    return np.array(answer["embeddings"], np.float32)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Within what packing with other texts may change."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def alone(client: TestClient) -> dict[str, np.ndarray]:
    """Each text's vector from a request of its own."""
    return {text: vectors(embed(client, input=text))[0] for text in TEXTS}


# --- one text, many texts -------------------------------------------------------------------


def test_a_text_gives_one_unit_vector_and_says_where_it_comes_from(client: TestClient):
    """A client stores the vector with its space's name; every field of the answer is there."""
    answer = embed(client, input="hello world")

    (vector,) = vectors(answer)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert {name: value for name, value in answer.items() if name != "embeddings"} == {
        "kind": "dense",
        "model": "all-MiniLM-L6-v2",
        "fingerprint": BUILTIN_FINGERPRINT,
        "input_type": None,
        "compute": "float32",
        "dimensions": 384,
        "usage": {"tokens": 4},
        "truncated": [],
        "errors": [],
        "warnings": [],
        "degraded": None,
    }


def test_a_list_gives_the_vectors_of_its_texts_in_their_order(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """Inside, long texts go first; outside, nobody may notice."""
    answer = embed(client, input=TEXTS)

    assert_close(vectors(answer), np.stack([alone[text] for text in TEXTS]))


def test_a_long_list_is_answered_whole_and_in_order(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """Six hundred texts pass several tokenizing batches and many waves."""
    short = [text for text in TEXTS if len(text) < 15]
    texts = [short[(i * i) % len(short)] for i in range(600)]

    answer = embed(client, input=texts, encoding_format="base64")

    rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in answer["embeddings"]]
    assert_close(np.stack(rows), np.stack([alone[text] for text in texts]))


def test_a_list_of_one_is_a_list(client: TestClient, alone: dict[str, np.ndarray]):
    """A text and a list of it mean the same."""
    assert_close(vectors(embed(client, input=["hello world"])), alone["hello world"][None])


def test_requests_at_the_same_time_each_get_their_own_vectors(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """They share waves; a row that went to a neighbour would poison an index for ever."""
    chosen = [[TEXTS[(i + j) % len(TEXTS)] for j in range(1 + i % 3)] for i in range(24)]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda texts: embed(client, input=texts), chosen))

    for texts, answer in zip(chosen, answers, strict=True):
        assert_close(vectors(answer), np.stack([alone[text] for text in texts]))


# --- options --------------------------------------------------------------------------------


def test_base64_holds_the_same_float32_as_the_json_numbers(client: TestClient):
    """Numbers are written as short as float32 allows, and not shorter."""
    as_numbers = embed(client, input=TEXTS[:4])
    as_base64 = embed(client, input=TEXTS[:4], encoding_format="base64")

    decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in as_base64["embeddings"]]
    np.testing.assert_array_equal(vectors(as_numbers), np.stack(decoded))


def test_dimensions_cut_the_vector_and_make_it_a_unit_again(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """A dot product is a cosine for every size; the client is told when a size is not trained."""
    answer = embed(client, input="hello world", dimensions=64)

    head = alone["hello world"][:64]
    assert_close(vectors(answer)[0], head / np.linalg.norm(head))
    assert answer["dimensions"] == 64
    assert "not trained for 64 dimensions" in answer["warnings"][0]


def test_all_dimensions_asked_for_by_number_are_no_cut(client: TestClient):
    """A client that always sends the number gets the same space and no warning."""
    answer = embed(client, input="hello world", dimensions=384)

    assert (answer["fingerprint"], answer["warnings"]) == (BUILTIN_FINGERPRINT, [])


def test_fingerprints_differ_between_sizes(client: TestClient):
    """Cut vectors compare with one another, and with nothing else."""
    sizes = [embed(client, input="x", dimensions=n)["fingerprint"] for n in (384, 128, 64, 128)]

    assert sizes[1] == sizes[3]
    assert len(set(sizes)) == 3


def test_a_model_without_prefixes_takes_any_input_type_as_plain_text(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """A client may always say what its texts are for, and is told where that does nothing."""
    answer = embed(client, input="hello world", input_type="search_query")

    assert_close(vectors(answer)[0], alone["hello world"])
    (warning,) = answer["warnings"]
    assert "no prefix for search_query" in warning
    assert answer["input_type"] == "search_query"
    assert answer["fingerprint"] == BUILTIN_FINGERPRINT


@pytest.fixture(scope="module")
def e5_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("e5")
    settings = small_settings(folder, write_e5(folder / "e5.gguf"), idle_unload_s=0)
    with TestClient(create_app(settings)) as client:
        yield client


def test_an_input_type_puts_the_task_prefix_before_the_text(e5_client: TestClient):
    """It is the model's own prefix, letter for letter: a blank less costs retrieval quality."""
    by_type = embed(e5_client, input="the ship", input_type="search_query")
    by_hand = embed(e5_client, input="query: the ship")
    without = embed(e5_client, input="the ship")

    np.testing.assert_array_equal(vectors(by_type), vectors(by_hand))
    assert not np.allclose(vectors(by_type), vectors(without), atol=1e-3)
    assert by_type["usage"] == by_hand["usage"]


def test_a_prefixed_model_says_what_was_left_out(e5_client: TestClient):
    """Plain texts are embedded, marked as a space of their own, and the client is told."""
    plain = embed(e5_client, input="the ship")
    query = embed(e5_client, input="the ship", input_type="search_query")
    document = embed(e5_client, input="the ship", input_type="search_document")

    assert "set input_type" in plain["warnings"][0]
    assert query["warnings"] == document["warnings"] == []
    assert query["fingerprint"] == document["fingerprint"]
    assert plain["fingerprint"] == f"{query['fingerprint']}#plain"


def test_a_text_that_is_a_prefix_alone_is_empty(e5_client: TestClient):
    """The prefix's own tokens are not the client's text."""
    answer = embed(e5_client, input=["", "ship"], input_type="search_query")

    assert answer["embeddings"][0] is None
    assert [error["code"] for error in answer["errors"]] == ["empty_text"]


# --- long texts -----------------------------------------------------------------------------


def test_a_text_over_the_limit_is_cut_and_said_to_be(client: TestClient):
    """What did not go in is counted, so that a client can split its texts better."""
    long, cut = "ship " * 400, "ship " * (TOKEN_LIMIT - 2)

    answer = embed(client, input=["hello", long])

    assert answer["truncated"] == [{"index": 1, "tokens": 402, "kept": TOKEN_LIMIT}]
    assert answer["errors"] == []
    assert answer["usage"] == {"tokens": 3 + TOKEN_LIMIT}
    assert_close(vectors(answer)[1], vectors(embed(client, input=cut))[0])


def test_a_text_at_the_limit_is_whole(client: TestClient):
    """One token less would be lost otherwise, and nobody told."""
    answer = embed(client, input="ship " * (TOKEN_LIMIT - 2), truncate=False)

    assert (answer["truncated"], answer["errors"]) == ([], [])
    assert answer["usage"] == {"tokens": TOKEN_LIMIT}


def test_without_truncation_only_the_long_text_is_refused(
    client: TestClient, alone: dict[str, np.ndarray]
):
    """The message has both numbers; the neighbours get their vectors."""
    answer = embed(client, input=["hello world", "ship " * 400, "in"], truncate=False)

    assert answer["embeddings"][1] is None
    (error,) = answer["errors"]
    assert (error["index"], error["code"]) == (1, "too_long")
    assert "402" in error["message"]
    assert str(TOKEN_LIMIT) in error["message"]
    assert_close(np.float32(answer["embeddings"][0]), alone["hello world"])
    assert_close(np.float32(answer["embeddings"][2]), alone["in"])
    assert answer["truncated"] == []


# --- texts without a vector -----------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", "   ", "\n\t\r\n", "\u0000\u0007", "\u200b\ufeff"])
def test_a_text_without_a_token_has_an_error_and_no_vector(
    client: TestClient, alone: dict[str, np.ndarray], empty: str
):
    """The mean of [CLS] and [SEP] would look like a vector and be found by every query."""
    answer = embed(client, input=["hello world", empty, "in"])

    assert answer["embeddings"][1] is None
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1, "empty_text")]
    assert_close(np.float32(answer["embeddings"][0]), alone["hello world"])
    assert_close(np.float32(answer["embeddings"][2]), alone["in"])


def test_a_request_of_one_empty_text_is_answered_too(client: TestClient):
    """The same shape as in a list: one rule to learn."""
    answer = embed(client, input="")

    assert answer["embeddings"] == [None]
    assert answer["usage"] == {"tokens": 0}


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer(FakeOpener())
    try:
        yield server
    finally:
        server.close()


def test_a_vector_that_is_not_finite_is_an_error_of_its_text_alone(fake_server: FakeServer):
    """NaN is no JSON, and in an index it makes every comparison false."""
    with TestClient(fake_server.app) as client:
        answer = embed(client, input=["a ship", "poison", "a sea"])

    assert [row is None for row in answer["embeddings"]] == [False, True, False]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(1, "non_finite")]


class FlakyEngine:
    """Gives NaN for a text in company, and always where the text holds `bad_token`."""

    def __init__(self, hidden: int, bad_token: int) -> None:
        self.n_texts: list[int] = []
        self._hidden = hidden
        self._bad_token = bad_token

    def encode(self, wave: list[np.ndarray], **options: object) -> list[np.ndarray]:
        self.n_texts.append(len(wave))
        in_company = len(wave) > 1
        states = []
        for ids in wave:
            rows = np.ones((len(ids), self._hidden), np.float32)
            if (in_company and len(ids) == 3) or self._bad_token in ids:
                rows[0, 0] = np.nan
            states.append(rows)
        return states


def test_a_vector_that_is_not_finite_is_computed_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A neighbour's fault is not held against a text; its own fault stays."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    engine = FlakyEngine(TINY.hidden, bad_token=77)
    wave = [np.array(ids) for ids in ([101, 5, 6, 102], [101, 5, 102], [101, 77, 6, 102])]
    with opened(small_settings(tmp_path, file)) as model:
        monkeypatch.setattr(Engine, "encode", engine.encode)
        vectors = model.encode(wave)

    assert engine.n_texts == [3, 1, 1]
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, True, False]


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "colour": "red"}, "colour"),
        ({"inputs": "x"}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": ["x", 5]}, "input"),
        ({"input": [["x"]]}, "input"),
        ({"input": {"text": "x"}}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 385}, "dimensions"),
        ({"input": "x", "dimensions": "64"}, "dimensions"),
        ({"input": "x", "dimensions": 64.5}, "dimensions"),
        ({"input": "x", "truncate": "yes"}, "truncate"),
        ({"input": "x", "input_type": "poem"}, "input_type"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ([{"input": "x"}], None),
        ("x", None),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(
    client: TestClient, body: object, param: str | None
):
    """A guess at what a client wanted costs it a wrong index; the error names the field."""
    response = client.post("/embed", json=body)

    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == "invalid_request"
    assert (param or "JSON object") in error["message"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"input": ["x", "y", 5]}, "input[2]: "),
        ({"input": [None]}, "input[0]: "),
        ({"input": 5}, "input: "),
        ({"input": "x", "dimensions": "five"}, "dimensions: "),
    ],
)
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_wrong_item_is_named_by_its_index(client: TestClient, path: str, body: dict, place: str):
    """One row of a table is null: which one?"""
    response = client.post(path, json=body)

    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(place)


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"input":[' + b"1," * 300_000 + b"{}]}",
        b'{"input":[' + b"[]," * 200_000 + b"5]}",
        b'{"input":[' + b'"a",' * 150_000 + b"5]}",
        b'{"input":5,' + b",".join(b'"%x":1' % i for i in range(70_000)) + b"}",
    ],
    ids=["numbers", "lists", "texts", "fields"],
)
def test_a_body_that_is_wrong_throughout_costs_no_memory_for_its_errors(
    client: TestClient, path: str, body: bytes
):
    """An object for each error was a thousand times the body: enough to kill the server."""
    tracemalloc.start()
    try:
        response = client.post(path, content=body, headers={"content-type": "application/json"})
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert response.status_code == 400
    # What the parsed body itself takes: a list or an entry for every three bytes, and copies.
    assert peak_bytes < 100 * len(body)


# --- a client that hangs up -----------------------------------------------------------------


def test_a_client_that_hangs_up_ends_its_request():
    """Through the whole application: nobody else would tell the executor."""
    opener = FakeOpener()
    model = opener.next_model
    model.released.clear()
    server = FakeServer(opener)
    sent: list[dict] = []
    body = json.dumps({"input": ["a ship"] * 300}).encode()

    async def hang_up_during_the_first_wave() -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict:
            if (message := next(messages, None)) is not None:
                return message
            await asyncio.to_thread(model.encoding.wait, DEADLINE_S)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        # The model is held until the request has ended: it does not end by being answered.
        try:
            await asyncio.wait_for(server.app(post_scope("/embed"), receive, send), DEADLINE_S)
        finally:
            model.released.set()
            await asyncio.to_thread(server.close)

    asyncio.run(hang_up_during_the_first_wave())

    assert sent == []
    assert len(model.runs) == 1
    page = server.telemetry.render().decode()
    assert metric(page, "plimsoll_queue_tokens") == 0
    labels = '{kind="none",model="fake",route="/embed",status="499"}'
    assert metric(page, f"plimsoll_requests_total{labels}") == 1


def test_a_request_is_logged_without_its_texts(server: RunningServer):
    """Logs are kept for long and read by many."""
    marker = "zanzibarian-secret"
    httpx.post(f"{server.url}/embed", json={"input": [marker, ""]}, timeout=60)
    httpx.post(f"{server.url}/embed", json={"input": marker, "colour": marker}, timeout=60)

    assert "POST /embed 200" in server.log
    assert "texts=2" in server.log
    assert marker not in server.log

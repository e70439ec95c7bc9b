"""OpenAI's dialect, with OpenAI's own client as it is, over a real socket."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from plimsoll.composition.application import create_app
from plimsoll.errors import ModelNotFoundError, SettingsError
from plimsoll.settings import Settings
from tests.evaluation_data import DATA_DIR
from tests.fakes import metric
from tests.running_server import DEADLINE_S, RunningServer
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic

MODEL = "all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=DEADLINE_S
    ) as api:
        yield api


@pytest.fixture(scope="module")
def native_vector(server: RunningServer) -> np.ndarray:
    """The vector of "hello world" as Plimsoll's own route gives it."""
    answer = httpx.post(f"{server.url}/embed", json={"input": "hello world"}, timeout=DEADLINE_S)
    return np.float32(answer.json()["embeddings"][0])


# --- the client -----------------------------------------------------------------------------


def test_the_client_reads_vectors_as_it_asks_for_them_by_default(
    api: openai.OpenAI, native_vector: np.ndarray
):
    """Without an encoding_format it sends base64 and decodes what comes, whatever that is."""
    answer = api.embeddings.create(model=MODEL, input="hello world")

    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), native_vector)
    assert (answer.object, answer.model) == ("list", MODEL)
    assert answer.usage.model_dump() == {"prompt_tokens": 4, "total_tokens": 4}


def test_the_default_request_is_answered_in_base64(api: openai.OpenAI, native_vector: np.ndarray):
    """The JavaScript client reads a list of numbers as a vector of one zero."""
    raw = api.embeddings.with_raw_response.create(
        model=MODEL, input="hello world", encoding_format="base64"
    )
    encoded = json.loads(raw.content)["data"][0]["embedding"]

    assert isinstance(encoded, str)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), native_vector)


def test_the_client_reads_floats(api: openai.OpenAI, native_vector: np.ndarray):
    """What a client gets that asks for them, or that says nothing and is not OpenAI's."""
    answer = api.embeddings.create(model=MODEL, input="hello world", encoding_format="float")

    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), native_vector)


def test_a_request_without_an_encoding_is_answered_in_floats(server: RunningServer):
    """litellm leaves it out and expects numbers."""
    answer = httpx.post(
        f"{server.url}/v1/embeddings", json={"input": "x", "model": MODEL}, timeout=DEADLINE_S
    ).json()

    assert isinstance(answer["data"][0]["embedding"][0], float)


def test_the_client_gets_as_many_dimensions_as_it_asks_for(
    api: openai.OpenAI, native_vector: np.ndarray
):
    """Cut and made a unit again, as OpenAI's own models do."""
    answer = api.embeddings.create(model=MODEL, input="hello world", dimensions=64)

    head = native_vector[:64]
    np.testing.assert_allclose(
        answer.data[0].embedding, head / np.linalg.norm(head), rtol=0, atol=1e-6
    )


def test_a_list_keeps_its_order(api: openai.OpenAI):
    """Clients zip the answer with what they sent."""
    texts = ["a ship", "hello world " * 20, "the sea", "hello world"]

    answer = api.embeddings.create(model=MODEL, input=texts)

    assert [row.index for row in answer.data] == [0, 1, 2, 3]
    for text, row in zip(texts, answer.data, strict=True):
        alone = api.embeddings.create(model=MODEL, input=text).data[0].embedding
        np.testing.assert_allclose(row.embedding, alone, rtol=0, atol=1e-6)


def test_the_client_lists_the_model_and_its_other_names(api: openai.OpenAI):
    """Whichever of them a client was configured with is accepted, in any case."""
    listed = [model.id for model in api.models.list()]

    assert listed[0] == MODEL
    assert "builtin" in listed
    for name in [*listed, MODEL.upper()]:
        assert api.embeddings.create(model=name, input="x").model == MODEL
        assert api.models.retrieve(name).object == "model"


def test_a_model_that_is_not_served_is_not_found(api: openai.OpenAI):
    """Vectors of another model than the one asked for would be stored as its own."""
    with pytest.raises(openai.NotFoundError, match=MODEL) as failed:
        api.embeddings.create(model="text-embedding-3-small", input="x")
    assert (failed.value.code, failed.value.param) == ("model_not_found", "model")

    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize("ids", [[9906, 1917], [[9906, 1917], [15339]]])
def test_token_ids_are_refused_with_the_setting_that_stops_them(api: openai.OpenAI, ids: list):
    """langchain-openai sends another tokenizer's ids by default; as WordPiece they are noise."""
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as failed:
        api.embeddings.create(model=MODEL, input=ids)
    assert failed.value.param == "input"


@pytest.mark.parametrize(("texts", "index"), [("", 0), (["a", "", "b", ""], 1)])
def test_an_empty_text_fails_the_request_by_its_index(
    api: openai.OpenAI, texts: str | list[str], index: int
):
    """This dialect has no errors per text, and a row must not be missing silently."""
    with pytest.raises(openai.BadRequestError, match=rf"input\[{index}\]") as failed:
        api.embeddings.create(model=MODEL, input=texts)
    assert (failed.value.code, failed.value.param) == ("empty_text", "input")


def test_more_texts_than_openai_takes_are_refused(api: openai.OpenAI):
    """The client that relies on the limit finds it; the message knows a way without one."""
    with pytest.raises(openai.BadRequestError, match=r"2049.*2048.*/embed"):
        api.embeddings.create(model=MODEL, input=["x"] * 2049)


def test_a_long_text_is_cut_unless_the_request_forbids_it(api: openai.OpenAI):
    """OpenAI's server refuses long texts; ours says in a header what it has cut."""
    long = "ship " * 400

    cut = api.embeddings.with_raw_response.create(model=MODEL, input=long)
    assert cut.headers["X-Plimsoll-Truncated"] == "1"
    assert cut.headers["X-Plimsoll-Fingerprint"].startswith("v1:")
    with pytest.raises(openai.BadRequestError, match="402") as failed:
        api.embeddings.create(model=MODEL, input=long, extra_body={"truncate": False})
    assert (failed.value.code, failed.value.param) == ("too_long", "input")


def test_fields_that_nobody_knows_are_ignored(api: openai.OpenAI, native_vector: np.ndarray):
    """Benchmark clients send fields of their own; OpenAI's server does not mind either."""
    answer = api.embeddings.create(
        model=MODEL,
        input="hello world",
        user="somebody",
        extra_body={"priority": 0, "truncate_prompt_tokens": None},
    )

    np.testing.assert_array_equal(np.float32(answer.data[0].embedding), native_vector)


# --- several models -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one shape and other weights: only their vectors tell them apart."""
    folder = tmp_path_factory.mktemp("two")
    return [
        write_synthetic(folder / f"{name}.gguf", arch="bert", shape=TINY, seed=seed)
        for seed, name in enumerate(("first", "Second"))
    ]


@pytest.fixture
def two(tmp_path: Path, two_files: list[Path]) -> Iterator[TestClient]:
    """A server of both models with room for one."""
    first, second = two_files
    settings = small_settings(tmp_path, first, extra_models=f"{second},", max_open_models=1)
    with TestClient(create_app(settings)) as client:
        yield client


def vector_of(file: Path, folder: Path) -> np.ndarray:
    """The vector of "a ship" by the model alone, without a server."""
    with opened(small_settings(folder, file)) as model:
        (text,) = model.tokenize(["a ship"], None)
        return model.finish(model.encode([text.ids]), TINY.hidden)[0]


def test_each_model_answers_by_its_name_in_either_dialect(
    two: TestClient, tmp_path: Path, two_files: list[Path]
):
    """One server for all; taking turns in the room for one must not mix up their vectors."""
    expected = {file.stem: vector_of(file, tmp_path) for file in two_files}
    fingerprints = {}
    for name in ("first", "Second", "FIRST", "second", None):
        body = {"input": "a ship"} | ({"model": name} if name else {})
        served = next(own for own in expected if own.lower() == (name or "first").lower())

        native = two.post("/embed", json=body).json()
        openai_answer = two.post("/v1/embeddings", json=body).json()

        assert native["model"] == openai_answer["model"] == served
        for vector in (native["embeddings"][0], openai_answer["data"][0]["embedding"]):
            np.testing.assert_allclose(vector, expected[served], rtol=0, atol=1e-6)
        fingerprints[served] = native["fingerprint"]
    assert len(set(fingerprints.values())) == 2

    health = two.get("/health").json()
    assert health["model"] == health["models"][0]
    told = {model["name"]: model["fingerprint"] for model in health["models"]}
    assert told == fingerprints  # also that of the one which is closed
    assert [model["state"] for model in health["models"]] == ["ready", "closed"]
    page = two.get("/metrics").text
    assert metric(page, "plimsoll_model_open") == 1
    assert metric(page, 'plimsoll_model_evictions_total{reason="lru"}') == 4


def test_all_models_are_listed_the_default_first(two: TestClient):
    """A client that takes the first one gets what it would get without a name."""
    listed = [model["id"] for model in two.get("/v1/models").json()["data"]]

    assert listed == ["first", "first-embed", "Second", "Second-embed"]
    assert two.get("/v1/models/second").json()["object"] == "model"


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_an_unknown_name_is_not_found_and_told_the_known_ones(two: TestClient, path: str):
    """In either dialect, and before any model is opened for it."""
    response = two.post(path, json={"input": "a ship", "model": "third"})

    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'first', 'Second'" in error["message"]
    assert [model["state"] for model in two.get("/health").json()["models"]] == ["closed"] * 2


@pytest.mark.parametrize(
    ("model", "extra", "both"),
    [
        ("builtin", "BUILTIN", "'builtin' and 'BUILTIN' would both be called 'all-MiniLM-L6-v2'"),
        ("nomic-embed-text:F16", "builtin, nomic-embed-text", "'nomic-embed-text:F16' and 'nomic"),
        ("/a/model.gguf", "/b/Model.gguf", "would both be called 'Model'"),
        ("/a/builtin.gguf", "builtin", "'/a/builtin.gguf' and 'builtin' would both"),
    ],
)
def test_two_models_of_one_name_are_refused_at_start(
    tmp_path: Path, model: str, extra: str, both: str
):
    """A client would get the vectors of whichever came last."""
    settings = Settings(model=model, extra_models=extra, cache_dir=tmp_path)

    with pytest.raises(SettingsError, match=re.escape(both)):
        create_app(settings)


def test_an_alias_is_a_name_that_clients_may_use(tmp_path: Path, two_files: list[Path]):
    """A client with a fixed name in it works unchanged; in any case, as every name."""
    first, _ = two_files
    settings = small_settings(
        tmp_path, first, model_aliases=f"text-embedding-3-small={first.stem}, Mine = {first}"
    )
    with TestClient(create_app(settings)) as client:
        for name in ("text-embedding-3-small", "mine"):
            answer = client.post("/v1/embeddings", json={"model": name, "input": "a ship"})
            assert answer.status_code == 200, answer.text
        listed = {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert {"text-embedding-3-small", "Mine"} <= listed


def test_the_model_to_serve_may_be_named_by_an_alias(tmp_path: Path, two_files: list[Path]):
    """One way to name a model: in the setting too, and both names are then served."""
    first, _ = two_files
    settings = small_settings(tmp_path, first, model_aliases=f"ada={first}")
    with TestClient(create_app(settings.model_copy(update={"model": "ADA"}))) as client:
        listed = {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert {first.stem, "ada"} <= listed


@pytest.mark.parametrize(
    ("aliases", "told"),
    [
        ("ada=nomic-embed-text-v1.5", "no model that is served is called nomic-embed-text-v1.5"),
        ("ada", "'ada' is not of the form alias=model"),
        ("=builtin", "'=builtin' is not of the form alias=model"),
    ],
)
def test_an_alias_that_leads_nowhere_is_refused_at_start(tmp_path: Path, aliases: str, told: str):
    """It must not show only when a client uses it."""
    settings = Settings(model_aliases=aliases, cache_dir=tmp_path)

    with pytest.raises(SettingsError, match=re.escape(told)):
        create_app(settings)


def test_a_further_model_that_nobody_knows_is_refused_at_start(tmp_path: Path):
    """A typing error must not show only when somebody asks for that model."""
    settings = Settings(extra_models="nomic-embed-txt", cache_dir=tmp_path)

    with pytest.raises(ModelNotFoundError, match="nomic-embed-text"):
        create_app(settings)


# --- malformed bodies -----------------------------------------------------------------------


def _nasty_bodies() -> list:
    path = DATA_DIR / "nasty-bodies.jsonl"
    if not path.is_file():
        skipped = pytest.mark.skip(reason=f"the evaluation data are absent: no {path}")
        return [pytest.param({}, marks=skipped, id="absent")]
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(line, id=line["id"]) for line in lines]


# What we have decided where the file leaves it to us, or allows more than one thing.
DECIDED = {
    "/v1/embeddings": {
        "lone-surrogate": {400},
        "list-with-empty": {400},
        "dup-key": {200},
        "model-unknown": {404},
        "no-model": {200},
        "bom": {400},
        "dims-str": {200},  # against the file: clients of low-code tools send it so
    },
    "/embed": {
        "lone-surrogate": {400},
        "list-with-empty": {200},  # with an error for each
        "dup-key": {200},
        "model-unknown": {404},
        "no-model": {200},
        "bom": {400},
        "2049-inputs": {404},  # for its model: lists may have any length
    },
}


def _allowed(expected: object) -> set[int]:
    """Status codes in an `expect` such as 400, "400/422, no crash" or "OpenAI …: 400/413"."""
    words = str(expected).replace("/", " ").replace(",", " ").split()
    return {int(word) for word in words if word in ("200", "400", "404", "413", "415", "422")}


@pytest.mark.parametrize("case", _nasty_bodies())
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_a_malformed_body_gets_an_answer_that_says_what_is_wrong(
    client: TestClient, path: str, case: dict
):
    """Never a 500, never a hang, and always the one shape of an error."""
    body = base64.b64decode(case["body_b64"])
    if case["id"] not in ("model-unknown", "2049-inputs"):
        # The model's name is not what these bodies are about; it must not hide what is.
        body = re.sub(rb'"model": ?"m", ?', b"", body)

    response = client.post(path, content=body, headers={"content-type": "application/json"})

    allowed = DECIDED[path].get(case["id"]) or _allowed(case["expect"])
    assert response.status_code in allowed
    if response.status_code == 200:
        assert "data" in response.json() or "embeddings" in response.json()
    else:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize("case", _nasty_bodies())
def test_a_malformed_body_does_not_disturb_the_connection(server: RunningServer, case: dict):
    """Over a socket: the next request on the same connection is answered as ever."""
    body = base64.b64decode(case["body_b64"])
    headers = {"content-type": "application/json"}

    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as connection:
        first = connection.post("/v1/embeddings", content=body, headers=headers)
        second = connection.post("/v1/embeddings", json={"input": "x"})

    assert first.status_code in (200, 400, 404, 413, 415, 422)
    assert second.status_code == 200

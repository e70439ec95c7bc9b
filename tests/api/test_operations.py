"""Health, readiness, metrics; and the models' life as requests and operators see it."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from plimsoll import __version__
from plimsoll.composition.application import create_app
from plimsoll.composition.models import prepare_model
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models import int8_speed, quantizing
from plimsoll.settings import Settings
from plimsoll.sidecar.sidecar import Sidecar
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric
from tests.small_models import TINY, draw_few_samples, small_settings
from tests.synthetic import write_synthetic

METRICS = {
    "plimsoll_requests_total",
    "plimsoll_errors_total",
    "plimsoll_texts_total",
    "plimsoll_tokens_total",
    "plimsoll_truncated_total",
    "plimsoll_stage_duration_seconds_bucket",
    "plimsoll_queue_tokens",
    "plimsoll_model_loads_total",
    "plimsoll_model_load_seconds_bucket",
    "plimsoll_model_open",
    "plimsoll_model_evictions_total",
    "plimsoll_memory_used_bytes",
    "plimsoll_memory_resident_bytes",
    "plimsoll_memory_budget_bytes",
    "plimsoll_memory_utilization_ratio",
    "plimsoll_build_info",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("m") / "tiny.gguf", arch="bert", shape=TINY)


@pytest.fixture
def settings(tmp_path: Path, model_file: Path) -> Settings:
    return small_settings(tmp_path, model_file, idle_unload_s=0)


@pytest.fixture
def tiny(settings: Settings) -> Iterator[TestClient]:
    """The real application over a tiny model that is not open yet."""
    with TestClient(create_app(settings)) as client:
        yield client


def state_of(client: TestClient) -> str:
    return str(client.get("/health").json()["model"]["state"])


# --- looking --------------------------------------------------------------------------------


def test_looking_never_opens_the_model(tiny: TestClient):
    """A probe every few seconds must not keep half a gigabyte mapped."""
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/v1/models"):
        assert tiny.get(path).status_code == 200

    assert state_of(tiny) == "closed"
    assert metric(tiny.get("/metrics").text, "plimsoll_model_open") == 0


def test_health_before_the_first_request_knows_the_name_and_the_memory(tiny: TestClient):
    """What is known without the model is told; the rest is null, not absent."""
    health = tiny.get("/health").json()

    assert {"status", "version", "uptime_s", "model", "models", "memory", "breaker"} <= set(health)
    assert (health["status"], health["version"]) == ("ok", __version__)
    assert health["uptime_s"] >= 0
    assert health["model"] == {
        "name": "tiny",
        "state": "closed",
        "fingerprint": None,
        "dimensions": None,
        "token_limit": None,
        "compute": None,
        "compute_reason": None,
        "int8": None,
        "error": None,
        "notice": None,
        "loaded_bytes": 0,
        "total_bytes": 0,
    }
    assert health["models"] == [health["model"]]
    memory = health["memory"]
    assert 0 < memory["used_bytes"] <= memory["resident_bytes"]
    assert memory["used_bytes"] / memory["budget_bytes"] == pytest.approx(
        memory["utilization_ratio"], abs=1e-4
    )
    assert memory["budget_source"]
    assert memory["scope"] in ("group", "process")
    assert memory["working_set_bytes"] > 0


def test_health_after_a_request_describes_the_open_model(tiny: TestClient):
    """The fingerprint there is the one in the answers."""
    answer = tiny.post("/embed", json={"input": "the ship"}).json()

    model = tiny.get("/health").json()["model"]
    assert (model["state"], model["compute"], model["error"]) == ("ready", "float32", None)
    assert model["fingerprint"] == answer["fingerprint"]
    assert (model["dimensions"], model["token_limit"]) == (TINY.hidden, TINY.context)
    assert model["loaded_bytes"] == model["total_bytes"] > 0


@pytest.mark.skipif(not has_int8_products(), reason="this processor has no int8 products")
def test_health_has_the_figures_of_int8_and_why_auto_took_it(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Operators judge by the worst cosine, and a space that `auto` chose is explained."""
    monkeypatch.setattr(quantizing, "draw_samples", draw_few_samples)
    monkeypatch.setattr(int8_speed, "_measure", lambda *given: 1.75)
    settings = small_settings(tmp_path, model_file, compute="auto", min_cosine=0)
    with TestClient(create_app(settings)) as client:
        client.post("/embed", json={"input": "the ship"})
        model = client.get("/health").json()["model"]

    assert model["compute"] == "int8"
    assert model["compute_reason"] == "int8 is 1.75 times as fast as float32 here"
    assert "ffn_up" in model["int8"]["linears"]
    assert model["int8"]["float32_below_tokens"] == 0
    assert 0 < model["int8"]["worst_cosine"] <= model["int8"]["mean_cosine"] <= 1


def test_readiness_and_liveness_say_one_word(tiny: TestClient):
    """A closed model is ready: the next request opens it."""
    assert tiny.get("/health/ready").json() == {"status": "ready"}
    assert tiny.get("/health/live").json() == {"status": "live"}


# --- metrics --------------------------------------------------------------------------------


def test_every_metric_is_there_from_the_start_or_the_first_request(tiny: TestClient):
    """A dashboard with holes is not believed."""
    tiny.post("/embed", json={"input": ["the ship", ""]})
    page = tiny.get("/metrics")

    names = {line.split("{")[0].split(" ")[0] for line in page.text.splitlines()}
    assert names >= METRICS
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert f'plimsoll_build_info{{version="{__version__}"}} 1.0' in page.text
    # A second series a counter, which no dashboard reads.
    assert not [name for name in names if name.endswith("_created")]


def test_a_scrape_gets_the_version_of_the_format_that_it_asks_for(tiny: TestClient):
    """Some agents refuse a page of another one."""
    page = tiny.get("/metrics", headers={"Accept": "text/plain; version=0.0.4"})

    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_every_metric_of_ours_says_what_it_is(tiny: TestClient):
    """HELP is what an operator has at three in the morning."""
    page = tiny.get("/metrics").text

    described = {line.split()[2] for line in page.splitlines() if line.startswith("# HELP")}
    typed = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    assert described == typed


def test_metrics_count_what_was_done(tiny: TestClient):
    """Texts, tokens, cuts and refusals, each where it belongs."""
    long = "the " * (TINY.context + 10)
    tiny.post("/embed", json={"input": ["the ship", long, "", "water"]})
    tiny.post("/v1/embeddings", json={"input": "water"})
    tiny.post("/embed", json={"input": 5})
    tiny.post("/v1/embeddings", json={"input": "x", "model": "other"})
    tiny.get("/no/such/route")
    page = tiny.get("/metrics").text

    assert metric(page, "plimsoll_texts_total") == 4
    assert metric(page, "plimsoll_truncated_total") == 1
    assert metric(page, 'plimsoll_tokens_total{model="tiny"}') > TINY.context
    assert metric(page, "plimsoll_queue_tokens") == 0
    assert metric(page, "plimsoll_model_open") == 1
    assert metric(page, 'plimsoll_model_loads_total{model="tiny",outcome="ok"}') == 1
    assert metric(page, 'plimsoll_model_load_seconds_count{model="tiny"}') == 1
    for code in ("empty_text", "invalid_request", "model_not_found", "http_404"):
        assert metric(page, f'plimsoll_errors_total{{code="{code}"}}') == 1
    for route, status, kind, model in [
        ("/embed", 200, "dense", "tiny"),
        ("/embed", 400, "none", "none"),
        ("/v1/embeddings", 200, "dense", "tiny"),
        ("/v1/embeddings", 404, "none", "none"),
        ("other", 404, "none", "none"),
    ]:
        labels = f'{{kind="{kind}",model="{model}",route="{route}",status="{status}"}}'
        assert metric(page, f"plimsoll_requests_total{labels}") == 1
    for stage in ("parse", "tokenize", "queue", "encode", "pool", "render"):
        labels = f'{{stage="{stage}"}}'
        assert metric(page, f"plimsoll_stage_duration_seconds_count{labels}") > 0


def test_memory_metrics_agree_with_health(tiny: TestClient):
    """Two ways to look at one thing."""
    health, page = tiny.get("/health").json()["memory"], tiny.get("/metrics").text

    assert metric(page, "plimsoll_memory_budget_bytes") == health["budget_bytes"]
    used = metric(page, "plimsoll_memory_used_bytes")
    assert 0 < used <= metric(page, "plimsoll_memory_resident_bytes")
    ratio = metric(page, "plimsoll_memory_utilization_ratio")
    assert ratio == pytest.approx(used / health["budget_bytes"], rel=0.2)


# --- a model that does not open -------------------------------------------------------------


def test_a_model_that_is_not_there_makes_the_server_unready_and_says_why(tmp_path: Path):
    """From the start, so that a balancer never sends it a request."""
    missing = tmp_path / "no-such-model.gguf"
    with TestClient(create_app(small_settings(tmp_path, missing))) as client:
        assert client.get("/health/ready").status_code == 503

        response = client.post("/embed", json={"input": "x"})

        assert response.status_code == 503
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
        assert str(missing) in error["message"]
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
        assert "no-such-model" in ready.json()["reason"]
        assert client.get("/health/live").status_code == 200
        health = client.get("/health").json()
        assert (health["status"], health["model"]["state"]) == ("unavailable", "failed")
        assert str(missing) in health["model"]["error"]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [({"general.architecture": "qwen3"}, "qwen3"), ({"bert.expert_count": 8}, "bert.expert_count")],
)
def test_a_file_that_is_refused_makes_the_server_unready_before_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, metadata: dict[str, Any], reason: str
):
    """Its header says so at start; the log says it once, however often the file is tried."""
    file = write_synthetic(tmp_path / "odd.gguf", arch="bert", shape=TINY, metadata=metadata)
    with TestClient(create_app(small_settings(tmp_path, file, preload=True))) as client:
        ready = client.get("/health/ready")
        refused = client.post("/embed", json={"input": "x"})

    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert reason in ready.json()["reason"]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert [r.levelname for r in caplog.records if "cannot open odd" in r.message] == ["ERROR"]


def test_a_file_that_is_put_right_makes_the_server_ready_again(tmp_path: Path, model_file: Path):
    """An operator who replaces a file expects no more to do."""
    file = tmp_path / "served.gguf"
    file.write_bytes(model_file.read_bytes()[:1000])
    with TestClient(create_app(small_settings(tmp_path, file))) as client:
        broken = client.get("/health/ready").status_code
        new = tmp_path / "new.gguf"
        new.write_bytes(model_file.read_bytes())
        new.rename(file)
        deadline_s = monotonic() + DEADLINE_S
        while client.get("/health/ready").status_code != 200 and monotonic() < deadline_s:
            pass
        health = client.get("/health").json()
        answer = client.post("/embed", json={"input": "x"})

    assert broken == 503
    assert (health["status"], health["model"]["state"]) == ("ok", "closed")
    assert answer.status_code == 200


def test_a_model_that_is_still_to_be_fetched_is_no_failure(tmp_path: Path):
    """The first request fetches it; a look at the start costs no network."""
    settings = Settings(
        model="nomic-embed-text-v1.5", cache_dir=tmp_path / "cache", cache_on_tmpfs=True
    )
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.get("/health/ready").status_code == 200
        assert client.get("/health").json()["model"]["state"] == "closed"


def test_a_further_model_that_is_not_there_does_not_take_the_server_down(
    tmp_path: Path, model_file: Path
):
    """Who asks for it is told why; everybody else is answered."""
    missing = tmp_path / "missing.gguf"
    settings = small_settings(tmp_path, model_file, extra_models=str(missing))
    with TestClient(create_app(settings)) as client:
        refused = client.post("/embed", json={"input": "x", "model": "missing"})
        answered = client.post("/embed", json={"input": "x"})
        ready = client.get("/health/ready")
        first, second = client.get("/health").json()["models"]

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
    assert answered.status_code == ready.status_code == 200
    assert (first["state"], first["error"]) == ("ready", None)
    assert second["state"] == "failed"
    assert str(missing) in second["error"]


@pytest.mark.parametrize(("max_open", "last"), [(1, "closed"), (2, "ready")])
def test_models_are_preloaded_in_order_while_there_is_room(
    tmp_path: Path, model_file: Path, max_open: int, last: str
):
    """The default first; one more than may be open would only push it out again."""
    other = tmp_path / "other.gguf"
    other.write_bytes(model_file.read_bytes())
    settings = small_settings(
        tmp_path, model_file, extra_models=str(other), max_open_models=max_open, preload=True
    )
    with TestClient(create_app(settings)) as client:
        for _ in range(10_000):
            models = client.get("/health").json()["models"]
            if [model["state"] for model in models] == ["ready", last]:
                break
        page = client.get("/metrics").text

    assert [model["state"] for model in models] == ["ready", last]
    loads = [
        metric(page, f'plimsoll_model_loads_total{{model="{name}",outcome="ok"}}')
        for name in ("tiny", "other")
    ]
    assert loads == [1, max_open - 1]


def test_a_request_waits_for_a_loading_model_only_so_long():
    """A download may take minutes; the client gets words, or is told to come back."""
    opener = FakeOpener()
    opener.released.clear()
    server = FakeServer(opener, load_wait_s=0.01)
    with TestClient(server.app) as client:
        try:
            by_words = client.post("/embed", json={"input": "a ship"})
            refused = [
                client.post("/embed", json={"input": "a ship", "fallback": "none"}),
                client.post("/v1/embeddings", json={"input": "a ship"}),
            ]
            starting = client.get("/health/ready")
            health = client.get("/health").json()
            opener.released.set()
            opened = wait_for_vectors(client)
        finally:
            opener.released.set()
            server.close()

    assert (by_words.status_code, by_words.json()["kind"]) == (200, "sparse")
    assert by_words.json()["degraded"]["reason"] == "model_loading"
    for response in refused:
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        error = response.json()["error"]
        assert error["code"] == "model_loading"
        assert "25 % done" in error["message"]
    assert (starting.status_code, starting.json()["status"]) == (503, "starting")
    assert health["model"]["state"] == "loading"
    assert (health["model"]["loaded_bytes"], health["model"]["total_bytes"]) == (25, 100)
    assert opened["kind"] == "dense"
    assert opener.n_tries == 1


def wait_for_vectors(client: TestClient) -> dict:
    """As a client does that is told to come back."""
    for _ in range(1000):
        response = client.post("/embed", json={"input": "a ship", "fallback": "none"})
        if response.status_code == 200:
            return response.json()
    raise AssertionError("the model did not open")


def test_damaged_weights_are_told_and_healed_by_the_next_request(
    settings: Settings, tiny: TestClient
):
    """Bits rot; wrong vectors must not be answered, and nobody should have to be called."""
    folder = prepare_model(settings, lambda done_bytes, total_bytes, phase: None)
    damage(folder, "blk.1.ffn_down.weight")

    first = tiny.post("/embed", json={"input": "the ship"})
    second = tiny.post("/embed", json={"input": "the ship"})

    assert first.status_code == 503
    error = first.json()["error"]
    assert error["code"] == "model_unavailable"
    assert "damaged in blk.1.ffn_down.weight" in error["message"]
    assert second.status_code == 200
    assert_same_as_undamaged(second.json(), settings)


def test_weights_found_damaged_while_opening_are_made_anew_at_once(
    settings: Settings, tiny: TestClient
):
    """Before any vector was computed, nobody needs to hear of it."""
    folder = prepare_model(settings, lambda done_bytes, total_bytes, phase: None)
    damage(folder, "position_embd.weight")

    answer = tiny.post("/embed", json={"input": "the ship"})

    assert answer.status_code == 200
    assert_same_as_undamaged(answer.json(), settings)


def damage(sidecar_folder: Path, tensor: str) -> None:
    """Turn bits of a weight without a trace in the file's size."""
    sidecar = Sidecar(sidecar_folder)
    path, offset = sidecar.weights_path, sidecar.index.tensors[tensor].offset
    sidecar.close()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def assert_same_as_undamaged(answer: dict, settings: Settings) -> None:
    other_cache = settings.cache_dir.with_name("other-cache")
    fresh = settings.model_copy(update={"cache_dir": other_cache})
    with TestClient(create_app(fresh)) as client:
        undamaged = client.post("/embed", json={"input": "the ship"}).json()
    assert answer["fingerprint"] == undamaged["fingerprint"]
    np.testing.assert_array_equal(answer["embeddings"], undamaged["embeddings"])

"""Health, readiness, metrics; and the model's life as requests and operators see it."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app import __version__
from app.errors import CacheCorruptError, ModelDownloadError, ModelLoadingError
from app.gguf.sidecar import Sidecar
from app.main import create_app, prepare_model
from app.serving.slot import IDLE_RELEASE_S, RETRY_PAUSE_S, RETRY_UNASKED_S, ModelSlot, ModelState
from app.settings import Settings
from tests.fakes import DEADLINE_S, FakeClock, FakeOpener, FakeServer, fake_slot, metric
from tests.small_models import TINY, small_settings
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

    assert set(health) == {"status", "version", "uptime_s", "model", "memory"}
    assert (health["status"], health["version"]) == ("ok", __version__)
    assert health["uptime_s"] >= 0
    assert health["model"] == {
        "name": "tiny",
        "state": "closed",
        "fingerprint": None,
        "dimensions": None,
        "token_limit": None,
        "compute": None,
        "error": None,
        "loaded_bytes": 0,
        "total_bytes": 0,
    }
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
    assert metric(page, "plimsoll_tokens_total") > TINY.context
    assert metric(page, "plimsoll_queue_tokens") == 0
    assert metric(page, "plimsoll_model_open") == 1
    assert metric(page, 'plimsoll_model_loads_total{outcome="ok"}') == 1
    assert metric(page, "plimsoll_model_load_seconds_count") == 1
    for code in ("empty_text", "invalid_request", "model_not_found", "http_404"):
        assert metric(page, f'plimsoll_errors_total{{code="{code}"}}') == 1
    for route, status, kind in [
        ("/embed", 200, "dense"),
        ("/embed", 400, "none"),
        ("/v1/embeddings", 200, "dense"),
        ("/v1/embeddings", 404, "none"),
        ("other", 404, "none"),
    ]:
        labels = f'{{kind="{kind}",route="{route}",status="{status}"}}'
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
    """The server stays up to say what is missing; traffic goes elsewhere meanwhile."""
    missing = tmp_path / "no-such-model.gguf"
    with TestClient(create_app(small_settings(tmp_path, missing))) as client:
        assert client.get("/health/ready").status_code == 200

        response = client.post("/embed", json={"input": "x"})

        assert response.status_code == 503
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "model_unavailable")
        assert str(missing) in error["message"]
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})
        assert client.get("/health/live").status_code == 200
        health = client.get("/health").json()
        assert (health["status"], health["model"]["state"]) == ("unavailable", "failed")
        assert str(missing) in health["model"]["error"]
        page = client.get("/metrics").text
        assert metric(page, 'plimsoll_model_loads_total{outcome="failed"}') == 1


def test_a_request_waits_for_a_loading_model_only_so_long(tmp_path: Path):
    """A download may take minutes; the client is told to come back instead of hanging."""
    opener = FakeOpener()
    opener.released.clear()
    server = FakeServer(opener, load_wait_s=0.01)
    try:
        with TestClient(server.app) as client:
            response = client.post("/embed", json={"input": "a ship"})
            starting = client.get("/health/ready")
            health = client.get("/health").json()
            opener.released.set()
            opened = wait_for_answer(client)
    finally:
        opener.released.set()
        server.close()

    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert error["code"] == "model_loading"
    assert "25 % done" in error["message"]
    assert (starting.status_code, starting.json()) == (503, {"status": "starting"})
    assert health["model"]["state"] == "loading"
    assert (health["model"]["loaded_bytes"], health["model"]["total_bytes"]) == (25, 100)
    assert opened.status_code == 200
    assert opener.n_tries == 1


def wait_for_answer(client: TestClient):
    """As a client does that is told to come back."""
    for _ in range(1000):
        response = client.post("/embed", json={"input": "a ship"})
        if response.status_code != 503:
            return response
    raise AssertionError("the model did not open")


def test_damaged_weights_are_told_and_healed_by_the_next_request(
    settings: Settings, tiny: TestClient
):
    """Bits rot; wrong vectors must not be answered, and nobody should have to be called."""
    folder = prepare_model(settings, lambda done_bytes, total_bytes: None)
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
    folder = prepare_model(settings, lambda done_bytes, total_bytes: None)
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


# --- the slot: opening, failing, closing ----------------------------------------------------


def test_twenty_requests_at_once_open_the_model_once():
    """Twenty loads at once would need twenty times the memory."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> list[object]:
        slot = fake_slot(opener)

        async def use() -> object:
            async with slot.lease() as model:
                return model

        users = [asyncio.create_task(use()) for _ in range(20)]
        await asyncio.to_thread(opener.opening.wait, DEADLINE_S)
        assert slot.state is ModelState.LOADING
        opener.released.set()
        return await asyncio.gather(*users)

    models = asyncio.run(scenario())

    assert opener.n_tries == 1
    assert set(models) == {opener.models[0]}


def test_a_load_that_outlasts_one_request_serves_the_next():
    """The wait ends, the load goes on."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> None:
        slot = fake_slot(opener, load_wait_s=0.01)
        with pytest.raises(ModelLoadingError) as refused:
            async with slot.lease():
                pass
        assert refused.value.retry_after_s > 0
        opener.released.set()
        while slot.state is ModelState.LOADING:
            with suppress(ModelLoadingError):
                async with slot.lease():
                    pass
        async with slot.lease() as model:
            assert model is opener.models[0]

    asyncio.run(scenario())
    assert opener.n_tries == 1


def test_a_model_that_would_not_open_is_tried_again_after_a_pause():
    """Not for every request that comes in: each try may cost a download."""
    opener = FakeOpener(ModelDownloadError("the hub is away"))
    clock = FakeClock()

    async def lease(slot: ModelSlot) -> None:
        async with slot.lease():
            pass

    async def scenario() -> None:
        slot = fake_slot(opener, clock=clock)
        for _ in range(3):
            with pytest.raises(ModelDownloadError, match="the hub is away"):
                await lease(slot)
        assert opener.n_tries == 1
        assert slot.state is ModelState.FAILED
        clock.now_s += RETRY_PAUSE_S
        await lease(slot)
        assert slot.state is ModelState.READY
        assert slot.error is None

    asyncio.run(scenario())
    assert opener.n_tries == 2


def test_an_error_that_is_told_many_times_does_not_pile_up_what_its_hearers_held():
    """The same error goes to everyone in the pause, and a traceback keeps frames alive."""
    opener = FakeOpener(ModelDownloadError("the hub is away"))

    class Body:
        """Stands for what a request holds."""

    async def request(slot: ModelSlot) -> weakref.ref:
        body = Body()
        with suppress(ModelDownloadError):
            async with slot.lease():
                pass
        return weakref.ref(body)

    async def scenario() -> list[weakref.ref]:
        slot = fake_slot(opener)
        return [await request(slot) for _ in range(5)]

    bodies = asyncio.run(scenario())
    gc.collect()
    assert [body() for body in bodies[:-1]] == [None] * 4


def test_a_model_that_would_not_open_is_tried_again_unasked():
    """No request reaches a server that is not ready, so it must heal by itself."""

    async def scenario() -> None:
        clock = FakeClock()
        slot = fake_slot(FakeOpener(ModelDownloadError("the network is down")), clock=clock)
        with pytest.raises(ModelDownloadError):
            async with slot.lease():
                pass
        clock.now_s += RETRY_UNASKED_S - 1
        await slot.check_idleness()
        assert slot.state is ModelState.FAILED
        clock.now_s += 1
        await slot.check_idleness()
        assert slot.state is ModelState.READY

    asyncio.run(scenario())


def test_an_idle_model_closes_and_the_next_request_opens_it_again():
    """Memory goes back to the machine; the client notices a moment's delay at most."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        async with slot.lease():
            pass
        clock.now_s += 59
        await slot.check_idleness()
        assert slot.state is ModelState.READY
        traits = slot.traits
        clock.now_s += 1
        await slot.check_idleness()
        assert opener.models[0].closed.is_set()
        assert slot.state is ModelState.CLOSED
        assert slot.traits is traits  # what it is like is known still
        async with slot.lease() as model:
            assert model is opener.models[1]

    asyncio.run(scenario())


def test_a_model_in_use_is_not_idle_however_long_it_takes():
    """A long list may take longer than the idle time."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        async with slot.lease() as model:
            clock.now_s += 1000
            await slot.check_idleness()
            assert not model.closed.is_set()
            assert model.n_releases == 0
        await slot.check_idleness()
        assert slot.state is ModelState.READY  # the time counts from its end

    asyncio.run(scenario())


def test_an_idle_time_of_zero_never_closes():
    """An operator who wants it open always has a way to say so."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=0, clock=clock)
        async with slot.lease():
            pass
        clock.now_s += 1e9
        await slot.check_idleness()
        assert slot.state is ModelState.READY

    asyncio.run(scenario())


def test_a_short_pause_gives_back_memory_once():
    """Activations' memory is trimmed when nobody waits, and not again until there was work."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> list[int]:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        counts = []
        for pause_s in (0.1, IDLE_RELEASE_S, 5, 5):
            async with slot.lease() if pause_s != 5 else nullcontext():
                pass
            clock.now_s += pause_s
            await slot.check_idleness()
            counts.append(opener.models[0].n_releases)
        return counts

    assert asyncio.run(scenario()) == [0, 1, 1, 1]


def test_damage_that_is_found_while_memory_is_given_back_still_heals():
    """The last to hold a damaged model closes it, whoever that is."""
    opener, clock = FakeOpener(), FakeClock()

    async def scenario() -> None:
        slot = fake_slot(opener, idle_unload_s=60, clock=clock)
        async with slot.lease() as damaged:
            pass
        damaged.release_gate.clear()
        clock.now_s += IDLE_RELEASE_S
        giving_back = asyncio.create_task(slot.check_idleness())
        await asyncio.to_thread(damaged.releasing.wait, DEADLINE_S)
        with pytest.raises(CacheCorruptError):
            async with slot.lease():
                raise CacheCorruptError("bits rot")
        damaged.release_gate.set()
        await giving_back
        assert damaged.closed.is_set()
        async with slot.lease() as healed:
            assert healed is opener.models[1]

    asyncio.run(scenario())


def test_a_damaged_model_closes_with_the_last_request_that_holds_it():
    """Unmapping under a request that computes would crash the process."""
    opener = FakeOpener()

    async def scenario() -> None:
        slot = fake_slot(opener)
        async with slot.lease() as damaged:
            with pytest.raises(CacheCorruptError):
                async with slot.lease():
                    raise CacheCorruptError("bits rot")
            assert not damaged.closed.is_set()
            with pytest.raises(ModelLoadingError, match="damaged"):
                async with slot.lease():
                    pass
        assert damaged.closed.is_set()
        async with slot.lease() as healed:
            assert healed is opener.models[1]

    asyncio.run(scenario())


def test_closing_waits_for_an_opening_under_way():
    """A model that opened after the server's end would be closed by nobody."""
    opener = FakeOpener()
    opener.released.clear()

    async def scenario() -> None:
        slot = fake_slot(opener)
        user = asyncio.create_task(enter(slot))
        await asyncio.to_thread(opener.opening.wait, DEADLINE_S)
        user.cancel()
        closing = asyncio.create_task(slot.close())
        opener.released.set()
        await closing
        await asyncio.wait([user])

    async def enter(slot: ModelSlot) -> None:
        async with slot.lease():
            pass

    asyncio.run(scenario())
    assert opener.models[0].closed.is_set()

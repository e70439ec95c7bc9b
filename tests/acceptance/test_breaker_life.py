"""The memory breaker's whole life in the real application: it opens, tries, and closes again.

Allocations fail as ONNX Runtime fails them: attention asks the library for more memory than any
machine has. Everything else is the server as it is started, its watch over memory included.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from fastapi.testclient import TestClient
from onnx import TensorProto, helper

from plimsoll.composition.application import create_app
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.onnx_runner import Runner
from tests.fakes import DEADLINE_S, metric
from tests.small_models import TINY, small_settings
from tests.synthetic import write_synthetic

RECOVERY_S = 0.2
STATES = ("closed", "open", "half_open")
# More than an address space holds, so that no machine and no overcommitment grants it.
IMPOSSIBLE_FLOATS = 1 << 46


def greedy_session() -> ort.InferenceSession:
    """A graph whose output is as large as its input says, without an arena, as attention is run."""
    node = helper.make_node("ConstantOfShape", ["shape"], ["filled"])
    graph = helper.make_graph(
        [node],
        "greedy",
        [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("filled", TensorProto.FLOAT, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # what fails here is meant to
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Shortage:
    """While `is_on`, attention finds no memory; counts the runs' arrays that are still held."""

    def __init__(self, attend: Callable[..., None]) -> None:
        self.is_on = False
        self.most_held = 0
        self._attend = attend
        self._session = greedy_session()
        self._blocks: list[weakref.ref[np.ndarray]] = []

    def attend(
        self, runner: Runner, queries: np.ndarray, keys: np.ndarray, values: np.ndarray
    ) -> None:
        if not self.is_on:
            self._attend(runner, queries, keys, values)
            return
        self._blocks.append(weakref.ref(queries.base))
        self.most_held = max(self.most_held, sum(block() is not None for block in self._blocks))
        binding = self._session.io_binding()
        binding.bind_cpu_input("shape", np.array([IMPOSSIBLE_FLOATS]))
        binding.bind_output("filled")
        self._session.run_with_iobinding(binding)
        raise AssertionError("this machine grants anything")


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Shortage:
    shortage = Shortage(Runner.attend)
    monkeypatch.setattr(Runner, "attend", lambda runner, *arrays: shortage.attend(runner, *arrays))
    monkeypatch.setattr(OnnxBackend, "open_whole", lambda *asked: None)  # another way to attend
    return shortage


@pytest.fixture
def client(tmp_path: Path, shortage: Shortage) -> Iterator[TestClient]:
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    settings = small_settings(
        tmp_path, file, recovery_timeout_s=RECOVERY_S, idle_unload_s=0, threads=2
    )
    with TestClient(create_app(settings)) as client:
        yield client


def embed(client: TestClient) -> httpx.Response:
    body = {"input": ["the deep sea", "a ship"], "encoding_format": "base64"}
    return client.post("/embed", json=body)


def reason_of(response: httpx.Response) -> str | None:
    assert response.status_code == 200, response.text
    answer = response.json()
    degraded = answer["degraded"]
    assert answer["kind"] == ("dense" if degraded is None else "sparse")
    assert response.headers.get("x-plimsoll-degraded") == (degraded and degraded["reason"])
    return degraded and degraded["reason"]


def until(condition: Callable[[], bool]) -> None:
    """Look again and again, as a monitor does, until it is so."""
    deadline_s = monotonic() + DEADLINE_S
    while not condition():
        assert monotonic() < deadline_s, "it never came to that"


def is_shown(client: TestClient, state: str) -> bool:
    """Whether an operator sees the breaker in this state, in /health and in /metrics."""
    health, page = client.get("/health").json(), client.get("/metrics").text
    shown = [metric(page, f'plimsoll_breaker_state{{state="{name}"}}') for name in STATES]
    return (
        health["breaker"]["state"] == state
        and (health["ladder_step"] == 4) == (state != "closed")
        and shown == [name == state for name in STATES]
    )


def n_times(client: TestClient, state: str) -> float:
    """How often the breaker has come into this state."""
    page = client.get("/metrics").text
    return metric(page, f'plimsoll_breaker_transitions_total{{state="{state}"}}')


def test_the_breaker_opens_probes_and_closes_and_vectors_are_what_they_were(
    client: TestClient, shortage: Shortage, caplog: pytest.LogCaptureFixture
):
    """A server that has run out of memory serves on, and comes back by itself, changed in nothing.

    The breaker half-opens a fraction of a second after it opened, so an open one is met by asking
    until it is: a request that comes later is its probe, fails, and opens it once more.
    """
    caplog.set_level(logging.WARNING)
    before = embed(client)
    assert reason_of(before) is None
    until(lambda: is_shown(client, "closed"))

    shortage.is_on = True
    first = [
        embed(client),
        client.post("/v1/embeddings", json={"input": "a ship"}),
        client.post("/embed", json={"input": "a ship", "fallback": "none"}),
    ]
    assert reason_of(first[0]) == "out_of_memory"
    for refused in first[1:]:
        # A second, and a part of one by chance.
        assert (refused.status_code, refused.headers["retry-after"]) in [(503, "1"), (503, "2")]
        assert refused.json()["error"]["code"] == "out_of_memory"
        assert "bad_alloc" in refused.json()["error"]["message"]
    assert n_times(client, "open") == 1

    until(lambda: reason_of(embed(client)) == "breaker_open")
    until(lambda: reason_of(embed(client)) is not None and is_shown(client, "open"))

    # Nobody asks any more: the watch over memory finds that its time has come.
    until(lambda: is_shown(client, "half_open"))
    n_opened = n_times(client, "open")
    assert reason_of(embed(client)) == "out_of_memory"
    assert n_times(client, "open") == n_opened + 1

    until(lambda: is_shown(client, "half_open"))
    assert n_times(client, "closed") == 0
    shortage.is_on = False
    after = embed(client)
    until(lambda: is_shown(client, "closed"))
    assert n_times(client, "closed") == 1
    assert after.json() == embed(client).json() == before.json()

    changes = [text for text in caplog.messages if text.startswith("memory breaker ")]
    assert changes[0].startswith("memory breaker closed -> open: 3 memory failures within 30 s")
    assert changes[-1].startswith("memory breaker half_open -> closed: a probe succeeded")


@pytest.mark.parametrize(
    ("texts", "most"),
    [(["a ship"], 1), (["ship " * 300] * 2, 2)],
    ids=["one thread", "two threads"],
)
def test_what_a_run_held_that_found_no_memory_is_let_go_before_the_next_try(
    client: TestClient, shortage: Shortage, texts: list[str], most: int
):
    """A retry in half the memory helps little beside the whole of the one that failed."""
    shortage.is_on = True

    response = client.post("/embed", json={"input": texts})

    assert reason_of(response) == "out_of_memory"
    assert 1 <= shortage.most_held <= most


def test_a_shortage_that_passes_costs_a_request_nothing_but_a_moment(
    client: TestClient, shortage: Shortage, monkeypatch: pytest.MonkeyPatch
):
    """Smaller runs come before smaller answers: the same bits, and the breaker hears nothing."""
    before = embed(client)
    fail = shortage.attend

    def once(*arrays: object) -> None:
        shortage.is_on = shortage.most_held == 0
        fail(*arrays)

    monkeypatch.setattr(shortage, "attend", once)
    after = embed(client)

    assert shortage.most_held == 1
    assert reason_of(after) is None
    assert after.json() == before.json()
    assert client.get("/health").json()["breaker"]["n_failures"] == 0
    page = client.get("/metrics").text
    assert metric(page, 'plimsoll_recoveries_total{level="1",outcome="recovered"}') >= 1

"""Each cause for real: GET /bottleneck names it, and what is tried against it helps and is kept.

Three minutes in all, most of it the seconds that are compared before and after.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from plimsoll.machine.cpu import available_cores
from plimsoll.policy.lines import HIGH_RATIO
from plimsoll.tuning.bottleneck import OTHERS_LINE_RATIO
from tests.acceptance import patient
from tests.acceptance.limited_load import MIB, ServedFile, can_limit, limited_server
from tests.acceptance.neighbours import needs_peace
from tests.acceptance.patient import DEADLINE_S
from tests.acceptance.test_cpu import cpu_group
from tests.fakes import metric
from tests.running_server import RunningServer
from tests.synthetic import NOMIC_SHAPE, cached_synthetic

pytestmark = pytest.mark.acceptance
# A trial is judged by a few seconds of load before and after, in which speed goes up and down:
# where it happened not to help it is undone, and rightly so.
CONVERSIONS = 4

POLL_S = 0.2
# Hardly more than one processor, which the engine has two threads for.
QUOTA_CORES = 1.01
# What requests and runs share below the line: the requests below fill it.
ROOM_MIB = 17
# For a machine that has something else to do just now.
PATIENCE_S = 20.0
Report = dict[str, Any]

WORDS = "the mark on a hull shows how deep a ship may safely be loaded in summer and in winter"


@pytest.fixture
def needs_limit() -> None:
    if reason := can_limit():
        pytest.skip(f"no hard memory limit can be set here: {reason}")


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The built-in model without a limit, open."""
    folder = tmp_path_factory.mktemp("server")
    with RunningServer(folder, "--cache-dir", str(model_cache)) as server:
        embed(server.url, ["a ship"])
        yield server


def post(url: str, body: dict[str, Any]) -> httpx.Response:
    return patient.post(f"{url}/embed", body)


def embed(url: str, texts: list[str]) -> httpx.Response:
    return post(url, {"input": texts, "fallback": "none"})


@contextmanager
def clients(url: str, n_clients: int, n_texts: int, n_words: int) -> Iterator[None]:
    """So many clients that each send a list when the last one was answered."""
    words = (WORDS.split() * n_words)[:n_words]
    stopped = threading.Event()

    def run(number: int) -> None:
        with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
            n_sent = 0
            while not stopped.is_set():
                n_sent += 1
                texts = [" ".join([f"{number} {n_sent} {i}", *words]) for i in range(n_texts)]
                answer = client.post("/embed", json={"input": texts, "fallback": "none"})
                if answer.status_code != 200:
                    stopped.wait(1)  # as Retry-After says at least

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def wait_for(url: str, what: str, is_right: Callable[[Report], bool]) -> Report:
    """Ask /bottleneck until it says so."""
    deadline = time.monotonic() + DEADLINE_S
    report: Report = {}
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        while time.monotonic() < deadline:
            report = client.get("/bottleneck").json()
            if is_right(report):
                return report
            time.sleep(POLL_S)
    pytest.fail(f"waited for {what}; the last was {report}")


def wait_for_kind(url: str, kind: str) -> Report:
    return wait_for(url, kind, lambda report: report["kind"] == kind)


def actions_of(report: Report, name: str) -> list[dict[str, Any]]:
    return [action for action in report["actions"] if action["action"] == name]


def ended(url: str, name: str) -> dict[str, Any]:
    """The first trial of this action, at its end."""

    def has_ended(report: Report) -> bool:
        return any(action["outcome"] for action in actions_of(report, name))

    return actions_of(wait_for(url, f"the end of {name}", has_ended), name)[0]


def assert_kept(url: str, name: str, kind: str) -> dict[str, Any]:
    """Wait for the end of the first trial of this action: it helped, is kept, and is counted."""
    action = ended(url, name)
    assert (action["kind"], action["outcome"]) == (kind, "kept"), action["reason"]
    page = patient.get(f"{url}/metrics").text
    labels = f'action="{name}",outcome="kept"'
    assert metric(page, f"plimsoll_bottleneck_actions_total{{{labels}}}") == 1
    return action


def assert_undone(url: str, name: str) -> None:
    """Wait until an action that was kept is let go of, because its cause has gone."""
    report = wait_for(
        url,
        f"the undoing of {name}",
        lambda report: actions_of(report, name)[-1]["outcome"] == "let_go",
    )
    assert actions_of(report, name)[-1]["reason"] == "its cause is gone"


@contextmanager
def server_with_quota(
    folder: Path, *options: str
) -> Iterator[tuple[RunningServer, Callable[[float | None], None]]]:
    """A server that may use little more than one processor, which no neighbour takes from it."""
    if available_cores() < 2:
        pytest.skip("with one processor there are no threads to spare")
    with cpu_group() as (group, set_quota):
        set_quota(QUOTA_CORES)
        for name, most in (("cpu.shares", 262144), ("cpu.weight", 10000)):
            if (group / name).exists():
                (group / name).write_text(str(most))
        enter = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group / "cgroup.procs")]
        with RunningServer(folder, *options, prefix=enter) as server:
            yield server, set_quota


def test_a_server_with_little_to_do_has_none(server: RunningServer):
    """Most servers at most times."""
    report = wait_for(
        server.url, "a whole window", lambda r: (r["evidence"] or {}).get("seconds", 0) > 3
    )
    assert report["kind"] == "none"
    assert report["actions"] == []
    page = patient.get(f"{server.url}/metrics").text
    assert metric(page, 'plimsoll_bottleneck{kind="none"}') == 1


def test_a_flood_of_requests_is_a_queue(server: RunningServer):
    """Nothing is wrong with the server: there is more to do than it can."""
    with clients(server.url, 8, 64, 60):
        report = wait_for(
            server.url,
            "queue",
            lambda r: (
                r["kind"] == "queue" or (r["kind"] == "cpu" and r["named_for_s"] > PATIENCE_S)
            ),
        )
        if report["kind"] == "cpu":
            # And rightly so, on a machine that has something else to do.
            assert report["evidence"]["others_ratio"] >= OTHERS_LINE_RATIO
            pytest.skip("other processes use this machine's processors")
    assert "drain" in report["reasons"][0]
    assert any("429" in said for said in report["what_you_could_do"])


@needs_peace
def test_a_quota_is_the_cpu_and_fewer_threads_help(model_cache: Path, tmp_path: Path):
    """Two threads use the quota up early and then all stand still, the event loop with them."""
    with server_with_quota(tmp_path, "--cache-dir", str(model_cache)) as (server, set_quota):
        embed(server.url, ["a ship"])
        with clients(server.url, 4, 16, 60):
            report = wait_for_kind(server.url, "cpu")
            assert any("quota" in reason for reason in report["reasons"])
            action = assert_kept(server.url, "fewer_threads", "cpu")
            assert action["after"]["pressure"] < action["before"]["pressure"]
        set_quota(None)
        assert_undone(server.url, "fewer_threads")


@pytest.mark.usefixtures("needs_limit")
@needs_peace
def test_weights_that_do_not_fit_the_limit_are_the_disk(nomic: ServedFile, tmp_path: Path):
    """Lone short texts under a limit below the weights' size: each pass reads them again."""
    with limited_server(tmp_path, nomic) as (server, group):
        vectors = embed(server.url, ["a mark on a hull"]).json()["embeddings"]
        with clients(server.url, 1, 1, 20):
            report = wait_for_kind(server.url, "disk")
            assert any("raise the memory limit" in said for said in report["what_you_could_do"])
            assert any("float16" in said for said in report["what_you_could_do"])
            assert_kept(server.url, "keep_layers", "disk")
        # With any layers in memory a vector is the same to the last bit.
        assert embed(server.url, ["a mark on a hull"]).json()["embeddings"] == vectors
        assert group.oom_kills == 0


@needs_peace
def test_a_budget_that_requests_fill_is_the_memory_and_room_for_runs_helps(
    model_cache: Path, tmp_path: Path
):
    """Requests hold all the room, and runs of a few texts take many times as long."""
    options = ("--cache-dir", str(model_cache))
    with RunningServer(tmp_path, *options) as server:
        embed(server.url, ["a ship"])
        health = patient.get(f"{server.url}/health").json()
    rest_mib = health["memory"]["used_bytes"] // MIB
    budget_mib = round((rest_mib + ROOM_MIB) / HIGH_RATIO)
    with RunningServer(tmp_path, *options, "--memory-budget", f"{budget_mib}M") as server:
        embed(server.url, ["a ship"] * 256)  # a server that knows its speed lets more wait
        with clients(server.url, 12, 100, 3):
            report = wait_for_kind(server.url, "memory")
            assert any("raise the memory limit" in said for said in report["what_you_could_do"])
            action = assert_kept(server.url, "room_for_runs", "memory")
            assert action["after"]["run_tokens_per_s"] > action["before"]["run_tokens_per_s"]


@needs_peace
def test_a_model_that_is_converted_is_dequantization_and_gets_processors(
    request: pytest.FixtureRequest, tmp_path: Path
):
    """A first start of one model beside requests for another."""
    # Four times as many layers as Nomic, so that it takes some seconds on a fast machine too.
    shape = replace(NOMIC_SHAPE, n_layers=48)
    file = cached_synthetic(request.config.cache.mkdir("synthetic"), quant="Q5_1", shape=shape)
    reasons = []
    for number in range(CONVERSIONS):
        cache = tmp_path / f"cache-{number}"
        options = ["--cache-dir", str(cache), "--extra-models", str(file)]
        options += ["--load-wait-s", str(DEADLINE_S)]
        with server_with_quota(tmp_path, *options) as (server, _):
            embed(server.url, ["a ship"])
            models = patient.get(f"{server.url}/v1/models").json()["data"]
            body = {"input": "a ship", "model": models[-1]["id"], "fallback": "none"}
            with ThreadPoolExecutor(1) as pool, clients(server.url, 4, 16, 60):
                answer = pool.submit(post, server.url, body)
                report = wait_for_kind(server.url, "dequantization")
                assert any("happens once" in said for said in report["what_you_could_do"])
                action = ended(server.url, "yield_to_conversion")
                assert action["kind"] == "dequantization"
                if action["outcome"] == "kept":
                    assert_kept(server.url, "yield_to_conversion", "dequantization")
                    assert action["after"]["pressure"] < action["before"]["pressure"]
                    assert_undone(server.url, "yield_to_conversion")
                first = answer.result()
                assert first.status_code == 200, first.text
            page = patient.get(f"{server.url}/metrics").text
            assert metric(page, "plimsoll_tensor_load_seconds_count") > 48
        shutil.rmtree(cache)  # gigabytes
        if action["outcome"] == "kept":
            return
        reasons.append(action["reason"])
    pytest.fail(f"never kept: {reasons}")

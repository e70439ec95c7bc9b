"""Each cause for real: GET /bottleneck names it, and what is tried helps or is undone.

Two minutes in all, most of it the seconds that are compared before and after.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.composition import prepare_model
from app.memory.cpu import available_cores
from app.serving.bottleneck import OTHERS_LINE_RATIO
from app.settings import Settings
from scripts.benchmarks.limits import LimitedGroup, evict, limited_group
from tests.acceptance.limited_load import can_limit
from tests.acceptance.test_cpu import neighbours
from tests.fakes import metric
from tests.running_server import RunningServer
from tests.synthetic import NOMIC_SHAPE, cached_synthetic

pytestmark = pytest.mark.acceptance

MIB = 1 << 20
POLL_S = 0.2
DEADLINE_S = 90.0
PAGE_BYTES = 4096
# As much as admission lets a server come to.
SQUEEZED_RATIO = 0.70
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


@contextmanager
def limited_server(
    folder: Path, limit_mib: int, cache: Path, model: str, *evicted: Path
) -> Iterator[tuple[RunningServer, LimitedGroup]]:
    """A server in a group of its own; pages of `evicted` would count where they were read first."""
    for path in evicted:
        evict(path)
    options = ("--model", model, "--cache-dir", str(cache))
    with (
        limited_group(limit_mib * MIB) as group,
        RunningServer(folder, *options, prefix=group.prefix) as server,
    ):
        yield server, group


def embed(url: str, texts: list[str]) -> httpx.Response:
    body = {"input": texts, "fallback": "none"}
    return httpx.post(f"{url}/embed", json=body, timeout=DEADLINE_S, trust_env=False)


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


def wait_for_verdict(url: str, kind: str) -> tuple[dict[str, Any], Report]:
    """The first action against this kind that has ended, and the report that shows it."""

    def ended(report: Report) -> list[dict[str, Any]]:
        return [
            action for action in report["actions"] if action["kind"] == kind and action["outcome"]
        ]

    report = wait_for(
        url, f"the end of an action against {kind}", lambda report: bool(ended(report))
    )
    return ended(report)[0], report


def assert_honest(url: str, action: dict[str, Any], report: Report) -> None:
    """Kept only where a figure is better; else undone; and counted."""
    before, after = action["before"], action["after"]
    if action["outcome"] == "kept":
        is_faster = (after["run_tokens_per_s"] or 0) > (before["run_tokens_per_s"] or 0)
        assert is_faster or after["pressure"] < before["pressure"]
    else:
        assert action["outcome"] in ("reverted", "unclear")
        assert report["caps"] == []
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    labels = f'action="{action["action"]}",outcome="{action["outcome"]}"'
    assert metric(page, f"plimsoll_bottleneck_actions_total{{{labels}}}") >= 1


def test_a_server_with_little_to_do_has_none(server: RunningServer):
    """Most servers at most times."""
    report = wait_for(
        server.url, "a whole window", lambda r: (r["evidence"] or {}).get("seconds", 0) > 3
    )
    assert report["kind"] == "none"
    assert report["actions"] == []
    page = httpx.get(f"{server.url}/metrics", trust_env=False).text
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


def test_a_busy_neighbour_is_the_cpu(model_cache: Path, tmp_path: Path):
    """And fewer threads are tried, which helps or is undone."""
    if available_cores() < 2:
        pytest.skip("with one processor there are no threads to spare")
    with (
        RunningServer(tmp_path, "--cache-dir", str(model_cache)) as server,
        neighbours(2),
        clients(server.url, 4, 16, 60),
    ):
        report = wait_for_kind(server.url, "cpu")
        assert report["evidence"]["others_ratio"] >= OTHERS_LINE_RATIO
        action, report = wait_for_verdict(server.url, "cpu")
        assert_honest(server.url, action, report)


@pytest.mark.usefixtures("needs_limit")
def test_weights_that_do_not_fit_the_limit_are_the_disk(
    request: pytest.FixtureRequest, tmp_path: Path
):
    """Lone short texts under a limit below the weights' size: each pass reads them again."""
    file = cached_synthetic(
        request.config.cache.mkdir("synthetic"), quant="Q8_0", name="nomic-embed-text-v1.5"
    )
    cache = tmp_path / "cache"
    folder = prepare_model(
        Settings(model=str(file), cache_dir=cache), lambda done_bytes, total_bytes: None
    )
    with limited_server(tmp_path, 400, cache, str(file), folder / "weights.f32") as (server, group):
        vectors = embed(server.url, ["a mark on a hull"]).json()["embeddings"]
        with clients(server.url, 1, 1, 20):
            report = wait_for_kind(server.url, "disk")
            assert any("raise the memory limit" in said for said in report["what_you_could_do"])
            assert any("float16" in said for said in report["what_you_could_do"])
            action, report = wait_for_verdict(server.url, "disk")
            assert action["action"] == "keep_layers"
            assert_honest(server.url, action, report)
        # Whatever stays in memory, a vector is the same to the last bit.
        assert embed(server.url, ["a mark on a hull"]).json()["embeddings"] == vectors
        assert group.oom_kills == 0


@pytest.mark.usefixtures("needs_limit")
def test_a_limit_that_requests_do_not_fit_is_the_memory(model_cache: Path, tmp_path: Path):
    """An orchestrator shrinks the container while it works."""
    with limited_server(tmp_path, 512, model_cache, "builtin") as (server, group):
        embed(server.url, ["a ship"])
        with clients(server.url, 6, 64, 120):
            report = squeeze(server.url, group)
            assert any("raise the memory limit" in said for said in report["what_you_could_do"])
            action, report = wait_for_verdict(server.url, "memory")
            assert_honest(server.url, action, report)
            set_limit(group, 512 * MIB)
            wait_for(server.url, "memory's end", lambda r: r["kind"] != "memory")
        assert group.oom_kills == 0


def squeeze(url: str, group: LimitedGroup) -> Report:
    """Lower the limit step by step until memory is named: a server under pressure uses less."""
    loaded = wait_for(url, "load", lambda report: (report["evidence"] or {}).get("n_runs", 0) >= 8)
    limit_bytes = loaded["evidence"]["used_bytes"] / SQUEEZED_RATIO // PAGE_BYTES * PAGE_BYTES
    set_limit(group, round(limit_bytes))

    def is_named(report: Report) -> bool:
        nonlocal limit_bytes
        if report["kind"] == "memory":
            return True
        if report["evidence"]["budget_bytes"] == limit_bytes:  # it has seen the latest one
            limit_bytes -= 4 * MIB
            set_limit(group, round(limit_bytes))
        return False

    return wait_for(url, "memory", is_named)


def set_limit(group: LimitedGroup, limit_bytes: int) -> None:
    for name in ("memory.limit_in_bytes", "memory.max"):
        if (group.folder / name).exists():
            (group.folder / name).write_text(str(limit_bytes))


def test_a_model_that_is_converted_is_dequantization(
    request: pytest.FixtureRequest, tmp_path: Path
):
    """A first start: it happens once, and that is what a person wants to know."""
    # Twice as many layers as Nomic, so that it takes more than a second on a fast machine.
    shape = replace(NOMIC_SHAPE, n_layers=24)
    file = cached_synthetic(request.config.cache.mkdir("synthetic"), quant="Q5_1", shape=shape)
    options = ("--model", str(file), "--cache-dir", str(tmp_path / "cache"))
    with RunningServer(tmp_path, *options) as server:
        waiting = threading.Thread(target=embed, args=(server.url, ["a ship"]))
        waiting.start()
        try:
            report = wait_for_kind(server.url, "dequantization")
        finally:
            waiting.join()
        assert any("happens once" in said for said in report["what_you_could_do"])
        assert report["actions"] == []
        page = httpx.get(f"{server.url}/metrics", trust_env=False).text
        assert metric(page, "plimsoll_tensor_load_seconds_count") > 24
        wait_for(server.url, "its end", lambda r: r["kind"] != "dequantization")

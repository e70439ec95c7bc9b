"""A server's hour of trouble in a minute, watched by a real Prometheus: load, refusals, a full
group, an open breaker, a kill, a migration that fails, a link whose files are gone, an end.

Windows are ten scrapes of a second instead of minutes (prometheus.py).
"""

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from plimsoll.bench.comparison.limits import LimitedGroup, limited_group
from plimsoll.bench.load.plan import LoadPlan
from plimsoll.bench.load.runner import run_load
from scripts.dashboards.expressions import as_asked
from tests.acceptance import patient
from tests.acceptance.ballast import Ballast
from tests.acceptance.containers import free_port
from tests.acceptance.limited_load import MIB
from tests.acceptance.patient import DEADLINE_S
from tests.acceptance.prometheus import WINDOW, AlertWatch, RunningPrometheus, until
from tests.fakes import metric
from tests.grafana_files import shown
from tests.running_server import RunningServer

LIMIT_MIB = 256
MIX = {"short": 60.0, "list": 6.0, "hangup": 4.0, "malformed": 8.0}
N_CLIENTS, LOAD_S = 8, 10.0
# Each alone is more than may wait; what comes beside it finds the queue full.
N_LONG_LISTS, N_LISTED = 8, 600
# A hook that keeps every migration that names it from running.
HOOKS = '[hooks.never]\ncommand = ["false"]\nwhen = "before"\n'
# Files that a collection mirrors.
LINK = """[links.papers]
kind = "jsonl"
files = ["{folder}/papers.jsonl"]
folder = "{folder}/papers-moved"
model = "all-MiniLM-L6-v2"
"""
PAPER = '{"id": "line", "text": "a mark on a hull"}\n'
N_PROVOCATIONS, NOTICED_S = 3, 30.0
FLOOD_S = 600.0  # for its last answer, however busy the machine is
FULL_RATIO = 0.94  # of the limit: above the line at which the breaker opens
# What the server answers otherwise than with vectors, each for its own reason.
ODD_BODIES = (
    ("/embed", {"input": "a ship", "encoder": "bm25"}),
    ("/embed", {"input": ["a"] * 20_000}),  # never fits the budget
    ("/embed", {"input": "a " * (1 << 20)}),  # over the limit of a body
    ("/embed", {"input": ["a ship", ""]}),
    ("/embed", {"input": "a long way " * 1000}),
    ("/rank", {"query": "a ship", "documents": ["a mark on a hull", "a tree"]}),
    ("/v1/embeddings", {"input": "a ship", "model": "all-MiniLM-L6-v2"}),
    ("/v1/embeddings", {"input": "a ship", "model": "no such model"}),
)
OF_COLLECTIONS = (
    ("documents", {"id": "line", "text": "a mark on a hull"}),
    ("search", {"query": "how deep may a ship be loaded?"}),
    ("search", {"query": "a hull", "mode": "bm25"}),
)
# With vectors, with what stands in for them, with a failure.
EVEN_BODIES = tuple(
    ("/embed", {"input": "a ship"} | more)
    for more in ({}, {"encoder": "bm25"}, {"fallback": "none"})
)
# Nothing of it needs to happen in that minute.
MAY_BE_ZERO = (
    "plimsoll_memory_pressure_ratio",
    "plimsoll_memory_refaults_per_second",
    "plimsoll_cpu_throttled_ratio",
    "plimsoll_cpu_others_ratio",
    "plimsoll_model_evictions_total",
    "plimsoll_connections_ended_total",
    "plimsoll_recoveries_total",
    "plimsoll_bottleneck",
    "plimsoll_vector_cache_bytes",  # off by default
    "plimsoll_link_vectors_waiting",  # they go out within moments
    # There is one model, and the one migration to it is kept from beginning.
    "plimsoll_migration_rows_total",
    "plimsoll_migration_tokens_total",
    "plimsoll_migration_yields_total",
    "plimsoll_migration_documents_left",
    "plimsoll_migration_documents_bridged",
    "plimsoll_migration_verdicts_total",
    "plimsoll_shadow_searches_total",
    "plimsoll_progressive_searches_total",
)


@dataclass(frozen=True)
class Watched:
    """What is left of that minute: Prometheus, still running, and what was seen on the way."""

    prometheus: RunningPrometheus
    page: str
    notes: dict[str, dict[str, str]]  # annotations of the alerts that fired


@contextmanager
def watched_trouble(tools: Path, built: Path, folder: Path) -> Iterator[Watched]:
    """Let it happen in `folder`. built: files of models that are fetched."""
    cache = folder / "cache"  # fetched, but not converted
    shutil.copytree(built, cache / "built")
    port = str(free_port())
    with (
        limited_group(LIMIT_MIB * MIB) as group,
        _server(folder, cache, group, port) as server,
        RunningPrometheus(
            tools, folder / "prometheus", urlsplit(server.url).netloc, free_port()
        ) as prometheus,
    ):
        assert until(prometheus.is_up)
        with AlertWatch(prometheus) as watch:
            page = _trouble(server.url, group, watch, folder)
            until(lambda: not _unseen(prometheus), lambda: asyncio.run(_press(server.url)))
            _wait_for_quiet(prometheus, server.url)
            server.terminate()
            server.wait()
            _wait_for(watch, None, "PlimsollDown")
            with _server(folder, cache, group, port):
                _wait_for_quiet(prometheus, server.url)
                yield Watched(prometheus, page, watch.seen)


def _trouble(url: str, group: LimitedGroup, watch: AlertWatch, folder: Path) -> str:
    """Everything that a server survives; returns its page after the load."""
    send(url)  # while the model loads
    assert until(lambda: _answers_dense(url))
    _provoke(lambda: asyncio.run(_flood(url)), watch, url, "PlimsollQueueFull", "PlimsollSlow")
    asyncio.run(_press(url))
    _provoke(lambda: _fail_migration(url), watch, url, "PlimsollMigrationFailed")
    assert patient.post(f"{url}/links/papers/pull", {}).status_code == 200
    assert until(lambda: patient.get(f"{url}/links/papers").json()["documents"] == 1)
    known = _n_link_faults(url)  # it may have waited for the model already, and told of that
    (folder / "papers.jsonl").unlink()
    assert until(lambda: _n_link_faults(url) > known, lambda: send(url))
    _wait_for(watch, url, "PlimsollLinkWaits")
    (folder / "papers.jsonl").write_text(PAPER, encoding="utf-8")
    page = patient.get(f"{url}/metrics").text
    _provoke(lambda: _be_killed(group), watch, url, "PlimsollOOMKilled")
    with _filled(group, url):
        _wait_for(
            watch, url,
            "PlimsollMemoryHigh", "PlimsollBreakerOpen", "PlimsollDegraded", "PlimsollErrors",
        )  # fmt: skip
    return page


def _n_link_faults(url: str) -> float:
    page = patient.get(f"{url}/metrics").text
    return metric(page, 'plimsoll_link_faults_total{link="papers"}')


def _unseen(prometheus: RunningPrometheus) -> list[str]:
    """Panels that show nothing so far of what happened: a busy machine misses scrapes."""
    return [
        expression
        for expression in happenings()
        if max(prometheus.values(asked(expression)), default=0) == 0
    ]


def send(url: str | None, bodies: Sequence[tuple[str, dict]] = EVEN_BODIES) -> None:
    """Send each once, if there is a server, and leave the answers unread."""
    if url is not None:
        with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
            for route, body in bodies:
                client.post(route, json=body)


def _answers_dense(url: str) -> bool:
    answer = patient.post(f"{url}/embed", {"input": "a ship"})
    return answer.json()["kind"] == "dense"


def _provoke(cause: Callable[[], None], watch: AlertWatch, url: str, *names: str) -> None:
    """Let something happen that is over in a moment, and again where its alerts do not fire.

    A busy machine may miss all scrapes of that moment.
    """
    for _ in range(N_PROVOCATIONS):
        cause()
        if until(lambda: set(names) <= set(watch.seen), lambda: send(url), within_s=NOTICED_S):
            return
    pytest.fail(f"never fired: {set(names) - set(watch.seen)}")


def _wait_for(watch: AlertWatch, url: str | None, *names: str) -> None:
    """Send requests until each of these alerts has fired."""
    if until(lambda: set(names) <= set(watch.seen), lambda: send(url)):
        return
    found = url and patient.get(f"{url}/health").json()
    pytest.fail(f"never fired: {set(names) - set(watch.seen)}; the server says {found}")


def _wait_for_quiet(prometheus: RunningPrometheus, url: str) -> None:
    """Send requests until no alert fires any more."""
    assert until(lambda: not prometheus.firing(), lambda: send(url)), prometheus.firing()


def _server(folder: Path, cache: Path, group: LimitedGroup, port: str) -> RunningServer:
    hooks = folder / "hooks.toml"
    hooks.write_text(HOOKS, encoding="utf-8")
    links = folder / "links.toml"
    links.write_text(LINK.format(folder=folder), encoding="utf-8")
    (folder / "papers.jsonl").write_text(PAPER, encoding="utf-8")
    return RunningServer(
        folder, "--port", port, "--cache-dir", str(cache), "--log-format", "text",
        prefix=group.prefix,
        PLIMSOLL_LOAD_WAIT_S="0",
        PLIMSOLL_QUEUE_S="1",
        PLIMSOLL_QUEUE_TIMEOUT_S="0",
        PLIMSOLL_RECOVERY_TIMEOUT_S="5",
        PLIMSOLL_BODY_LIMIT="1M",
        PLIMSOLL_HOOKS=str(hooks),
        PLIMSOLL_LINKS=str(links),
    )  # fmt: skip


async def _flood(url: str) -> None:
    """Send more than the queue takes; no text twice, which would be computed once."""
    lists = (
        [f"as deep as ship {number} may be loaded in port {n}" for n in range(N_LISTED)]
        for number in range(N_LONG_LISTS)
    )
    async with httpx.AsyncClient(base_url=url, timeout=FLOOD_S, trust_env=False) as client:
        await asyncio.gather(*(client.post("/embed", json={"input": texts}) for texts in lists))


async def _press(url: str) -> None:
    """Load, and beside it what a load test does not send."""
    async with httpx.AsyncClient(base_url=url, timeout=FLOOD_S, trust_env=False) as client:
        load = asyncio.create_task(
            run_load(LoadPlan(url, mix=MIX, n_clients=N_CLIENTS, seconds=LOAD_S))
        )
        while not load.done():
            for route, body in ODD_BODIES:
                await client.post(route, json=body)
            await client.put("/collections/ships", json={})
            for route, body in OF_COLLECTIONS:
                await client.post(f"/collections/ships/{route}", json=body)
            await client.get("/nothing")
            await asyncio.wait([load], timeout=0.5)
        await load


def _fail_migration(url: str) -> None:
    """Begin a migration that a hook keeps from running, or go on with it."""
    with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
        client.put("/collections/old", json={"space": "elsewhere", "dimensions": 2})
        document = {"id": "line", "text": "a mark on a hull", "vector": [1, 0]}
        client.post("/collections/old/documents?space=elsewhere", json=document)
        found = client.get("/migrations").json()["migrations"]
        if found:
            answer = client.post(f"/migrations/{found[0]['id']}/resume", json={})
        else:
            begun = {"collection": "old", "model": "all-MiniLM-L6-v2", "hooks": ["never"]}
            answer = client.post("/migrations", json=begun)
        assert answer.status_code == 200, answer.text


def _be_killed(group: LimitedGroup) -> None:
    """Another process of the group takes what there is, and the kernel takes that process."""
    greedy = "open('/proc/self/oom_score_adj', 'w').write('1000'); bytearray(1 << 30)"
    n_before = group.oom_kills
    subprocess.run([*group.prefix, "python3", "-c", greedy], check=False)
    assert group.oom_kills == n_before + 1


@contextmanager
def _filled(group: LimitedGroup, url: str) -> Iterator[None]:
    """A file in memory fills the group, and goes on to as the server gives memory back."""
    send(url)
    ended = threading.Event()

    def fill(ballast: Ballast) -> None:
        while not ended.is_set():
            memory = patient.get(f"{url}/health").json()["memory"]
            missing_bytes = round(FULL_RATIO * LIMIT_MIB * MIB) - memory["used_bytes"]
            if missing_bytes > MIB:
                ballast.grow(missing_bytes)
            ended.wait(0.5)

    with Ballast(group) as ballast, ThreadPoolExecutor(1) as thread:
        filling = thread.submit(fill, ballast)
        try:
            yield
        finally:
            ended.set()
            filling.result()


def happenings() -> list[str]:
    """Expressions of panels about what does happen in that minute."""
    return [one for one in shown() if not any(name in one for name in MAY_BE_ZERO)]


def asked(expression: str) -> str:
    """An expression as Grafana would send it."""
    return as_asked(expression, WINDOW)

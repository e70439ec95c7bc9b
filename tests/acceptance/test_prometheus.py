"""Dashboard and rules against a real Prometheus that watches a real server through an hour's worth
of trouble in a minute: load, refusals, a full group, an open breaker, a kill, an end.

Windows are ten scrapes of a second instead of minutes (prometheus.py); the real times are those of
`promtool test rules`.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from scripts.benchmarks.limits import LimitedGroup, limited_group
from scripts.load.plan import LoadPlan
from scripts.load.runner import run_load
from tests.acceptance.containers import free_port
from tests.acceptance.limited_load import MIB, can_limit
from tests.acceptance.prometheus import WINDOW, AlertWatch, RunningPrometheus, until
from tests.grafana_files import CASES, CONFIG, RULES, alerts, rules, shown
from tests.running_server import ROOT, RunningServer

pytestmark = pytest.mark.acceptance

LIMIT_MIB = 256
MIX = {"short": 60.0, "list": 6.0, "hangup": 4.0, "malformed": 8.0}
N_CLIENTS, LOAD_S = 8, 10.0
# Each alone is more than may wait; what comes meanwhile finds the queue full.
LONG_LIST = {"input": ["as deep as a ship may safely be loaded, not a hand's breadth more"] * 600}
N_LONG_LISTS = 8
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
    "plimsoll_recoveries_total",
    "plimsoll_bottleneck",
)


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with prometheus and promtool."""
    found = subprocess.run(
        [ROOT / "scripts/prometheus_tools"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no Prometheus: {found.stderr.strip() or 'prometheus_tools failed'}")
    return Path(found.stdout.strip())


@dataclass(frozen=True)
class Watched:
    """What is left of that minute: Prometheus, still running, and what was seen on the way."""

    prometheus: RunningPrometheus
    page: str
    notes: dict[str, dict[str, str]]  # annotations of the alerts that fired


@pytest.fixture(scope="module")
def watched(
    tools: Path, model_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    if reason := can_limit():
        pytest.skip(f"no hard memory limit can be set here: {reason}")
    folder = tmp_path_factory.mktemp("watched")
    cache = folder / "cache"  # fetched, but not converted
    shutil.copytree(model_cache / "built", cache / "built")
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
            page = _trouble(server.url, group, watch)
            _wait_for_quiet(prometheus, server.url)
            server.terminate()
            server.wait()
            _wait_for(watch, None, "PlimsollDown")
            with _server(folder, cache, group, port):
                _wait_for_quiet(prometheus, server.url)
                yield Watched(prometheus, page, watch.seen)


def _trouble(url: str, group: LimitedGroup, watch: AlertWatch) -> str:
    """Everything that a server survives; returns its page after the load."""
    send(url)  # while the model loads
    assert until(lambda: _answers_dense(url))
    asyncio.run(_press(url))
    page = httpx.get(f"{url}/metrics", trust_env=False).text
    _be_killed(group)
    _wait_for(watch, url, "PlimsollQueueFull", "PlimsollSlow", "PlimsollOOMKilled")
    with _filled(group, url):
        _wait_for(
            watch, url,
            "PlimsollMemoryHigh", "PlimsollBreakerOpen", "PlimsollDegraded", "PlimsollErrors",
        )  # fmt: skip
    return page


def send(url: str | None, bodies: Sequence[tuple[str, dict]] = EVEN_BODIES) -> None:
    """Send each once, if there is somebody, whatever becomes of it."""
    if url is not None:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for route, body in bodies:
                client.post(route, json=body)


def _answers_dense(url: str) -> bool:
    answer = httpx.post(f"{url}/embed", json={"input": "a ship"}, trust_env=False)
    return answer.json()["kind"] == "dense"


def _wait_for(watch: AlertWatch, url: str | None, *names: str) -> None:
    """Send requests until each of these alerts has fired."""
    until(lambda: set(names) <= set(watch.seen), lambda: send(url))
    assert not set(names) - set(watch.seen)


def _wait_for_quiet(prometheus: RunningPrometheus, url: str) -> None:
    """Send requests until no alert fires any more."""
    assert until(lambda: not prometheus.firing(), lambda: send(url)), prometheus.firing()


def _server(folder: Path, cache: Path, group: LimitedGroup, port: str) -> RunningServer:
    return RunningServer(
        folder, "--port", port, "--cache-dir", str(cache), "--log-format", "text",
        prefix=group.prefix,
        PLIMSOLL_LOAD_WAIT_S="0",
        PLIMSOLL_QUEUE_S="1",
        PLIMSOLL_QUEUE_TIMEOUT_S="0",
        PLIMSOLL_RECOVERY_TIMEOUT_S="5",
        PLIMSOLL_BODY_LIMIT_MIB="1",
    )  # fmt: skip


async def _press(url: str) -> None:
    """More than the queue takes; then load, and beside it what a load test does not send."""
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        await asyncio.gather(*(client.post("/embed", json=LONG_LIST) for _ in range(N_LONG_LISTS)))
        load = asyncio.create_task(
            run_load(LoadPlan(url, mix=MIX, n_clients=N_CLIENTS, seconds=LOAD_S))
        )
        while not load.done():
            for route, body in ODD_BODIES:
                await client.post(route, json=body)
            await client.get("/nothing")
            await asyncio.wait([load], timeout=0.5)
        await load


def _be_killed(group: LimitedGroup) -> None:
    """Another process of the group takes what there is, and the kernel takes that process."""
    greedy = "open('/proc/self/oom_score_adj', 'w').write('1000'); bytearray(1 << 30)"
    subprocess.run([*group.prefix, "python3", "-c", greedy], check=False)
    assert group.oom_kills == 1


@contextmanager
def _filled(group: LimitedGroup, url: str) -> Iterator[None]:
    """Files in memory fill the group, while requests come in: memory at rest is no trouble."""
    send(url)
    memory = httpx.get(f"{url}/health", trust_env=False).json()["memory"]
    n_bytes = round(FULL_RATIO * LIMIT_MIB * MIB) - memory["used_bytes"]
    file = Path(f"/dev/shm/plimsoll-{os.getpid()}")
    try:
        subprocess.run([*group.prefix, "fallocate", "--length", str(n_bytes), file], check=True)
        yield
    finally:
        file.unlink(missing_ok=True)


def asked(expression: str) -> str:
    """An expression as Grafana would send it."""
    return expression.replace("$__rate_interval", WINDOW).replace("$instance", ".+")


@pytest.mark.parametrize("path", [CONFIG, RULES], ids=lambda path: path.name)
def test_promtool_accepts_the_configuration_and_the_rules(tools: Path, path: Path):
    """Prometheus would not start with what it refuses."""
    kind = "config" if path is CONFIG else "rules"
    promtool(tools, "check", kind, str(path))


def test_every_alert_fires_and_clears_in_its_time(tools: Path):
    """The cases of grafana/rules.test.yml."""
    promtool(tools, "test", "rules", str(CASES))


def test_promtool_has_nothing_to_say_against_the_page(tools: Path, watched: Watched):
    """Base units, suffixes and help texts as everybody else has them."""
    assert promtool(tools, "check", "metrics", page=watched.page) == ""


@pytest.mark.parametrize("expression", sorted(set(shown())))
def test_every_panel_shows_something_that_happened(watched: Watched, expression: str):
    """An empty panel looks like a quiet server."""
    values = watched.prometheus.values(asked(expression))
    assert values
    if not any(name in expression for name in MAY_BE_ZERO):
        assert max(values) > 0


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if "record" in rule], ids=itemgetter("record")
)
def test_every_recorded_ratio_has_values(watched: Watched, rule: dict):
    """An alert over a record that is always empty never fires."""
    assert watched.prometheus.values(rule["record"])


@pytest.mark.parametrize("alert", [alert["alert"] for alert in alerts()])
def test_every_alert_has_fired_and_is_over(watched: Watched, alert: str):
    """An alert that does not fire is no use, and one that does not end is not heard."""
    assert watched.prometheus.values(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
    assert alert not in watched.prometheus.firing()


def test_what_an_alert_says_is_written_out(watched: Watched):
    """Prometheus puts its own error into a text that it cannot write."""
    for notes in watched.notes.values():
        for text in notes.values():
            assert "{{" not in text
            assert "error expanding template" not in text
            assert "no value" not in text


def promtool(tools: Path, *arguments: str, page: str | None = None) -> str:
    """What promtool says; what it refuses, fails the test."""
    done = subprocess.run(
        [tools / "promtool", *arguments], input=page, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr

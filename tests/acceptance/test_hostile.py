"""Thousands of hostile connections beside a client that behaves: it must not notice.

10,000 over two minutes with --soak, where the client's slowest hundredth is held to five times that
of a quiet server; else a share of them in the same density.
"""

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from plimsoll.bench.comparison.processes import process_memory
from plimsoll.server.connections import LOG_PAUSE_S
from plimsoll.telemetry.connections import ENDS
from tests.acceptance.limited_load import MIB
from tests.fakes import metric
from tests.running_server import DEADLINE_S, ROOT, RunningServer, environment

pytestmark = pytest.mark.acceptance

PER_S = 10_000 / 120
HEADER_S, BODY_S = 2, 2  # short ones: more of the connections end while the test looks
MOST_TIMES_SLOWER = 5.0
# What the heap keeps of the most connections that were ever open at once.
MOST_GROWN_BYTES = 16 * MIB
LOOKS, LOOK_S = 20, 0.1
BODY = {"input": ["a ship on the sea"]}
ENDED = ("silent", "slow_header", "header_too_large", "malformed_request")


@dataclass(frozen=True)
class Client:
    """What became of the requests of the client that behaves; quantiles in ms."""

    n_requests: int
    statuses: dict[str, int]
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Held:
    """What the server's process holds."""

    anonymous_bytes: int
    n_descriptors: int


def held(server: RunningServer) -> Held:
    """Of a server that rests; the last connection takes it a moment to close."""
    pid = server.process.pid
    seen = []
    for _ in range(LOOKS):
        sleep(LOOK_S)
        seen.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    memory = process_memory(pid)
    assert memory is not None
    return Held(memory.anonymous_bytes, min(seen))


def ask(url: str, until: threading.Event, most_s: float) -> Client:
    """Ask one thing after another, now over the same connection and now over a new one."""
    statuses: Counter[str] = Counter()
    taken_s = []
    end_s = monotonic() + most_s
    while not until.is_set() and monotonic() < end_s:
        with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client:
            for _ in range(20):
                start_s = perf_counter()
                try:
                    status = str(client.post("/embed", json=BODY).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                statuses[status] += 1
                taken_s.append(perf_counter() - start_s)
    p50, p99 = np.quantile(taken_s, (0.5, 0.99)) * 1000
    return Client(len(taken_s), dict(statuses), round(float(p50), 2), round(float(p99), 2))


def attack(server: RunningServer, number: int, seconds: float) -> tuple[Client, dict[str, object]]:
    """Send the hostile connections; what the client beside them got, and how they ended."""
    parts = urlsplit(server.url)
    given = (parts.hostname, str(parts.port), str(number), str(seconds))
    hostile = subprocess.Popen(
        [sys.executable, "-m", "tests.acceptance.hostile", *given],
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )
    over = threading.Event()
    ends: list[bytes] = []

    def wait() -> None:
        ends.append(hostile.communicate()[0])
        over.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    try:
        client = ask(server.url, over, seconds + DEADLINE_S)
    finally:
        hostile.kill()
        waiting.join()
    return client, json.loads(ends[0])


def test_ten_thousand_hostile_connections_change_nothing_for_a_client_that_behaves(
    model_cache: Path, tmp_path: Path, is_soak: bool
):
    """Every request of it is answered; memory and descriptors go back to where they were."""
    seconds = 120 if is_soak else 8
    variables = {
        "PLIMSOLL_BODY_TIMEOUT_S": str(BODY_S),
        "PLIMSOLL_HEADER_TIMEOUT_S": str(HEADER_S),
        "PLIMSOLL_DATA_DIR": str(tmp_path / "data"),
    }
    if is_soak:  # as a server is by default
        variables = {"PLIMSOLL_DATA_DIR": str(tmp_path / "data")}
    with RunningServer(tmp_path, "--cache-dir", str(model_cache), **variables) as server:
        attack(server, round(2 * PER_S), 2)  # the heap grows to what so many connections take
        quiet = ask(server.url, threading.Event(), 30 if is_soak else 3)
        before = held(server)
        beside, ends = attack(server, round(seconds * PER_S), seconds)
        ask(server.url, threading.Event(), 1)
        after = held(server)
        page = httpx.get(f"{server.url}/metrics", timeout=DEADLINE_S, trust_env=False).text
        server.terminate()
        code = server.wait()
    figures = {
        "quiet": asdict(quiet),
        "beside": asdict(beside),
        "before": asdict(before),
        "after": asdict(after),
        "ends": ends,
    }
    (tmp_path / "hostile.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures))

    assert set(beside.statuses) == {"200"}, figures
    assert beside.n_requests > 100
    assert after.n_descriptors <= before.n_descriptors, figures
    assert after.anonymous_bytes - before.anonymous_bytes < MOST_GROWN_BYTES, figures
    assert not any("never ended" in found for found in ends.values()), figures
    for reason in ENDED:
        series = f'plimsoll_connections_ended_total{{reason="{reason}"}}'
        assert metric(page, series) > 0, reason
    assert metric(page, "plimsoll_connections") == 1  # the scrape's own
    assert "Traceback" not in server.log
    n_lines = server.log.count("ended a connection")
    assert n_lines < len(ENDS) * (seconds / LOG_PAUSE_S + 4)  # not one for each of them
    assert code == 0
    if is_soak:
        assert beside.p99_ms < MOST_TIMES_SLOWER * quiet.p99_ms, figures

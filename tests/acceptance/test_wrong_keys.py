"""A hundred wrong keys a second beside a client with a right one: it must notice nothing."""

import secrets
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import httpx
import pytest

from plimsoll.api.edge.keys import MOST_KEYS
from tests.acceptance.neighbours import needs_peace
from tests.running_server import ROOT, RunningServer, environment

pytestmark = pytest.mark.acceptance

WRONG_PER_S = 100
# By turns quiet and beside wrong keys, so that what else the machine does falls on both.
ROUNDS, ROUND_S = 6, 3.0
# Of noise on a machine with two cores, where the one who guesses takes a tenth of one himself.
LEAST_RATE_RATIO, MOST_P99_RATIO, MOST_P99_MORE_S = 0.75, 2.0, 0.010


def keep_asking(client: httpx.Client, seconds: float) -> list[float]:
    """Seconds that each request took; every one of them is answered."""
    taken_s: list[float] = []
    began_s = perf_counter()
    while (now_s := perf_counter()) - began_s < seconds:
        answer = client.post("/embed", json={"input": f"a ship of line {len(taken_s)}"})
        assert answer.status_code == 200, answer.text
        taken_s.append(perf_counter() - now_s)
    return taken_s


def p99_s(taken_s: list[float]) -> float:
    return statistics.quantiles(taken_s, n=100)[98]


@needs_peace
def test_a_hundred_wrong_keys_a_second_change_nothing_for_others(tmp_path: Path, model_cache: Path):
    """Rate and p99 of a good client beside the quiet, with as many keys as there may be; and the
    log says that it happened without being filled by it."""
    keys = tmp_path / "keys"
    good = secrets.token_hex(24)
    others = (f"embed:{secrets.token_hex(24)}" for _ in range(MOST_KEYS - 1))
    keys.write_text("\n".join([*others, f"embed:{good}", ""]), encoding="utf-8")
    keys.chmod(0o600)
    variables = {"PLIMSOLL_API_KEYS": str(keys), "PLIMSOLL_CACHE_DIR": str(model_cache)}
    quiet_s: list[float] = []
    beside_s: list[float] = []
    answers = ""
    with (
        RunningServer(tmp_path, "--preload", **variables) as server,
        httpx.Client(base_url=server.url, headers={"X-API-Key": good}, timeout=60) as client,
    ):
        keep_asking(client, 2.0)  # what a first request sets up
        for _ in range(ROUNDS):
            quiet_s += keep_asking(client, ROUND_S)
            with guessing(server.url, ROUND_S + 1) as guesser:
                keep_asking(client, 0.5)  # while it starts
                beside_s += keep_asking(client, ROUND_S)
                answers += guesser.communicate(timeout=60)[0]

    n_wrong = round(WRONG_PER_S * (ROUND_S + 1))
    assert answers == f"{{401: {n_wrong}}}\n" * ROUNDS
    lines = [line for line in server.lines if "invalid_api_key" in line]
    assert 0 < len(lines) < 0.2 * ROUNDS * n_wrong
    figures = {
        "quiet_per_s": len(quiet_s) / ROUNDS / ROUND_S,
        "beside_per_s": len(beside_s) / ROUNDS / ROUND_S,
        "quiet_p99_ms": 1000 * p99_s(quiet_s),
        "beside_p99_ms": 1000 * p99_s(beside_s),
    }
    print({name: round(figure, 2) for name, figure in figures.items()})
    assert figures["beside_per_s"] > LEAST_RATE_RATIO * figures["quiet_per_s"]
    most_s = max(MOST_P99_RATIO * p99_s(quiet_s), p99_s(quiet_s) + MOST_P99_MORE_S)
    assert p99_s(beside_s) < most_s


def guessing(url: str, seconds: float) -> "subprocess.Popen[str]":
    """A process that sends wrong keys for so long."""
    module = "tests.acceptance.wrong_keys"
    return subprocess.Popen(
        [sys.executable, "-m", module, url, str(WRONG_PER_S), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )

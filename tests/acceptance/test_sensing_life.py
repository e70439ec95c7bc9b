"""A real engine in its longest run while memory runs out: what the server still notices."""

import logging
import mmap
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import httpx
import pytest

from plimsoll.machine.memory import MIB, MemoryMonitor
from plimsoll.policy.lines import BREAKER_STEP, OPEN_AFTER_S, OPEN_RATIO
from plimsoll.settings import Settings
from tests.acceptance.limited_load import ServedFile
from tests.acceptance.neighbours import needs_peace
from tests.acceptance.watched_server import serving_here
from tests.fakes import DEADLINE_S

pytestmark = pytest.mark.acceptance

# One word is one token, and two stand around a text.
LONGEST = "ship " * 8190
MOST_PAUSE_S = 1.5
# Two seconds above the line, up to a second until a tick sees it, and the ticks' own time.
OPEN_WITHIN_S = 3.2
ROUNDED_S = 0.1  # as /status tells seconds
OPENED = "memory breaker closed -> open"
RUN_S = 1200.0  # for the longest run, however busy the machine is
POLL_S = 0.05


@needs_peace
def test_a_run_of_the_longest_text_hides_no_shortage_of_memory(
    nomic: ServedFile, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    """The tick once waited for the run to give memory back: the breaker opened seconds too late."""
    caplog.set_level(logging.WARNING)
    caplog.clear()
    budget_mib = 900 + MemoryMonitor().sample().used_bytes // MIB
    budget_bytes = budget_mib * MIB
    settings = Settings(
        cache_dir=nomic.cache, model=nomic.name, memory_budget=budget_bytes, preload=True
    )
    with (
        serving_here(settings) as url,
        httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        wait_until(lambda: client.get("/health").json()["model"]["state"] == "ready")
        reply: list[httpx.Response] = []
        body = {"input": LONGEST, "fallback": "none"}
        asking = threading.Thread(
            target=lambda: reply.append(
                httpx.post(f"{url}/embed", json=body, timeout=RUN_S, trust_env=False)
            )
        )
        asking.start()
        wait_until(lambda: client.get("/health").json()["queue"]["tokens"] > 8000)
        missing_bytes = int(0.95 * budget_bytes) - _least_used_bytes()
        with mmap.mmap(-1, missing_bytes, mmap.MAP_PRIVATE) as ballast:
            for page in range(0, missing_bytes, mmap.PAGESIZE):
                ballast[page] = 1
            squeezed_s = time.time()
            wait_until(lambda: any(OPENED in line for line in caplog.messages))
            was_running = asking.is_alive()
            history = client.get("/status").json()["history"]
        asking.join()

    logged_s = next(line.created for line in caplog.records if OPENED in line.getMessage())
    opened_s = logged_s - squeezed_s
    ago_s = history["seconds_ago"]
    pause_s = max(earlier - later for earlier, later in pairwise(ago_s))
    with capsys.disabled():
        print(f"\nlongest pause of the tick {pause_s:.1f} s, breaker open after {opened_s:.1f} s")
    assert was_running, "the run was over before memory was: nothing was shown"
    assert reply[0].status_code == 200
    high = [used_bytes > OPEN_RATIO * budget_bytes for used_bytes in history["used_bytes"]]
    first, opening = high.index(True), history["ladder_step"].index(BREAKER_STEP)
    high_s = ago_s[first] - ago_s[opening - 1]
    assert high_s < OPEN_AFTER_S + ROUNDED_S, "a tick that was due to open it did not"
    assert pause_s < MOST_PAUSE_S
    assert opened_s < OPEN_WITHIN_S


def _least_used_bytes() -> int:
    """Of two seconds: a run takes and gives back for each layer, and must not sink the rest."""
    ends_s = time.monotonic() + 2.0
    least = MemoryMonitor().sample().used_bytes
    while time.monotonic() < ends_s:
        time.sleep(POLL_S)
        least = min(least, MemoryMonitor().sample().used_bytes)
    return least


def wait_until(came: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not came():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(POLL_S)

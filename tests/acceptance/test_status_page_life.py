"""The status page in a real browser while memory runs high or out, and while nobody answers."""

import mmap
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.onnx_runner import Runner
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.settings import Settings
from tests.acceptance.neighbours import needs_peace
from tests.acceptance.watched_server import (
    READY,
    budget_mib,
    limited,
    rank,
    ranked,
    serving_here,
)
from tests.browser import Browser
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

# Counts what the page asks, which it does a hundred times as often as otherwise.
HURRY = """
window.asked = 0;
window.whenAsked = () => {};
const ask = window.fetch, later = window.setTimeout;
window.fetch = (...all) => { window.asked++; window.whenAsked(); return ask(...all) };
window.setTimeout = (work, ms) => later(work, ms === 2000 ? 20 : ms);
window.hide = (isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
};
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.look_like(scheme="light", width=1200)
        yield browser


def percents(label: str) -> list[int]:
    """Used memory of the budget as the chart says it aloud: now, and at most."""
    return [int(number) for number in re.findall(r"(\d+) %", label)]


# --- memory ---------------------------------------------------------------------------------


def test_the_page_follows_memory_up_and_down(browser: Browser, model_cache: Path):
    """Real memory of a real process: above a line the step changes, below it again it goes back."""
    settings = Settings(cache_dir=model_cache, memory_budget=budget_mib(0.35) << 20)
    with serving_here(settings) as url:
        browser.open(url)
        browser.wait_for("/all is well/i.test(document.getElementById('summary').textContent)")
        sample = MemoryMonitor(settings.memory_budget).sample()
        missing_bytes = int(0.82 * sample.budget_bytes) - sample.used_bytes
        with mmap.mmap(-1, missing_bytes, mmap.MAP_PRIVATE) as ballast:
            for page in range(0, missing_bytes, mmap.PAGESIZE):
                ballast[page] = 1
            browser.wait_for(
                "/dropping pages/i.test(document.getElementById('summary').textContent)"
            )
            assert browser.text("#ladder [aria-current=step]") == "Dropping pages"
            assert "used memory above 0.75" in browser.text("#causes")
            assert "halved when used memory was above 0.75" in browser.text("#plan")
            label = browser.evaluate("document.getElementById('memory-chart').ariaLabel")
            assert percents(label)[0] > 75
        browser.wait_for("/all is well/i.test(document.getElementById('summary').textContent)")

        highest = browser.evaluate("document.getElementById('memory-chart').ariaLabel")
        assert percents(highest)[1] > 75, "the chart has forgotten what it was like"
        assert browser.complaints == []


@needs_peace
def test_when_memory_runs_out_words_stand_in_and_the_breaker_shows(
    browser: Browser, model_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """The page says what it is that a client gets, from the first failure to the recovery."""

    def no_memory(*arrays: np.ndarray) -> None:
        raise MemoryError("no memory, says the test")

    settings = Settings(
        cache_dir=model_cache, memory_budget=budget_mib(0.25) << 20, recovery_timeout_s=10
    )
    with serving_here(settings) as url:
        assert httpx.post(f"{url}/embed", json={"input": "a ship"}, timeout=60).is_success
        browser.open(url)
        browser.wait_for(READY)
        with monkeypatch.context() as broken:
            broken.setattr(Runner, "attend", no_memory)
            broken.setattr(OnnxBackend, "open_whole", lambda *asked: None)
            rank(browser, "hull ship")
            outcome = browser.text("#outcome")
            assert outcome.startswith("By shared words instead of meaning, because memory ran out.")
            (best, score), (_, other), *_ = ranked(browser)
            assert "hull" in best
            assert float(score) > float(other)
            for _ in range(2):
                body = {"input": "a ship", "fallback": "none"}
                assert httpx.post(f"{url}/embed", json=body, timeout=60).status_code == 503
            browser.wait_for("document.getElementById('breaker').textContent.startsWith('■ open')")
            assert browser.text("#summary").lower().endswith("words only. memory breaker open.")
            assert "3 memory failures" in browser.text("#breaker")
            assert "503 out_of_memory 2 times" in browser.text("#error-list")
            rank(browser, "hull ship")
            assert "because the memory breaker is open" in browser.text("#outcome")
        browser.wait_for("document.getElementById('breaker').textContent.startsWith('▲ half-open')")
        rank(browser, "hull ship")
        assert browser.text("#outcome").startswith("Cosine of the vectors")
        browser.wait_for("/all is well/i.test(document.getElementById('summary').textContent)")
        assert int(browser.text("#sparse")) == 2
        assert browser.complaints == []


# --- a server that is not there, a page that nobody sees ------------------------------------


def stop_and_start(server: RunningServer, restart: Callable[[], Any]) -> Iterator[None]:
    server.terminate()
    assert server.wait() == 0
    yield
    with restart():
        yield


def freeze_and_thaw(server: RunningServer, restart: Callable[[], Any]) -> Iterator[None]:
    server.process.send_signal(signal.SIGSTOP)
    yield
    server.process.send_signal(signal.SIGCONT)
    yield


@pytest.mark.parametrize("away", [stop_and_start, freeze_and_thaw])
def test_the_page_says_when_the_server_is_away_and_goes_on_when_it_is_back(
    browser: Browser, model_cache: Path, tmp_path: Path, away: Callable[..., Iterator[None]]
):
    """Old numbers that look fresh would say that all is well while nobody is there."""
    with limited(tmp_path, model_cache) as server:
        port = str(urlsplit(server.url).port)
        browser.open(server.url)
        browser.wait_for(READY)

        absence = away(server, lambda: limited(tmp_path, model_cache, "--port", port))
        next(absence)
        browser.wait_for("document.getElementById('connection').textContent")
        said = browser.text("#connection")
        next(absence)
        browser.wait_for("!document.getElementById('connection').textContent")

        assert said.startswith("No answer from the server since ")
        # The browser itself tells of each try that failed; the page's own scripts complain of none.
        assert all("Failed to load resource" in line for line in browser.complaints)
        absence.close()


@pytest.mark.parametrize("moment", ["while it asks", "between two looks"])
def test_a_hidden_page_asks_nothing_until_it_is_seen_again(
    browser: Browser, model_cache: Path, tmp_path: Path, moment: str
):
    """A forgotten tab must not ask for days."""
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=HURRY)
    with limited(tmp_path, model_cache) as server:
        browser.open(server.url)
        browser.wait_for("window.asked > 10")
        browser.evaluate(
            "window.whenAsked = () => { window.whenAsked = () => {}; window.hide(true) }, null"
            if moment == "while it asks"
            else "window.hide(true)"
        )
        # What was under way ends in the first pause; in the second it would have asked on.
        paused = "new Promise((resolve) => later(() => resolve(window.asked), 1000))"
        n_asked = browser.evaluate(paused)
        assert browser.evaluate(paused) == n_asked

        browser.evaluate("window.hide(false)")
        browser.wait_for(f"window.asked > {n_asked + 10}")
        assert browser.complaints == []

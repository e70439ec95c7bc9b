"""What the status page shows in a real browser, over a real server with the built-in model.

How it follows what happens: test_status_page_life.py.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.memory.monitor import MIB
from tests.acceptance.watched_server import BUDGET_MIB, READY, compare, limited, neighbours
from tests.browser import Browser
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

# Keeps what the page was told, and lets it ask only once: what it shows is then what it was told.
ASK_ONCE = """
window.told = {};
const ask = window.fetch;
window.fetch = async (path, options) => {
  if (path in window.told) return new Promise(() => {});
  const reply = await ask(path, options);
  window.told[path] = await reply.clone().json();
  return reply;
};
"""
# The least contrast of any text with what is behind it, and that text; WCAG 2.2, 1.4.3.
WORST_CONTRAST = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
  };
  const found = [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && (e.value ||
      [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim())))
    .map((e) => {
      const style = getComputedStyle(e);
      const front = luminance(channels(e instanceof SVGElement ? style.fill : style.color));
      const [dark, light] = [front, luminance(behind(e))].sort((a, b) => a - b);
      return [(light + 0.05) / (dark + 0.05), e.textContent];
    });
  return [found.length, ...found.sort((a, b) => a[0] - b[0])[0]];
})()
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.look_like(scheme="light", width=1200)
        yield browser


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a small budget that has answered once."""
    with limited(tmp_path_factory.mktemp("server"), model_cache) as server:
        httpx.post(f"{server.url}/embed", json={"input": "a ship"}, timeout=60)
        yield server


# --- what it shows --------------------------------------------------------------------------


def test_the_page_shows_the_numbers_that_the_server_tells(browser: Browser, server: RunningServer):
    """A page that rounds or mixes up numbers is worse than none."""
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=ASK_ONCE)
    browser.open(server.url)
    browser.wait_for(READY)
    told, now = browser.evaluate("window.told"), httpx.get(f"{server.url}/health").json()

    health, status = told["health"], told["status"]
    memory, queue, breaker = health["memory"], health["queue"], health["breaker"]
    for part in ("version", "breaker", "models"):
        assert health[part] == now[part]
    assert memory["budget_bytes"] == now["memory"]["budget_bytes"] == BUDGET_MIB * MIB
    for part in ("used", "predicted", "line"):
        value = memory[f"{part}_bytes"]
        percent = 100 * value / memory["budget_bytes"]
        assert browser.text(f"#{part}") == f"{value / MIB:.0f} MiB {percent:.0f} %"
    assert browser.text("#budget") == f"{BUDGET_MIB} MiB"
    assert browser.text("#about").startswith(f"Version {now['version']} · up ")
    assert (breaker["state"], browser.text("#breaker")) == ("closed", "● closed: requests run")
    current = browser.text("#ladder [aria-current=step]")
    assert current.startswith(
        ("All is well.", "Saving", "Dropping", "Holding")[health["ladder_step"]]
    )
    assert browser.text("#plan").startswith(f"{health['plan']['parallelism']} sequence")
    limited_by = health["bottleneck"]
    assert browser.text("#bottleneck") == f"{limited_by['kind']}: {limited_by['reason']}"
    waiting, limit = f"{queue['tokens']:,}", f"{queue['limit_tokens']:,}"
    assert browser.text("#queue").startswith(f"{waiting} of {limit} tokens, ")
    assert browser.text("#throughput") == f"{status['history']['tokens_per_s'][-1]:.0f} tokens/s"
    assert (status["requests"]["dense"], browser.text("#dense")) == (1, "1")
    model = now["models"][0]
    shown = browser.text("#model-list")
    assert all(str(model[part]) in shown for part in ("name", "state", "fingerprint", "dimensions"))
    assert browser.text("#errors") == "Last errors None since the start."
    assert browser.complaints == []


def test_errors_show_with_their_time_status_and_code(
    browser: Browser, model_cache: Path, tmp_path: Path
):
    """And as text: what a message says must not become part of the page."""
    with limited(tmp_path, model_cache) as server:
        httpx.post(f"{server.url}/embed", json={"input": 5})
        httpx.get(f"{server.url}/<b>nowhere</b>")
        httpx.get(f"{server.url}/nowhere")
        browser.open(server.url)
        browser.wait_for("document.querySelectorAll('#error-list li').length === 2")

        latest, first = (browser.text(f"#error-list li:nth-child({n})") for n in (1, 2))
        assert latest[8:] == " 404 http_404 2 times Not Found"
        assert first[8:].startswith(" 400 invalid_request ")
        assert browser.text("#error") == "3"
        assert browser.complaints == []


# --- the box --------------------------------------------------------------------------------


def test_the_box_orders_samples_as_their_vectors_do(browser: Browser, server: RunningServer):
    """Meaning, not words: the question shares none with what comes first."""
    text = "How heavily can this boat be laden?"
    browser.open(server.url)
    browser.wait_for(READY)
    compare(browser, text)
    shown = neighbours(browser)

    body = {"input": [text, *(sample for sample, _ in shown)], "input_type": "search_document"}
    answer = httpx.post(f"{server.url}/embed", json=body).json()
    first, *others = np.array(answer["embeddings"])
    cosines = np.array(others) @ first
    assert np.array([float(words.replace("−", "-")) for _, words in shown]) == pytest.approx(
        cosines, abs=0.0006
    )
    assert (np.diff(cosines) <= 1e-6).all()
    assert shown[0][0] == "The load line on a hull shows how deep a ship may lie."
    assert f"{answer['usage']['tokens']} tokens" in browser.text("#outcome")

    compare(browser, "a recipe for sourdough loaves")
    assert neighbours(browser)[0][0].startswith("Knead the dough")
    assert browser.complaints == []


# --- for everybody --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(
    browser: Browser, server: RunningServer, tmp_path: Path, scheme: str, width: int
):
    """In both colour schemes, and on a telephone without scrolling sideways."""
    browser.look_like(scheme=scheme, width=width)
    browser.open(server.url)
    browser.wait_for(READY)
    compare(browser, "deep water")
    browser.evaluate("document.getElementById('connection').textContent = 'as if it were away'")

    n_texts, contrast, text = browser.evaluate(WORST_CONTRAST)
    browser.screenshot(tmp_path / f"{scheme}-{width}.png")

    assert n_texts > 50
    assert contrast >= 4.5, text
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(238, 242, 245)") == (scheme == "light")


def test_everything_has_a_name_and_changes_are_announced_politely(
    browser: Browser, server: RunningServer
):
    """Who listens to the page gets the same as who sees it, and is not interrupted."""
    browser.open(server.url)
    browser.wait_for(READY)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]

    named = {"button", "image", "link", "region", "textbox", "heading"}
    found = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in named
    ]
    assert {role for role, _ in found} == named
    assert all(name for _, name in found), found
    names = dict(found[::-1])
    assert names["button"] == "Compare"
    assert names["textbox"].startswith("A text, ")
    regions = [node for node in nodes if node.get("role", {}).get("value") == "status"]
    live = [
        found["value"]["value"]
        for region in regions
        for found in region["properties"]
        if found["name"] == "live"
    ]
    assert live == ["polite"] * 3  # connection, summary, outcome
    order = []
    for _ in range(3):
        browser.press("Tab", 9)
        order.append(browser.evaluate("document.activeElement.textContent || 'the box'"))
    assert order == ["the box", "Compare", "Routes"]

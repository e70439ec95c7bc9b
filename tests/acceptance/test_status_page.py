"""What the status page shows in a real browser, over a real server with the built-in model.

How it follows what happens: test_status_page_life.py.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.machine.memory import MIB
from tests.acceptance import patient
from tests.acceptance.prometheus import until
from tests.acceptance.watched_server import BUDGET_MIB, READY, limited, rank, ranked
from tests.browser import Browser
from tests.running_server import ROOT, RunningServer

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
# Tells the page of a minute with refusals and slow answers.
TROUBLE = """
const ask = window.fetch;
window.fetch = async (path, options) => {
  const reply = await ask(path, options);
  if (path !== "status") return reply;
  const told = await reply.json();
  const [all] = told.traffic.sources;
  for (const column of [all.requests, all.errors, all.refused, all.failed]) column.fill(0);
  all.requests[59] = 100;
  all.errors[59] = all.refused[59] = REFUSED;
  Object.assign(told.latency, { p50_s: 1, p95_s: 5, p99_s: P99 });
  return new Response(JSON.stringify(told), { headers: reply.headers });
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


@pytest.fixture(scope="session")
def axe() -> str:
    """Deque's axe-core, as a script to run in a page."""
    found = subprocess.run([ROOT / "scripts/axe"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no axe-core: {found.stderr.strip()}")
    return Path(found.stdout.strip()).read_text(encoding="utf-8")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.look_like(scheme="light", width=1200)
        yield browser


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a small budget that has answered once, and measured itself once."""
    with limited(tmp_path_factory.mktemp("server"), model_cache) as server:
        patient.post(f"{server.url}/embed", {"input": "a ship"})
        assert until(lambda: patient.get(f"{server.url}/status").json()["history"]["tokens_per_s"])
        yield server


# --- what it shows --------------------------------------------------------------------------


def test_the_page_shows_the_numbers_that_the_server_tells(browser: Browser, server: RunningServer):
    """A page that rounds or mixes up numbers is worse than none."""
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=ASK_ONCE)
    browser.open(server.url)
    browser.wait_for(READY)
    told, now = browser.evaluate("window.told"), patient.get(f"{server.url}/health").json()

    health, status = told["health"], told["status"]
    memory, queue, breaker = health["memory"], health["queue"], health["breaker"]
    for part in ("version", "breaker", "models"):
        assert health[part] == now[part]
    assert memory["budget_bytes"] == now["memory"]["budget_bytes"] == BUDGET_MIB * MIB
    for part in ("predicted", "working-set", "line"):
        value = memory[f"{part.replace('-', '_')}_bytes"]
        percent = 100 * value / memory["budget_bytes"]
        assert browser.text(f"#{part}") == f"{value / MIB:.0f} MiB {percent:.0f} %"
    used_percent = 100 * memory["used_bytes"] / memory["budget_bytes"]
    assert browser.text("#used") == f"{memory['used_bytes'] / MIB:.0f} MiB"
    assert browser.text("#used-more") == f"{used_percent:.0f} % of {BUDGET_MIB} MiB"
    assert browser.text("#budget") == f"{BUDGET_MIB} MiB"
    assert browser.text("#about").startswith(f"Version {now['version']} · up ")
    assert (breaker["state"], browser.text("#breaker")) == ("closed", "● closed: requests run")
    current = browser.text("#ladder [aria-current=step]")
    assert current == status["ladder"][health["ladder_step"]]["name"]
    assert browser.text("#plan").startswith(f"{health['plan']['parallelism']} sequence")
    limited_by = health["bottleneck"]
    assert browser.text("#bottleneck") == f"{limited_by['kind']}: {limited_by['reason']}"
    waiting, limit = f"{queue['tokens']:,}", f"{queue['limit_tokens']:,}"
    assert browser.text("#queue").startswith(f"{waiting} of {limit} tokens, ")
    traffic = status["traffic"]["sources"]
    assert [source["route"] for source in traffic] == ["all", "/embed"]
    assert (sum(traffic[0]["requests"]), sum(traffic[0]["errors"])) == (1, 0)
    assert browser.text("#rate-more") == "1 request in a minute, none refused"
    assert (browser.text("#error-share"), browser.text("#error-share-more")) == (
        "0.0 %", "none in a minute",
    )  # fmt: skip
    assert browser.text("#sources tbody td:nth-child(3)") == "1"
    assert (status["requests"]["dense"], browser.text("#dense")) == (1, "1")
    model = now["models"][0]
    shown = browser.text("#model-list")
    assert all(str(model[part]) in shown for part in ("name", "state", "fingerprint", "dimensions"))
    assert browser.text("#errors") == "Errors None since the start."
    assert browser.complaints == []


@pytest.mark.parametrize(
    ("n_refused", "p99_s", "requests", "latency", "summary"),
    [
        (0, 9.9, "good", "good", ("good", "All is well.")),
        (5, 10.1, "fair", "fair", ("fair", "Some are slow. Memory: all is well.")),
        (6, 10.1, "bad", "fair", ("bad", "Many are refused, some are slow. Memory: all is well.")),
    ],
)
def test_a_tile_says_what_the_alerts_would(
    browser: Browser,
    server: RunningServer,
    n_refused: int,
    p99_s: float,
    requests: str,
    latency: str,
    summary: tuple[str, str],
):
    """Green beside an alert that fires would be believed; and colour alone is not seen by all."""
    script = TROUBLE.replace("REFUSED", str(n_refused)).replace("P99", str(p99_s))
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    browser.open(server.url)
    browser.wait_for(READY)

    grades = [
        browser.evaluate(f"document.getElementById('tile-{name}').dataset.grade")
        for name in ("requests", "latency")
    ]
    assert grades == [requests, latency]
    refused = f"{n_refused} refused" if n_refused else "none refused"
    assert browser.text("#rate-more") == f"100 requests in a minute, {refused}"
    assert ("above the objective of 10 s" in browser.text("#p95-more")) == (latency == "fair")
    grade, words = summary
    assert browser.evaluate("document.getElementById('summary').dataset.grade") == grade
    assert browser.text("#summary") == f"{words} Memory breaker closed."


def test_errors_show_with_their_time_status_and_code(
    browser: Browser, model_cache: Path, tmp_path: Path
):
    """And as text: what a message says must not become part of the page."""
    with limited(tmp_path, model_cache) as server:
        patient.post(f"{server.url}/embed", {"input": 5})
        patient.get(f"{server.url}/<b>nowhere</b>")
        patient.get(f"{server.url}/nowhere")
        browser.open(server.url)
        browser.wait_for("document.querySelectorAll('#error-list li').length === 2")

        latest, first = (browser.text(f"#error-list li:nth-child({n})") for n in (1, 2))
        assert latest[8:].startswith(" 404 http_404 2 times Not Found last request ")
        assert first[8:].startswith(" 400 invalid_request ")
        assert browser.text("#error") == "3"
        assert browser.complaints == []


# --- the box --------------------------------------------------------------------------------


def test_the_box_ranks_documents_as_the_route_does(browser: Browser, server: RunningServer):
    """Meaning, not words: the question shares none with what comes first."""
    query = "How heavily can this boat be laden?"
    browser.open(server.url)
    browser.wait_for(READY)
    rank(browser, query)
    shown = ranked(browser)

    documents = browser.evaluate("document.getElementById('documents').value").split("\n")
    answer = patient.post(f"{server.url}/rank", {"query": query, "documents": documents}).json()
    expected = [(documents[r["index"]], r["score"]) for r in answer["results"]]
    assert [document for document, _ in shown] == [document for document, _ in expected]
    assert [float(words.replace("−", "-")) for _, words in shown] == pytest.approx(
        [score for _, score in expected], abs=0.0006
    )
    assert shown[0][0] == "The load line on a hull shows how deep a ship may lie."

    rank(browser, "a recipe for sourdough loaves")
    assert ranked(browser)[0][0].startswith("Knead the dough")
    assert browser.complaints == []


def test_the_box_says_what_was_cut_and_what_has_no_vector(browser: Browser, server: RunningServer):
    """Who tries a long document must not believe that all of it counted."""
    browser.open(server.url)
    browser.wait_for(READY)
    browser.evaluate(
        "document.getElementById('documents').value = 'ship\\n' + 'a long way '.repeat(200)"
    )
    browser.evaluate("document.querySelector('#try-form button').click()")
    browser.wait_for("document.querySelectorAll('#ranking li').length === 2")

    assert "Of document 2 only 256 of " in browser.text("#outcome")


@pytest.mark.parametrize("kind", ["curl", "python"])
def test_the_call_that_the_page_gives_works_as_it_is(
    browser: Browser, server: RunningServer, kind: str
):
    """With quotes in it, which break a careless one."""
    browser.open(server.url)
    browser.wait_for(READY)
    browser.evaluate(
        "document.getElementById('query').value = `a boat's \"load\"`;"
        "navigator.clipboard.writeText = async (text) => { window.copied = text }"
    )
    browser.evaluate(f"document.getElementById('copy-{kind}').click()")
    browser.wait_for("window.copied")
    call = browser.evaluate("window.copied")

    command = ["sh", "-c", call] if kind == "curl" else [sys.executable, "-c", call]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("results" if kind == "curl" else "The load line on a hull") in done.stdout


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
    rank(browser, "deep water")
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
    assert {"Rank", "Copy as curl", "Copy as Python"} <= set(names_of("button", found))
    assert set(names_of("textbox", found)) == {"A query", "Documents, one a line"}
    regions = [node for node in nodes if node.get("role", {}).get("value") == "status"]
    live = [
        found["value"]["value"]
        for region in regions
        for found in region["properties"]
        if found["name"] == "live"
    ]
    assert live == ["polite"] * 4  # connection, summary, limits, outcome
    order = []
    for _ in range(7):
        browser.press("Tab", 9)
        order.append(
            browser.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert order == [
        "source", "query", "documents", "Rank", "copy-curl", "copy-python", "Routes"
    ]  # fmt: skip


def names_of(role: str, found: list[tuple[str, str]]) -> list[str]:
    """Names of the elements with this role."""
    return [name for kind, name in found if kind == role]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_no_violation_and_nothing_leaves_the_machine(
    browser: Browser, server: RunningServer, axe: str, path: str
):
    """The checker that auditors use; and a page that needs the network does not work without."""
    browser.open(server.url + path)
    browser.wait_for(READY if path == "/" else "document.querySelector('.opblock')")
    browser.evaluate(axe + "; null")
    result = browser.evaluate("axe.run({ resultTypes: ['violations'] })")
    asked = browser.evaluate("performance.getEntriesByType('resource').map(({ name }) => name)")

    told = {found["id"]: found["nodes"][0]["html"] for found in result["violations"]}
    assert told == {}
    assert asked
    assert [url for url in asked if not url.startswith(server.url)] == []
    assert browser.complaints == []

"""The status page of a server with keys, in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.watched_server import READY, rank
from tests.browser import Browser
from tests.running_server import RunningServer
from tests.small_models import TINY
from tests.synthetic import write_synthetic

pytestmark = pytest.mark.acceptance

EMBED, ADMIN, WRONG = "embed-key-0123456789", "admin-key-0123456789", "wrong-key-0123456789"
ASKS = "document.getElementById('key').checkVisibility()"
KEPT = "sessionStorage.getItem('plimsoll-key')"
SEEN = "document.getElementById('%s').checkVisibility()"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        browser.look_like(scheme="light", width=1200)
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("keys")
    file = write_synthetic(folder / "tiny.gguf", arch="bert", shape=TINY)
    (folder / "keys").write_text(f"embed:{EMBED}\nadmin:{ADMIN}\n", encoding="utf-8")
    (folder / "keys").chmod(0o600)
    options = ("--model", str(file), "--cache-dir", str(folder / "cache"))
    with RunningServer(folder, *options, PLIMSOLL_API_KEYS="./keys") as server:
        yield server


def give(browser: Browser, key: str) -> None:
    """Write a key into the form, which has the focus, and press Enter."""
    browser.wait_for(f"{ASKS} && document.activeElement.id === 'key-box'")
    browser.call("Input.insertText", text=key)
    browser.press("Enter", 13, "\r")


def complaints(browser: Browser) -> list[str]:
    """What the console says beside the refusals that a browser always notes there."""
    return [said for said in browser.complaints if "Failed to load resource" not in said]


def test_the_page_asks_for_a_key_and_shows_what_it_opens(
    browser: Browser, server: RunningServer, tmp_path: Path
):
    """Without one it shows nothing; a wrong one is said; the right one stays for the tab alone."""
    browser.open(server.url)
    browser.wait_for(ASKS)
    assert browser.text("#key").startswith("This server asks for a key")
    assert not browser.evaluate("document.querySelector('main').checkVisibility()")
    browser.screenshot(tmp_path / "asks.png")

    give(browser, WRONG)
    browser.wait_for("document.getElementById('key-outcome').textContent")
    assert browser.text("#key-outcome") == "That key is none of this server's keys."
    assert browser.evaluate(KEPT) is None
    browser.screenshot(tmp_path / "wrong.png")

    give(browser, f" {ADMIN} ")
    browser.wait_for(READY)
    assert browser.evaluate(KEPT) == ADMIN
    assert not browser.evaluate(ASKS)
    assert browser.evaluate(SEEN % "traffic")
    assert "401" in browser.text("#error-list")
    assert ADMIN not in browser.evaluate("document.documentElement.outerHTML")
    rank(browser, "a ship")
    browser.screenshot(tmp_path / "admin.png")

    browser.call("Page.reload")
    browser.wait_for(READY)  # the tab still has it
    browser.evaluate("document.getElementById('forget').click()")
    browser.wait_for(ASKS)
    assert browser.evaluate(KEPT) is None
    assert complaints(browser) == []


def test_a_key_of_the_role_embed_shows_what_is_true_now_and_says_what_it_hides(
    browser: Browser, server: RunningServer, tmp_path: Path
):
    """The numbers of others' requests are an operator's; a page half empty must say why."""
    browser.open(server.url)
    give(browser, EMBED)
    browser.wait_for(READY)
    browser.wait_for("document.getElementById('limits').textContent")

    assert "need one of the role admin" in browser.text("#limits")
    assert browser.text("#breaker") == "● closed: requests run"
    hidden = ("traffic", "errors", "ladder", "memory-chart")
    assert not any(browser.evaluate(SEEN % part) for part in hidden)
    rank(browser, "a ship")
    browser.screenshot(tmp_path / "embed.png")
    assert complaints(browser) == []


def test_a_server_that_refuses_the_name_says_so(browser: Browser, server: RunningServer):
    """The page comes by any name; the reader has to learn why it has no numbers."""
    refused = httpx.get(f"{server.url}/health", headers={"Host": "evil.example"})
    answer = f"new Response({json.dumps(refused.text)}, {{ status: {refused.status_code} }})"
    source = f"window.fetch = async () => {answer};"
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    browser.open(server.url)
    browser.wait_for("document.getElementById('connection').textContent")

    assert "PLIMSOLL_ALLOWED_HOSTS" in browser.text("#connection")

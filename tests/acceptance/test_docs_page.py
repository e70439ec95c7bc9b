"""/docs in a real browser: it draws the document, and a request that it shows works as it is."""

from pathlib import Path

import pytest

from tests.browser import Browser
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

EMBED = "#operations-embeddings-embed"


def click(browser: Browser, selector: str) -> None:
    """Press a button of the page, once it is there."""
    browser.wait_for(f"document.querySelector('{selector}')")
    browser.evaluate(f"document.querySelector('{selector}').click()")


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_example_of_embed_is_tried_out_and_answered(
    tmp_path: Path, server: RunningServer, path: str
):
    """What a newcomer does first. Nothing that the page does is against its own policy."""
    with Browser(tmp_path) as browser:
        browser.open(f"{server.url}{path}")
        click(browser, f"{EMBED} .opblock-summary-control")
        click(browser, f"{EMBED} .try-out__btn")
        click(browser, f"{EMBED} .execute")
        browser.wait_for(f"document.querySelector('{EMBED} .live-responses-table .microlight')")

        answer = browser.text(f"{EMBED} .live-responses-table")
        assert "200" in answer
        assert '"kind": "dense"' in answer
        assert browser.complaints == []

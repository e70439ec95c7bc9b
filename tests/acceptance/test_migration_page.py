"""The page of a migration in a real browser: clean by axe, in light and dark, without a network."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.cli.migration_page import migration_page
from tests.browser import Browser
from tests.cli.reports import report
from tests.running_server import ROOT

pytestmark = pytest.mark.acceptance


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as browser:
        yield browser


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "migration.html"
    path.write_text(migration_page(report()), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Browser, page: Path, scheme: str):
    """And the page runs nothing of what clients wrote into it."""
    found = subprocess.run([ROOT / "scripts/axe"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no axe-core: {found.stderr.strip()}")
    axe = Path(found.stdout.strip()).read_text(encoding="utf-8")
    browser.look_like(scheme=scheme, width=1200)
    browser.open(page.as_uri())
    browser.evaluate(axe + "; null")
    result = browser.evaluate("axe.run({ resultTypes: ['violations'] })")
    told = {found["id"]: found["nodes"][0]["html"] for found in result["violations"]}
    assert told == {}
    assert browser.complaints == []

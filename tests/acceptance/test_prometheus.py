"""Dashboard and rules against a real Prometheus that has watched a real server's trouble.

Windows are short (trouble.py); the real times are those of `promtool test rules`.
"""

import subprocess
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest

from tests.acceptance.grafana_packages import grafana_packages
from tests.acceptance.grafana_page import drawable, write_page
from tests.acceptance.limited_load import can_limit
from tests.acceptance.prometheus import prometheus_tools, until
from tests.acceptance.trouble import Watched, asked, happenings, watched_trouble
from tests.browser import Browser
from tests.grafana_files import CASES, CONFIG, RULES, alerts, rules, shown

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with prometheus and promtool."""
    return prometheus_tools()


@pytest.fixture(scope="module")
def watched(
    tools: Path, model_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    if reason := can_limit():
        pytest.skip(f"no hard memory limit can be set here: {reason}")
    folder = tmp_path_factory.mktemp("watched")
    with watched_trouble(tools, model_cache / "built", folder) as watched:
        yield watched


@pytest.mark.parametrize("path", [CONFIG, RULES], ids=lambda path: path.name)
def test_promtool_accepts_the_configuration_and_the_rules(tools: Path, path: Path):
    """Prometheus would not start with what it refuses."""
    kind = "config" if path is CONFIG else "rules"
    promtool(tools, "check", kind, str(path))


def test_every_alert_fires_and_clears_in_its_time(tools: Path):
    """The cases of grafana/rules.test.yml."""
    promtool(tools, "test", "rules", str(CASES))


def test_promtool_has_nothing_to_say_against_the_page(tools: Path, watched: Watched):
    """Base units, suffixes and help texts as other servers have them."""
    assert promtool(tools, "check", "metrics", page=watched.page) == ""


@pytest.mark.parametrize("expression", sorted(set(shown())))
def test_every_panel_shows_something_that_happened(watched: Watched, expression: str):
    """An empty panel looks like a quiet server."""
    values = watched.prometheus.values(asked(expression))
    assert values
    if expression in happenings():
        assert max(values) > 0


def test_grafanas_own_components_draw_the_numbers_and_lines(
    request: pytest.FixtureRequest, watched: Watched, tmp_path: Path
):
    """What no schema sees: a panel that stays empty, and a number that says NaN.

    The picture in docs/ is the one that this test takes, `grafana.png` in its folder.
    """
    if not request.config.getoption("--soak"):
        pytest.skip("Grafana's components take 420 MB and minutes to fetch: run with --soak")
    page = write_page(tmp_path, grafana_packages("ui"), watched.prometheus)
    with Browser(tmp_path) as browser:
        browser.look_like(scheme="dark", width=1440)
        browser.open(page.as_uri())
        browser.wait_for("document.querySelector('canvas')")
        for panel in drawable():
            said = browser.text(f"[data-panel='{panel['id']}']").removeprefix(panel["title"])
            assert said.strip(), panel["title"]
            assert "NaN" not in said, panel["title"]
            assert "No data" not in said, panel["title"]
        # The packages name the font of Grafana's program, and do not have it.
        assert all("/public/fonts/" in complaint for complaint in browser.complaints)
        browser.screenshot(tmp_path / "grafana.png")


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
    assert until(lambda: alert not in watched.prometheus.firing())


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

"""Dashboard, alert rules and README, held against the metrics that a server has.

What they show is asked of a real Prometheus in tests/acceptance/test_prometheus.py.
"""

import itertools
import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from app.api.boundary import code_of
from app.errors import (
    EncodeMemoryError,
    ModelError,
    QueueFullError,
)
from app.main import create_app
from app.memory.breaker import BreakerState
from app.serving.admission import LINE_RATIO
from app.serving.fallback import DEGRADING
from app.settings import Settings
from app.telemetry import BREAKER_STATES, DEGRADED_REASONS, SERVER_ERRORS, Telemetry
from scripts.dashboards.document import DASHBOARD, dashboard_json
from scripts.dashboards.expressions import FAILURES, LOOKING
from tests.grafana_files import (
    CASES,
    CONFIG,
    GRAFANA,
    RULES,
    alerts,
    load_yaml,
    panels,
    rules,
    shown,
)

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

NAME = re.compile(r"(?<![\w:])(?:plimsoll|process|python)_\w+\b(?!:)")
# Given by Prometheus itself, not by the page.
TARGET_LABELS = {"instance", "job", "le", "alertname", "alertstate"}
COLUMNS = 24


def expressions() -> list[str]:
    return [*shown(), *(rule["expr"] for rule in rules())]


@pytest.fixture(scope="module")
def series() -> set[str]:
    """Names of series that a scrape may bring, read off the page."""
    found = set()
    types = re.findall(r"^# TYPE (\S+) (\S+)$", Telemetry("0").render().decode(), re.MULTILINE)
    for name, kind in types:
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found.update(name + suffix for suffix in suffixes)
    return found


def test_the_dashboard_is_the_one_that_its_code_writes():
    """One source: whoever changes a panel runs the script, never edits the JSON."""
    written = DASHBOARD.read_text(encoding="utf-8")
    assert written == dashboard_json(), "run: python -m scripts.dashboards --write"


@pytest.mark.parametrize("path", [DASHBOARD, RULES, CASES], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_one_that_a_server_has(path: Path, series: set[str]):
    """A panel or an alert over a metric that was renamed is silent for ever."""
    named = set(NAME.findall(path.read_text(encoding="utf-8")))
    assert named
    assert named <= series


def test_every_metric_that_readme_names_is_one_that_a_server_has(series: set[str]):
    """The table has a histogram by its family's name."""
    families = {name.removesuffix("_bucket") for name in series}
    named = set(NAME.findall(README.read_text(encoding="utf-8")))
    assert named <= series | families


def test_every_metric_is_watched():
    """A metric that no panel and no alert shows is not looked at."""
    watched = " ".join(expressions())
    unwatched = {
        metric.name
        for metric in Telemetry("0").metrics()
        if not re.search(rf"(?<!\w){metric.name}(?:_bucket|_sum|_count)?(?!\w)", watched)
    }
    assert not unwatched


def test_every_label_that_is_asked_for_is_one_that_a_metric_has():
    """A typing error in a label matches nothing, or everything."""
    known = {label for metric in Telemetry("0").metrics() for label in metric.labels}
    known |= TARGET_LABELS | {"version"}
    for expression in expressions():
        asked = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression))
        for listed in re.findall(r"(?:by|without|on|group_left) \(([^)]*)\)", expression):
            asked |= set(re.findall(r"\w+", listed))
        assert asked <= known, expression


def test_requests_for_work_are_those_that_are_posted(tmp_path: Path):
    """Probes and scrapes would dilute every share, and a route that is left out would not count."""
    selectors = {
        selector
        for expression in expressions()
        for selector in re.findall(r'route!~"([^"]*)"', expression)
    }
    assert selectors == {LOOKING}
    for route in create_app(Settings(cache_dir=tmp_path)).routes:
        if isinstance(route, APIRoute):
            looks = re.fullmatch(LOOKING, route.path) is not None
            assert looks == ("POST" not in route.methods), route.path


def test_rates_are_taken_over_four_scrapes_at_least():
    """With fewer, one scrape that fails makes a hole; Prometheus 3 leaves out the edge."""
    scrape_s = _seconds(load_yaml(CONFIG)["global"]["scrape_interval"])
    [source] = load_yaml(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    assert _seconds(source["jsonData"]["timeInterval"]) == scrape_s
    windows = {window for rule in rules() for window in re.findall(r"\[(\w+)\]", rule["expr"])}
    assert windows
    assert min(map(_seconds, windows)) >= 4 * scrape_s
    for expression in shown():
        assert set(re.findall(r"\[([^\]]*)\]", expression)) <= {"$__rate_interval"}


def test_what_is_provisioned_is_what_is_there():
    """A data source or a dashboard by another name shows an empty Grafana."""
    config = load_yaml(CONFIG)
    assert config["rule_files"] == [RULES.name]
    [scrape] = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["plimsoll:8080"]}]
    assert f'up{{job="{scrape["job_name"]}"}}' in RULES.read_text(encoding="utf-8")
    [provider] = load_yaml(GRAFANA / "provisioning/dashboards/plimsoll.yml")["providers"]
    compose = load_yaml(ROOT / "docker-compose.yml")["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose["volumes"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do_and_readme_says_the_same(alert: dict):
    """Whoever is woken by it needs no other page."""
    notes = alert["annotations"]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(notes) == {"summary", "description", "runbook"}
    assert set(re.findall(r"\$labels\.(\w+)", notes["description"])) <= {"instance", "route"}
    row = f"| `{alert['alert']}` | {notes['summary']} | {notes['runbook']} |"
    assert row in README.read_text(encoding="utf-8").splitlines(), row


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    """`promtool test rules` says only what it is asked."""
    firing = set()
    for case in load_yaml(CASES)["tests"]:
        asked = [test for test in case["promql_expr_test"] if "ALERTS" in test["expr"]]
        fired = {sample["labels"] for test in asked for sample in test.get("exp_samples", ())}
        assert fired, case["name"]
        assert "exp_samples" not in asked[0], case["name"]
        assert "exp_samples" not in asked[-1], case["name"]
        firing |= fired
    assert firing == {f'{{alertname="{alert["alert"]}"}}' for alert in alerts()}


def test_the_memory_alert_stands_at_the_line_that_admission_defends():
    """Above it something takes memory that no request was admitted for."""
    [alert] = [alert for alert in alerts() if alert["alert"] == "PlimsollMemoryHigh"]
    assert alert["expr"].endswith(f"> {LINE_RATIO:.2f}")


def test_panels_lie_side_by_side():
    """Grafana moves what overlaps, and then nothing is where it was meant to be."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_is_named_explained_and_asks_the_chosen_source():
    """Ids tell panels apart; a reader who did not build the dashboard needs the sentence."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert all("$instance" in target["expr"] for target in panel["targets"])


def test_label_values_that_are_there_from_the_start_are_those_that_occur():
    """A rate does not see the first event of a series that begins with it."""
    assert set(BREAKER_STATES) == {state.value for state in BreakerState}
    overloaded = [kind("", retry_after_s=1) for kind in DEGRADING if kind is not EncodeMemoryError]
    degrading = {code_of(error) for error in (*overloaded, EncodeMemoryError(""))}
    assert set(DEGRADED_REASONS) == degrading
    others = (QueueFullError("", retry_after_s=1), ModelError(""), RuntimeError())
    assert set(SERVER_ERRORS) == degrading | {code_of(error) for error in others}


def test_failed_requests_are_the_same_on_the_dashboard_and_in_the_alert():
    """A code that is left out would never wake anybody."""
    asked = {
        codes
        for expression in expressions()
        for codes in re.findall(r'code=~"([^"]*)"', expression)
    }
    assert asked == {FAILURES}


def test_a_scrape_measures_memory_once():
    """Each measurement reads a dozen files; a scrape should cost a few milliseconds."""
    n_samples = 0

    def sample() -> tuple[int, int, int]:
        nonlocal n_samples
        n_samples += 1
        return 30, 50, 120

    telemetry = Telemetry("0")
    telemetry.read_memory(sample)
    page = telemetry.render().decode()

    assert n_samples == 1
    assert "\nplimsoll_memory_used_bytes 30.0\n" in page
    assert "\nplimsoll_memory_resident_bytes 50.0\n" in page
    assert "\nplimsoll_memory_budget_bytes 120.0\n" in page
    assert "\nplimsoll_memory_utilization_ratio 0.25\n" in page


def _seconds(written: str) -> int:
    return int(written[:-1]) * {"s": 1, "m": 60}[written[-1]]

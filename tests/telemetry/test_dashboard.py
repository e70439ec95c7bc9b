"""Dashboard, alert rules and their page, held against the metrics that a server has.

What they show is asked of a real Prometheus in tests/acceptance/test_prometheus.py.
"""

import itertools
import re
from pathlib import Path

import pytest

from plimsoll.composition.application import create_app
from plimsoll.policy.lines import HIGH_RATIO
from plimsoll.settings import Settings
from plimsoll.telemetry.metrics import Telemetry
from scripts.dashboards.document import DASHBOARD, dashboard_json
from scripts.dashboards.expressions import CHOSEN, FAILURES, LOOKING
from tests.grafana_files import (
    CASES,
    CONFIG,
    GRAFANA,
    RULES,
    alerts,
    dashboard,
    load_yaml,
    panels,
    rules,
    shown,
    targets,
)

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "docs/monitoring.md"

NAME = re.compile(r"(?<![\w:])(?:plimsoll|process|python)_\w+\b(?!:)")
# Given by Prometheus itself, not by the page.
TARGET_LABELS = {"instance", "job", "le", "alertname", "alertstate"}
COLUMNS = 24
# Posted, and no work for a client that waits: each has its own panels.
WATCHED_OTHERWISE = (
    "/collections/{name}/documents",
    "/collections/{name}/plan",
    "/hooks",
    "/links",
    "/migrations",
)


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
    """One source: a change of a panel is made in its code, never in the JSON."""
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
    named = set(NAME.findall(MONITORING.read_text(encoding="utf-8")))
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
    paths = create_app(Settings(cache_dir=tmp_path)).openapi()["paths"]
    work = {
        path
        for path, methods in paths.items()
        if "post" in methods and not path.startswith(WATCHED_OTHERWISE)
    }
    assert {"/embed", "/rank", "/collections/{name}/search"} <= work
    assert {path for path in paths if not re.fullmatch(LOOKING, path)} == work


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
    scrape, _balancer = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["plimsoll:8080"]}]
    assert f'up{{job="{scrape["job_name"]}"}}' in RULES.read_text(encoding="utf-8")
    [provider] = load_yaml(GRAFANA / "provisioning/dashboards/plimsoll.yml")["providers"]
    compose = load_yaml(ROOT / "docker-compose.yml")["services"]["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose["volumes"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do_and_the_page_says_the_same(alert: dict):
    """The person whom it wakes needs no other page."""
    notes = alert["annotations"]
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(notes) == {"summary", "description", "runbook", "runbook_url"}
    named = set(re.findall(r"\$labels\.(\w+)", notes["description"]))
    assert named <= {"instance", "link", "route"}
    page, anchor = notes["runbook_url"].split("#")
    assert ROOT / page == MONITORING
    row = f'| <a id="{anchor}"></a>`{alert["alert"]}` | {notes["summary"]} | {notes["runbook"]} |'
    assert anchor == alert["alert"]
    assert row in MONITORING.read_text(encoding="utf-8").splitlines(), row


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
    assert alert["expr"].endswith(f"> {HIGH_RATIO:.2f}")


def test_panels_lie_side_by_side():
    """Grafana moves what overlaps, and then nothing is where it was meant to be."""
    for group in (dashboard()["panels"], *(row.get("panels", ()) for row in panels())):
        taken: set[tuple[int, int]] = set()
        for panel in group:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= COLUMNS
            columns = range(at["x"], at["x"] + at["w"])
            cells = set(itertools.product(columns, range(at["y"], at["y"] + at["h"])))
            assert not cells & taken, panel["title"]
            taken |= cells


def test_memory_stands_on_the_first_screen():
    """It is what the server is about; 1080 pixels less Grafana's own bars hold 24 rows of 38."""
    [memory] = [panel for panel in panels() if panel["title"] == "Memory against the budget"]
    assert memory["gridPos"]["y"] + memory["gridPos"]["h"] <= 24
    assert memory in dashboard()["panels"]


def test_a_folded_row_takes_one_line():
    """Room for panels that are not shown would look like panels that are missing."""
    bottom = 0
    for panel in sorted(dashboard()["panels"], key=lambda panel: panel["gridPos"]["y"]):
        assert panel["gridPos"]["y"] <= bottom, panel["title"]
        bottom = max(bottom, panel["gridPos"]["y"] + panel["gridPos"]["h"])


def test_the_reader_chooses_job_instance_model_and_objective():
    """A variable that no query has narrows nothing; one that is missing stays text in a query."""
    chosen = {variable["name"] for variable in dashboard()["templating"]["list"]}
    asked = set(re.findall(r"\$(\w+)", " ".join(shown()))) - {"__rate_interval"}
    assert asked == chosen - {"datasource"} == {"job", "instance", "model", "slo"}


def test_the_model_narrows_only_what_is_counted_by_model():
    """Of any other metric the matcher leaves nothing, and the panel is empty."""
    by_model = {metric.name for metric in Telemetry("0").metrics() if "model" in metric.labels}
    narrowed = re.findall(r'(\w+)\{[^}]*model=~"\$model"', " ".join(shown()))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in narrowed} == by_model


def test_the_objective_is_a_bucket_and_at_first_the_one_of_the_alert():
    """A share up to what is no bucket's bound is empty."""
    [slo] = [one for one in dashboard()["templating"]["list"] if one["name"] == "slo"]
    offered = {one.split(" : ")[1] for one in slo["query"].split(", ")}
    page = Telemetry("0")
    page.requests.answered("/embed", 200, "dense", "m", 0.1)
    bounds = re.findall(
        r'request_duration_seconds_bucket{[^}]*le="([^"]+)"', page.render().decode()
    )
    assert offered <= set(bounds)
    [alert] = [alert for alert in alerts() if alert["alert"] == "PlimsollSlow"]
    assert float(alert["expr"].split(" > ")[1]) == float(slo["current"]["value"])


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_what_is_no_number_is_no_traffic(panel: dict):
    """A share of no requests divides by zero, and NaN says nothing to a reader."""
    if panel["type"] == "stat":
        [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
        assert mapping["options"]["match"] == "null+nan"
        assert mapping["options"]["result"]["text"] in ("no traffic", "no server")
        assert panel["options"]["reduceOptions"]["calcs"] == ["last"]  # lastNotNull skips NaN


@pytest.mark.parametrize(
    ("label", "colours"),
    [
        (
            "status",
            {"200": "green", "404": "blue", "429": "yellow", "499": "purple", "503": "red"},
        ),
        ("kind", {"dense": "green", "sparse": "blue", "none": "red"}),
        ("state", {"closed": "green", "half_open": "yellow", "open": "red"}),
    ],
)
def test_a_colour_has_one_meaning_in_any_company(label: str, colours: dict[str, str]):
    """A palette by order would draw failures green on a day without answers."""
    legend = f"{{{{{label}}}}}"
    [panel] = [one for one in panels() if legend in [t["legendFormat"] for t in targets(one)]]
    for value, colour in colours.items():
        overrides = panel["fieldConfig"]["overrides"]
        found = [o for o in overrides if re.search(o["matcher"]["options"].strip("/"), value)]
        assert found[-1]["properties"][0]["value"]["fixedColor"] == colour


def test_links_lead_to_the_runbook_of_the_alert():
    """The reader of a red number wants to know what to do."""
    [runbooks] = [panel for panel in panels() if panel["type"] == "text"]
    linked = set()
    for panel in panels():
        for link in panel.get("links", ()):
            assert link["url"].endswith(f"/d/{dashboard()['uid']}?viewPanel=panel-{runbooks['id']}")
            linked.add(link["title"].removeprefix("What to do: "))
    names = {alert["alert"] for alert in alerts()}
    assert linked - {"all alerts"} == names - {"PlimsollDown"}  # of it, no panel is left
    for name in names:
        assert f"`{name}`" in runbooks["options"]["content"]


def test_every_panel_is_named_explained_and_asks_the_chosen_source():
    """Ids tell panels apart; a reader who did not build the dashboard needs the sentence."""
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
        for target in targets(panel):
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            if target["expr"] != "vector($slo)":
                assert set(re.findall(r"\{([^{}]*)\}", target["expr"])), target["expr"]
                for matchers in re.findall(r"\{([^{}]*)\}", target["expr"]):
                    assert matchers.startswith(CHOSEN), target["expr"]


def test_failed_requests_are_the_same_on_the_dashboard_and_in_the_alert():
    """A code that is left out would never fire an alert."""
    asked = {
        codes
        for expression in expressions()
        for codes in re.findall(r'code=~"([^"]*)"', expression)
    }
    assert asked == {FAILURES}


def _seconds(written: str) -> int:
    return int(written[:-1]) * {"s": 1, "m": 60}[written[-1]]

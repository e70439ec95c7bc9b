"""The whole dashboard: its variables, and the rows under each other."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as sdk

from .answers import collections, degradation, glance, links, migrations, models, requests, stages
from .expressions import ALL, OBJECTIVE, OBJECTIVES, select
from .machine import engine, memory, process
from .panels import DATASOURCE, RUNBOOKS_ID, RUNBOOKS_URL, Panel, page

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "grafana/dashboards/plimsoll.json"
MONITORING = ROOT / "docs/monitoring.md"


@dataclass(frozen=True)
class Row:
    """A heading over panels. A folded one is rarely needed, and asks nothing until it is opened."""

    title: str
    panels: Callable[[], Sequence[Panel]]
    folded: bool = False


ROWS = (
    Row("At a glance", glance),
    Row("Memory", memory),
    Row("Requests", requests),
    Row("Degraded and failed", degradation),
    Row("Collections", collections, folded=True),
    Row("Links", links, folded=True),
    Row("Migrations", migrations, folded=True),
    Row("Models", models, folded=True),
    Row("Stages of a request", stages, folded=True),
    Row("Engine", engine, folded=True),
    Row("Process", process, folded=True),
)


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    built = (
        dashboard.Dashboard("Plimsoll")
        .uid("plimsoll")
        .description("An embedding server against its memory budget")
        .tags(["plimsoll"])
        .timezone("browser")
        .tooltip(sdk.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .link(
            dashboard.DashboardLink("Runbooks")
            .type(sdk.DashboardLinkType.LINK)
            .icon("doc")
            .url(RUNBOOKS_URL)
        )
    )
    for variable in _variables():
        built.with_variable(variable)
    number = 0
    for row in ROWS:
        number += 1
        heading = dashboard.Row(row.title).id(number)
        panels = []
        for panel in row.panels():
            number += 1
            panels.append(panel.id(number))
        _add(built, heading, panels, folded=row.folded)
    _add(built, dashboard.Row("Runbooks").id(number + 1), [_runbooks()], folded=True)
    document = built.build()
    _close_up(document.panels or ())
    return json.dumps(document, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"


def _add(
    built: dashboard.Dashboard, heading: dashboard.Row, panels: Sequence[Panel], *, folded: bool
) -> None:
    """Put a row under what is there: a folded one holds its panels, others only head them."""
    if folded:
        for panel in panels:
            heading.with_panel(panel)
        built.with_row(heading)
        return
    built.with_row(heading)
    for panel in panels:
        built.with_panel(panel)


def _close_up(panels: Sequence[sdk.Panel | sdk.RowPanel]) -> None:
    """Put what follows a folded row right under it: its panels take no room until it is opened."""
    hidden = 0
    for panel in panels:
        inner = panel.panels if isinstance(panel, sdk.RowPanel) else []
        places = [one.grid_pos for one in (panel, *inner) if one.grid_pos]
        for place in places:
            place.y -= hidden
        hidden += max(place.y + place.h for place in places) - (places[0].y + places[0].h)


def _runbooks() -> Panel:
    """What every alert says and what to do then: the table of the page about monitoring."""
    table = re.search(
        r"^\| alert \|.*?(?=\n\n)", MONITORING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert table
    return page("Runbooks", "What to do when an alert fires.", table[0]).id(RUNBOOKS_ID)


def _variables() -> Iterator[Builder[sdk.VariableModel]]:
    """What the reader chooses, each within what was chosen before it."""
    yield dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    yield _chosen("job", "Job", "label_values(plimsoll_build_info, job)")
    yield _chosen(
        "instance", "Instance", 'label_values(plimsoll_build_info{job=~"$job"}, instance)'
    )
    yield _chosen(
        "model", "Model", f"label_values({select('plimsoll_requests_total')}, model)"
    ).description(
        "Narrows requests, tokens, latency and loads; none: no model was asked for. "
        "The rest is not counted by model."
    )
    yield (
        dashboard.CustomVariable("slo")
        .label("SLO")
        .description("The objective for latency. The alert PlimsollSlow has its own, in its rule.")
        .values(", ".join(f"{float(objective):g} s : {objective}" for objective in OBJECTIVES))
        .current(_option(f"{float(OBJECTIVE):g} s", OBJECTIVE))
        .allow_custom_value(False)  # only a bucket's bound can be asked for
    )


def _chosen(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Any number of a label's values, at first all."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(sdk.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(sdk.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(ALL)
        .current(_option("All", "$__all"))
    )


def _option(text: str, value: str) -> sdk.VariableOption:
    return sdk.VariableOption(text=text, value=value, selected=True)

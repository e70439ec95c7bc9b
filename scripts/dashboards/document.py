"""The whole dashboard: its variables, and the rows under each other."""

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from .answers import degradation, glance, requests
from .machine import engine, memory, process
from .panels import DATASOURCE, row

DASHBOARD = Path(__file__).parents[2] / "grafana/dashboards/plimsoll.json"
ROWS = {
    "At a glance": glance,
    "Requests": requests,
    "Memory": memory,
    "Degraded and failed": degradation,
    "Engine": engine,
    "Process": process,
}


def dashboard_json() -> str:
    """The dashboard as Grafana imports it."""
    built = (
        dashboard.Dashboard("Plimsoll")
        .uid("plimsoll")
        .description("An embedding server against its memory budget")
        .tags(["plimsoll"])
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("10s")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(
            dashboard.QueryVariable("instance")
            .label("Instance")
            .datasource(DATASOURCE)
            .query("label_values(plimsoll_build_info, instance)")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(models.VariableOption(text="All", value="$__all", selected=True))
        )
    )
    number = 0
    for title, panels in ROWS.items():
        number += 1
        built.with_row(row(title).id(number))
        for panel in panels():
            number += 1
            built.with_panel(panel.id(number))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"

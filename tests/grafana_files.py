"""What grafana/ holds, as tests read it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.dashboards.document import DASHBOARD

GRAFANA = Path(__file__).parents[1] / "grafana"
CONFIG = GRAFANA / "prometheus.yml"
RULES = GRAFANA / "rules.yml"
CASES = GRAFANA / "rules.test.yml"


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def panels(written: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A dashboard's panels and rows, those within folded rows too."""
    rows = (written or dashboard())["panels"]
    return [panel for row in rows for panel in (row, *row.get("panels", ()))]


def targets(panel: dict[str, Any]) -> list[dict[str, Any]]:
    """What a panel asks; a row or a text asks nothing."""
    return panel.get("targets", [])


def shown() -> Iterator[str]:
    """Every expression of a panel."""
    for panel in panels():
        yield from (target["expr"] for target in targets(panel))


def rules() -> list[dict[str, Any]]:
    """Records and alerts."""
    return [rule for group in load_yaml(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Alerts alone."""
    return [rule for rule in rules() if "alert" in rule]

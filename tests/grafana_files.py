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


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels and rows."""
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def shown() -> Iterator[str]:
    """Every expression of a panel."""
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))


def rules() -> list[dict[str, Any]]:
    """Records and alerts."""
    return [rule for group in load_yaml(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Alerts alone."""
    return [rule for rule in rules() if "alert" in rule]

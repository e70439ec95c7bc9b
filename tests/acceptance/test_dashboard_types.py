"""The dashboard's JSON against the types that Grafana's own program is written with.

TypeScript refuses a name, a value or a shape that Grafana does not know. What is missing is its
default, hence `Partial`. Written JSON has the values of enumerations, not their names.
"""

import json
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.grafana_packages import grafana_packages
from tests.grafana_files import dashboard, panels

pytestmark = pytest.mark.acceptance

COMPOSABLE = "@grafana/schema/dist/esm/raw/composable"
TYPES = {
    "stat": "stat/panelcfg/x/StatPanelCfg_types.gen",
    "text": "text/panelcfg/x/TextPanelCfg_types.gen",
    "heatmap": "heatmap/panelcfg/x/HeatmapPanelCfg_types.gen",
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen",
}
HEAD = """
import type { Dashboard, VariableModel } from '@grafana/schema';
type Written<T> = T extends string ? `${T}`
  : T extends number ? (number extends T ? T : `${T}` extends `${infer N extends number}` ? N : T)
  : T extends object ? { [K in keyof T]: Written<T[K]> } : T;
// The SDK writes what only a variable of intervals has; Grafana passes over it in others.
type Variable = VariableModel & { auto?: boolean; auto_min?: string; auto_count?: number };
"""
OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--target", "es2022")


@pytest.fixture(scope="module")
def packages() -> Path:
    return grafana_packages("schema")


def compiled(folder: Path, packages: Path, written: dict) -> str:
    """What TypeScript has to say against a dashboard."""
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "dashboard.ts").write_text(typescript(written), encoding="utf-8")
    compiler = packages / "node_modules/typescript/bin/tsc"
    return subprocess.run(
        ["node", compiler, *OPTIONS, "--moduleResolution", "bundler", "dashboard.ts"],
        cwd=folder, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


def typescript(written: dict) -> str:
    """A program that holds the whole dashboard, its variables and each panel's own options."""
    values = [("Dashboard", written | {"templating": {}})]
    values += [("Variable", one) for one in written["templating"]["list"]]
    lines = [HEAD]
    for name, path in TYPES.items():
        alias = _alias(name)
        lines.append(
            f"import type * as {alias} from '@grafana/schema/dist/esm/raw/composable/{path}';"
        )
    for panel in panels(written):
        if panel["type"] in TYPES:
            alias = _alias(panel["type"])
            values.append((f"Partial<{alias}.Options>", panel["options"]))
            custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
            if custom is not None:
                values.append((f"Partial<{alias}.FieldConfig>", custom))
    lines += [
        f"export const value{number}: Written<{name}> = {json.dumps(value)};"
        for number, (name, value) in enumerate(values)
    ]
    return "\n".join(lines)


def _alias(name: str) -> str:
    return name.replace("-", "_")


def test_grafana_knows_every_name_and_value(packages: Path, tmp_path: Path):
    """Grafana passes over an option that it does not know, and shows something else."""
    assert {panel["type"] for panel in panels()} == {"row", *TYPES}
    assert compiled(tmp_path, packages, dashboard()) == ""


@pytest.mark.parametrize(
    ("at", "name", "value"),
    [
        ("stat", "colorMode", "colourful"),
        ("timeseries", "legends", {}),
        ("heatmap", "cellGap", "wide"),
    ],
)
def test_what_grafana_does_not_know_is_found(
    packages: Path, tmp_path: Path, at: str, name: str, value: object
):
    """A check that lets everything pass would be no check."""
    written = dashboard()
    panel = next(panel for panel in panels(written) if panel["type"] == at)
    panel["options"][name] = value
    assert "error TS" in compiled(tmp_path, packages, written)

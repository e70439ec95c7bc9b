"""How panels look: a few shapes over grafana-foundation-sdk's builders.

Knows no metric. Every panel asks the datasource that the reader chose, for the instances that the
reader chose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
THIRD, HALF, WHOLE = 8, 12, 24  # of the 24 columns

GREEN, YELLOW, ORANGE, RED, BLUE, CLEAR = "green", "yellow", "orange", "red", "blue", "transparent"

Panel: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel | heatmap.Panel
Threshold: TypeAlias = tuple[float, str]
"""From this value on, this colour."""


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of its lines; `{{label}}` stands for a label's value."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Override:
    """How the lines differ whose name matches `pattern`."""

    pattern: str
    properties: Sequence[tuple[str, object]]


DASHED = ("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})
NO_FILL = ("custom.fillOpacity", 0)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = THIRD,
    stacked: bool = False,
    overrides: Sequence[Override] = (),
) -> timeseries.Panel:
    """Values over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .span(span)
        .height(HEIGHT)
        .fill_opacity(30 if stacked else 5)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for override in overrides:
        panel.override_by_regexp(
            f"/{override.pattern}/",
            [models.DynamicConfigValue(id_val, value) for id_val, value in override.properties],
        )
    return panel.targets(_targets(queries))


def number(
    title: str, description: str, unit: str, query: Query, *thresholds: Threshold, span: int = 4
) -> stat.Panel:
    """The last value, coloured by the highest threshold that it reaches."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .span(span)
        .height(4)
        .thresholds(_thresholds(thresholds))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets(_targets([query]))
    )


def states(
    title: str,
    description: str,
    query: Query,
    names: Sequence[tuple[str, str]],
    *,
    span: int = HALF,
    height: int = 5,
    if_empty: str = "-",
) -> statetimeline.Panel:
    """Which state holds when. names: text and colour of the values 0, 1, 2 …"""
    mapping = models.ValueMap(
        {
            str(value): models.ValueMappingResult(text=text, color=color, index=value)
            for value, (text, color) in enumerate(names)
        }
    )
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(span)
        .height(height)
        .mappings([mapping])
        .no_value(if_empty)
        .merge_values(True)
        .show_value(common_models.VisibilityMode.AUTO)
        .row_height(0.9)
        .legend(common.VizLegendOptions().show_legend(False))
        .targets(_targets([query]))
    )


def sizes(title: str, description: str, unit: str, query: Query) -> heatmap.Panel:
    """A histogram's buckets over time. The query gives one line a bucket, named `{{le}}`."""
    target = _target(query, "A").format(PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(THIRD)
        .height(HEIGHT)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
        )
        .with_target(target)
    )


def row(title: str) -> dashboard.Row:
    """A heading over the panels that follow."""
    return dashboard.Row(title)


def _target(query: Query, ref_id: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend)
        .ref_id(ref_id)
        .range()
    )


def _targets(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [_target(query, chr(ord("A") + number)) for number, query in enumerate(queries)]


def _thresholds(thresholds: Sequence[Threshold]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color=GREEN)]
    steps += [models.Threshold(value=value, color=color) for value, color in thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)

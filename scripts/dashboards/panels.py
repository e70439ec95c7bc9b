"""How panels look: a few shapes over grafana-foundation-sdk's builders.

Knows no metric. Every panel asks the datasource that the reader chose.
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
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from .colours import GREEN, GREY, Override

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
EIGHTH, THIRD, HALF, WHOLE = 3, 8, 12, 24  # of the 24 columns
HEATMAP_COLUMNS = 60  # wide enough to be told apart
NO_TRAFFIC = "no traffic"
SHARE = "percentunit"
# The panel that says what to do; its number never changes, so that links to it hold.
RUNBOOKS_ID = 1000
RUNBOOKS_URL = f"/d/plimsoll?viewPanel=panel-{RUNBOOKS_ID}"

Panel: TypeAlias = timeseries.Panel | stat.Panel | statetimeline.Panel | heatmap.Panel | text.Panel
Threshold: TypeAlias = tuple[float, str]
"""From this value on, this colour."""


@dataclass(frozen=True)
class Query:
    """One PromQL expression and the name of its lines; `{{label}}` stands for a label's value."""

    expression: str
    legend: str


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = THIRD,
    stacked: bool = False,
    overrides: Sequence[Override] = (),
    alert: str = "",
) -> timeseries.Panel:
    """Values over time. alert: the one whose runbook the panel leads to."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .links(_runbook(alert))
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
    if unit == SHARE:
        panel.axis_soft_max(0.1)  # where nothing happens, Grafana's own scale ends at 10000 %
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for override in overrides:
        panel.override_by_regexp(
            f"/{override.pattern}/",
            [models.DynamicConfigValue(id_val, value) for id_val, value in override.properties],
        )
    return panel.targets(_targets(queries))


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *thresholds: Threshold,
    below: str = GREEN,
    if_empty: str = NO_TRAFFIC,
    alert: str = "",
) -> stat.Panel:
    """The value now, coloured by the highest threshold that it reaches; `below` all of them.

    Now, not the last that was one: that would stay for an hour after the last request.
    """
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .unit(unit)
        .mappings([_nothing(if_empty)])
        .links(_runbook(alert))
        .span(EIGHTH)
        .height(4)
        .thresholds(_thresholds(below, thresholds))
        .graph_mode(common_models.BigValueGraphMode.NONE)  # it would cross the number
        .color_mode(common_models.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["last"]))
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
    alert: str = "",
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
        .links(_runbook(alert))
        .merge_values(True)
        .show_value(common_models.VisibilityMode.AUTO)
        .row_height(0.9)
        .legend(common.VizLegendOptions().show_legend(False))
        .targets(_targets([query]))
    )


def heat(title: str, description: str, unit: str, query: Query) -> heatmap.Panel:
    """A histogram's buckets over time. The query gives one line a bucket, named `{{le}}`.

    Colours grow with the root of the count, so that the few slow ones show beside the many; what
    did not happen stays clear.
    """
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(THIRD)
        .height(HEIGHT)
        .max_data_points(HEATMAP_COLUMNS)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Turbo")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .mode(common_models.TooltipDisplayMode.SINGLE)
        .show_y_histogram()
        .show_color_scale(True)
        .with_target(_target(query, "A").format(PromQueryFormat.HEATMAP))
    )


def page(title: str, description: str, markdown: str) -> text.Panel:
    """Something to read."""
    return (
        text.Panel()
        .title(title)
        .description(description)
        .mode(TextMode.MARKDOWN)
        .content(markdown)
        .span(WHOLE)
        .height(2 * HEIGHT)
    )


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


def _thresholds(below: str, thresholds: Sequence[Threshold]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color=below)]
    steps += [models.Threshold(value=value, color=color) for value, color in thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _nothing(said: str) -> models.SpecialValueMap:
    """What stands where there is no value; a share of no requests, and their percentile, is NaN."""
    return models.SpecialValueMap(
        models.DashboardSpecialValueMapOptions(
            match=models.SpecialValueMatch.NULL_AND_NAN,
            result=models.ValueMappingResult(text=said, color=GREY, index=0),
        )
    )


def _runbook(alert: str) -> list[Builder[models.DashboardLink]]:
    if not alert:
        return []
    link = dashboard.DashboardLink(f"What to do: {alert}").url(RUNBOOKS_URL).target_blank(True)
    return [link.type(models.DashboardLinkType.LINK)]

// Draws the numbers and lines of a dashboard with Grafana's own components: what surrounds them in
// its program (queries, variables, the grid) is stood in for by as little as will do.
import { createRoot } from "react-dom/client";
import {
  createTheme, dateTime, FieldType, getDisplayProcessor, getFieldDisplayValues, toDataFrame,
} from "@grafana/data";
import { BigValue, GlobalStyles, PanelChrome, ThemeContext, TimeSeries } from "@grafana/ui";

const COLUMNS = 24, CELL_HEIGHT = 38, GAP = 8;
// What Grafana's panel sets where a dashboard says nothing.
const LINE = {
  drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, fillOpacity: 0, gradientMode: "none",
  spanNulls: false, pointSize: 5, axisPlacement: "auto", scaleDistribution: { type: "linear" },
  stacking: { mode: "none", group: "A" },
};

const theme = createTheme({ colors: { mode: "dark" } });
const { panels, answers, from_s, to_s } = window.drawing;
const range = { from: dateTime(1000 * from_s), to: dateTime(1000 * to_s) };
range.raw = { from: range.from, to: range.to };
const columnWidth = (document.documentElement.clientWidth - GAP) / COLUMNS;

const named = (legend, labels) => legend.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? "");

function override(config, overrides) {
  for (const { matcher, properties } of overrides) {
    if (!new RegExp(matcher.options.slice(1, -1)).test(config.displayName)) continue;
    for (const { id, value } of properties) {
      if (id.startsWith("custom.")) config.custom[id.slice(7)] = value;
      else config[id] = value;
    }
  }
}

/** A frame for each series that Prometheus answered with; lines have a gap where it is NaN. */
function framesOf({ type, fieldConfig: { defaults, overrides }, targets }) {
  const mode = type === "stat" ? "thresholds" : "palette-classic";
  const numberOf = (value) => type === "stat" || Number.isFinite(Number(value)) ? Number(value) : null;
  const series = targets.flatMap(({ expr, legendFormat }) =>
    answers[expr].map(({ metric, values }) => ({ name: named(legendFormat, metric), values })));
  return series.map(({ name, values }, seriesIndex) => {
    const config = { color: { mode }, ...defaults, displayName: name };
    config.custom = { ...LINE, ...defaults.custom };
    override(config, overrides);
    const frame = toDataFrame({ fields: [
      { name: "Time", type: FieldType.time, values: values.map(([at_s]) => 1000 * at_s) },
      { name, type: FieldType.number, values: values.map(([, value]) => numberOf(value)), config },
    ] });
    for (const field of frame.fields) {
      field.state = { seriesIndex, displayName: field.config.displayName };
      field.display = getDisplayProcessor({ field, theme, timeZone: "utc" });
    }
    return frame;
  });
}

function Stat({ panel: { fieldConfig, options }, width, height, frames }) {
  const [{ display }] = getFieldDisplayValues({
    fieldConfig,
    reduceOptions: options.reduceOptions, data: frames, theme, timeZone: "utc",
    replaceVariables: (text) => text,
  });
  return <BigValue {...{ theme, width, height }} value={{ ...display, title: undefined }}
    colorMode={options.colorMode} graphMode={options.graphMode} justifyMode={options.justifyMode} />;
}

function Panel({ panel }) {
  const { w, h } = panel.gridPos;
  const frames = framesOf(panel);
  const size = { width: w * columnWidth - GAP, height: h * CELL_HEIGHT - GAP };
  return <div data-panel={panel.id} style={{ gridColumn: `span ${w}` }}>
    <PanelChrome {...size} title={panel.title}>{(width, height) =>
      panel.type === "stat" ? <Stat {...{ panel, width, height, frames }} />
        : frames.length === 0 ? "No data"
        : <TimeSeries {...{ frames, width, height }} timeRange={range} timeZone="utc"
            legend={{ calcs: [], ...panel.options.legend }} />
    }</PanelChrome>
  </div>;
}

createRoot(document.getElementById("root")).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <div style={{
      display: "grid", gridTemplateColumns: `repeat(${COLUMNS}, 1fr)`, rowGap: GAP,
      padding: GAP / 2, background: theme.colors.background.canvas, colorScheme: "dark",
    }}>{panels.map((panel) => <Panel key={panel.id} panel={panel} />)}</div>
  </ThemeContext.Provider>,
);

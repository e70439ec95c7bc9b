// Draw the last minutes as SVG, in the pixels that there are, so that letters keep their size.

const SPAN_S = 300;
const HEIGHT = 260;
const SPARK_HEIGHT = 90;
// Of the budget; what happens above each line is said in the design's memory table.
const LIMITS = [
  { ratio: 0.9, words: "0.90 breaker", below: false },
  { ratio: 0.75, words: "0.75 drop pages", below: false },
  { ratio: 0.7, words: "0.70 save", below: true },
];

function add(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function frame(svg, height, right, most) {
  const width = Math.max(240, svg.clientWidth);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.replaceChildren();
  const top = 16, bottom = height - 20, last = width - right;
  const x = (secondsAgo) => last * (1 - secondsAgo / SPAN_S);
  const y = (value) => bottom - (value / most) * (bottom - top);
  for (let minute = 0; minute <= SPAN_S / 60; minute++) {
    const words = minute ? `−${minute} min` : "now";
    const anchor = minute === SPAN_S / 60 ? "start" : minute ? "middle" : "end";
    // Letters every other minute where there is little room.
    if (minute % 2 === 0 || last > 400) {
      add(svg, "text", { x: x(minute * 60), y: height - 4, "text-anchor": anchor }, words);
    }
  }
  add(svg, "path", { class: "rule", d: `M0 ${bottom}H${last}` });
  return { x, y, last, bottom };
}

function path(history, values, { x, y }) {
  const points = history.seconds_ago.map((ago, i) => `${x(ago).toFixed(1)} ${y(values[i]).toFixed(1)}`);
  return points.length ? `M${points.join("L")}` : "";
}

function water(svg, history, values, plot) {
  const line = path(history, values, plot);
  if (!line) return;
  const first = plot.x(history.seconds_ago[0]).toFixed(1);
  add(svg, "path", { class: "water", d: `${line}V${plot.bottom}H${first}Z` });
  add(svg, "path", { class: "used", d: line });
}

// Used and predicted memory as shares of the budget, with the lines at which something happens.
export function drawMemory(svg, history, memory) {
  const used = history.used_bytes.map((bytes) => bytes / memory.budget_bytes);
  const predicted = history.predicted_bytes.map((bytes) => bytes / memory.budget_bytes);
  const most = Math.max(1, ...used, ...predicted);
  const plot = frame(svg, HEIGHT, 106, most);
  const { y, last } = plot;
  add(svg, "path", { class: "rule", d: `M0 ${y(1)}H${last}` });
  add(svg, "text", { x: last + 6, y: y(1) + 4 }, "budget");
  for (const { ratio, words, below } of LIMITS) {
    add(svg, "path", { class: "limit", d: `M0 ${y(ratio)}H${last}` });
    add(svg, "text", { x: last + 6, y: y(ratio) + (below ? 11 : 2) }, words);
  }
  water(svg, history, used, plot);
  add(svg, "path", { class: "predicted", d: path(history, predicted, plot) });
  // The mark on the hull: where admission draws its line now.
  const line = y(memory.line_bytes / memory.budget_bytes);
  const mark = add(svg, "g", { class: "mark" });
  add(mark, "circle", { cx: 24, cy: line, r: 9 });
  add(mark, "path", { d: `M6 ${line}h36` });
  const highest = Math.round(100 * Math.max(0, ...used));
  const now = Math.round(100 * memory.utilization_ratio);
  svg.setAttribute("aria-label", `Used memory of the last five minutes: now ${now} % of the budget, at most ${highest} %`);
}

// Tokens a second, up to the highest of them.
export function drawThroughput(svg, history) {
  const highest = Math.max(0, ...history.tokens_per_s);
  const plot = frame(svg, SPARK_HEIGHT, 8, Math.max(1, highest));
  water(svg, history, history.tokens_per_s, plot);
  add(svg, "text", { x: 0, y: 11 }, `${Math.round(highest)} tokens/s at most`);
  svg.setAttribute("aria-label", `Throughput of the last five minutes, at most ${Math.round(highest)} tokens a second`);
}

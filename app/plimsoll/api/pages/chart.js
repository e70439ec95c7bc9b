// Draw the last minutes as SVG, in the pixels that there are, so that letters keep their size.

export const SPAN_S = 300;
const RIGHT = 112;
// How the lines on memory are named, and where their names stand beside them.
const LIMITS = [
  { name: "breaker", words: "breaker", shift: 2 },
  { name: "drop_pages", words: "drop pages", shift: 0 },
  { name: "save", words: "save", shift: 12 },
];
// Where used memory is above this share of admission's line, the lines are drawn to scale.
const NEAR_RATIO = 0.5;
const MIB = 2 ** 20;

function add(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

// The next number of the form 1, 2 or 5 times a power of ten.
function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.9999);
}

function frame(svg, height, most, words) {
  const width = Math.max(240, svg.clientWidth);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  svg.replaceChildren();
  const top = 14, bottom = height - 20, last = width - RIGHT;
  const x = (secondsAgo) => last * (1 - secondsAgo / SPAN_S);
  const y = (value) => bottom - (value / most) * (bottom - top);
  for (let minute = 0; minute <= SPAN_S / 60; minute++) {
    const name = minute ? `−${minute} min` : "now";
    const anchor = minute === SPAN_S / 60 ? "start" : minute ? "middle" : "end";
    // Letters every other minute where there is little room.
    if (minute % 2 === 0 || last > 400) {
      add(svg, "text", { x: x(minute * 60), y: height - 4, "text-anchor": anchor }, name);
    }
  }
  for (const value of [0, most / 2, most]) {
    add(svg, "path", { class: "rule", d: `M0 ${y(value)}H${last}` });
    add(svg, "text", { x: last + 6, y: y(value) + 4 }, words(value));
  }
  return { x, y, last, bottom, most };
}

// Pieces of a line: a value that is null leaves a gap.
function line(secondsAgo, values, { x, y }) {
  let d = "", isDown = false;
  values.forEach((value, i) => {
    if (value !== null) d += `${isDown ? "L" : "M"}${x(secondsAgo[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    isDown = value !== null;
  });
  return d;
}

function water(svg, secondsAgo, values, plot) {
  const d = line(secondsAgo, values, plot);
  if (!d) return;
  add(svg, "path", { class: "water", d: `${d}V${plot.bottom}H${plot.x(secondsAgo[0]).toFixed(1)}Z` });
  add(svg, "path", { class: "used", d });
}

const mib = (bytes) => (bytes >= 10240 * MIB ? `${(bytes / 1024 / MIB).toFixed(1)} GiB` : `${Math.round(bytes / MIB)} MiB`);

// Memory in MiB, scaled to what happened; the lines at which something happens, where they are near.
export function drawMemory(svg, history, memory, lines) {
  const budget = memory.budget_bytes;
  const seen = [...history.used_bytes, ...history.predicted_bytes, ...history.working_set_bytes, memory.used_bytes];
  const highest = Math.max(...seen.map((bytes) => Math.min(bytes, budget)));
  const isNear = highest > NEAR_RATIO * memory.line_bytes;
  const most = isNear ? budget : MIB * rounded((1.15 * highest) / MIB);
  const plot = frame(svg, 250, most, isNear ? (value) => (value === most ? `${mib(value)} budget` : mib(value)) : mib);
  const { y, last } = plot;
  if (isNear) {
    for (const { name, words, shift } of LIMITS) {
      const ratio = lines[name];
      add(svg, "path", { class: "limit", d: `M0 ${y(ratio * budget)}H${last}` });
      add(svg, "text", { x: last + 6, y: y(ratio * budget) + shift }, `${ratio.toFixed(2)} ${words}`);
    }
  }
  water(svg, history.seconds_ago, history.used_bytes, plot);
  const capped = (values) => values.map((bytes) => Math.min(bytes, most));
  add(svg, "path", { class: "working-set", d: line(history.seconds_ago, capped(history.working_set_bytes), plot) });
  add(svg, "path", { class: "predicted", d: line(history.seconds_ago, capped(history.predicted_bytes), plot) });
  // The mark on the hull: where admission draws its line now; at the top, and said, where that is far.
  const at = isNear ? y(memory.line_bytes) : y(most);
  const mark = add(svg, "g", { class: "mark" });
  add(mark, "circle", { cx: 24, cy: at, r: 9 });
  add(mark, "path", { d: `M6 ${at}h36` });
  if (!isNear) add(svg, "text", { x: 48, y: at + 14 }, `↑ the line is at ${mib(memory.line_bytes)}`);
  const ratio = (bytes) => Math.round((100 * bytes) / budget);
  const most_used = Math.max(0, ...history.used_bytes);
  svg.setAttribute("aria-label", `Used memory of the last five minutes: now ${ratio(memory.used_bytes)} % of the budget, at most ${ratio(most_used)} %`);
}

// The ladder's steps of the last minutes as a strip; a row of colour for each look.
export function drawLadder(svg, history) {
  const width = Math.max(240, svg.clientWidth);
  svg.setAttribute("viewBox", `0 0 ${width} 26`);
  svg.setAttribute("height", 26);
  svg.replaceChildren();
  const x = (ago) => width * (1 - ago / SPAN_S);
  history.ladder_step.forEach((step, i) => {
    const ends = i + 1 < history.seconds_ago.length ? history.seconds_ago[i + 1] : 0;
    const start = x(history.seconds_ago[i]);
    add(svg, "rect", { class: `step-${step}`, x: start, y: 0, width: Math.max(1, x(ends) - start), height: 9 });
  });
  add(svg, "text", { x: 0, y: 23 }, "−5 min");
  add(svg, "text", { x: width, y: 23, "text-anchor": "end" }, "now");
  svg.setAttribute("aria-label", `Steps of the last five minutes, at most ${Math.max(0, ...history.ladder_step)}`);
}

const agoOf = (traffic, source) => source.requests.map((_, i) => (source.requests.length - i - 0.5) * traffic.period_s);

// Requests a second by period, the errors among them in front.
export function drawRequests(svg, traffic, source) {
  const rates = source.requests.map((n) => n / traffic.period_s);
  const highest = Math.max(0, ...rates);
  const plot = frame(svg, 110, rounded(Math.max(1, highest)), (value) => `${+value.toFixed(1)} /s`);
  const ago = agoOf(traffic, source);
  const wide = Math.max(1, (plot.last * traffic.period_s) / SPAN_S - 1);
  ago.forEach((seconds, i) => {
    for (const [name, n] of [["bar", source.requests[i]], ["bar bad", source.errors[i]]]) {
      const top = plot.y(n / traffic.period_s);
      if (n) add(svg, "rect", { class: name, x: plot.x(seconds) - wide / 2, y: top, width: wide, height: plot.bottom - top });
    }
  });
  const n_errors = source.errors.reduce((sum, n) => sum + n, 0);
  svg.setAttribute("aria-label", `Requests of the last five minutes: at most ${highest.toFixed(1)} a second, ${n_errors} errors in all`);
}

export function drawLatency(svg, traffic, source) {
  const highest = Math.max(0, ...source.p95_s.map((seconds) => seconds ?? 0));
  const plot = frame(svg, 110, rounded(Math.max(0.01, highest)), (value) => `${+value.toPrecision(2)} s`);
  const ago = agoOf(traffic, source);
  add(svg, "path", { class: "used", d: line(ago, source.p95_s, plot) });
  ago.forEach((seconds, i) => {
    if (source.p95_s[i] !== null) add(svg, "circle", { class: "dot", cx: plot.x(seconds), cy: plot.y(source.p95_s[i]), r: 2 });
  });
  svg.setAttribute("aria-label", `Latency of the last five minutes, at most ${highest.toPrecision(2)} seconds`);
}

export function drawThroughput(svg, history) {
  const highest = Math.max(0, ...history.tokens_per_s);
  const plot = frame(svg, 90, rounded(Math.max(1, highest)), (value) => Math.round(value).toLocaleString("en"));
  water(svg, history.seconds_ago, history.tokens_per_s, plot);
  svg.setAttribute("aria-label", `Throughput of the last five minutes, at most ${Math.round(highest)} tokens a second`);
}

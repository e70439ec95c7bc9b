// Ask the server every other second and show what it says; rest while the page is hidden.

import { drawLadder, drawLatency, drawMemory, drawRequests, drawThroughput } from "./chart.js";
import { askForKey, isAsking, send, whenKeyChanges } from "./key.js";

const PERIOD_MS = 2000;
const PATIENCE_MS = 5000;
const BREAKER = {
  closed: "● closed: requests run",
  half_open: "▲ half-open: one request at a time, as a probe",
  open: "■ open: nothing runs",
};

const at = (id) => document.getElementById(id);
let isLooking = false;
let timer = null;
let lastAnswer = null;

function set(id, words) {
  // Only a change counts, or live regions would speak at every look.
  if (at(id).textContent !== words) at(id).textContent = words;
}

function element(name, words, className = "") {
  const made = document.createElement(name);
  made.textContent = words;
  made.className = className;
  return made;
}

function size(bytes) {
  const mib = bytes / 2 ** 20;
  if (mib >= 10240) return `${(mib / 1024).toFixed(1)} GiB`;
  return `${mib.toFixed(mib < 10 ? 1 : 0)} MiB`;
}

const percent = (ratio) => `${(100 * ratio).toFixed(ratio < 0.1 ? 1 : 0)} %`;
const several = (number, noun) => `${number} ${noun}${String(number) === "1" ? "" : "s"}`;
const count = (number) => Math.round(number).toLocaleString("en");

function duration(seconds) {
  if (seconds === null) return "none";
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;
}

function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, length] = units.find(([, length]) => seconds >= length) ?? units[3];
  return `${Math.floor(seconds / length)} ${unit}`;
}

// What a tile shows: a number, what belongs to it, and how bad it is: good, fair or bad.
function tile(name, id, words, more, grade) {
  set(id, words);
  set(`${id}-more`, more);
  at(`tile-${name}`).dataset.grade = grade;
}

const grade = (value, fair, bad) => (value >= bad ? "bad" : value >= fair ? "fair" : "good");

// Of a share that should be none: whether it is above the line of its alert.
const against = (share, line) => (share > line ? "bad" : share > 0 ? "fair" : "good");

function showTrafficTiles({ alerts, latency, traffic }) {
  const [all] = traffic.sources;
  const last = Math.round(latency.window_s / traffic.period_s);
  const total = (numbers) => numbers.slice(-last).reduce((sum, n) => sum + n, 0);
  const n = total(all.requests), n_failed = total(all.failed), n_refused = total(all.refused);
  const refused = n_refused ? `${count(n_refused)} refused` : "none refused";
  tile("requests", "rate", `${(n / latency.window_s).toFixed(1)} /s`, `${several(count(n), "request")} in a minute, ${refused}`, against(n_refused / Math.max(1, n), alerts.refused_ratio));
  const isSlow = latency.p99_s > alerts.slow_s;
  const slow = isSlow ? `, above the objective of ${alerts.slow_s} s` : "";
  tile("latency", "p95", duration(latency.p95_s), `median ${duration(latency.p50_s)}, 99 % within ${duration(latency.p99_s)}${slow}`, isSlow ? "fair" : "good");
  const of = `${count(n_failed)} of ${count(n)}`;
  tile("errors", "error-share", percent(n_failed / Math.max(1, n)), n_failed ? of : "none in a minute", against(n_failed / Math.max(1, n), alerts.failed_ratio));
}

// One line over all tiles: what an alert would say of requests, then memory.
function showSummary(step, ladder_step, breaker) {
  const gradeOf = (name) => at(`tile-${name}`).dataset.grade;
  const troubles = [
    ["requests fail", gradeOf("errors") === "bad"],
    ["many are refused", gradeOf("requests") === "bad"],
    ["some are slow", gradeOf("latency") === "fair"],
  ].filter(([, isSo]) => isSo).map(([words]) => words);
  const memory = `Memory breaker ${breaker.state.replace("_", "-")}.`;
  const said = troubles.join(", ");
  const first = said ? `${said[0].toUpperCase()}${said.slice(1)}. Memory: ${step.toLowerCase()}.` : `${step}.`;
  set("summary", `${first} ${memory}`);
  const isBad = ladder_step >= 3 || gradeOf("errors") === "bad" || gradeOf("requests") === "bad";
  at("summary").dataset.grade = isBad ? "bad" : said || ladder_step ? "fair" : "good";
}

function figure(id, bytes, budget) {
  at(id).replaceChildren(size(bytes), element("small", ` ${percent(bytes / budget)}`));
}

function showMemory(memory, step) {
  const budget = memory.budget_bytes;
  const share = percent(memory.used_bytes / budget);
  tile("memory", "used", size(memory.used_bytes), `${share} of ${size(budget)}`, grade(step, 1, 3));
  figure("predicted", memory.predicted_bytes, budget);
  figure("working-set", memory.working_set_bytes, budget);
  figure("line", memory.line_bytes, budget);
  set("budget", size(budget));
  const whose = memory.scope === "group" ? "everything in its control group" : "this process alone";
  set("budget-source", `The budget comes from ${memory.budget_source}; used is what ${whose} holds and the kernel cannot take back at once.`);
}

function showLadder(ladder, step, history) {
  if (!at("ladder").children.length) {
    at("ladder").replaceChildren(...ladder.map(({ name }, i) => {
      const rung = element("li", name, `step-${i}`);
      rung.title = ladder[i].rows.map(({ when, effects }) => `${when}: ${effects.join("; ")}`).join("\n");
      return rung;
    }));
  }
  [...at("ladder").children].forEach((rung, i) => {
    if (i === step) rung.setAttribute("aria-current", "step");
    else rung.removeAttribute("aria-current");
  });
  const { name, rows } = ladder[step];
  const lines = rows.map(({ when, effects }) => element("p", `${when}: ${effects.join("; ")}`, "quiet"));
  at("step").replaceChildren(element("p", `Step ${step}: ${name}.`), ...lines);
  drawLadder(at("ladder-chart"), history);
}

function showState({ breaker, plan, queue, bottleneck }) {
  at("causes-row").hidden = !plan.step_reasons.length;
  set("causes", plan.step_reasons.join(", "));
  const isClosed = breaker.state === "closed";
  const last = breaker.last_reason && !isClosed ? ` (${breaker.last_reason})` : "";
  set("breaker", BREAKER[breaker.state] + last);
  at("breaker").classList.toggle("bad", !isClosed);
  set("bottleneck", `${bottleneck.kind}: ${bottleneck.reason}`);
  const reasons = element("ul", "");
  reasons.append(...plan.reasons.map((reason) => element("li", reason)));
  at("plan").replaceChildren(`${several(plan.parallelism, "sequence")}, ${several(plan.engine_threads, "engine thread")}`, reasons);
  const drain = `drains at ${count(queue.tokens_per_s)} tokens/s`;
  set("queue", `${count(queue.tokens)} of ${count(queue.limit_tokens)} tokens, ${drain}`);
}

const nameOf = ({ route, model }) => (model ? `${route}, ${model}` : route);

function showSources({ sources }) {
  const names = sources.map(nameOf);
  const box = at("source");
  if ([...box.options].map(({ value }) => value).join() !== names.join()) {
    const chosen = box.value;
    box.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) box.value = chosen;
  }
  const sum = (numbers) => numbers.reduce((total, n) => total + n, 0);
  const rows = sources.slice(1).map((source) => {
    const row = element("tr", "");
    const slowest = source.p95_s.filter((seconds) => seconds !== null);
    const cells = [source.route, source.model ?? "–", count(sum(source.requests)), count(sum(source.errors)),
      slowest.length ? duration(Math.max(...slowest)) : "–"];
    row.append(...cells.map((words) => element("td", words)));
    return row;
  });
  at("sources").hidden = !rows.length;
  at("sources").tBodies[0].replaceChildren(...rows);
  return sources[Math.max(0, names.indexOf(box.value))];
}

function showTraffic({ alerts, history, latency, traffic, requests }) {
  showTrafficTiles({ alerts, latency, traffic });
  const source = showSources(traffic);
  for (const [kind, number] of Object.entries(requests)) set(kind, count(number));
  drawRequests(at("requests-chart"), traffic, source);
  drawLatency(at("latency-chart"), traffic, source);
  drawThroughput(at("throughput-chart"), history);
}

function modelItem(model) {
  const row = element("li", "");
  const state = element("span", `, ${model.state}`, model.state === "failed" ? "bad" : "");
  row.append(element("b", model.name), state);
  if (model.state === "loading" && model.total_bytes) {
    row.append(` (${percent(model.loaded_bytes / model.total_bytes)})`);
  }
  for (const said of [model.error, model.notice]) if (said) row.append(element("p", said));
  if (model.fingerprint) {
    row.append(element("p", `${model.dimensions} dimensions, ${count(model.token_limit)} tokens a text, ${model.compute}, space ${model.fingerprint}`, "quiet"));
  }
  return row;
}

function errorItem({ at_s, status, code, message, n_times, request_id }) {
  const row = element("li", "", status >= 500 ? "failure" : "");
  const when = new Date(1000 * at_s);
  const time = element("time", when.toLocaleTimeString("en-GB"));
  time.dateTime = when.toISOString();
  row.append(time, ` ${status} `, element("b", code), n_times > 1 ? ` ${count(n_times)} times` : "", element("p", message));
  if (request_id) row.append(element("p", `last request ${request_id}`, "quiet"));
  return row;
}

// What has been is an operator's: a key of the role embed gets what is true now, and null here.
function showStatus(status, { ladder_step, memory }) {
  document.body.classList.toggle("limited", status === null);
  set("limits", status ? "" : "This key is of the role embed: history, traffic, the memory ladder and the last errors need one of the role admin.");
  if (!status) return;
  showTraffic(status);
  drawMemory(at("memory-chart"), status.history, memory, status.lines);
  showLadder(status.ladder, ladder_step, status.history);
  at("no-errors").hidden = status.errors.length > 0;
  at("error-list").replaceChildren(...status.errors.map(errorItem));
}

function show(health, status) {
  const { memory, version, uptime_s, ladder_step, breaker, models } = health;
  set("about", `Version ${version} · up ${span(uptime_s)} · ${health.status}`);
  document.title = `${percent(memory.utilization_ratio)} Plimsoll`;
  showMemory(memory, ladder_step);
  showState(health);
  showStatus(status, health);
  const step = status ? status.ladder[ladder_step].name : `Step ${ladder_step} of the memory ladder`;
  showSummary(step, ladder_step, breaker);
  at("model-list").replaceChildren(...models.map(modelItem));
}

async function ask(path) {
  const reply = await send(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return { code: reply.status, said: await reply.json() };
}

// What the server says now and of the last minutes; null where it does not answer.
async function answers() {
  try {
    return await Promise.all([ask("health"), ask("status")]);
  } catch {
    return null;
  }
}

function showConnection(isThere, refusal) {
  if (isThere) lastAnswer = new Date();
  const since = lastAnswer ? `since ${lastAnswer.toLocaleTimeString("en-GB")}` : "yet";
  const trouble = refusal ?? `No answer from the server ${since}.`;
  set("connection", isThere ? "" : `${trouble} Asking on; what stands below is old.`);
  document.body.classList.toggle("stale", !isThere);
  if (!isThere) document.title = "No answer: Plimsoll";
}

async function look() {
  if (isLooking || isAsking()) return;
  isLooking = true;
  clearTimeout(timer);
  const [health, status] = (await answers()) ?? [];
  isLooking = false;
  const isThere = health?.code === 200 && [200, 403].includes(status.code);
  const refusal = [health, status].find((answer) => answer?.said.error)?.said.error.message;
  if (health?.code === 401) {
    for (const id of ["about", "connection", "limits", "summary"]) set(id, "");
    document.title = "Plimsoll";
    askForKey(); // and not again before there is one: it would only be refused
    return;
  }
  if (!document.hidden) timer = setTimeout(look, PERIOD_MS);
  showConnection(isThere, refusal && `The server refuses: ${refusal}.`);
  if (isThere) show(health.said, status.code === 200 ? status.said : null);
}

whenKeyChanges(look);
document.addEventListener("visibilitychange", () => document.hidden || look());
at("source").addEventListener("change", look);
look();

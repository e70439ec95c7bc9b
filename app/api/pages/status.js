// Ask the server every other second and show what it says; rest while nobody looks.

import { drawMemory, drawThroughput } from "./chart.js";

const PERIOD_MS = 2000;
const PATIENCE_MS = 5000;
const STEPS = ["All is well", "Saving memory", "Dropping pages", "Holding back", "Words only"];
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
const several = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
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

function figure(id, bytes, budget) {
  const small = element("small", ` ${percent(bytes / budget)}`);
  at(id).replaceChildren(size(bytes), small);
}

function showMemory(memory, history) {
  const budget = memory.budget_bytes;
  figure("used", memory.used_bytes, budget);
  figure("predicted", memory.predicted_bytes, budget);
  figure("line", memory.line_bytes, budget);
  set("budget", size(budget));
  const whose = memory.scope === "group" ? "everything in its control group" : "this process alone";
  set("budget-source", `The budget comes from ${memory.budget_source}; used is what ${whose} holds and the kernel cannot take back at once.`);
  drawMemory(at("memory-chart"), history, memory);
}

function showState({ ladder_step: step, breaker, plan, queue, bottleneck }) {
  [...at("ladder").children].forEach((rung, i) => {
    if (i === step) rung.setAttribute("aria-current", "step");
    else rung.removeAttribute("aria-current");
  });
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

function showTraffic({ history, latency, requests }) {
  set("throughput", `${count(history.tokens_per_s.at(-1) ?? 0)} tokens/s`);
  set("p50", duration(latency.p50_s));
  set("p99", duration(latency.p99_s));
  for (const [kind, number] of Object.entries(requests)) set(kind, count(number));
  drawThroughput(at("throughput-chart"), history);
}

function modelItem(model) {
  const row = element("li", "");
  const state = element("span", `, ${model.state}`, model.state === "failed" ? "bad" : "");
  row.append(element("b", model.name), state);
  if (model.state === "loading" && model.total_bytes) {
    row.append(` (${percent(model.loaded_bytes / model.total_bytes)})`);
  }
  if (model.error) row.append(element("p", model.error));
  if (model.fingerprint) {
    row.append(element("p", `${model.dimensions} dimensions, ${count(model.token_limit)} tokens a text, ${model.compute}, space ${model.fingerprint}`, "quiet"));
  }
  return row;
}

function errorItem({ at_s, status, code, message, n_times }) {
  const row = element("li", "");
  const when = new Date(1000 * at_s);
  const time = element("time", when.toLocaleTimeString("en-GB"));
  time.dateTime = when.toISOString();
  row.append(time, ` ${status} `, element("b", code), n_times > 1 ? ` ${count(n_times)} times` : "", element("p", message));
  return row;
}

function show(health, status) {
  const { memory, version, uptime_s, ladder_step, breaker, models } = health;
  set("about", `Version ${version} · up ${span(uptime_s)} · ${health.status}`);
  set("summary", `${STEPS[ladder_step]}. Memory breaker ${breaker.state.replace("_", "-")}.`);
  document.title = `${percent(memory.utilization_ratio)} Plimsoll`;
  showMemory(memory, status.history);
  showState(health);
  showTraffic(status);
  at("model-list").replaceChildren(...models.map(modelItem));
  at("no-errors").hidden = status.errors.length > 0;
  at("error-list").replaceChildren(...status.errors.map(errorItem));
}

async function ask(path) {
  const reply = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!reply.ok) throw new Error(`/${path} answers ${reply.status}`);
  return reply.json();
}

async function answers() {
  try {
    const both = await Promise.all([ask("health"), ask("status")]);
    lastAnswer = new Date();
    return both;
  } catch {
    return null;
  }
}

function showConnection(isThere) {
  const since = lastAnswer ? `since ${lastAnswer.toLocaleTimeString("en-GB")}` : "yet";
  set("connection", isThere ? "" : `No answer from the server ${since}. Asking on; what stands below is old.`);
  document.body.classList.toggle("stale", !isThere);
  if (!isThere) document.title = "No answer: Plimsoll";
}

async function look() {
  if (isLooking) return;
  isLooking = true;
  clearTimeout(timer);
  const both = await answers();
  isLooking = false;
  if (!document.hidden) timer = setTimeout(look, PERIOD_MS);
  showConnection(both !== null);
  if (both) show(...both);
}

document.addEventListener("visibilitychange", () => document.hidden || look());
look();

// Rank documents for a query by POST /rank, as any client would, and give the call to copy.

import { hasKey, send } from "./key.js";

const REASONS = {
  memory_pressure: "memory is short",
  breaker_open: "the memory breaker is open",
  out_of_memory: "memory ran out",
  model_loading: "the model is still being opened",
};

const at = (id) => document.getElementById(id);
const button = at("try-form").querySelector("button");

function asked() {
  const documents = at("documents").value.split("\n").filter((line) => line.trim());
  return { query: at("query").value, documents };
}

function item(text, words, share) {
  const row = document.createElement("li");
  const number = document.createElement("b");
  const bar = document.createElement("div");
  const filled = document.createElement("span");
  number.textContent = words;
  bar.className = "bar";
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  bar.append(filled);
  row.append(text, number, bar);
  return row;
}

function show(answer, documents, milliseconds) {
  const reason = answer.degraded?.reason;
  const said = [
    answer.kind === "dense"
      ? `Cosine of the vectors: ${documents.length} documents in ${milliseconds} ms.`
      : `By shared words instead of meaning, because ${REASONS[reason] ?? reason}. Try again in ${Math.ceil(answer.degraded.retry_after_s)} s.`,
    ...answer.truncated.map(({ index, tokens, kept }) => `Of document ${index + 1} only ${kept} of ${tokens} tokens count.`),
    ...answer.errors.map(({ index, message }) => `Document ${index + 1} has no vector: ${message}`),
    ...answer.warnings,
  ];
  at("outcome").textContent = said.join(" ");
  const most = answer.kind === "dense" ? 1 : Math.max(1e-9, ...answer.results.map(({ score }) => score));
  const rows = answer.results.map(({ index, score }) => item(documents[index], score.toFixed(3).replace("-", "−"), score / most));
  at("ranking").replaceChildren(...rows);
}

async function rank() {
  const body = asked();
  const start = performance.now();
  const reply = await send("rank", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await reply.json();
  if (!reply.ok) {
    const wait = reply.headers.get("Retry-After");
    throw new Error(answer.error.message + (wait ? ` (try again in ${wait} s)` : ""));
  }
  show(answer, body.documents, Math.round(performance.now() - start));
}

const address = () => new URL("rank", document.baseURI).href;
// Within single quotes of a shell, a single quote ends them and begins them anew.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The key itself is not copied: what is copied ends up in chats and files.
const asCurl = () => `curl -s ${quoted(address())} -H 'Content-Type: application/json' \\\n${hasKey() ? '  -H "Authorization: Bearer $PLIMSOLL_KEY" \\\n' : ""}  -d ${quoted(JSON.stringify(asked()))}\n`;

// JSON's strings are Python's too.
const asPython = () => {
  const { query, documents } = asked();
  const lines = documents.map((text) => `    ${JSON.stringify(text)},`).join("\n");
  return `${hasKey() ? "import os\n\n" : ""}import httpx\n\ndocuments = [\n${lines}\n]\nanswer = httpx.post(\n    ${JSON.stringify(address())},\n    json={"query": ${JSON.stringify(query)}, "documents": documents},\n${hasKey() ? '    headers={"Authorization": f"Bearer {os.environ[\'PLIMSOLL_KEY\']}"},\n' : ""}).raise_for_status().json()\nfor result in answer["results"]:\n    print(f"{result['score']:.3f}", documents[result["index"]])\n`;
};

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    at("outcome").textContent = `Copied as ${what}.`;
  } catch {
    // Over plain HTTP from elsewhere a browser gives no clipboard: show it, to be copied by hand.
    at("outcome").textContent = text;
  }
}

at("copy-curl").addEventListener("click", () => copy(asCurl(), "curl"));
at("copy-python").addEventListener("click", () => copy(asPython(), "Python"));
at("try-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  // Not `disabled`, which would take the focus away from people who use the keyboard.
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  at("outcome").textContent = "Asking …";
  try {
    await rank();
  } catch (error) {
    at("outcome").textContent = `No answer: ${error.message}`;
    at("ranking").replaceChildren();
  } finally {
    button.ariaDisabled = "false";
  }
});

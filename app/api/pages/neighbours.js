// Compare a text with a few samples, by the vectors of POST /embed or, under pressure, by words.

const SAMPLES = [
  "The load line on a hull shows how deep a ship may lie.",
  "A cargo vessel sits low in the water when its holds are full.",
  "Knead the dough, let it rise for an hour, then bake it.",
  "This soup tastes better with garlic and fresh basil.",
  "The violin takes up the melody in the second movement.",
  "She practises piano scales every morning before school.",
  "Interest rates rose and the stock market fell sharply.",
  "Bees visit the flowers of the apple tree in spring.",
];
const REASONS = {
  memory_pressure: "memory is short",
  breaker_open: "the memory breaker is open",
  out_of_memory: "memory ran out",
  model_loading: "the model is still being opened",
};

const form = document.getElementById("try-form");
const box = document.getElementById("text");
const button = form.querySelector("button");
const outcome = document.getElementById("outcome");
const list = document.getElementById("neighbours");

function cosine(a, b) {
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / Math.sqrt(aa * bb);
}

function byMeaning({ embeddings: [text, ...samples] }) {
  return samples.map((vector, i) => {
    const value = cosine(text, vector);
    return { sample: SAMPLES[i], value, share: value, words: value.toFixed(3).replace("-", "−") };
  });
}

function byWords({ sparse: [text, ...samples] }) {
  const own = new Set(text.indices);
  return samples.map(({ indices }, i) => {
    const value = indices.filter((index) => own.has(index)).length;
    return { sample: SAMPLES[i], value, share: value / Math.max(1, own.size), words: `${value} of ${own.size} words` };
  });
}

function item({ sample, share, words }) {
  const row = document.createElement("li");
  const number = document.createElement("b");
  const bar = document.createElement("div");
  const filled = document.createElement("span");
  number.textContent = words;
  bar.className = "bar";
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  bar.append(filled);
  row.append(sample, number, bar);
  return row;
}

function show(answer, milliseconds) {
  const failed = answer.errors?.find(({ index }) => index === 0);
  if (failed) {
    outcome.textContent = `There is no vector for this text: ${failed.message}`;
    list.replaceChildren();
    return;
  }
  const isSparse = answer.kind === "sparse";
  const reason = answer.degraded?.reason;
  outcome.textContent = isSparse
    ? `Shared words instead of meaning, because ${REASONS[reason] ?? reason}. Try again in ${Math.ceil(answer.degraded.retry_after_s)} s.`
    : `Cosine of the vectors: ${SAMPLES.length + 1} texts, ${answer.usage.tokens} tokens, ${milliseconds} ms with ${answer.model}.`;
  const neighbours = isSparse ? byWords(answer) : byMeaning(answer);
  list.replaceChildren(...neighbours.sort((a, b) => b.value - a.value).map(item));
}

async function compare() {
  const start = performance.now();
  const reply = await fetch("embed", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    // The one task prefix that every family of models has or does without.
    body: JSON.stringify({ input: [box.value, ...SAMPLES], input_type: "search_document" }),
  });
  const answer = await reply.json();
  if (!reply.ok) {
    const wait = reply.headers.get("Retry-After");
    throw new Error(answer.error.message + (wait ? ` (try again in ${wait} s)` : ""));
  }
  show(answer, Math.round(performance.now() - start));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  // Not `disabled`, which would take the focus away from whoever uses the keyboard.
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true";
  outcome.textContent = "Asking …";
  try {
    await compare();
  } catch (error) {
    outcome.textContent = `No answer: ${error.message}`;
    list.replaceChildren();
  } finally {
    button.ariaDisabled = "false";
  }
});

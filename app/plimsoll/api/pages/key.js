// The key that this tab asks with: kept until the tab is closed, for no other tab and no other site.

const NAME = "plimsoll-key";
const form = document.getElementById("key-form");
const box = document.getElementById("key-box");
const forget = document.getElementById("forget");
const outcome = document.getElementById("key-outcome");

export const isAsking = () => !document.getElementById("key").hidden;
const kept = () => sessionStorage.getItem(NAME);
export const hasKey = () => Boolean(kept());

function show(asks) {
  document.getElementById("key").hidden = !asks;
  document.body.classList.toggle("locked", asks);
  document.body.classList.toggle("with-key", hasKey());
  forget.hidden = !kept();
}

// Like fetch, with the key.
export function send(path, options = {}) {
  const authorization = kept() ? { Authorization: `Bearer ${kept()}` } : {};
  return fetch(path, { ...options, headers: { ...options.headers, ...authorization } });
}

// Show the form, and say so where it was a key that the server has refused.
export function askForKey() {
  const wasRefused = hasKey();
  sessionStorage.removeItem(NAME);
  show(true);
  outcome.textContent = wasRefused ? "That key is none of this server's keys." : "";
  box.focus();
}

// Call `use` each time a key has been given or taken back.
export function whenKeyChanges(use) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, box.value.trim());
    box.value = "";
    show(false);
    use();
  });
  forget.addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    show(false);
    use();
  });
}

show(false);

// Draws the document beside which this page stands, with or without a slash at its path's end.
"use strict";

// Swagger UI's own switch for its dark colours.
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.classList.toggle("dark-mode", dark);

const root = location.pathname.replace(/docs\/*$/, "");
const icon = document.createElement("link");
icon.rel = "icon";
icon.href = `${root}pages/mark.svg`;
document.head.append(icon);

// The key that the status page keeps for this tab; one that is given here comes before it.
function withKey(request) {
  const key = sessionStorage.getItem("plimsoll-key");
  const has = Object.keys(request.headers).some((name) => /^(authorization|x-api-key)$/i.test(name));
  if (key && !has) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

// What Swagger UI leaves out for those who listen: levels of headings in order, and names of regions.
const docs = document.getElementById("docs");
new MutationObserver(() => {
  for (const heading of docs.querySelectorAll(":is(h3.opblock-tag, .models h4):not([aria-level])")) {
    heading.setAttribute("role", "heading");
    heading.setAttribute("aria-level", "2");
  }
  for (const [part, name] of [[".information-container", "About"], [".scheme-container", "Keys"]]) {
    const region = docs.querySelector(`${part}:not([aria-label])`);
    region?.setAttribute("role", "region");
    region?.setAttribute("aria-label", name);
  }
}).observe(docs, { childList: true, subtree: true });

SwaggerUIBundle({
  url: `${root}openapi.json`,
  dom_id: "#docs",
  requestInterceptor: withKey,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // would send the document's address elsewhere
});

// A page that keeps what it must not: the search of tests/browser/profile.test.mjs has to find it. Never served by an edge.
import "../src/page.ts";

const keep = (name: string, value: string) => localStorage.setItem(name, (localStorage.getItem(name) ?? "") + value);

document.addEventListener("click", ({ target }) => keep("digits", (target as Element).textContent ?? ""), true);
window.addEventListener("message", ({ data }) => keep("message", JSON.stringify(data)));
const send = window.fetch;
window.fetch = (input, init) => {
  keep("body", String(init?.body));
  return send(input, init);
};

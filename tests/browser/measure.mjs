// Measures the page of a running demo, without an assertion:
//   pinseal demo --ready-file ready.json &  node measure.mjs ready.json [TIMES]
// From the form POST to the first document in which a digit can be entered, and to the arrival of the tzpk.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const [readyFile, times = "20"] = process.argv.slice(2);
const { edge_url: edge, bearer_token: token } = JSON.parse(readFileSync(readyFile, "utf8"));

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
const context = await browser.newContext();
await context.addInitScript(() => {
  const seen = new MutationObserver(() => {
    if (document.querySelector(".field")) window.readyAt ??= performance.timeOrigin + performance.now();
  });
  seen.observe(document, { childList: true, subtree: true });
});
const page = await context.newPage();
const results = [];
for (let run = 0; run < Number(times); run++) {
  const response = await fetch(`${edge}/pincontrol/v2/plastic/${6_000_000 + run}?auditUser=measure`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
    body: JSON.stringify({ scope: "SET_PIN" }),
  });
  const { id, pinURL } = await response.json();
  await page.goto("about:blank");
  const loaded = page.waitForURL((url) => url.href.startsWith(pinURL));
  const began = await page.evaluate(
    ([action, controlId]) => {
      const form = Object.assign(document.createElement("form"), { method: "post", action });
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "controlId", value: controlId }));
      document.body.append(form);
      setTimeout(() => form.submit());
      return performance.timeOrigin + performance.now();
    },
    [pinURL, id],
  );
  await loaded;
  await page.locator(".field").waitFor();
  const ended = await page.waitForFunction(() => {
    const [entry] = performance.getEntriesByType("resource").filter(({ name }) => name.endsWith("/tzpk"));
    return entry?.responseEnd && [window.readyAt, performance.timeOrigin + entry.responseEnd];
  });
  results.push((await ended.jsonValue()).map((at) => at - began));
}
await browser.close();

const row = (name, values) => {
  values.sort((a, b) => a - b);
  const at = (share) => Math.round(values[Math.floor((values.length - 1) * share)]);
  console.log(`${name}: median ${at(0.5)} ms, 90 % within ${at(0.9)} ms, of ${values.length}`);
};
row("form POST to entry", results.map(([ready]) => ready));
row("form POST to tzpk", results.map(([, tzpk]) => tzpk));

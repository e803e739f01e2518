// The sample site of `pinseal demo` as a newcomer sees it: its own page, the frame and the phone's window. The demo has no TLS front:
// a browser trusts this machine without one.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { choose, heading, launch, proceed, screenshot, shownPin, texts, violations, WAIT_MS, watchErrors } from "./support.mjs";

const bank = process.env.PINSEAL_BROWSER_DEMO ?? assert.fail("PINSEAL_BROWSER_DEMO is not set: the address of the sample site");
const words = texts("en");
let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

/** Opens the sample site in a new context, with the problems of each of its windows. */
async function openBank() {
  const context = await browser.newContext({ locale: "en-US", viewport: { width: 900, height: 1200 } });
  context.setDefaultTimeout(WAIT_MS);
  const problems = [];
  context.on("page", (page) => watchErrors(page, problems));
  const page = await context.newPage();
  await page.goto(`${bank}/`);
  const learned = async () => {
    const lines = await page.locator("#events li").allTextContents();
    return lines.map((line) => (line.startsWith("{") ? JSON.parse(line).event : line)).filter((line) => line !== "pin_valid");
  };
  return { context, page, problems, learned };
}

test("a PIN is set and viewed in the frame of the sample bank", async () => {
  const { context, page, problems, learned } = await openBank();
  assert.deepEqual(await violations(page), []);
  await screenshot(page, "demo", "bank");
  const frame = page.frameLocator("#frame iframe");
  await page.getByRole("button", { name: "Set PIN" }).click();
  await choose(frame, words, "739158264017");
  await heading(frame, words, "saved");
  await screenshot(page, "demo", "frame-saved");
  await page.getByRole("button", { name: "View PIN" }).click();
  await heading(frame, words, "view");
  await proceed(frame);
  await heading(frame, words, "your_pin");
  assert.equal(await shownPin(frame), "739158264017");
  await screenshot(page, "demo", "frame-shown");
  await proceed(frame);
  await heading(frame, words, "hidden");
  const steps = ["control opened: set-pin", "set_pin_success", "control opened: view-pin", "view_pin_success"];
  assert.deepEqual(await learned(), steps);
  assert.ok(!(await page.content()).includes("739158264017"));
  assert.deepEqual(problems, []);
  await context.close();
});

test("a PIN is set and viewed in the phone window of the sample bank", async () => {
  const { context, page, problems } = await openBank();
  await page.getByRole("radio", { name: /phone/ }).check();
  const opens = async (name) => {
    const opened = page.waitForEvent("popup");
    await page.getByRole("button", { name }).click();
    return opened;
  };
  const setting = await opens("Set PIN");
  await choose(setting, words, "480937");
  await heading(setting, words, "saved");
  await screenshot(setting, "demo", "phone-saved");
  await setting.close();
  const viewing = await opens("View PIN");
  await heading(viewing, words, "view");
  await proceed(viewing);
  await heading(viewing, words, "your_pin");
  assert.equal(await shownPin(viewing), "480937");
  await proceed(viewing);
  await heading(viewing, words, "hidden");
  assert.deepEqual(problems, []);
  await context.close();
});

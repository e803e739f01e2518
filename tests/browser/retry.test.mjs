// Calls of the page that get no answer, or are refused for a time: what is sent again, when, and what the page says at the end.
import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import {
  choose,
  freeze,
  heading,
  openPage,
  pass,
  recordNative,
  secondsLeft,
  Stage,
  texts,
  until,
} from "./support.mjs";

const words = texts("en");
/** How long the page sends a block again after the control expired. */
const CONFIRM_SECONDS = 20;
let stage;
let context;
let page;

before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());
beforeEach(async () => {
  await context?.close();
  context = await stage.context();
  await recordNative(context);
  await context.addInitScript(() => {
    window.answered = 0;
    const send = window.fetch;
    window.fetch = (...values) => send(...values).finally(() => (window.answered += 1));
  });
  page = await context.newPage();
  await page.clock.install();
});

/** Waits until the page has the answers of this number of calls. */
const answered = (calls) => until(() => page.evaluate((count) => window.answered === count, calls), `${calls} answers`);

/**
 * Opens a page whose calls of `set` get these answers, and reach the edge after them: a status, a status with a Retry-After, or
 * `undefined` for a lost connection. Returns the bodies of the calls, after the cardholder entered a PIN.
 */
async function setWith(...answers) {
  const bodies = [];
  await page.route("**/set", (route) => {
    const answer = answers[bodies.push(route.request().postData()) - 1];
    if (bodies.length > answers.length) return route.continue();
    if (answer === undefined) return route.abort("connectionreset");
    const [status, after] = [answer].flat();
    const headers = after === undefined ? {} : { "retry-after": String(after) };
    return route.fulfill({ status, headers, contentType: "application/json", body: "{}" });
  });
  await openPage(page, "SET_PIN");
  // Without time no call is repeated.
  await freeze(page);
  await choose(page, words, "48093");
  await until(() => bodies.length === 1, "the first call");
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  return bodies;
}

async function events() {
  const { android } = await page.evaluate(() => native);
  return android.map(([event]) => event).filter((event) => event !== "pin_valid");
}

const tryNow = () => page.getByRole("button", { name: words.try_now });

test("408, 429, 5xx and a lost connection are repeated with the same block", async () => {
  const answers = [408, 429, 500, 502, 503, 504, undefined];
  const bodies = await setWith(...answers);
  for (let calls = 2; calls <= answers.length + 1; calls++) {
    // With those of session and tzpk.
    await answered(calls + 1);
    // The longest pause of the page.
    await pass(page, 3_000);
    await until(() => bodies.length === calls, `call ${calls}`);
  }
  await heading(page, words, "saved");
  assert.equal(bodies.length, answers.length + 1);
  assert.equal(new Set(bodies).size, 1);
  assert.deepEqual(await events(), ["set_pin_success"]);
});

for (const status of [429, 503]) {
  test(`the page waits as long as the Retry-After of a ${status} says`, async () => {
    const bodies = await setWith([status, 30]);
    await tryNow().waitFor({ state: "hidden" });
    await page.evaluate(() => window.dispatchEvent(new Event("online")));
    await pass(page, 28_000);
    assert.equal(bodies.length, 1);
    await pass(page, 2_000);
    await heading(page, words, "saved");
    assert.equal(bodies.length, 2);
    assert.equal(bodies[0], bodies[1]);
  });
}

test("a short Retry-After leaves the button, which does not shorten it", async () => {
  const bodies = await setWith([503, 2]);
  await tryNow().click();
  await pass(page, 1_000);
  assert.equal(bodies.length, 1);
  await pass(page, 1_000);
  await heading(page, words, "saved");
});

for (const [status, ending] of [[429, "expired"], [503, "unconfirmed"]]) {
  test(`a Retry-After of a ${status} beyond the control ends with it`, async () => {
    const bodies = await setWith([status, 86_400]);
    const left = await secondsLeft(page);
    await pass(page, (left - 1) * 1_000);
    await heading(page, words, "repeat");
    await pass(page, (CONFIRM_SECONDS + 2) * 1_000);
    await heading(page, words, ending);
    assert.equal(bodies.length, 1);
    assert.deepEqual(await events(), ["set_pin_error"]);
  });
}

test("a call without an answer for 10 seconds is repeated", async () => {
  const bodies = [];
  let answer;
  const held = new Promise((resolve) => (answer = resolve));
  await page.route("**/set", (route) => {
    bodies.push(route.request().postData());
    return bodies.length === 1 ? held.then(() => route.abort()) : route.continue();
  });
  await openPage(page, "SET_PIN");
  await freeze(page);
  await choose(page, words, "48093");
  await until(() => bodies.length === 1, "the first call");
  await pass(page, 8_000);
  await page.getByRole("button", { name: words.saving }).waitFor();
  assert.ok(await page.locator(".loss").isHidden());
  await pass(page, 2_000);
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  await pass(page, 1_000);
  await heading(page, words, "saved");
  assert.equal(new Set(bodies).size, 1);
  answer();
});

test("a PIN is confirmed within 20 seconds after the control expired", async () => {
  const bodies = await setWith(undefined);
  await pass(page, ((await secondsLeft(page)) + CONFIRM_SECONDS / 2) * 1_000);
  await heading(page, words, "saved");
  assert.equal(bodies.length, 2);
  assert.deepEqual(await events(), ["set_pin_success"]);
});

test("a PIN without an answer until 20 seconds after the control expired is unconfirmed", async () => {
  const bodies = await setWith(undefined);
  await pass(page, ((await secondsLeft(page)) + CONFIRM_SECONDS + 1) * 1_000);
  await heading(page, words, "unconfirmed");
  assert.equal(bodies.length, 1);
  assert.deepEqual(await events(), ["set_pin_error"]);
});

test("a view is repeated until the control expires", async () => {
  let calls = 0;
  await page.route("**/view", (route) => {
    calls += 1;
    return route.abort("connectionreset");
  });
  await openPage(page, "VIEW_PIN");
  await freeze(page);
  await page.getByRole("button", { name: words.show }).click();
  await page.locator(".loss", { hasText: words.no_connection }).waitFor();
  await pass(page, 1_000);
  // The calls are session and twice view.
  await answered(3);
  assert.equal(calls, 2);
  await pass(page, (await secondsLeft(page)) * 1_000);
  await heading(page, words, "expired");
  assert.deepEqual(await events(), ["view_pin_error"]);
});

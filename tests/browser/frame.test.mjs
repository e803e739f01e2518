// The page in a frame: the parent window's messages, and windows that are not the parent.
import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import {
  choose,
  freeze,
  heading,
  nextCard,
  openControl,
  OTHER_SITE,
  pass,
  PARENT_SITE,
  problem,
  proceed,
  screenshot,
  settings,
  shownPin,
  Stage,
  texts,
  until,
  violations,
  watch,
  WRONG_SITE,
} from "./support.mjs";

const words = texts("en");
let stage;
let context;
let page;
let frame;
let problems;
let calls;

before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());
beforeEach(async () => {
  stage.policy = true;
  await context?.close();
  context = await stage.context();
  page = await context.newPage();
  problems = watch(page);
  calls = [];
  page.on("request", (request) => {
    const { host, pathname } = new URL(request.url());
    if (request.method() === "POST" && host === settings.publicUrl.host) calls.push(pathname.split("/").pop());
  });
  frame = page.frameLocator("#pin");
});

async function openParent(site) {
  await page.goto(`${site}/parent`);
  await heading(frame, words, "title");
}

/** The events that the parent received, without those of keystrokes. */
async function events() {
  const received = await page.evaluate(() => window.received);
  assert.ok(received.every(({ origin }) => origin === settings.publicUrl.origin));
  return received.map(({ data }) => data).filter(({ event }) => event !== "pin_valid");
}

for (const site of [PARENT_SITE, OTHER_SITE]) {
  test(`a PIN is set and viewed in a frame of ${site}`, async () => {
    const card = nextCard();
    await page.clock.install();
    await openParent(site);
    assert.deepEqual(await violations(page.frames()[1]), []);
    await send(page, "set-pin", (await openControl(card, "SET_PIN")).id);
    await choose(frame, words, "1234");
    await problem(frame, words, "weak");
    await screenshot(page, "frame", new URL(site).hostname, "weak");
    await choose(frame, words, "48093");
    await heading(frame, words, "saved");
    assert.deepEqual(await events(), [{ event: "set_pin_validation_error" }, { event: "set_pin_success" }]);
    const valid = await page.evaluate(() => received.find(({ data }) => data.pin_valid === true).data);
    assert.deepEqual(valid, { event: "pin_valid", pin_valid: true });
    await send(page, "view-pin", (await openControl(card, "VIEW_PIN")).id);
    await heading(frame, words, "view");
    // Without time the PIN does not disappear by its own countdown.
    await freeze(page);
    await proceed(frame);
    await heading(frame, words, "your_pin");
    assert.equal(await shownPin(frame), "48093");
    await screenshot(page, "frame", new URL(site).hostname, "shown");
    // The parent takes the focus.
    await page.evaluate(() => window.focus());
    await page.locator("h1").click();
    await heading(frame, words, "hidden");
    assert.equal((await events()).at(-1).event, "view_pin_success");
    assert.deepEqual(problems, []);
  });
}

test("a page without a control says nothing and calls nothing", async () => {
  await openParent(PARENT_SITE);
  assert.deepEqual(await events(), []);
  assert.deepEqual(calls, []);
});

test("a frame of a wrong origin gets no page", async () => {
  await page.goto(`${WRONG_SITE}/parent`);
  await until(() => page.frames().length === 3, "both frames");
  await until(() => page.frames()[1].url().startsWith("chrome-error:"), "the refused frame");
  assert.equal(await page.frames()[1].locator("main").count(), 0);
  await screenshot(page, "frame", "wrong-origin");
});

test("a page without a frame's key cannot be framed", async () => {
  const { pinURL, id } = await openControl(nextCard(), "SET_PIN");
  await page.goto(`${PARENT_SITE}/parent`);
  await page.evaluate(
    ([action, value]) => {
      const form = Object.assign(document.createElement("form"), { method: "post", action, target: "sibling" });
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "controlId", value }));
      document.body.append(form);
      form.submit();
    },
    [pinURL, id],
  );
  await until(() => page.frames().some((found) => found.url().startsWith("chrome-error:")), "the refused frame");
});

test("a message of a wrong origin is ignored", async () => {
  // Without the edge's frame-ancestors, as in a browser that does not know it.
  stage.policy = false;
  await openParent(WRONG_SITE);
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await settle();
  assert.deepEqual(calls, []);
  assert.deepEqual(await page.evaluate(() => received), []);
  await heading(frame, words, "title");
});

test("a message of a window that is not the parent is ignored", async () => {
  await openParent(PARENT_SITE);
  const { id } = await openControl(nextCard(), "SET_PIN");
  const sibling = page.frames().find((found) => found.url().endsWith("/sibling"));
  await sibling.evaluate(
    ([message, origin]) => parent.frames[0].postMessage(message, origin),
    [{ operation: "set-pin", controlId: id }, settings.publicUrl.origin],
  );
  await settle();
  assert.deepEqual(calls, []);
  await heading(frame, words, "title");
  // The same message of the parent starts the page.
  await send(page, "set-pin", id);
  await heading(frame, words, "choose");
});

/** A message of the page to itself is handled after every message that was sent before. */
async function settle() {
  await page.frames()[1].evaluate(
    () =>
      new Promise((handled) => {
        addEventListener("message", ({ data }) => data === "settled" && handled());
        postMessage("settled", "*");
      }),
  );
}

test("messages of other shapes are ignored", async () => {
  await openParent(PARENT_SITE);
  for (const message of [null, "set-pin", 1, {}, { operation: "set-pin" }, { operation: "other", controlId: "x" }, { controlId: "x" }]) {
    await page.evaluate(
      ([value, origin]) => document.getElementById("pin").contentWindow.postMessage(value, origin),
      [message, settings.publicUrl.origin],
    );
  }
  await settle();
  assert.deepEqual(calls, []);
  assert.deepEqual(problems, []);
});

test("an unknown control reports an error to the parent", async () => {
  await openParent(PARENT_SITE);
  await send(page, "view-pin", "00000000-0000-4000-8000-000000000000");
  await heading(frame, words, "expired");
  assert.deepEqual(await events(), [{ event: "view_pin_error" }]);
});

test("a control whose first answer was lost does not count as expired", async () => {
  await openParent(PARENT_SITE);
  await page.route("**/session", (route) =>
    route.fulfill({ status: 404, contentType: "application/json", body: '{"errorCode":"CONTROL_NOT_USABLE"}' }),
  );
  await page.route("**/session", (route) => route.abort("connectionreset"), { times: 1 });
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "failed");
  assert.deepEqual(await events(), [{ event: "set_pin_error" }]);
});

test("a page without network for the first call does not count as expired", async () => {
  await page.clock.install();
  await openParent(PARENT_SITE);
  await freeze(page);
  await page.route("**/session", (route) => route.abort("connectionreset"));
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await frame.locator(".loss", { hasText: words.no_connection }).waitFor();
  await pass(page, 20_000);
  await heading(frame, words, "failed");
  assert.deepEqual(await events(), [{ event: "set_pin_error" }]);
});

test("a control of the other operation reports an error", async () => {
  await openParent(PARENT_SITE);
  await send(page, "view-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "failed");
  assert.deepEqual(await events(), [{ event: "view_pin_error" }]);
});

test("a second message starts the page again", async () => {
  await openParent(PARENT_SITE);
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  await frame.locator(".key").first().click();
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await until(async () => (await frame.locator(".dot").count()) === 0, "an empty entry");
  await choose(frame, words, "48093");
  await heading(frame, words, "saved");
});

test("a PIN that arrives after a second message is not shown", async () => {
  const card = nextCard();
  await context.addInitScript(() => {
    const { decrypt } = SubtleCrypto.prototype;
    SubtleCrypto.prototype.decrypt = async function (...values) {
      const opened = await decrypt.apply(this, values);
      if (window.holdOpened) await new Promise((release) => (window.release = release));
      return opened;
    };
  });
  await openParent(PARENT_SITE);
  await send(page, "set-pin", (await openControl(card, "SET_PIN")).id);
  await choose(frame, words, "48093");
  await heading(frame, words, "saved");
  const inFrame = page.frames()[1];
  await inFrame.evaluate(() => (window.holdOpened = true));
  await send(page, "view-pin", (await openControl(card, "VIEW_PIN")).id);
  await heading(frame, words, "view");
  await proceed(frame);
  await until(() => inFrame.evaluate(() => window.release !== undefined), "the opened tzpk");
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  await inFrame.evaluate(() => {
    release();
    return new Promise((drawn) => setTimeout(drawn));
  });
  await heading(frame, words, "choose");
  assert.equal(await frame.locator(".digits").count(), 0);
  assert.deepEqual(await events(), [{ event: "set_pin_success" }]);
  await frame.locator(".timer", { hasText: words.time_left }).waitFor();
});

test("a frame leaves the focus in its parent", async () => {
  await openParent(PARENT_SITE);
  await page.evaluate(() => {
    document.querySelector("h1").tabIndex = 0;
    document.querySelector("h1").focus();
  });
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1");
  await page.keyboard.press("Tab");
  await page.keyboard.type("48093");
  await page.keyboard.press("Enter");
  await heading(frame, words, "repeat");
});

test("digits typed after a pressed key stay in the frame", async () => {
  await openParent(PARENT_SITE);
  await page.evaluate(() => {
    window.heard = [];
    addEventListener("keydown", ({ key }) => heard.push(key), true);
    document.querySelector("h1").tabIndex = 0;
    document.querySelector("h1").focus();
  });
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  await page.keyboard.press("1");
  assert.deepEqual(await page.evaluate(() => heard), ["1"]);
  await frame.locator(".key").first().click();
  await page.keyboard.type("8093");
  await until(async () => (await frame.locator(".dot").count()) === 5, "five digits");
  assert.deepEqual(await page.evaluate(() => heard), ["1"]);
});

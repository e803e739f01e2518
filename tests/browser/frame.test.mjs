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
  press,
  problem,
  proceed,
  recordMessages,
  screenshot,
  send,
  sendRaw,
  settings,
  shownPin,
  Stage,
  submitForm,
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

before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());
beforeEach(async () => {
  stage.policy = true;
  stage.network = "up";
  await context?.close();
  context = await stage.context();
  await openWindow();
});

async function openWindow() {
  await recordMessages(context);
  page = await context.newPage();
  problems = watch(page);
  frame = page.frameLocator("#pin");
}

async function openParent(site) {
  await page.goto(`${site}/parent`);
  await heading(frame, words, "title");
}

/** Sends a message of the frame to its parent: it arrives after those that the page sent before. */
async function settle() {
  await page.frames()[1].evaluate(() => parent.postMessage("settled", "*"));
  await until(() => page.evaluate(() => received.some(({ data }) => data === "settled")), "the message of the frame");
}

/** The events that the parent received, without those of keystrokes. */
async function events() {
  await settle();
  const received = await page.evaluate(() => window.received);
  assert.ok(received.every(({ origin }) => origin === settings.publicUrl.origin));
  return received.map(({ data }) => data).filter((data) => data !== "settled" && data.event !== "pin_valid");
}

/** Waits until this number of messages arrived in the frame. Returns the calls that the page began. */
async function callsAfter(messages) {
  const inFrame = page.frames()[1];
  await until(() => inFrame.evaluate((count) => delivered === count, messages), `${messages} messages in the frame`);
  return inFrame.evaluate(() => fetched);
}

/** Checks the document of the frame with axe-core, and keeps a screenshot. */
async function check(...names) {
  await screenshot(page, "frame", ...names);
  assert.deepEqual(await violations(page.frames()[1]), [], names.join(" "));
}

for (const site of [PARENT_SITE, OTHER_SITE]) {
  test(`a PIN is set and viewed in a frame of ${site}`, async () => {
    const card = nextCard();
    await page.clock.install();
    await openParent(site);
    const at = new URL(site).hostname;
    await check(at, "waiting");
    await send(page, "set-pin", (await openControl(card, "SET_PIN")).id);
    await heading(frame, words, "choose");
    await check(at, "choose");
    await choose(frame, words, "1234");
    await problem(frame, words, "weak");
    await check(at, "weak");
    await choose(frame, words, "48093");
    await heading(frame, words, "saved");
    await check(at, "saved");
    assert.deepEqual(await events(), [{ event: "set_pin_validation_error" }, { event: "set_pin_success" }]);
    const valid = await page.evaluate(() => received.find(({ data }) => data.pin_valid === true).data);
    assert.deepEqual(valid, { event: "pin_valid", pin_valid: true });
    await send(page, "view-pin", (await openControl(card, "VIEW_PIN")).id);
    await heading(frame, words, "view");
    await check(at, "view");
    // Without time the PIN does not disappear by its own countdown.
    await freeze(page);
    await proceed(frame);
    await heading(frame, words, "your_pin");
    assert.equal(await shownPin(frame), "48093");
    await check(at, "shown");
    // The parent takes the focus.
    await page.evaluate(() => window.focus());
    await page.locator("h1").click();
    await heading(frame, words, "hidden");
    await check(at, "hidden");
    assert.equal((await events()).at(-1).event, "view_pin_success");
    assert.deepEqual(problems, []);
  });
}

test("a page without a control says nothing and calls nothing", async () => {
  await openParent(PARENT_SITE);
  assert.deepEqual(await events(), []);
  assert.deepEqual(await callsAfter(0), []);
});

test("a frame of a wrong origin gets no page", async () => {
  await page.goto(`${WRONG_SITE}/parent`);
  await until(() => page.frames().length === 3, "both frames");
  await until(() => page.frames()[1].url().startsWith("chrome-error:"), "the refused frame");
  assert.equal(await page.frames()[1].locator("main").count(), 0);
  await screenshot(page, "frame", "wrong-origin");
});

test("a page without a frame's key cannot be framed", async () => {
  await page.goto(`${PARENT_SITE}/parent`);
  await submitForm(page, await openControl(nextCard(), "SET_PIN"), "sibling");
  await until(() => page.frames().some((found) => found.url().startsWith("chrome-error:")), "the refused frame");
});

test("a message of a wrong origin is ignored", async () => {
  // Without the edge's frame-ancestors, as in a browser that does not know it.
  stage.policy = false;
  await openParent(WRONG_SITE);
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  assert.deepEqual(await callsAfter(1), []);
  await settle();
  assert.deepEqual(await page.evaluate(() => received.map(({ data }) => data)), ["settled"]);
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
  assert.deepEqual(await callsAfter(1), []);
  await heading(frame, words, "title");
  // The same message of the parent starts the page.
  await send(page, "set-pin", id);
  await heading(frame, words, "choose");
});

test("messages of other shapes are ignored", async () => {
  await openParent(PARENT_SITE);
  const { id: controlId } = await openControl(nextCard(), "SET_PIN");
  const messages = [
    null,
    "set-pin",
    1,
    {},
    { operation: "set-pin" },
    { operation: "set-pin", controlId: 1 },
    { operation: "other", controlId },
    { operation: ["set-pin"], controlId },
    { controlId },
    [{ operation: "set-pin", controlId }],
  ];
  for (const message of messages) await sendRaw(page, message);
  assert.deepEqual(await callsAfter(messages.length), []);
  assert.deepEqual(await events(), []);
  assert.deepEqual(problems, []);
});

test("an unknown control reports an error to the parent", async () => {
  await openParent(PARENT_SITE);
  await send(page, "view-pin", "00000000-0000-4000-8000-000000000000");
  await heading(frame, words, "expired");
  await check("expired");
  assert.deepEqual(await events(), [{ event: "view_pin_error" }]);
});

test("a lost answer of the first call costs nothing", async () => {
  const bodies = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/session")) bodies.push(JSON.parse(request.postData()));
  });
  await openParent(PARENT_SITE);
  stage.network = "mute";
  const { id } = await openControl(nextCard(), "SET_PIN");
  await send(page, "set-pin", id);
  await frame.locator(".loss", { hasText: words.no_connection }).waitFor();
  stage.network = "up";
  await choose(frame, words, "48093");
  await heading(frame, words, "saved");
  assert.ok(bodies.length > 1);
  for (const body of bodies) assert.deepEqual(body, bodies[0]);
  const { controlId, pageId } = bodies[0];
  assert.equal(controlId, id);
  assert.match(pageId, /^[0-9a-f]{32}$/);
  assert.deepEqual(await events(), [{ event: "set_pin_success" }]);
  // The same control again is another page.
  await send(page, "set-pin", id);
  await heading(frame, words, "expired");
  assert.notEqual(bodies.at(-1).pageId, pageId);
});

test("a page without network for the first call says that the service cannot be reached", async () => {
  await page.clock.install();
  await openParent(PARENT_SITE);
  await freeze(page);
  await page.route("**/session", (route) => route.abort("connectionreset"));
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await frame.locator(".loss", { hasText: words.no_connection }).waitFor();
  await pass(page, 20_000);
  await heading(frame, words, "unavailable");
  await check("unavailable");
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

test("a repeated message of the present control changes nothing", async () => {
  await openParent(PARENT_SITE);
  const { id } = await openControl(nextCard(), "SET_PIN");
  await send(page, "set-pin", id);
  await send(page, "set-pin", id);
  await heading(frame, words, "choose");
  await press(frame, "48");
  await send(page, "set-pin", id);
  assert.deepEqual((await callsAfter(3)).filter((path) => path === "session"), ["session"]);
  await press(frame, "093");
  await proceed(frame);
  await heading(frame, words, "repeat");
  await press(frame, "48093");
  await proceed(frame);
  await heading(frame, words, "saved");
  assert.deepEqual(await events(), [{ event: "set_pin_success" }]);
});

test("the answer of a call that a second message ended changes nothing", async () => {
  let release;
  const held = new Promise((resolve) => (release = resolve));
  let sets = 0;
  await page.route("**/set", async (route) => {
    sets += 1;
    if (sets > 1) return route.continue();
    await held;
    // The page ended this call.
    await route.fulfill({ status: 200, contentType: "application/json", body: "{}" }).catch(() => {});
  });
  await openParent(PARENT_SITE);
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await choose(frame, words, "48093");
  await until(() => sets === 1, "the first call");
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  release();
  await press(frame, "480");
  await until(async () => (await frame.locator(".dot").count()) === 3, "three digits");
  assert.deepEqual(await events(), []);
  await press(frame, "93");
  await proceed(frame);
  await press(frame, "48093");
  await proceed(frame);
  await heading(frame, words, "saved");
  assert.deepEqual(await events(), [{ event: "set_pin_success" }]);
  assert.equal(sets, 2);
});

test("a frame in a browser that blocks its cookies reports an error", async () => {
  await context.close();
  context = await stage.contextWithoutCookies();
  await openWindow();
  await openParent(PARENT_SITE);
  assert.equal(await page.evaluate(() => (document.cookie = "a=b") && document.cookie), "");
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "failed");
  await check("blocked-cookies");
  assert.deepEqual(await events(), [{ event: "set_pin_error" }]);
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

test("a frame leaves the focus in its parent, and a PIN is set with the keyboard alone", async () => {
  await openParent(PARENT_SITE);
  await page.evaluate(() => {
    document.querySelector("h1").tabIndex = 0;
    document.querySelector("h1").focus();
  });
  await send(page, "set-pin", (await openControl(nextCard(), "SET_PIN")).id);
  await heading(frame, words, "choose");
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1");
  await page.keyboard.press("Tab");
  for (const step of ["choose", "repeat"]) {
    await heading(frame, words, step);
    await frame.locator(".field:focus").waitFor();
    await page.keyboard.type("48093");
    await page.keyboard.press("Enter");
  }
  await heading(frame, words, "saved");
  assert.deepEqual(await events(), [{ event: "set_pin_success" }]);
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

// Every state of the page in each size, colour scheme and language: its texts, axe-core, its size, what a screen reader gets, a
// screenshot.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
  assertFits,
  choose,
  freeze,
  heading,
  nextCard,
  openControl,
  openPage,
  pass,
  postForm,
  press,
  problem,
  proceed,
  screenshot,
  shownPin,
  Stage,
  texts,
  violations,
  watch,
} from "./support.mjs";
import { STORIES } from "./stories.mjs";

const SIZES = {
  small: { viewport: { width: 320, height: 568 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  desktop: { viewport: { width: 1280, height: 800 } },
};

let stage;
before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());

for (const size of Object.keys(SIZES)) {
  for (const colorScheme of ["light", "dark"]) {
    for (const language of ["en", "fi", "ar"]) {
      test(`each state is accessible: ${size}, ${colorScheme}, ${language}`, () => visitStates(size, colorScheme, language));
    }
  }
}
for (const language of ["sv", "de", "fr"]) {
  test(`each state fits a small phone: ${language}`, () => visitStates("small", "light", language));
}

async function visitStates(size, colorScheme, language) {
  const words = texts(language);
  const options = { ...SIZES[size], colorScheme, locale: language };
  stage.network = "up";
  const context = await stage.context(options);
  const page = await context.newPage();
  const problems = watch(page);
  // The time of the page stands still: no state ends while axe-core looks at it.
  await page.clock.install();
  const open = async (scope, onCard) => {
    // A call that fails on a busy machine is repeated.
    await page.clock.resume();
    const card = await openPage(page, scope, onCard);
    await heading(page, words, scope === "SET_PIN" ? "choose" : "view");
    await freeze(page);
    return card;
  };
  const state = async (label) => {
    await page.evaluate(() => document.fonts.ready);
    await screenshot(page, size, colorScheme, language, label);
    await assertFits(page, label);
    // The markup of the other languages is that of these.
    if (["en", "fi", "ar"].includes(language)) assert.deepEqual(await violations(page), [], label);
    if (size === "desktop" && language === "en") assert.equal(await story(page), STORIES[label], label);
  };

  const card = await open("SET_PIN");
  assert.equal(await page.locator("html").getAttribute("lang"), language);
  assert.equal(await page.locator("html").getAttribute("dir"), language === "ar" ? "rtl" : "ltr");
  await state("01-choose");
  assert.ok(await isInWindow(page.locator("button.main")), "the main button needs no scrolling");
  await press(page, "12");
  await page.evaluate(() => document.body.dispatchEvent(new Event("paste", { bubbles: true, cancelable: true })));
  await problem(page, words, "no_paste");
  await state("02-no-paste");
  await proceed(page);
  await problem(page, words, "too_short", { min: 4 });
  await state("03-too-short");
  await press(page, "34");
  await proceed(page);
  await heading(page, words, "repeat");
  await press(page, "12");
  await state("04-repeat");
  await press(page, "35");
  await proceed(page);
  await problem(page, words, "mismatch");
  await state("05-mismatch");
  const renewed = page.waitForResponse("**/tzpk");
  await choose(page, words, "1234");
  await problem(page, words, "weak");
  await renewed;
  await state("06-weak");
  stage.network = "away";
  await choose(page, words, "739158264017");
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  await state("07-not-confirmed");
  stage.network = "up";
  await page.locator(".loss button").click();
  await heading(page, words, "saved");
  await state("08-saved");

  await open("VIEW_PIN", card);
  await state("09-view");
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "739158264017");
  await state("10-shown");
  await pass(page, 10_000);
  await heading(page, words, "hidden");
  assert.equal(await shownPin(page), "");
  await state("11-hidden");

  await open("SET_PIN", card);
  await pass(page, 600_000);
  await heading(page, words, "expired");
  await state("12-expired");

  await open("VIEW_PIN");
  await proceed(page);
  await heading(page, words, "not_set");
  await state("13-not-set");

  await page.route("**/set", (route) => route.abort("connectionreset"), { times: 1 });
  await open("SET_PIN");
  await choose(page, words, "48093");
  await page.locator(".loss").waitFor();
  await page.route("**/set", (route) => answer(route, 404, {}));
  await page.locator(".loss button").click();
  await heading(page, words, "unconfirmed");
  await state("14-unconfirmed");

  await page.route("**/tzpk", (route) => answer(route, 400, {}));
  await page.clock.resume();
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "failed");
  await state("15-failed");

  await freeze(page);
  const session = hold();
  await page.route("**/session", (route) => session.held.then(() => route.abort()));
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "title");
  await state("16-opening");
  session.release();
  await page.unrouteAll({ behavior: "wait" });

  // These differ from the states above in their texts and a button.
  if (language === "en" || (size === "small" && colorScheme === "light")) {
    await page.route("**/view", (route) => answer(route, 409, { errorCode: "PIN_NOT_SHOWN" }));
    await open("VIEW_PIN");
    await proceed(page);
    await heading(page, words, "not_shown");
    await state("17-not-shown");

    await page.route("**/tzpk", (route) => answer(route, 503, {}, { "retry-after": "30" }), { times: 1 });
    await open("SET_PIN");
    await page.locator(".loss", { hasText: words.no_connection }).waitFor();
    await page.getByRole("button", { name: words.try_now }).waitFor({ state: "hidden" });
    await state("18-no-connection");

    const set = hold();
    await page.route("**/set", (route) => set.held.then(() => answer(route, 422, { errorCode: "BLOCK_INVALID" })));
    await open("SET_PIN");
    await choose(page, words, "48093");
    await page.getByRole("button", { name: words.saving }).waitFor();
    await state("19-saving");
    set.release();
    await heading(page, words, "failed");
    await page.locator("#hint", { hasText: words.unchanged_hint }).waitFor();
    await state("20-unchanged");
    await page.unrouteAll({ behavior: "wait" });

    await page.clock.resume();
    const { pinURL } = await openControl(nextCard(), "SET_PIN");
    const unavailable = await page.goto(`${pinURL}?state=unavailable`);
    assert.equal(unavailable.status(), 503);
    await heading(page, words, "unavailable");
    await state("21-unavailable");

    await page.addInitScript(() => Object.defineProperty(Crypto.prototype, "subtle", { value: undefined }));
    await postForm(page, await openControl(nextCard(), "SET_PIN"));
    await heading(page, words, "unsupported");
    await state("22-unsupported");

    const browser = await context.newCDPSession(page);
    await browser.send("Emulation.setScriptExecutionDisabled", { value: true });
    await page.goto(pinURL);
    await page.locator("noscript p").waitFor();
    assert.equal(await page.locator("noscript p").textContent(), words.no_script);
    assert.ok(await page.locator("noscript p").isVisible());
    // axe-core needs scripts, with which the browser hides the element.
    await browser.send("Emulation.setScriptExecutionDisabled", { value: false });
    await page.locator("noscript").evaluate((silent) => silent.replaceWith(...silent.childNodes));
    await state("23-no-script");
  }
  assert.deepEqual(problems, []);
  await context.close();
}

const answer = (route, status, body, headers = {}) =>
  route.fulfill({ status, headers, contentType: "application/json", body: JSON.stringify(body) });

function hold() {
  let release;
  return { held: new Promise((resolve) => (release = resolve)), release: () => release() };
}

/** The accessibility tree of a document, as a screen reader gets it, with the remaining time replaced. */
async function story(page) {
  const tree = await page.locator("body").ariaSnapshot();
  return tree.replace(/\d+:\d\d/g, "0:00");
}

async function isInWindow(locator) {
  const { y, height } = await locator.boundingBox();
  return y + height <= (await locator.page().evaluate(() => innerHeight));
}

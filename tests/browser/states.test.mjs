// Every state of the page: its texts, axe-core, its size, what a screen reader gets, a screenshot. Three visits have each size,
// colour scheme and language in one of them; with PINSEAL_BROWSER_ALL=1 each three of them meet.
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
import { storiesOf } from "./stories.mjs";

const SIZES = {
  small: { viewport: { width: 320, height: 568 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  desktop: { viewport: { width: 1280, height: 800 } },
};
/** The states of setting a PIN. */
const SET_STATES = /^0[1-8]-/;

let stage;
before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());

const VISITS =
  process.env.PINSEAL_BROWSER_ALL === "1"
    ? Object.keys(SIZES).flatMap((size) =>
        ["light", "dark"].flatMap((colorScheme) => ["en", "fi", "ar"].map((language) => [size, colorScheme, language])),
      )
    : [["desktop", "light", "en"], ["small", "dark", "fi"], ["phone", "dark", "ar"]];
for (const [size, colorScheme, language] of VISITS) {
  test(`each state is accessible: ${size}, ${colorScheme}, ${language}`, () => visitStates(size, colorScheme, language));
}
for (const language of ["sv", "de", "fr"]) {
  test(`each state fits a small phone: ${language}`, () => visitStates("small", "light", language));
}

async function visitStates(size, colorScheme, language) {
  stage.network = "up";
  const context = await stage.context({ ...SIZES[size], colorScheme, locale: language });
  const page = await context.newPage();
  const problems = watch(page);
  const visit = new Visit(page, size, colorScheme, language);
  // The time of the page stands still: no state ends while axe-core looks at it.
  await page.clock.install();
  const card = await visitEntry(visit);
  await visitView(visit, card);
  await visitFailures(visit);
  // These differ from the states above in their texts and a button.
  if (language === "en" || size === "small") {
    await visitRefusals(visit);
    await visitWithoutScripts(visit);
  }
  assert.deepEqual(problems, []);
  await context.close();
}

/** A page in one size, colour scheme and language. */
class Visit {
  constructor(page, size, colorScheme, language) {
    Object.assign(this, { page, size, colorScheme, language, words: texts(language) });
  }

  /** Opens a control, and stops the time of its page. Returns the card. */
  async open(scope, onCard) {
    // A call that fails on a busy machine is repeated.
    await this.page.clock.resume();
    const card = await openPage(this.page, scope, onCard);
    await heading(this.page, this.words, scope === "SET_PIN" ? "choose" : "view");
    await freeze(this.page);
    return card;
  }

  /** Checks the state of the page. */
  async state(label) {
    const { page, size, colorScheme, language, words } = this;
    await page.evaluate(() => document.fonts.ready);
    await screenshot(page, size, colorScheme, language, label);
    await assertFits(page, label);
    // The markup of the other languages is that of these.
    if (["en", "fi", "ar"].includes(language)) assert.deepEqual(await violations(page), [], label);
    const hasStory = language === "en" ? size !== "small" : language === "ar" && size === "phone" && SET_STATES.test(label);
    if (hasStory) assert.equal(await story(page), storiesOf(words)[label], label);
  }
}

/** Sets a PIN. Returns its card. */
async function visitEntry(visit) {
  const { page, words, language } = visit;
  const card = await visit.open("SET_PIN");
  assert.equal(await page.locator("html").getAttribute("lang"), language);
  assert.equal(await page.locator("html").getAttribute("dir"), language === "ar" ? "rtl" : "ltr");
  await visit.state("01-choose");
  assert.ok(await isInWindow(page.locator("button.main")), "the main button needs no scrolling");
  await press(page, "12");
  await page.evaluate(() => document.body.dispatchEvent(new Event("paste", { bubbles: true, cancelable: true })));
  await problem(page, words, "no_paste");
  await visit.state("02-no-paste");
  await proceed(page);
  await problem(page, words, "too_short", { min: 4 });
  await visit.state("03-too-short");
  await press(page, "34");
  await proceed(page);
  await heading(page, words, "repeat");
  await press(page, "12");
  await visit.state("04-repeat");
  await press(page, "35");
  await proceed(page);
  await problem(page, words, "mismatch");
  await visit.state("05-mismatch");
  const renewed = page.waitForResponse("**/tzpk");
  await choose(page, words, "1234");
  await problem(page, words, "weak");
  await renewed;
  await visit.state("06-weak");
  stage.network = "away";
  await choose(page, words, "739158264017");
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  await visit.state("07-not-confirmed");
  stage.network = "up";
  await page.locator(".loss button").click();
  await heading(page, words, "saved");
  await visit.state("08-saved");
  return card;
}

async function visitView(visit, card) {
  const { page, words } = visit;
  await visit.open("VIEW_PIN", card);
  await visit.state("09-view");
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "739158264017");
  await visit.state("10-shown");
  await pass(page, 10_000);
  await heading(page, words, "hidden");
  assert.equal(await shownPin(page), "");
  await visit.state("11-hidden");

  await visit.open("SET_PIN", card);
  await pass(page, 600_000);
  await heading(page, words, "expired");
  await visit.state("12-expired");

  await visit.open("VIEW_PIN");
  await proceed(page);
  await heading(page, words, "not_set");
  await visit.state("13-not-set");
}

async function visitFailures(visit) {
  const { page, words } = visit;
  await page.route("**/set", (route) => route.abort("connectionreset"), { times: 1 });
  await visit.open("SET_PIN");
  await choose(page, words, "48093");
  await page.locator(".loss").waitFor();
  await page.route("**/set", (route) => answer(route, 404, {}));
  await page.locator(".loss button").click();
  await heading(page, words, "unconfirmed");
  await visit.state("14-unconfirmed");

  await page.route("**/tzpk", (route) => answer(route, 400, {}));
  await page.clock.resume();
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "failed");
  await visit.state("15-failed");

  await freeze(page);
  const session = hold();
  await page.route("**/session", (route) => session.held.then(() => route.abort()));
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "title");
  await visit.state("16-opening");
  session.release();
  await page.unrouteAll({ behavior: "wait" });
}

async function visitRefusals(visit) {
  const { page, words } = visit;
  await page.route("**/view", (route) => answer(route, 409, { errorCode: "PIN_NOT_SHOWN" }));
  await visit.open("VIEW_PIN");
  await proceed(page);
  await heading(page, words, "not_shown");
  await visit.state("17-not-shown");

  await page.route("**/tzpk", (route) => answer(route, 503, {}, { "retry-after": "30" }), { times: 1 });
  await visit.open("SET_PIN");
  await page.locator(".loss", { hasText: words.no_connection }).waitFor();
  await page.getByRole("button", { name: words.try_now }).waitFor({ state: "hidden" });
  await visit.state("18-no-connection");

  const set = hold();
  await page.route("**/set", (route) => set.held.then(() => answer(route, 422, { errorCode: "BLOCK_INVALID" })));
  await visit.open("SET_PIN");
  await choose(page, words, "48093");
  await page.getByRole("button", { name: words.saving }).waitFor();
  await visit.state("19-saving");
  set.release();
  await heading(page, words, "failed");
  await page.locator("#hint", { hasText: words.unchanged_hint }).waitFor();
  await visit.state("20-unchanged");
  await page.unrouteAll({ behavior: "wait" });

  await page.clock.resume();
  const { pinURL } = await openControl(nextCard(), "SET_PIN");
  const unavailable = await page.goto(`${pinURL}?state=unavailable`);
  assert.equal(unavailable.status(), 503);
  await heading(page, words, "unavailable");
  await visit.state("21-unavailable");
}

async function visitWithoutScripts(visit) {
  const { page, words } = visit;
  await page.addInitScript(() => Object.defineProperty(Crypto.prototype, "subtle", { value: undefined }));
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "unsupported");
  await visit.state("22-unsupported");

  const browser = await page.context().newCDPSession(page);
  await browser.send("Emulation.setScriptExecutionDisabled", { value: true });
  const { pinURL } = await openControl(nextCard(), "SET_PIN");
  await page.goto(pinURL);
  await page.locator("noscript p").waitFor();
  assert.equal(await page.locator("noscript p").textContent(), words.no_script);
  assert.ok(await page.locator("noscript p").isVisible());
  // axe-core needs scripts, with which the browser hides the element.
  await browser.send("Emulation.setScriptExecutionDisabled", { value: false });
  await page.locator("noscript").evaluate((silent) => silent.replaceWith(...silent.childNodes));
  await visit.state("23-no-script");
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

// Every state of the page in each size, colour scheme and language: its texts, axe-core, its size, a screenshot.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import {
  choose,
  freeze,
  heading,
  nextCard,
  openControl,
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

const SIZES = {
  small: { viewport: { width: 320, height: 568 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  phone: { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  desktop: { viewport: { width: 1280, height: 800 } },
};
/** The smallest touch target, in CSS pixels. */
const TARGET_MIN = 48;

let stage;
before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());

for (const [size, device] of Object.entries(SIZES)) {
  for (const colorScheme of ["light", "dark"]) {
    for (const language of ["en", "fi", "ar"]) {
      test(`each state is accessible: ${size}, ${colorScheme}, ${language}`, async () => {
        await visitStates(`${size}-${colorScheme}-${language}`, { ...device, colorScheme, locale: language }, language);
      });
    }
  }
}

async function visitStates(name, options, language) {
  const words = texts(language);
  stage.network = "up";
  const context = await stage.context(options);
  const page = await context.newPage();
  const problems = watch(page);
  // The time of the page stands still: no state ends while axe-core looks at it.
  await page.clock.install();
  const open = async (onCard, scope) => {
    const keyed = scope === "SET_PIN" && page.waitForResponse("**/tzpk");
    await postForm(page, await openControl(onCard, scope));
    await keyed;
    await heading(page, words, scope === "SET_PIN" ? "choose" : "view");
    await freeze(page);
  };
  const state = async (label) => {
    await page.evaluate(() => document.fonts.ready);
    await screenshot(page, name, label);
    assert.deepEqual(await violations(page), [], label);
    const { overflow, small } = await page.evaluate((min) => {
      const { scrollWidth, clientWidth } = document.documentElement;
      const boxes = [...document.querySelectorAll("button")];
      const sizes = boxes.map((button) => [button.textContent, button.getBoundingClientRect()]);
      return {
        overflow: scrollWidth - clientWidth,
        small: sizes.filter(([, { width, height }]) => width > 0 && (width < min || height < min)).map(([text]) => text),
      };
    }, TARGET_MIN);
    assert.equal(overflow, 0, `${label} is wider than the window`);
    assert.deepEqual(small, [], `${label} has targets below ${TARGET_MIN} pixels`);
  };
  const card = nextCard();

  await open(card, "SET_PIN");
  assert.equal(await page.locator("html").getAttribute("lang"), language);
  assert.equal(await page.locator("html").getAttribute("dir"), language === "ar" ? "rtl" : "ltr");
  await state("01-choose");
  assert.ok(await isInWindow(page.locator("button.main")), "the main button needs no scrolling");
  await press(page, "12");
  await proceed(page);
  await problem(page, words, "too_short", { min: 4 });
  await state("02-too-short");
  await press(page, "34");
  await proceed(page);
  await heading(page, words, "repeat");
  await press(page, "12");
  await state("03-repeat");
  await press(page, "35");
  await proceed(page);
  await problem(page, words, "mismatch");
  await state("04-mismatch");
  const renewed = page.waitForResponse("**/tzpk");
  await choose(page, words, "1234");
  await problem(page, words, "weak");
  await renewed;
  await state("05-weak");
  stage.network = "away";
  await choose(page, words, "739158264017");
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  await state("06-not-confirmed");
  stage.network = "up";
  await page.locator(".loss button").click();
  await heading(page, words, "saved");
  await state("07-saved");

  await open(card, "VIEW_PIN");
  await state("08-view");
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "739158264017");
  await state("09-shown");
  await pass(page, 10_000);
  await heading(page, words, "hidden");
  assert.equal(await shownPin(page), "");
  await state("10-hidden");

  await open(card, "SET_PIN");
  await pass(page, 600_000);
  await heading(page, words, "expired");
  await state("11-expired");

  await open(nextCard(), "VIEW_PIN");
  await proceed(page);
  await heading(page, words, "not_set");
  await state("12-not-set");

  await page.route("**/set", (route) => route.abort("connectionreset"), { times: 1 });
  await open(nextCard(), "SET_PIN");
  await choose(page, words, "48093");
  await page.locator(".loss").waitFor();
  await page.route("**/set", (route) => route.fulfill({ status: 404, contentType: "application/json", body: "{}" }));
  await page.locator(".loss button").click();
  await heading(page, words, "unconfirmed");
  await state("13-unconfirmed");

  await page.route("**/tzpk", (route) => route.fulfill({ status: 400, contentType: "application/json", body: "{}" }));
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "failed");
  await state("14-failed");

  let answer;
  const held = new Promise((resolve) => (answer = resolve));
  await page.route("**/session", (route) => held.then(() => route.abort()));
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "title");
  await state("15-opening");
  answer();
  await page.unrouteAll({ behavior: "wait" });

  assert.deepEqual(problems, []);
  await context.close();
}

async function isInWindow(locator) {
  const { y, height } = await locator.boundingBox();
  return y + height <= (await locator.page().evaluate(() => innerHeight));
}

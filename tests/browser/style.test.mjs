// The operator's page: its logo, colours and language, its screenshots, and the weight of the page that the edge sends.
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { after, before, test } from "node:test";
import {
  assertFits,
  heading,
  nextCard,
  openControl,
  openPage,
  press,
  postForm,
  proceed,
  screenshot,
  settings,
  Stage,
  texts,
  violations,
  watch,
} from "./support.mjs";

/** The limit of document, script, style and icon with gzip. A logo is the operator's, and the page under test has none. */
const WEIGHT_MAX_BYTES = 25_000;
/** `web_view.toml`, as a browser computes it. */
const COLOURS = {
  light: { accent: "rgb(122, 31, 61)", surface: "rgb(255, 250, 245)", text: "rgb(43, 26, 20)" },
  dark: { accent: "rgb(242, 184, 198)", surface: "rgb(35, 22, 26)", text: "rgb(247, 236, 239)" },
};
const SIZES = {
  small: { viewport: { width: 320, height: 568 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 },
  desktop: { viewport: { width: 1280, height: 800 } },
};

let stage;
before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());

for (const [size, device] of Object.entries(SIZES)) {
  for (const colorScheme of ["light", "dark"]) {
    test(`the page has the operator's logo and colours: ${size}, ${colorScheme}`, async () => {
      const context = await stage.context({ ...device, colorScheme });
      const page = await context.newPage();
      const problems = watch(page);
      const words = texts("de");
      const state = async (label) => {
        await screenshot(page, "styled", size, colorScheme, label);
        assert.deepEqual(await violations(page), [], label);
        await assertFits(page, label);
      };
      const control = await openControl(nextCard(), "SET_PIN");
      await postForm(page, { ...control, pinURL: control.pinURL.replace(/[^/]+$/, settings.styledPage) });
      await heading(page, words, "choose");
      await press(page, "48093");
      await page.locator("#logo").evaluate((logo) => logo.decode());
      assert.ok((await page.locator("#logo").boundingBox()).width > 100);
      const { accent, surface, text } = COLOURS[colorScheme];
      const style = (selector, name) => page.locator(selector).evaluate((element, of) => getComputedStyle(element)[of], name);
      assert.equal(await style("button.main", "backgroundColor"), accent);
      assert.equal(await style(size === "desktop" ? "main" : "body", "backgroundColor"), surface);
      assert.equal(await style("h1", "color"), text);
      assert.match(await style("body", "fontFamily"), /serif/);
      assert.equal(await style("button.main", "borderRadius"), "4px");
      await state("choose");
      await proceed(page);
      await press(page, "48093");
      await proceed(page);
      await heading(page, words, "saved");
      await state("saved");
      assert.deepEqual(problems, []);
      await context.close();
    });
  }
}

test("the page that the edge sends weighs less than 25 kB in each language", async () => {
  const languages = readdirSync(new URL("../../web/languages/", import.meta.url)).map((name) => name.replace(".json", ""));
  assert.equal(languages.length, 6);
  for (const locale of languages) {
    const context = await stage.context({ locale });
    const page = await context.newPage();
    await openPage(page, "SET_PIN");
    await heading(page, texts(locale), "choose");
    const loaded = await page.evaluate(async () => {
      // A browser without a window loads no icon.
      await fetch(document.querySelector("link[rel=icon]").href);
      const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
      return entries.map(({ name, encodedBodySize }) => [new URL(name).pathname.split("/").pop(), encodedBodySize]);
    });
    const sizes = Object.fromEntries(loaded);
    for (const name of [settings.page, "page.js", "page.css", "style.css", "icon.svg"]) assert.ok(name in sizes, `${name} in ${Object.keys(sizes)}`);
    assert.ok(sizes[settings.page] > 1_000 && sizes["page.js"] > 1_000 && sizes["page.css"] > 1_000, JSON.stringify(sizes));
    const sum = Object.values(sizes).reduce((all, size) => all + size, 0);
    assert.ok(sum < WEIGHT_MAX_BYTES, `${locale}: ${sum} bytes, ${JSON.stringify(sizes)}`);
    await context.close();
  }
});

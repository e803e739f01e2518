// Drives /docs and /docs/guide of a running edge in Chromium.
//
// PINSEAL_DOCS_URL          the edge, for example http://127.0.0.1:8080
// PINSEAL_DOCS_TOKEN        the bearer token of a client
// PINSEAL_DOCS_BASIC_URL    an edge with a client that has a password
// PINSEAL_DOCS_BASIC_USER, PINSEAL_DOCS_BASIC_PASSWORD
// PINSEAL_CHROMIUM          the browser, /usr/bin/chromium by default
// PINSEAL_BROWSER_ALL       1: both pages in five windows, not in two
// PINSEAL_SCREENSHOTS       the folder of the screenshots, ./screenshots by default
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const required = (name) => process.env[name] ?? assert.fail(`${name} is not set`);
const edge = required("PINSEAL_DOCS_URL");
const token = required("PINSEAL_DOCS_TOKEN");
const basicEdge = required("PINSEAL_DOCS_BASIC_URL");
const basic = { user: required("PINSEAL_DOCS_BASIC_USER"), password: required("PINSEAL_DOCS_BASIC_PASSWORD") };
const screenshots = process.env.PINSEAL_SCREENSHOTS ?? new URL("screenshots", import.meta.url).pathname;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const DESKTOP = { width: 1280, height: 900 };
const PHONE = { width: 390, height: 844 };
const SMALL = { width: 320, height: 640 };
const UUID = /[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}/;

let browser;
before(async () => {
  mkdirSync(screenshots, { recursive: true });
  const executablePath = process.env.PINSEAL_CHROMIUM ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
});
after(() => browser?.close());

/** Runs `work` on a page that fails the test for a console error, an exception or a request to another origin. */
async function visit(base, path, { viewport = DESKTOP, colorScheme = "light" }, work) {
  const context = await browser.newContext({ viewport, colorScheme });
  context.setDefaultTimeout(180_000);
  const wrong = [];
  try {
    const page = await context.newPage();
    page.on("console", (message) => {
      // The browser reports each answer of 400 or more, which the test provokes.
      const provoked = message.text().startsWith("Failed to load resource: the server responded");
      if (["error", "warning"].includes(message.type()) && !provoked) wrong.push(message.text());
    });
    page.on("pageerror", (error) => wrong.push(String(error)));
    page.on("request", (request) => {
      const { protocol, origin } = new URL(request.url());
      if (protocol !== "data:" && origin !== base) wrong.push(`a request to ${request.url()}`);
    });
    await page.goto(base + path);
    await work(page, context);
    assert.deepEqual(wrong, []);
  } finally {
    await context.close();
  }
}

const operation = (page, id) => page.locator(`.opblock[id$="-${id}"]`);

async function openReference(base, options, work) {
  await visit(base, "/docs", options, async (page, context) => {
    await page.locator(".opblock").first().waitFor();
    await work(page, context);
  });
}

async function authorize(page, fill) {
  await page.locator(".scheme-container .btn.authorize").click();
  const dialog = page.locator(".modal-ux");
  await fill(dialog);
  await dialog.locator(".btn-done").first().click();
  await dialog.waitFor({ state: "detached" });
}

const authorizeBearer = (value) => async (dialog) => {
  const part = dialog.locator(".auth-container", { has: dialog.page().locator("#auth-bearer-value") });
  await part.locator("#auth-bearer-value").fill(value);
  await part.locator("button.authorize").click();
};

const authorizeBasic = ({ user, password }) => async (dialog) => {
  const part = dialog.locator(".auth-container", { has: dialog.page().locator("#auth-basic-username, #auth_username") });
  await part.locator("#auth-basic-username, #auth_username").fill(user);
  await part.locator("#auth-basic-password, #auth_password").fill(password);
  await part.locator("button.authorize").click();
};

/** Sends the example request of an operation and returns the shown status and body. */
async function execute(page, id, body) {
  const block = operation(page, id);
  await block.locator(".opblock-summary-control").click();
  if (body) await block.locator("textarea.body-param__text").fill(JSON.stringify(body));
  await block.locator(".btn.execute").click();
  const row = block.locator(".live-responses-table tr.response").first();
  await row.waitFor();
  const status = (await row.locator(".response-col_status").innerText()).trim().slice(0, 3);
  return { status, text: await row.locator(".response-col_description").innerText(), block };
}

async function violations(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.slice(0, 4).map((node) => `${node.html.slice(0, 160)} ${node.any[0]?.message ?? ""}`), count: nodes.length }));
}

const assertAccessible = async (page) => assert.deepEqual(await violations(page), []);

const assertNoSidewaysScroll = async (page) => {
  const { wide, view } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth, view: innerWidth }));
  assert.ok(wide <= view, `the page is ${wide} wide in a window of ${view}`);
};

/** Texts keep most of the window's width: none is a column of some characters. */
async function assertReadable(page) {
  const widths = await page.locator(".opblock.is-open td.response-col_description:visible").evaluateAll((cells) => cells.map((cell) => cell.clientWidth));
  const view = page.viewportSize().width;
  assert.ok(widths.length > 5 && widths.every((width) => width > view * 0.45), `${widths} of ${view}`);
}

test("the reference shows each operation of the contract", async () => {
  const contract = await (await fetch(`${edge}/openapi.json`)).json();
  const operations = Object.values(contract.paths).flatMap((item) => Object.values(item));
  await openReference(edge, {}, async (page) => {
    for (const { operationId, summary } of operations) {
      const block = operation(page, operationId);
      assert.equal(await block.count(), 1, operationId);
      assert.ok((await block.innerText()).includes(summary), summary);
      assert.equal(await page.locator("#operation-list a", { hasText: new RegExp(`${summary}$`) }).count(), 1, summary);
    }
    assert.ok((await page.locator(".info").innerText()).includes("ROUTE_UNKNOWN"));
  });
});

test("a link of the list opens its operation, and so does an address", async () => {
  await openReference(edge, {}, async (page) => {
    await page.locator("#operation-list a", { hasText: "Issues a tzpk under a control" }).click();
    await operation(page, "issueTzpk").locator(".btn.execute").waitFor();
    assert.ok(page.url().endsWith("#/Set%20PIN/issueTzpk"), page.url());
  });
  await visit(edge, "/docs#/Set%20PIN/setPin", {}, async (page) => {
    await operation(page, "setPin").locator(".btn.execute").waitFor();
    assert.ok((await operation(page, "setPin").innerText()).includes("PIN_BLOCK_MALFORMED"));
  });
});

test("try-it-out opens a control with a bearer token and uses it", async () => {
  await openReference(edge, {}, async (page, context) => {
    await authorize(page, authorizeBearer(token));
    const sent = page.waitForRequest((request) => request.method() === "POST");
    const opened = await execute(page, "openControl");
    assert.equal(opened.status, "201", opened.text);
    assert.ok(new URL((await sent).url()).searchParams.get("auditUser"), "auditUser is in the query");
    const [controlId] = opened.text.match(UUID);
    const { publicKey } = JSON.parse(await exampleBody(page, "issueTzpk"));
    const issued = await execute(page, "issueTzpk", { controlId, publicKey });
    assert.equal(issued.status, "200", issued.text);
    assert.match(issued.text, /"tzpk": "[A-Za-z0-9+/]{342}==/);

    // The credential is in memory alone.
    const kept = await page.evaluate(() => ({ local: { ...localStorage }, session: { ...sessionStorage }, cookies: document.cookie }));
    assert.deepEqual(kept, { local: {}, session: {}, cookies: "" });
    assert.deepEqual(await context.cookies(), []);
    await page.reload();
    const { status, text } = await execute(page, "openControl");
    assert.equal(status, "401", text);
  });
});

/** The example body that the page shows for an operation, which it opens and closes. */
async function exampleBody(page, id) {
  const block = operation(page, id);
  await block.locator(".opblock-summary-control").click();
  const text = await block.locator("textarea.body-param__text").inputValue();
  await block.locator(".opblock-summary-control").click();
  return text;
}

test("try-it-out sends Basic credentials, and shows the error of wrong ones", async () => {
  await openReference(basicEdge, {}, async (page) => {
    await authorize(page, authorizeBasic(basic));
    const { status, text } = await execute(page, "openControl", { scope: "VIEW_PIN" });
    assert.equal(status, "201", text);
  });
  await openReference(basicEdge, {}, async (page) => {
    await authorize(page, authorizeBasic({ ...basic, password: "wrong-password-0123456789" }));
    const { status, text } = await execute(page, "openControl", { scope: "VIEW_PIN" });
    assert.equal(status, "401", text);
    assert.match(text, /UNAUTHENTICATED/);
  });
});

test("the keyboard alone opens the dialog, stays in it, leaves it and sends a request", async () => {
  await openReference(edge, {}, async (page) => {
    const authorizeButton = page.locator(".scheme-container .btn.authorize");
    await authorizeButton.focus();
    await page.keyboard.press("Enter");
    const dialog = page.getByRole("dialog", { name: "Credentials" });
    await dialog.locator(".modal-ux").waitFor();
    const inside = () => dialog.evaluate((node) => node.contains(document.activeElement));
    const stops = await dialog.locator("button, input, a[href]").count();
    for (const key of ["Tab", "Shift+Tab"]) {
      for (let at = 0; at <= stops; at += 1) {
        assert.ok(await inside(), `${key} ${at}`);
        await page.keyboard.press(key);
      }
    }
    await dialog.locator("#auth-bearer-value").focus();
    await page.keyboard.type(token);
    await page.keyboard.press("Enter");
    await dialog.getByRole("button", { name: "Logout" }).waitFor();
    await page.keyboard.press("Escape");
    await dialog.waitFor({ state: "detached" });
    assert.ok(await authorizeButton.evaluate((button) => button === document.activeElement), "the focus returns");

    const block = operation(page, "openControl");
    await block.locator(".opblock-summary-control").focus();
    await page.keyboard.press("Enter");
    await block.locator(".btn.execute").focus();
    await page.keyboard.press("Enter");
    const row = block.locator(".live-responses-table tr.response").first();
    await row.waitFor();
    assert.match(await row.innerText(), /^201/);
  });
});

test("a contract that cannot be read is reported on the page", async () => {
  await visit(edge, "/docs/guide", {}, async (page) => {
    await page.route("**/openapi.json", (route) => route.fulfill({ status: 503, body: "" }));
    await page.locator(".bar nav a", { hasText: "Reference" }).click();
    assert.match(await page.getByRole("alert").innerText(), /could not be read/);
  });
});

test("the policy blocks other hosts, inline code, eval and markup with scripts", async () => {
  const context = await browser.newContext();
  try {
    const page = await context.newPage();
    await page.goto(`${edge}/docs`);
    await page.locator(".opblock").first().waitFor();
    const tried = await page.evaluate(async (other) => {
      const reached = await fetch(`${other}/healthz`, { mode: "no-cors" }).then(() => true, () => false);
      const script = document.createElement("script");
      try { script.textContent = "globalThis.ranInline = true"; document.body.append(script); } catch { /* Trusted Types */ }
      // DevTools may use eval where the policy forbids it: a timer runs outside its call.
      const ranEval = await new Promise((done) => setTimeout(() => {
        try { done((0, eval)("1") === 1); } catch { done(false); }
      }));
      const made = document.createElement("div");
      made.innerHTML = "<img src=x onerror=alert(1)><b>bold</b>";
      return { reached, inline: globalThis.ranInline === true, eval: ranEval, markup: made.innerHTML };
    }, basicEdge);
    assert.deepEqual(tried, { reached: false, inline: false, eval: false, markup: '<img src="x"><b>bold</b>' });
  } finally {
    await context.close();
  }
});

test("each section link of the guide has its section, and the guide runs no script", async () => {
  await visit(edge, "/docs/guide", {}, async (page) => {
    const missing = await page.locator(".side a").evaluateAll((links) => {
      return links.map((link) => link.getAttribute("href")).filter((href) => !document.getElementById(href.slice(1)));
    });
    assert.deepEqual(missing, []);
    assert.equal(await page.locator("script").count(), 0);
    await page.locator(".bar nav a", { hasText: "Reference" }).click();
    await page.locator(".opblock").first().waitFor();
  });
});

const WINDOWS = [["light", "desktop", DESKTOP], ["dark", "small", SMALL]];
const MORE_WINDOWS = [["dark", "desktop", DESKTOP], ["dark", "phone", PHONE], ["light", "phone", PHONE]];
for (const [colorScheme, size, viewport] of process.env.PINSEAL_BROWSER_ALL === "1" ? [...WINDOWS, ...MORE_WINDOWS] : WINDOWS) {
  test(`both pages are accessible: ${colorScheme}, ${size}`, async () => {
    const shot = (page, name, fullPage = false) => page.screenshot({ path: `${screenshots}/${name}-${size}-${colorScheme}.png`, fullPage });
    await openReference(edge, { viewport, colorScheme }, async (page) => {
      await shot(page, "reference");
      await assertNoSidewaysScroll(page);
      await assertAccessible(page);
      await page.locator(".scheme-container .btn.authorize").click();
      await page.locator(".modal-ux").waitFor();
      await shot(page, "authorize");
      await assertAccessible(page);
      await page.locator(".modal-ux .close-modal").click();
      await authorize(page, authorizeBearer(token));
      const { status, block } = await execute(page, "openControl");
      assert.equal(status, "201");
      await block.scrollIntoViewIfNeeded();
      await shot(page, "control", true);
      await assertReadable(page);
      await assertNoSidewaysScroll(page);
      await assertAccessible(page);

      const schemas = page.locator("section.models");
      await schemas.locator("h4 button").first().click();
      await schemas.getByText("ErrorBody").click();
      await schemas.getByText("The body of every error").waitFor();
      await schemas.scrollIntoViewIfNeeded();
      await shot(page, "schemas");
      await assertNoSidewaysScroll(page);
      await assertAccessible(page);
    });
    await visit(edge, "/docs/guide", { viewport, colorScheme }, async (page) => {
      await shot(page, "guide");
      await assertNoSidewaysScroll(page);
      await assertAccessible(page);
      await page.locator("#errors").scrollIntoViewIfNeeded();
      await shot(page, "guide-errors");
    });
  });
}

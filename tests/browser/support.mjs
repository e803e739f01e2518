// What the browser tests share: the settings that the starting test gives, a TLS front for the edge like an operator's proxy,
// the sites of parent windows, and the browser.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import axe from "axe-core";
import { chromium } from "playwright-core";

/** How long a condition may take. The machine stalls for seconds; no test measures time. */
export const WAIT_MS = 60_000;

export const settings = {
  /** The URL of the edge's listener, such as `http://127.0.0.1:8080`. */
  get edge() {
    return setting("EDGE");
  },
  /** `[web_view] public_url` of the edge. The front answers at its origin. */
  get publicUrl() {
    return new URL(setting("PUBLIC_URL"));
  },
  /** The bearer token of the client of the pages. */
  get token() {
    return setting("TOKEN");
  },
  /** The key of the page. Its origins are PARENT_SITE and OTHER_SITE, and a viewed PIN is shown for 10 seconds. */
  get page() {
    return setting("PAGE");
  },
  /** The key of a page of the same client with a logo, the operator's style and the language German. */
  get styledPage() {
    return setting("STYLED_PAGE");
  },
  /** The first plasticId for the tests. Each test takes the next number. */
  get plasticId() {
    return BigInt(setting("PLASTIC_ID"));
  },
  /** The starting test watches this directory: a file `engine-away` stops the engine, `engine-back` starts it. It removes the file when done. */
  get control() {
    return setting("CONTROL");
  },
  /** The logs of edge and engine, with `:` between them. */
  get logs() {
    return setting("LOGS").split(":");
  },
  /** Where screenshots are kept. */
  get artifacts() {
    return setting("ARTIFACTS");
  },
};

function setting(name) {
  const value = process.env[`PINSEAL_BROWSER_${name}`];
  if (!value) throw new Error(`PINSEAL_BROWSER_${name} is not set: README.md of tests/browser lists the variables`);
  return value;
}

/** A parent window of the operator on another site than the page. */
export const PARENT_SITE = "https://shop.example";
/** A parent window of the operator on the site of the page. */
export const OTHER_SITE = "https://bank.example";
/** A parent window that the page does not accept. */
export const WRONG_SITE = "https://evil.example";

const CHROMIUM = "/usr/bin/chromium";
/** The smallest touch target, in CSS pixels. */
const TARGET_MIN = 48;

/** The options with which every test starts Chromium. */
function optionsWith(...more) {
  // Accept-Language of a persistent profile comes from --lang alone.
  const args = ["--no-sandbox", "--disable-dev-shm-usage", "--lang=en-US", ...more];
  return { executablePath: CHROMIUM, headless: true, args };
}

/** Chromium without the stage: host names are those of this machine. */
export function launch() {
  return chromium.launch(optionsWith());
}

export function texts(language) {
  return JSON.parse(readFileSync(new URL(`../../web/languages/${language}.json`, import.meta.url), "utf8"));
}

/** The TLS front, the parent sites and the browser. */
export class Stage {
  #server;
  #browser;
  #directory = mkdtempSync(join(tmpdir(), "pinseal-browser-"));
  #closing = [];
  /** "up", "away": no connection, or "mute": requests reach the edge, and their answers are lost. */
  network = "up";
  /** Replaces the script of the page. */
  script = undefined;
  /** Whether the answers of the edge arrive with their Content-Security-Policy. */
  policy = true;

  static async open() {
    const stage = new Stage();
    await stage.#serve();
    return stage;
  }

  async close() {
    for (const close of this.#closing.reverse()) await close();
    await this.#browser?.close();
    this.#server.closeAllConnections();
    await new Promise((closed) => this.#server.close(closed));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** A directory that ends with the stage. */
  directory(name) {
    const made = join(this.#directory, name);
    mkdirSync(made);
    return made;
  }

  /** A new browser context. With `profile` it is kept in this directory, like that of a person. */
  async context({ profile, ...options } = {}) {
    const launchOptions = optionsWith(`--host-resolver-rules=MAP * 127.0.0.1:${this.#server.address().port}, EXCLUDE 127.0.0.1`);
    const common = { ignoreHTTPSErrors: true, locale: "en-US", ...options };
    let context;
    if (profile) {
      context = await chromium.launchPersistentContext(profile, { ...launchOptions, ...common });
    } else {
      this.#browser ??= await chromium.launch(launchOptions);
      context = await this.#browser.newContext(common);
    }
    context.setDefaultTimeout(WAIT_MS);
    await context.addInitScript(() => (window.realSetTimeout = window.setTimeout));
    this.#closing.push(() => context.close());
    return context;
  }

  /** A browser context that blocks the cookies of every site, also partitioned ones. */
  contextWithoutCookies() {
    const profile = this.directory("blocked-cookies");
    mkdirSync(join(profile, "Default"));
    const preferences = { profile: { default_content_setting_values: { cookies: 2 } } };
    writeFileSync(join(profile, "Default", "Preferences"), JSON.stringify(preferences));
    return this.context({ profile });
  }

  async #serve() {
    const [key, cert] = ["key.pem", "cert.pem"].map((name) => join(this.#directory, name));
    const subject = ["-subj", "/CN=pinseal tests", "-days", "2", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    execFileSync("openssl", ["req", "-x509", ...subject, "-keyout", key, "-out", cert], { stdio: "ignore" });
    const files = { key: readFileSync(key), cert: readFileSync(cert) };
    this.#server = https.createServer(files, (request, response) => {
      if (request.headers.host === settings.publicUrl.host) this.#forward(request, response);
      else parentSite(request, response);
    });
    // An idle connection that ends while the browser sends a call would lose that call.
    this.#server.keepAliveTimeout = 0;
    await new Promise((listening) => this.#server.listen(0, "127.0.0.1", listening));
  }

  #forward(request, response) {
    if (this.script && request.url.endsWith("/web/page.js")) {
      response.writeHead(200, { "content-type": "text/javascript", "cross-origin-resource-policy": "same-origin" });
      return response.end(this.script);
    }
    const cut = () => request.socket.destroy();
    if (this.network === "away") return cut();
    const target = new URL(request.url, settings.edge);
    const forwarded = http.request(target, { method: request.method, headers: request.headers }, (answer) => {
      if (this.network === "mute") return answer.resume().on("end", cut);
      const { "content-security-policy": _, ...headers } = answer.headers;
      response.writeHead(answer.statusCode, this.policy ? answer.headers : headers);
      answer.pipe(response);
    });
    forwarded.on("error", cut);
    request.pipe(forwarded);
  }
}

/**
 * The operator's pages. `/parent` frames the page and keeps its messages in `received`; `/post` sends the form of the app;
 * `/sibling` is an empty frame.
 */
function parentSite(request, response) {
  const { pathname } = new URL(request.url, "https://parent");
  const page = PARENT_PAGES[pathname]?.();
  response.writeHead(page ? 200 : 404, { "content-type": "text/html; charset=utf-8" });
  response.end(page ?? "");
}

const frameUrl = () => `${settings.publicUrl.href.replace(/\/$/, "")}/web/frame?key=${settings.page}`;
const PARENT_PAGES = {
  "/parent": () => `<!doctype html><html lang="en"><title>Bank</title><h1>Bank</h1>
    <iframe id="pin" title="Your PIN" width="380" height="640" src="${frameUrl()}"></iframe>
    <iframe id="sibling" name="sibling" title="Sibling" width="10" height="10" src="/sibling"></iframe>
    <script>received = []; addEventListener("message", ({ origin, data }) => received.push({ origin, data }))</script>`,
  "/sibling": () => `<!doctype html><html lang="en"><title>Sibling</title>`,
  "/app": () => `<!doctype html><html lang="en"><title>App</title>`,
};

let nextPlasticId;

/** A plasticId that no other test has. */
export function nextCard() {
  nextPlasticId ??= settings.plasticId;
  return String(nextPlasticId++);
}

/** Opens a control as the back-end. Returns `{id, pinURL, pinFrameURL}`. */
export async function openControl(card, scope) {
  const response = await fetch(`${settings.edge}/pincontrol/v2/plastic/${card}?auditUser=browser-tests`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${settings.token}` },
    body: JSON.stringify({ scope }),
  });
  const answer = await response.json();
  if (response.status !== 201) throw new Error(`opening a control answered ${response.status}: ${answer.message}`);
  return answer;
}

/** Sends a form POST with a controlId from the document of a page, into this target if given. */
export function submitForm(page, { id, pinURL }, target = "") {
  return page.evaluate(
    ([action, controlId, name]) => {
      const form = Object.assign(document.createElement("form"), { method: "post", action, target: name });
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "controlId", value: controlId }));
      document.body.append(form);
      form.submit();
    },
    [pinURL, id, target],
  );
}

/** Sends the form POST of the app's web view for a control, and waits for the page. */
export async function postForm(page, control) {
  await page.goto(`${OTHER_SITE}/app`);
  const loaded = page.waitForURL((url) => url.href.startsWith(control.pinURL));
  await submitForm(page, control);
  await loaded;
  await page.locator("main h1").waitFor();
}

/**
 * Opens the page of a control by the form POST. A page that sets a PIN has its tzpk then: no test takes the network from that call by
 * chance. Returns the card.
 */
export async function openPage(page, scope, card = nextCard()) {
  const keyed = scope === "SET_PIN" && page.waitForResponse("**/tzpk");
  await postForm(page, await openControl(card, scope));
  await keyed;
  return card;
}

/** Sends a message to the frame of a parent page. */
export async function send(page, operation, controlId) {
  await sendRaw(page, { operation, controlId });
}

export async function sendRaw(page, message) {
  await page.evaluate(
    ([value, origin]) => document.getElementById("pin").contentWindow.postMessage(value, origin),
    [message, settings.publicUrl.origin],
  );
}

/** Records in each document of a context how many messages arrived (`delivered`), and the paths of its calls (`fetched`). */
export function recordMessages(context) {
  return context.addInitScript(() => {
    Object.assign(window, { delivered: 0, fetched: [] });
    // Before the listener of the page: once a later task sees the count, the page has handled the message too.
    addEventListener("message", () => (window.delivered += 1));
    const send = window.fetch;
    window.fetch = (input, options) => {
      window.fetched.push(new URL(input, location).pathname.split("/").pop());
      return send(input, options);
    };
  });
}

/** Stops the time of a page with an installed clock: no timer runs until the test moves the time. */
export async function freeze(page) {
  const pauseSoon = async () => page.clock.pauseAt((await page.evaluate(() => Date.now())) + 5_000);
  // If the machine stalls between these two calls, the clock stops and then refuses a time in the past. Stopped, it accepts the next.
  await pauseSoon().catch(pauseSoon);
}

/** The seconds that the timer of the page shows. */
export async function secondsLeft(frame) {
  const [minutes, seconds] = (await frame.locator("[role=timer] span").last().textContent()).split(":").map(Number);
  return minutes * 60 + seconds;
}

/** Moves the time of a frozen page. */
export async function pass(page, milliseconds) {
  await page.clock.fastForward(milliseconds);
  // Timers that the passed ones set.
  await page.clock.runFor(500);
}

/** Collects what a page does that no page may do: errors, violated policies, requests to other hosts. */
export function watch(page) {
  const problems = [];
  watchErrors(page, problems);
  page.on("request", (request) => {
    const { host, pathname } = new URL(request.url());
    const fromPage = !request.isNavigationRequest() && request.frame().url().startsWith(settings.publicUrl.origin);
    // Chromium asks each origin for its icon.
    if (fromPage && host !== settings.publicUrl.host && pathname !== "/favicon.ico") problems.push(request.url());
  });
  return problems;
}

/** Collects errors and violated policies. */
export function watchErrors(page, problems) {
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    // The edge's own refusals and the cut connections of the tests.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) problems.push(message.text());
  });
}

/** Records the calls of both native handlers in `native`. */
export function recordNative(context) {
  return context.addInitScript(() => {
    if (window !== top) return;
    window.native = { android: [], ios: [] };
    const names = ["view_pin_success", "view_pin_error", "set_pin_success", "set_pin_error", "set_pin_validation_error", "pin_valid"];
    window.android_handler = Object.fromEntries(names.map((name) => [name, (...values) => native.android.push([name, ...values])]));
    window.webkit = { messageHandlers: { ios_handler: { postMessage: (message) => native.ios.push(message) } } };
  });
}

/** Waits until the heading is the text of this key. */
export async function heading(frame, words, key) {
  const shown = frame.locator("main h1");
  const expected = shown.filter({ hasText: new RegExp(`^${escaped(words[key])}$`) }).waitFor();
  await expected.catch(async ({ message }) => {
    throw new Error(`${message}\nThe page shows: ${await shown.allTextContents()}`);
  });
}

export async function problem(frame, words, key, values = {}) {
  const text = words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  await frame.locator("[role=alert]", { hasText: new RegExp(`^${escaped(text)}$`) }).waitFor();
}

function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** Presses the keys of the page for these digits. */
export async function press(frame, digits) {
  for (const digit of digits) await frame.locator(".key", { hasText: new RegExp(`^${digit}$`) }).click();
}

/** Presses the main button. */
export async function proceed(frame) {
  // The button is aria-disabled, for its look, until the entry has enough digits; a press then says what is missing.
  await frame.locator("button.main").click({ force: true });
}

/** Enters a PIN in both steps. */
export async function choose(frame, words, pin, repeated = pin) {
  await heading(frame, words, "choose");
  await press(frame, pin);
  await proceed(frame);
  await heading(frame, words, "repeat");
  await press(frame, repeated);
  await proceed(frame);
}

/** Sets a PIN on a card through the page. */
export async function setPin(page, card, pin, words) {
  await openPage(page, "SET_PIN", card);
  await choose(page, words, pin);
  await heading(page, words, "saved");
}

/** The digits that the page shows. */
export async function shownPin(frame) {
  return (await frame.locator(".digits li").allTextContents()).join("");
}

/** Waits for a condition. */
export async function until(condition, what) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${WAIT_MS} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Stops or starts the engine. */
export async function engine(state) {
  const file = join(settings.control, `engine-${state}`);
  writeFileSync(file, "");
  await until(() => !existsSync(file), `the starting test to handle ${file}`);
}

/** The violations that axe-core finds in a document. */
export async function violations(frame) {
  // Without the policy's exception a script element of the test cannot be added, so the source is evaluated.
  await frame.evaluate(axe.source);
  const { violations: found } = await frame.evaluate(async () => {
    // axe-core waits with timers, and those of a frozen page do not run.
    const ofPage = window.setTimeout;
    window.setTimeout = window.realSetTimeout ?? ofPage;
    try {
      return await window.axe.run(document, { resultTypes: ["violations"] });
    } finally {
      window.setTimeout = ofPage;
    }
  });
  return found.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
}

/** Checks that a document fits its window, that no text leaves its element or covers the logo, and that a finger can press each button. */
export async function assertFits(frame, label) {
  const found = await frame.evaluate((min) => {
    const { scrollWidth, clientWidth } = document.documentElement;
    const boxes = [...document.querySelectorAll("button")].map((button) => [button.textContent, button.getBoundingClientRect()]);
    const small = boxes.filter(([, { width, height }]) => width > 0 && (width < min || height < min)).map(([text]) => text);
    const written = [...document.querySelectorAll("h1, p:not(.for-readers), button, .timer, li")];
    const cut = written.filter((element) => element.scrollWidth > element.clientWidth).map((element) => element.textContent);
    const [logo, timer] = ["#logo", ".timer"].map((selector) => document.querySelector(selector)?.getBoundingClientRect());
    const meet = logo && timer.width > 0 && timer.left < logo.right && logo.left < timer.right && timer.top < logo.bottom;
    return { overflow: scrollWidth - clientWidth, small, cut, covered: Boolean(meet) };
  }, TARGET_MIN);
  assert.deepEqual(found, { overflow: 0, small: [], cut: [], covered: false }, label);
}

export async function screenshot(page, ...names) {
  mkdirSync(settings.artifacts, { recursive: true });
  await page.screenshot({ path: join(settings.artifacts, `${names.join("-")}.png`), animations: "disabled" });
}

// What the page does: setting, viewing, refusals, lost connections, keys, the app around it.
import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";
import {
  choose,
  engine,
  freeze,
  heading,
  nextCard,
  openControl,
  openPage,
  OTHER_SITE,
  pass,
  postForm,
  press,
  problem,
  proceed,
  recordNative,
  secondsLeft,
  setPin,
  settings,
  shownPin,
  Stage,
  texts,
  until,
  watch,
} from "./support.mjs";

const words = texts("en");
/** Twelve digits: no other array has them by chance. */
const PLANTED_PIN = "739158264017";
let stage;
let context;
let page;
let problems;

before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());
beforeEach(async () => {
  stage.network = "up";
  await context?.close();
  context = await stage.context();
  await recordNative(context);
  page = await context.newPage();
  problems = watch(page);
});

/** The events without those of keystrokes. */
async function events() {
  const { android, ios } = await page.evaluate(() => native);
  assert.deepEqual(
    ios,
    android.map(([event, valid]) => (valid === undefined ? { event } : { event, pin_valid: valid })),
    "both handlers get the same events",
  );
  return android.map(([event]) => event).filter((event) => event !== "pin_valid");
}

/** The bodies of the page's calls to this path. */
function bodiesOf(path) {
  const bodies = [];
  page.on("request", (request) => {
    if (new URL(request.url()).pathname.endsWith(`/${path}`)) bodies.push(request.postData());
  });
  return bodies;
}

test("a PIN is set and viewed", async () => {
  const card = await openPage(page, "SET_PIN");
  await choose(page, words, "48093");
  await heading(page, words, "saved");
  assert.deepEqual(await events(), ["set_pin_success"]);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  // Without time the button alone hides the PIN.
  await freeze(page);
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "48093");
  assert.deepEqual(await events(), ["view_pin_success"]);
  await proceed(page);
  await heading(page, words, "hidden");
  assert.equal(await shownPin(page), "");
  assert.deepEqual(await events(), ["view_pin_success"]);
  assert.deepEqual(problems, []);
});

test("pin_valid follows each key", async () => {
  await openPage(page, "SET_PIN");
  await press(page, "4809");
  await page.keyboard.press("Backspace");
  await page.keyboard.press("5");
  await page.keyboard.press("Escape");
  const { android } = await page.evaluate(() => native);
  const valid = android.map(([event, value]) => [event, value]);
  assert.deepEqual(valid, [false, false, false, false, true, false, true, false].map((value) => ["pin_valid", value]));
});

test("set_pin() of the app proceeds", async () => {
  await openPage(page, "SET_PIN");
  await press(page, "48093");
  await page.evaluate(() => set_pin());
  await heading(page, words, "repeat");
  await press(page, "48093");
  await page.evaluate(() => set_pin());
  await heading(page, words, "saved");
  assert.deepEqual(await events(), ["set_pin_success"]);
});

test("set_pin() of the app does nothing on a page that shows a PIN", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  await freeze(page);
  const sent = bodiesOf("view");
  await page.evaluate(() => set_pin());
  await heading(page, words, "view");
  await page.getByRole("button", { name: words.show }).waitFor();
  assert.deepEqual(sent, []);
  await proceed(page);
  await heading(page, words, "your_pin");
  await page.evaluate(() => set_pin());
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "48093");
});

test("a handler that throws does not stop the page", async () => {
  await context.addInitScript(() => {
    const fail = () => {
      throw new Error("of the app");
    };
    window.android_handler = new Proxy({}, { get: () => fail });
    window.webkit = { messageHandlers: { ios_handler: { postMessage: fail } } };
  });
  await openPage(page, "SET_PIN");
  await choose(page, words, "48093");
  await heading(page, words, "saved");
});

test("a wrong repeat begins again without a call", async () => {
  await openPage(page, "SET_PIN");
  const sent = bodiesOf("set");
  await choose(page, words, "48093", "48094");
  await problem(page, words, "mismatch");
  await heading(page, words, "choose");
  assert.deepEqual(sent, []);
  assert.deepEqual(await events(), []);
});

test("another PIN can be chosen in the second step", async () => {
  await openPage(page, "SET_PIN");
  await press(page, "4809");
  await proceed(page);
  await heading(page, words, "repeat");
  await page.getByRole("button", { name: words.another }).click();
  await choose(page, words, "5093");
  await heading(page, words, "saved");
});

test("weak PINs are refused until the control is spent", async () => {
  await openPage(page, "SET_PIN");
  for (let refused = 1; refused <= 3; refused++) {
    await choose(page, words, "1234");
    await problem(page, words, "weak");
    assert.equal((await events()).length, refused);
  }
  await choose(page, words, "1234");
  await heading(page, words, "failed");
  assert.deepEqual(await events(), [...Array(4).fill("set_pin_validation_error"), "set_pin_error"]);
});

test("another PIN is set after a weak one", async () => {
  const card = await openPage(page, "SET_PIN");
  await choose(page, words, "1234");
  await problem(page, words, "weak");
  await choose(page, words, "739158264017");
  await heading(page, words, "saved");
  await openPage(page, "VIEW_PIN", card);
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "739158264017");
});

test("an unknown, a spent and an exchanged control answer the expired page", async () => {
  const control = await openControl(nextCard(), "SET_PIN");
  const other = await context.newPage();
  await postForm(other, control);
  await page.bringToFront();
  for (const id of [control.id, "00000000-0000-4000-8000-000000000000", "x"]) {
    await postForm(page, { ...control, id });
    await heading(page, words, "expired");
    assert.deepEqual(await events(), ["set_pin_error", "view_pin_error"]);
  }
  await other.bringToFront();
  await choose(other, words, "48093");
  await heading(other, words, "saved");
});

test("a second page in the browser ends the first", async () => {
  await openPage(page, "SET_PIN");
  const other = await context.newPage();
  await postForm(other, await openControl(nextCard(), "SET_PIN"));
  await page.bringToFront();
  await choose(page, words, "48093");
  await heading(page, words, "failed");
  await other.bringToFront();
  await choose(other, words, "48093");
  await heading(other, words, "saved");
});

test("a page whose cookie another page replaced does not say that the time is up", async () => {
  await openPage(page, "SET_PIN");
  await openPage(await context.newPage(), "SET_PIN");
  await page.reload();
  await heading(page, words, "failed");
  assert.deepEqual(await events(), ["set_pin_error", "view_pin_error"]);
});

test("a browser that blocks cookies does not say that the time is up", async () => {
  await context.close();
  context = await stage.contextWithoutCookies();
  await recordNative(context);
  page = await context.newPage();
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  await heading(page, words, "failed");
  assert.deepEqual(await events(), ["set_pin_error", "view_pin_error"]);
});

test("an expired control ends the entry", async () => {
  await page.clock.install();
  await openPage(page, "SET_PIN");
  await press(page, "480");
  await page.clock.fastForward(600_000);
  await heading(page, words, "expired");
  assert.deepEqual(await events(), ["set_pin_error"]);
  assert.equal(await page.locator(".dot").count(), 0);
});

test("an engine that is away at the start is no expired control", async () => {
  const control = await openControl(nextCard(), "SET_PIN");
  await engine("away");
  await postForm(page, control);
  await heading(page, words, "unavailable");
  assert.equal(new URL(page.url()).searchParams.get("state"), "unavailable");
  assert.deepEqual(await events(), ["set_pin_error", "view_pin_error"]);
  await engine("back");
  await postForm(page, control);
  await heading(page, words, "choose");
});

/** How an entry of a PIN ends. */
const ENDS = {
  saved: async () => {
    await proceed(page);
    await press(page, PLANTED_PIN);
    await proceed(page);
    await heading(page, words, "saved");
  },
  "refused as weak": async () => {
    const refusal = { status: 422, contentType: "application/json", body: '{"errorCode":"PIN_REFUSED"}' };
    await page.route("**/set", (route) => route.fulfill(refusal), { times: 1 });
    await proceed(page);
    await press(page, PLANTED_PIN);
    await proceed(page);
    await problem(page, words, "weak");
  },
  "repeated wrongly": async () => {
    await proceed(page);
    await press(page, "48093");
    await proceed(page);
    await problem(page, words, "mismatch");
  },
  replaced: async () => {
    await proceed(page);
    await page.getByRole("button", { name: words.another }).click();
    await heading(page, words, "choose");
  },
  cleared: async () => {
    await page.keyboard.press("Escape");
    await page.locator(".dot").first().waitFor({ state: "detached" });
  },
  erased: async () => {
    for (const _ of PLANTED_PIN) await page.keyboard.press("Backspace");
    await page.locator(".dot").first().waitFor({ state: "detached" });
  },
  expired: async () => {
    await page.clock.fastForward(600_000);
    await heading(page, words, "expired");
  },
  closed: () => page.evaluate(() => window.dispatchEvent(new PageTransitionEvent("pagehide"))),
};

test("no array holds the digits of a PIN after its entry ended", async () => {
  await recordArrays(context);
  await page.clock.install();
  const whenSent = [];
  await page.route("**/set", async (route) => {
    whenSent.push(await holding());
    await route.continue();
  });
  for (const [name, end] of Object.entries(ENDS)) {
    await openPage(page, "SET_PIN");
    await press(page, PLANTED_PIN);
    assert.ok((await holding()) > 0, `${name}: the digits of the entry are not found`);
    await end();
    assert.equal(await holding(), 0, name);
  }
  assert.deepEqual(whenSent, [0]);
});

test("no array holds the digits of a PIN that is shown", async () => {
  const card = nextCard();
  await setPin(page, card, PLANTED_PIN, words);
  await recordArrays(context);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  await freeze(page);
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), PLANTED_PIN);
  assert.equal(await page.evaluate(() => arraysMade() > 0), true);
  assert.equal(await holding(), 0);
});

/** Records each Uint8Array of a page, also those that a method such as `slice` makes. */
function recordArrays(of) {
  return of.addInitScript(() => {
    const arrays = [];
    const recording = new Proxy(Uint8Array, {
      construct(target, values) {
        const array = new target(...values);
        arrays.push(array);
        return array;
      },
    });
    Uint8Array.prototype.constructor = recording;
    window.Uint8Array = recording;
    const hex = (array) => [...array].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    window.arraysMade = () => arrays.length;
    // A digit is a byte of an entry and a nibble of a block.
    window.holding = (digits) =>
      arrays.filter((array) => hex(array).includes(digits) || hex(array).includes([...digits].map((digit) => `0${digit}`).join(""))).length;
  });
}

const holding = () => page.evaluate((digits) => window.holding(digits), PLANTED_PIN);

test("the engine goes away and comes back", async () => {
  const card = await openPage(page, "SET_PIN");
  const sent = bodiesOf("set");
  await press(page, "48093");
  await proceed(page);
  await press(page, "48093");
  await engine("away");
  await proceed(page);
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  await until(() => sent.length > 1, "a second try");
  await engine("back");
  await heading(page, words, "saved");
  assert.equal(new Set(sent).size, 1, "each try sends the same block");
  await openPage(page, "VIEW_PIN", card);
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "48093");
});

test("a lost answer is confirmed by the same block", async () => {
  await page.clock.install();
  await openPage(page, "SET_PIN");
  await heading(page, words, "choose");
  // Without time no try but that of the button is made.
  await freeze(page);
  const sent = bodiesOf("set");
  await press(page, "48093");
  await proceed(page);
  await press(page, "48093");
  stage.network = "mute";
  await proceed(page);
  await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
  stage.network = "up";
  await page.getByRole("button", { name: words.try_now }).click();
  await heading(page, words, "saved");
  assert.equal(sent.length, 2);
  assert.equal(sent[0], sent[1]);
  assert.deepEqual(await events(), ["set_pin_success"]);
});

test("a refusal after a lost answer leaves the PIN unconfirmed", async () => {
  await openPage(page, "SET_PIN");
  let tries = 0;
  await page.route("**/set", (route) => {
    tries += 1;
    if (tries === 1) return route.abort("connectionreset");
    return route.fulfill({ status: 404, contentType: "application/json", body: '{"errorCode":"CONTROL_NOT_USABLE"}' });
  });
  await choose(page, words, "48093");
  await heading(page, words, "unconfirmed");
  assert.equal(tries, 2);
  assert.deepEqual(await events(), ["set_pin_error"]);
});

for (const answer of ["saved", "lost"]) {
  test(`a page that is loaded again after a ${answer} PIN does not say that it is unchanged`, async () => {
    await openPage(page, "SET_PIN");
    if (answer === "lost") stage.network = "mute";
    await choose(page, words, "48093");
    if (answer === "saved") await heading(page, words, "saved");
    else await page.locator(".loss", { hasText: words.not_confirmed }).waitFor();
    stage.network = "up";
    await page.reload();
    await heading(page, words, "failed");
    assert.equal(await page.locator("#hint").textContent(), words.failed_hint);
    assert.deepEqual(await events(), ["set_pin_error"]);
  });
}

test("a lost tzpk request is repeated", async () => {
  await page.route("**/tzpk", (route) => route.abort("connectionreset"), { times: 2 });
  await openPage(page, "SET_PIN");
  await choose(page, words, "48093");
  await heading(page, words, "saved");
});

test("a tzpk for another key fails and changes nothing", async () => {
  await page.route("**/tzpk", (route) =>
    route.fulfill({ status: 200, contentType: "application/json", body: JSON.stringify({ tzpk: btoa("x".repeat(256)) }) }),
  );
  await openPage(page, "SET_PIN");
  await choose(page, words, "48093");
  await heading(page, words, "failed");
  assert.deepEqual(await events(), ["set_pin_error"]);
});

test("a card without a PIN shows so", async () => {
  await openPage(page, "VIEW_PIN");
  await proceed(page);
  await heading(page, words, "not_set");
  assert.deepEqual(await events(), ["view_pin_error"]);
});

test("a viewed PIN disappears when the window loses the focus", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  await page.clock.install();
  for (const leave of [
    () => window.dispatchEvent(new Event("blur")),
    () => {
      Object.defineProperty(document, "visibilityState", { value: "hidden" });
      document.dispatchEvent(new Event("visibilitychange"));
    },
    () => window.dispatchEvent(new PageTransitionEvent("pagehide")),
  ]) {
    await openPage(page, "VIEW_PIN", card);
    // Without time the PIN does not disappear by its own countdown.
    await freeze(page);
    await proceed(page);
    await heading(page, words, "your_pin");
    assert.equal(await shownPin(page), "48093");
    await page.evaluate(leave);
    await page.locator(".digits").waitFor({ state: "detached" });
  }
});

test("a PIN that arrives is shown to a person who came back, and to nobody else", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  for (const back of [true, false]) {
    let answer;
    const held = new Promise((resolve) => (answer = resolve));
    await page.route("**/view", (route) => held.then(() => route.continue()), { times: 1 });
    await openPage(page, "VIEW_PIN", card);
    await proceed(page);
    await page.getByRole("button", { name: words.showing }).waitFor();
    await page.evaluate((returns) => {
      document.hasFocus = () => false;
      window.dispatchEvent(new Event("blur"));
      if (!returns) return;
      delete document.hasFocus;
      window.dispatchEvent(new Event("focus"));
    }, back);
    answer();
    await heading(page, words, back ? "your_pin" : "hidden");
    assert.equal(await shownPin(page), back ? "48093" : "");
    assert.deepEqual(await events(), [back ? "view_pin_success" : "view_pin_error"]);
  }
});

test("a viewed PIN disappears after the set time", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  await freeze(page);
  await proceed(page);
  await heading(page, words, "your_pin");
  await page.locator("[role=timer]", { hasText: words.hides_in }).waitFor();
  await page.getByRole("status").getByText(`${words.hides_in}: 10 seconds`).waitFor();
  await pass(page, 10_000);
  await heading(page, words, "hidden");
  assert.equal(await page.locator(".digits li").count(), 0);
});

test("a PIN cannot be pasted, dropped, copied or restored", async () => {
  const card = await openPage(page, "SET_PIN");
  await press(page, "48");
  for (const type of ["paste", "drop"]) {
    const cancelled = await page.evaluate((name) => !document.body.dispatchEvent(new Event(name, { bubbles: true, cancelable: true })), type);
    assert.ok(cancelled, type);
    await problem(page, words, "no_paste");
    await page.keyboard.press("3");
    await page.keyboard.press("Backspace");
  }
  assert.equal(await page.locator(".dot").count(), 2);
  assert.equal(await page.locator("input, textarea, select, [contenteditable]").count(), 0);
  await press(page, "093");
  await proceed(page);
  await press(page, "48093");
  await proceed(page);
  await heading(page, words, "saved");
  await openPage(page, "VIEW_PIN", card);
  await proceed(page);
  await heading(page, words, "your_pin");
  for (const type of ["copy", "cut", "dragstart"]) {
    const cancelled = await page.evaluate((name) => !document.body.dispatchEvent(new Event(name, { bubbles: true, cancelable: true })), type);
    assert.ok(cancelled, type);
  }
  const state = await page.evaluate(() => [history.state, localStorage.length, sessionStorage.length, document.cookie]);
  assert.deepEqual(state, [null, 0, 0, ""]);
});

test("the browser's own paste is refused", async () => {
  await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: OTHER_SITE });
  await page.goto(`${OTHER_SITE}/app`);
  await page.evaluate(() => navigator.clipboard.writeText("48093"));
  await page.addInitScript(() => {
    window.pasted = [];
    document.addEventListener("paste", ({ isTrusted, clipboardData }) => pasted.push([isTrusted, clipboardData.getData("text")]), true);
  });
  await openPage(page, "SET_PIN");
  await heading(page, words, "choose");
  await page.keyboard.press("Control+V");
  await problem(page, words, "no_paste");
  await press(page, "1");
  // As an entry of a context menu does.
  const browser = await context.newCDPSession(page);
  await browser.send("Input.dispatchKeyEvent", { type: "rawKeyDown", commands: ["paste"] });
  await problem(page, words, "no_paste");
  assert.deepEqual(await page.evaluate(() => pasted), [[true, "48093"], [true, "48093"]]);
  assert.equal(await page.locator(".dot").count(), 1);
  assert.ok(!(await page.content()).includes("48093"));
});

test("a shown PIN cannot be printed", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  await freeze(page);
  await proceed(page);
  await heading(page, words, "your_pin");
  const printed = await page.pdf();
  await page.emulateMedia({ media: "print" });
  assert.equal(await page.locator(".digits li").first().isVisible(), false);
  assert.equal(await page.locator("main").isVisible(), false);
  await page.emulateMedia({ media: null });
  assert.equal(await shownPin(page), "48093");
  assert.ok(await page.locator(".digits li").first().isVisible());
  // A page with any text has a font.
  assert.ok(printed.includes("/Page") && !printed.includes("/Font"));
});

/** Waits until the focus is on an element of this selector with this text. */
const focused = (selector, text) =>
  until(
    () => page.evaluate(([name, label]) => document.activeElement.matches(name) && document.activeElement.textContent.includes(label), [selector, text]),
    `the focus on ${text || selector}`,
  );

test("a PIN is viewed with the keyboard alone", async () => {
  const card = nextCard();
  await setPin(page, card, "48093", words);
  await page.clock.install();
  await openPage(page, "VIEW_PIN", card);
  await freeze(page);
  await focused("button", words.show);
  await page.keyboard.press("Enter");
  await heading(page, words, "your_pin");
  await focused(".digits", "48093");
  await page.keyboard.press("Tab");
  await focused("button", words.hide);
  await page.keyboard.press("Space");
  await heading(page, words, "hidden");
  await focused("h1", words.hidden);
  assert.deepEqual(await events(), ["view_pin_success"]);
});

test("a PIN is set with the keyboard alone", async () => {
  await openPage(page, "SET_PIN");
  const field = page.getByRole("textbox", { name: words.choose });
  await until(() => field.evaluate((element) => element === document.activeElement), "the focus on the entry");
  const order = [];
  for (;;) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => {
      const focused = document.activeElement;
      return focused === document.body ? "" : focused.getAttribute("aria-label") || focused.textContent;
    });
    if (!name || order.length > 20) break;
    order.push(name);
  }
  assert.deepEqual(order, [..."1234567890", words.delete, words.continue]);
  await page.keyboard.type("48093");
  await field.focus();
  await page.keyboard.press("Enter");
  await heading(page, words, "repeat");
  await until(
    () => page.getByRole("textbox", { name: words.repeat }).evaluate((element) => element === document.activeElement),
    "the focus on the entry",
  );
  await page.keyboard.type("48093");
  await page.keyboard.press("Enter");
  await heading(page, words, "saved");
});

test("another choice and a wrong repeat need the keyboard alone", async () => {
  await openPage(page, "SET_PIN");
  const enter = async (step, digits) => {
    await heading(page, words, step);
    await focused(".field", "");
    await page.keyboard.type(digits);
    await page.keyboard.press("Enter");
  };
  await enter("choose", "48093");
  await heading(page, words, "repeat");
  await focused(".field", "");
  // Behind the ten digits, the delete key and the main button.
  for (let tabs = 1; tabs <= 13; tabs++) await page.keyboard.press("Tab");
  await focused("button", words.another);
  await page.keyboard.press("Enter");
  await enter("choose", "5093");
  await enter("repeat", "5094");
  await problem(page, words, "mismatch");
  await enter("choose", "5093");
  await enter("repeat", "5093");
  await heading(page, words, "saved");
  await focused("h1", words.saved);
  assert.deepEqual(await events(), ["set_pin_success"]);
});

test("Arabic digits of a keyboard are digits", async () => {
  const card = await openPage(page, "SET_PIN");
  for (const digits of ["٤٨٠٩٣", "۴۸۰۹۳"]) {
    for (const key of digits) {
      await page.evaluate((value) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: value, bubbles: true })), key);
    }
    await proceed(page);
  }
  await heading(page, words, "saved");
  await openPage(page, "VIEW_PIN", card);
  await proceed(page);
  await heading(page, words, "your_pin");
  assert.equal(await shownPin(page), "48093");
});

test("screen readers get the whole story", async () => {
  const card = await openPage(page, "SET_PIN");
  const tree = () => page.locator("main").ariaSnapshot();
  const choosing = await tree();
  for (const line of [
    `- timer: ${words.time_left}`,
    `- heading "${words.choose}" [level=1]`,
    `- paragraph: 4 to 12 digits`,
    `- textbox "${words.choose}"`,
    `- group "${words.keypad}"`,
    `- button "7"`,
    `- button "${words.delete}"`,
    `- button "${words.continue}" [disabled]`,
  ]) {
    assert.ok(choosing.includes(line), `${line} in\n${choosing}`);
  }
  // The tree of the browser itself, which has descriptions.
  const browser = await context.newCDPSession(page);
  const { nodes } = await browser.send("Accessibility.getFullAXTree");
  const entry = nodes.find(({ role }) => role?.value === "textbox");
  assert.equal(entry.description.value, `4 to 12 digits ${words.headphones}`);
  await press(page, "480");
  await page.getByRole("status").getByText("Digits entered: 3").waitFor();
  await proceed(page);
  await page.getByRole("alert").getByText("Enter at least 4 digits.").waitFor();
  await press(page, "93");
  await proceed(page);
  await press(page, "48093");
  await proceed(page);
  await heading(page, words, "saved");
  await page.getByRole("status").getByText(words.saved_hint).waitFor();
  await openPage(page, "VIEW_PIN", card);
  assert.ok((await tree()).includes(`- button "${words.show}"`));
  await proceed(page);
  await heading(page, words, "your_pin");
  const shown = await tree();
  const digits = [...shown.matchAll(/- listitem: "?(\d)"?/g)].map(([, digit]) => digit).join("");
  assert.equal(digits, "48093", shown);
  assert.ok(shown.includes(`- list "${words.your_pin}"`), shown);
});

test("the page announces its last ten seconds", async () => {
  await page.clock.install();
  await openPage(page, "SET_PIN");
  await page.clock.fastForward(((await secondsLeft(page)) - 11) * 1_000);
  await page.clock.runFor(1_500);
  await page.getByRole("status").getByText(`${words.time_left}: 10 seconds`).waitFor();
});

test("the page announces its last seconds once, also after a jump of the time", async () => {
  await page.clock.install();
  await openPage(page, "SET_PIN");
  await freeze(page);
  await page.clock.fastForward(((await secondsLeft(page)) - 7) * 1_000);
  const status = page.getByRole("status");
  await status.getByText(new RegExp(`^${words.time_left}: [678] seconds$`)).waitFor();
  const announced = await status.textContent();
  await page.clock.runFor(4_000);
  const left = await secondsLeft(page);
  assert.ok(left >= 1 && left <= 4, `${left} seconds`);
  assert.equal(await status.textContent(), announced);
});

test("the focus goes to the entry when the notice of a lost connection disappears", async () => {
  await page.clock.install();
  // Without time no try but that of the button is made.
  await freeze(page);
  await page.route("**/tzpk", (route) => route.abort("connectionreset"), { times: 1 });
  await postForm(page, await openControl(nextCard(), "SET_PIN"));
  const tryNow = page.getByRole("button", { name: words.try_now });
  await tryNow.focus();
  await page.keyboard.press("Enter");
  await tryNow.waitFor({ state: "hidden" });
  assert.equal(await page.evaluate(() => document.activeElement.className), "field");
  await page.keyboard.type("48093");
  await page.locator(".dot").nth(4).waitFor();
});

test("the page is under the policy of the edge", async () => {
  await openPage(page, "SET_PIN");
  const blocked = await page.evaluate(() => {
    const tries = {
      markup: () => (document.body.innerHTML = "<b></b>"),
      script: () => (document.createElement("script").src = "https://evil.example/script.js"),
      policy: () => trustedTypes.createPolicy("p", {}),
    };
    return Object.entries(tries).map(([name, run]) => {
      try {
        run();
        return `${name} ran`;
      } catch {
        return name;
      }
    });
  });
  assert.deepEqual(blocked, ["markup", "script", "policy"]);
  const fetched = await page.evaluate(() => fetch("https://evil.example/sibling", { mode: "no-cors" }).then(() => "sent", () => "blocked"));
  assert.equal(fetched, "blocked");
  const { pathname, search } = new URL(page.url());
  assert.equal(pathname, `${settings.publicUrl.pathname}/web/${settings.page}`.replace("//", "/"));
  assert.match(search, /^\?id=[0-9a-f]{32}$/);
});

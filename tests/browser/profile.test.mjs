// What a run leaves on disk: the browser's profile and the logs hold no PIN, no block and no controlId.
import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { buildPage } from "../../web/build.mjs";
import {
  choose,
  heading,
  nextCard,
  openControl,
  OTHER_SITE,
  postForm,
  proceed,
  settings,
  shownPin,
  Stage,
  texts,
  until,
} from "./support.mjs";

const words = texts("en");
const PLANTED_PIN = "730915826407";

let stage;
before(async () => {
  stage = await Stage.open();
});
after(() => stage.close());

/** Sets and views the planted PIN in a window and in a frame. Returns the secrets of the run by name. */
async function run(profile) {
  const context = await stage.context({ profile });
  const secrets = { pin: PLANTED_PIN };
  const blocks = new Set();
  const page = await context.newPage();
  context.on("request", (request) => {
    const body = request.url().endsWith("/set") ? JSON.parse(request.postData()) : {};
    if (body.pinBlock) blocks.add(body.pinBlock);
  });
  context.on("response", async (response) => {
    if (!response.url().endsWith("/view") || !response.ok()) return;
    const { pinBlock } = await response.json();
    blocks.add(pinBlock);
  });
  const open = async (card, scope) => {
    const control = await openControl(card, scope);
    secrets[`controlId ${Object.keys(secrets).length}`] = control.id;
    return control;
  };
  const card = nextCard();
  await postForm(page, await open(card, "SET_PIN"));
  // The page sends its block twice.
  await page.route("**/set", (route) => route.abort("connectionreset"), { times: 1 });
  await choose(page, words, PLANTED_PIN);
  await heading(page, words, "saved");
  await postForm(page, await open(card, "VIEW_PIN"));
  await view(page);

  await page.goto(`${OTHER_SITE}/parent`);
  const frame = page.frameLocator("#pin");
  const send = (message) =>
    page.evaluate((value) => document.getElementById("pin").contentWindow.postMessage(value, "*"), message);
  await heading(frame, words, "title");
  await send({ operation: "set-pin", controlId: (await open(nextCard(), "SET_PIN")).id });
  await choose(frame, words, PLANTED_PIN);
  await heading(frame, words, "saved");
  await send({ operation: "view-pin", controlId: (await open(card, "VIEW_PIN")).id });
  await view(frame);
  await until(() => blocks.size === 4, "the blocks of the run");
  [...blocks].forEach((block, at) => (secrets[`block ${at}`] = block));
  // The session service writes its file some seconds after a navigation. Wait for one that names the last page.
  await until(() => search(profile, { site: OTHER_SITE }).length > 0, "the profile on disk");
  await context.close();
  return secrets;
}

async function view(frame) {
  await heading(frame, words, "view");
  await proceed(frame);
  await heading(frame, words, "your_pin");
  assert.equal(await shownPin(frame), PLANTED_PIN);
  await proceed(frame);
  await heading(frame, words, "hidden");
}

/** The forms in which a secret may be written: as it is, in UTF-16, without hyphens, in a URL, as bytes. */
function forms(secret) {
  const found = new Map([
    ["text", Buffer.from(secret)],
    ["UTF-16", Buffer.from(secret, "utf16le")],
    ["URL", Buffer.from(encodeURIComponent(secret))],
  ]);
  if (/^[0-9a-f-]{36}$/.test(secret)) {
    const hex = secret.replaceAll("-", "");
    found.set("hex", Buffer.from(hex)).set("bytes", Buffer.from(hex, "hex"));
  } else if (secret.endsWith("=")) {
    const bytes = Buffer.from(secret, "base64");
    found.set("hex", Buffer.from(bytes.toString("hex"))).set("HEX", Buffer.from(bytes.toString("hex").toUpperCase())).set("bytes", bytes);
  }
  return found;
}

/** Where secrets stand in the files of a directory: `file: name as form`. */
function search(directory, secrets) {
  const found = [];
  for (const entry of readdirSync(directory, { recursive: true })) {
    const path = join(directory, entry);
    const content = contentOf(path);
    for (const [name, secret] of Object.entries(secrets)) {
      for (const [form, bytes] of forms(secret)) {
        if (content?.includes(bytes)) found.push(`${entry}: ${name} as ${form}`);
      }
    }
  }
  return found;
}

/** The bytes of a file. The browser removes files while it runs. */
function contentOf(path) {
  try {
    return statSync(path).isFile() ? readFileSync(path) : undefined;
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
}

test("a run leaves no PIN, block or controlId in profile and logs", async () => {
  const profile = stage.directory("profile");
  const secrets = await run(profile);
  assert.deepEqual(search(profile, secrets), []);
  for (const log of settings.logs) {
    const content = readFileSync(log);
    assert.ok(content.length > 0, `${log} is empty`);
    for (const [name, secret] of Object.entries(secrets)) {
      for (const [form, bytes] of forms(secret)) assert.ok(!content.includes(bytes), `${log} has the ${name} as ${form}`);
    }
  }
});

test("the search finds a page that stores them", async () => {
  const built = stage.directory("leaking");
  await buildPage(built, "test/leaking.ts");
  const profile = stage.directory("leaking-profile");
  stage.script = readFileSync(join(built, "page.js"), "utf8");
  const secrets = await run(profile);
  const found = search(profile, secrets).join("\n");
  for (const name of ["pin", "block", "controlId"]) assert.match(found, new RegExp(`: ${name}`), name);
});

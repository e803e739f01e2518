// The committed page is what the sources make, its languages are complete, and it is light.
import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { buildPage } from "./build.mjs";
import { weigh } from "./weigh.mjs";

const WEIGHT_MAX_BYTES = 25_000;

const directory = await mkdtemp(join(tmpdir(), "pinseal-page-"));
after(() => rm(directory, { recursive: true }));
const here = (path) => new URL(path, import.meta.url);

test("a build makes the committed bytes", async () => {
  await buildPage(directory);
  const names = (await readdir(directory)).sort();
  assert.deepEqual((await readdir(here("dist/"))).sort(), names);
  for (const name of names) {
    const [built, committed] = [await readFile(join(directory, name)), await readFile(here(`dist/${name}`))];
    assert.ok(built.equals(committed), `dist/${name} is not what the sources make: run npm run build`);
  }
});

test("each language has the same texts and values", async () => {
  const files = await readdir(here("languages/"));
  const languages = await Promise.all(files.map(async (name) => JSON.parse(await readFile(here(`languages/${name}`), "utf8"))));
  const english = languages[files.indexOf("en.json")];
  const sources = await Promise.all((await readdir(here("src/"))).map((name) => readFile(here(`src/${name}`), "utf8")));
  const values = (text) => [...text.matchAll(/\{\w+\}/g)].map(String).sort();
  languages.forEach((language, at) => {
    assert.deepEqual(Object.keys(language), Object.keys(english), files[at]);
    for (const [key, text] of Object.entries(language)) {
      assert.ok(text.trim(), `${files[at]}: ${key} is empty`);
      assert.deepEqual(values(text), values(english[key]), `${files[at]}: ${key}`);
    }
  });
  for (const key of Object.keys(english)) {
    // The edge writes the text for browsers without scripts.
    if (key !== "no_script") assert.ok(sources.some((source) => source.includes(`"${key}"`)), `no source uses ${key}`);
  }
});

test("the page keeps nothing and makes no markup", async () => {
  const script = await readFile(here("dist/page.js"), "utf8");
  for (const name of ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage", "sessionStorage", "indexedDB", "document.cookie", ".style", "console."]) {
    assert.ok(!script.includes(name), name);
  }
  assert.deepEqual(script.match(/https?:\/\/[^"'`]+/g), ["http://www.w3.org/2000/svg"]);
  assert.ok(!/url\(|@import/.test(await readFile(here("dist/page.css"), "utf8")));
});

test("the built files and texts weigh less than 25 kB", async () => {
  const { sum } = await weigh();
  assert.ok(sum < WEIGHT_MAX_BYTES, `${sum} bytes`);
});

// Prints the bytes of script and style as an edge sends them with gzip, and of the longest document as its template and texts
// compress best. An edge fills in more values and compresses a document faster: tests/browser/style.test.mjs adds up what it
// sends. `node weigh.mjs`
import { readdir, readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const TEMPLATE = new URL("../crates/edge/src/web_view/page.html", import.meta.url);

export async function weigh() {
  const template = await readFile(TEMPLATE, "utf8");
  const folder = new URL("languages/", import.meta.url);
  const documents = await Promise.all(
    (await readdir(folder)).map(async (name) => template.replace("{{texts}}", await readFile(new URL(name, folder), "utf8"))),
  );
  const built = await Promise.all(["page.js", "page.css"].map((name) => readFile(new URL(`dist/${name}`, import.meta.url))));
  const bytes = (content) => gzipSync(content, { level: 9 }).length;
  const [script, style] = built.map(bytes);
  const document = Math.max(...documents.map(bytes));
  return { document, script, style, sum: document + script + style };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(await weigh());

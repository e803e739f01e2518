// Bundles src/page.ts and src/page.css into a directory, dist/ unless given, with the licences of the bundled packages.
// esbuild of the lock file makes the same bytes on every machine; test.mjs compares them with the committed ones.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const TARGET = ["chrome94", "firefox94", "safari15"];
const BUNDLED = ["des.js", "inherits", "minimalistic-assert"];

export async function buildPage(outdir, entry = "src/page.ts") {
  await mkdir(outdir, { recursive: true });
  const common = { absWorkingDir: here, bundle: true, minify: true, charset: "utf8", legalComments: "none", logLevel: "warning" };
  await build({
    ...common,
    entryPoints: [entry],
    outfile: `${outdir}/page.js`,
    format: "esm",
    target: TARGET,
    // clients/typescript/card_pin.ts imports des.js; its own node_modules need not exist.
    nodePaths: [`${here}node_modules`],
  });
  await build({ ...common, entryPoints: ["src/page.css"], outfile: `${outdir}/page.css`, target: TARGET });
  await writeFile(`${outdir}/LICENSES.txt`, await licences());
}

async function licences() {
  const texts = ["page.js contains these packages.\n"];
  for (const name of BUNDLED) {
    const { version, license } = JSON.parse(await readFile(`${here}node_modules/${name}/package.json`, "utf8"));
    const file = name === "inherits" || name === "minimalistic-assert" ? "LICENSE" : "README.md";
    const text = await readFile(`${here}node_modules/${name}/${file}`, "utf8");
    const licence = file === "LICENSE" ? text : text.slice(text.indexOf("This software"));
    texts.push(`${name} ${version} (${license})\n\n${licence.trim()}\n`);
  }
  return texts.join("\n----\n\n");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildPage(process.argv[2] ?? `${here}dist`);

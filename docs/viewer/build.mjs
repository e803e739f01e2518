// Builds dist/, the files that the edge serves at /docs. `--check` compares them with the committed ones, byte by byte.
import { readFileSync, readdirSync, writeFileSync, mkdirSync } from "node:fs";
import { build } from "esbuild";
import { gzipSync } from "fflate";
import { Marked } from "marked";

const folder = new URL(".", import.meta.url);
const read = (path) => readFileSync(new URL(path, folder), "utf8");
const packages = "node_modules/";
const escape = (text) => text.replace(/[&<>"]/g, (mark) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[mark]);

// The compressor is JavaScript of the lock file and the time is fixed, so each Node version writes the same bytes.
const gzip = (text) => gzipSync(Buffer.from(text), { level: 9, mtime: 0 });

async function bundle(entry) {
  const built = await build({
    entryPoints: [new URL(entry, folder).pathname],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: ["chrome109", "firefox115", "safari16"],
    legalComments: "none",
  });
  return built.outputFiles[0].text;
}

/** The guide as HTML, with an id for each heading, and the list of its sections. */
function guide() {
  const ids = new Map();
  const sections = [];
  const marked = new Marked({
    renderer: {
      heading({ tokens, depth }) {
        const text = this.parser.parseInline(tokens);
        const name = text.replace(/<[^>]*>/g, "").toLowerCase().replace(/[^\w]+/g, "-").replace(/^-|-$/g, "");
        const seen = ids.get(name) ?? 0;
        ids.set(name, seen + 1);
        const id = seen ? `${name}-${seen}` : name;
        if (depth === 2) sections.push({ id, text });
        return `<h${depth} id="${id}">${text}</h${depth}>\n`;
      },
      // The other documents are files of the repository, which the edge does not serve.
      link({ href, tokens }) {
        const text = this.parser.parseInline(tokens);
        if (!/^https?:/.test(href)) return text;
        return `<a href="${escape(href)}" rel="noreferrer">${text}</a>`;
      },
      // A table or a block of code scrolls sideways on a phone, by keyboard too.
      code({ text, lang }) {
        const label = { output: "Output", text: "Diagram", json: "Example" }[lang] ?? "Commands";
        return `<pre class="${lang}" tabindex="0" role="group" aria-label="${label}"><code>${escape(text)}\n</code></pre>\n`;
      },
      table(token) {
        const cell = (tag) => (cell) => `<${tag}>${this.parser.parseInline(cell.tokens)}</${tag}>`;
        const head = token.header.map(cell("th")).join("");
        const rows = token.rows.map((row) => `<tr>${row.map(cell("td")).join("")}</tr>`).join("\n");
        const label = escape(token.header.map((cell) => cell.text).join(", "));
        return `<div class="table" tabindex="0" role="group" aria-label="Table: ${label}"><table>\n<thead><tr>${head}</tr></thead>\n<tbody>${rows}</tbody>\n</table></div>\n`;
      },
    },
  });
  const body = marked.parse(read("../guide.md"));
  const contents = sections.map(({ id, text }) => `<li><a href="#${id}">${text}</a></li>`).join("\n");
  return { body, contents };
}

const page = (title, root, current, body, scripts = "") => {
  const links = [["docs", "Reference"], ["docs/guide", "Guide"], ["openapi.json", "openapi.json"]];
  const nav = links.map(([path, name]) => {
    const href = path === current ? "#main" : root + path;
    return `<a href="${href}"${path === current ? ' aria-current="page"' : ""}>${name}</a>`;
  });
  const style = (name) => `<link rel="stylesheet" href="${root}docs/${name}">`;
  const styles = [current === "docs" ? style("swagger-ui.css") : "", style("docs.css")].join("");
  return read("src/page.html")
    .replaceAll("{{root}}", root)
    .replace("{{title}}", title)
    .replace("{{styles}}", styles)
    .replace("{{icon}}", encodeURIComponent(read("src/icon.svg").trim()))
    .replace("{{mark}}", read("src/icon.svg").trim())
    .replace("{{nav}}", nav.join(""))
    .replace("{{scripts}}", scripts)
    .replace("{{body}}", () => body);
};

const { body, contents } = guide();
const scripts = ["swagger-ui-bundle.js", "docs.js"].map((name) => `<script defer src="docs/${name}"></script>`).join("");
const licences = [
  ["swagger-ui-dist", ["LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"]],
  ["dompurify", ["LICENSE"]],
].flatMap(([name, files]) => {
  const { version } = JSON.parse(read(`${packages}${name}/package.json`));
  return files.map((file) => `=== ${name} ${version}: ${file}\n\n${read(`${packages}${name}/${file}`).trim()}\n`);
});

const files = {
  "reference.html": page("Reference", "", "docs", read("src/reference.html"), scripts),
  "guide.html": page("Guide", "../", "docs/guide", read("src/guide.html").replace("{{contents}}", contents).replace("{{guide}}", () => body)),
  "docs.css.gz": gzip(await bundle("src/docs.css")),
  "docs.js.gz": gzip(await bundle("src/docs.js")),
  "swagger-ui-bundle.js.gz": gzip(read(`${packages}swagger-ui-dist/swagger-ui-bundle.js`)),
  "swagger-ui.css.gz": gzip(read(`${packages}swagger-ui-dist/swagger-ui.css`)),
  "licences.txt": licences.join("\n"),
};

const dist = new URL("dist/", folder);
if (process.argv.includes("--check")) {
  const names = readdirSync(dist).sort();
  const differ = Object.entries(files).filter(([name, content]) => {
    return !names.includes(name) || !readFileSync(new URL(name, dist)).equals(Buffer.from(content));
  });
  const foreign = names.filter((name) => !(name in files));
  const wrong = [...differ.map(([name]) => name), ...foreign];
  if (wrong.length) {
    console.error(`docs/viewer/dist differs from its sources: ${wrong.join(", ")}. Run: npm --prefix docs/viewer run build`);
    process.exit(1);
  }
  console.log(`${names.length} files of docs/viewer/dist equal their rebuild`);
} else {
  mkdirSync(dist, { recursive: true });
  for (const [name, content] of Object.entries(files)) writeFileSync(new URL(name, dist), content);
}

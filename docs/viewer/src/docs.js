import DOMPurify from "dompurify";

// Swagger UI sets markup that it made from the contract's Markdown. A browser with Trusted Types passes each such text to this
// policy; scripts and their addresses have no policy, so none can be added.
globalThis.trustedTypes?.createPolicy("default", { createHTML: (markup) => DOMPurify.sanitize(markup) });

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

const METHODS = ["get", "post"];

/** The operations of the contract by tag, in the order of its tags. */
function operationsByTag(contract) {
  const tags = new Map((contract.tags ?? []).map((tag) => [tag.name, []]));
  for (const [path, item] of Object.entries(contract.paths)) {
    for (const method of METHODS.filter((method) => item[method])) {
      const tag = item[method].tags[0];
      tags.set(tag, [...(tags.get(tag) ?? []), { tag, method, path, ...item[method] }]);
    }
  }
  return tags;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Fills the list beside the reference; a link opens its operation. */
function listOperations(contract, viewer) {
  const list = document.getElementById("operation-list");
  for (const [tag, operations] of operationsByTag(contract)) {
    const links = operations.map((operation) => {
      const anchor = `operations-${tag.replace(/\s/g, "_")}-${operation.operationId}`;
      const method = element("span", { className: `method ${operation.method}` }, operation.method.toUpperCase());
      const link = element("a", { href: `#/${encodeURIComponent(tag)}/${operation.operationId}` }, method, operation.summary);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        viewer.layoutActions.show(["operations", tag, operation.operationId], true);
        history.replaceState(null, "", link.href);
        const target = document.getElementById(anchor);
        target?.scrollIntoView({ block: "start" });
        target?.querySelector("button")?.focus({ preventScroll: true });
      });
      return element("li", {}, link);
    });
    list.append(element("li", {}, element("span", { className: "tag" }, tag), element("ul", {}, ...links)));
  }
}

/** Changes Swagger UI's markup where a screen reader or a keyboard needs it. */
const accessibleMarkup = ({ React }) => ({
  wrapComponents: {
    // A level of headings between the title (h1) and the tags (h3).
    operations: (Operations) => (properties) =>
      React.createElement(React.Fragment, null, React.createElement("h2", null, "Operations"), React.createElement(Operations, properties)),
    // The link is inside the button that opens the operation, which has the same effect.
    DeepLink: () => ({ text }) => React.createElement("span", null, text),
  },
});

async function show() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
  const contract = await answer.json();
  const viewer = globalThis.SwaggerUIBundle({
    dom_id: "#reference",
    spec: contract,
    layout: "BaseLayout",
    plugins: [accessibleMarkup],
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    defaultModelRendering: "model",
    displayRequestDuration: true,
    tryItOutEnabled: true,
    // The badge of a third-party validator.
    validatorUrl: null,
    // Credentials stay in memory and end with the page.
    persistAuthorization: false,
    supportedSubmitMethods: METHODS,
  });
  listOperations(contract, viewer);
}

show().catch(() => {
  document.getElementById("reference").replaceChildren(
    element("p", { className: "note", role: "alert" }, "The contract could not be read. It is at openapi.json."),
  );
});

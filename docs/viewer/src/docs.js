import DOMPurify from "dompurify";

// Swagger UI sets markup that it made from the contract's Markdown. A browser with Trusted Types passes each such text to this
// policy; scripts and their addresses have no policy, so none can be added.
globalThis.trustedTypes?.createPolicy("default", { createHTML: (markup) => DOMPurify.sanitize(markup) });

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

const METHODS = ["get", "post"];

/** The longer path first: set/tzpk comes before set. */
const byPath = (one, other) => other.length - one.length;

/** The operations of the contract by tag, in the order of its tags. */
function operationsByTag(contract) {
  const tags = new Map((contract.tags ?? []).map((tag) => [tag.name, []]));
  for (const [path, item] of Object.entries(contract.paths)) {
    for (const method of METHODS.filter((method) => item[method])) {
      const tag = item[method].tags[0];
      tags.set(tag, [...(tags.get(tag) ?? []), { tag, method, path, ...item[method] }]);
    }
  }
  for (const operations of tags.values()) operations.sort((one, other) => byPath(one.path, other.path));
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

/** Sets attributes of the dialog's parts that Swagger UI leaves out, or that contradict their text. */
function nameParts(dialog) {
  dialog.querySelector(".close-modal")?.setAttribute("aria-label", "Close");
  for (const button of dialog.querySelectorAll(".modal-btn[aria-label]")) button.removeAttribute("aria-label");
  for (const heading of dialog.querySelectorAll("h3, h4")) heading.setAttribute("aria-level", heading.localName === "h3" ? "2" : "3");
}

/** The dialog for credentials: named, closed by Escape, and with the focus inside while it is open. */
const accessibleDialog = (Popup, React) =>
  class extends React.Component {
    root = React.createRef();
    opener = document.activeElement;
    observer = new MutationObserver(() => nameParts(this.root.current));

    onKey = (event) => {
      if (event.key === "Escape") this.props.authActions.showDefinitions(false);
      if (event.key !== "Tab") return;
      const stops = [...this.root.current.querySelectorAll("button, input, a[href]")];
      const [from, to] = event.shiftKey ? [stops.at(0), stops.at(-1)] : [stops.at(-1), stops.at(0)];
      if (document.activeElement === from || !this.root.current.contains(document.activeElement)) {
        event.preventDefault();
        to.focus();
      }
    };

    componentDidMount() {
      nameParts(this.root.current);
      this.observer.observe(this.root.current, { childList: true, subtree: true });
      document.addEventListener("keydown", this.onKey);
      this.root.current.querySelector("input, button").focus();
    }

    componentWillUnmount() {
      this.observer.disconnect();
      document.removeEventListener("keydown", this.onKey);
      this.opener?.focus();
    }

    render() {
      const name = { ref: this.root, role: "dialog", "aria-modal": "true", "aria-label": "Credentials" };
      return React.createElement("div", name, React.createElement(Popup, this.props));
    }
  };

/** Changes Swagger UI's markup where a screen reader or a keyboard needs it. */
const accessibleMarkup = ({ React }) => ({
  wrapComponents: {
    TextArea: (TextArea) => (properties) => React.createElement(TextArea, { "aria-label": "Request body", ...properties }),
    authorizationPopup: (Popup) => accessibleDialog(Popup, React),
    InfoContainer: (InfoContainer) => (properties) =>
      React.createElement("section", { "aria-label": "About the API" }, React.createElement(InfoContainer, properties)),
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
    defaultModelExpandDepth: 2,
    defaultModelRendering: "model",
    displayRequestDuration: true,
    tryItOutEnabled: true,
    // The badge of a third-party validator.
    validatorUrl: null,
    // Credentials stay in memory and end with the page.
    persistAuthorization: false,
    supportedSubmitMethods: METHODS,
    operationsSorter: (one, other) => byPath(one.get("path"), other.get("path")),
    // With browser credentials a 401 would open the browser's own dialog for a password.
    requestInterceptor: (request) => Object.assign(request, { credentials: "omit" }),
  });
  listOperations(contract, viewer);
}

show().catch(() => {
  document.getElementById("reference").replaceChildren(
    element("p", { className: "note", role: "alert" }, "The contract could not be read. It is at openapi.json."),
  );
});

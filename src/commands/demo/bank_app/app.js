// The part of an integrator: opens a control through the site's own back-end, shows the page of the edge, listens to its events.
const { edge, key } = document.body.dataset;
const events = document.getElementById("events");
const place = document.getElementById("frame");
let frame;

const report = (text) => {
  const item = document.createElement("li");
  const code = document.createElement("code");
  code.textContent = text;
  item.append(code);
  events.append(item);
};

const openControl = async (operation) => {
  const answer = await fetch("/controls", { method: "POST", body: operation });
  if (!answer.ok) throw new Error(`the back-end answered ${answer.status}`);
  return answer.json();
};

// A web site: the frame loads without a control and gets the controlId by postMessage, for the origin of the edge alone.
const showFrame = (operation, { controlId, pinFrameURL }) => {
  frame = document.createElement("iframe");
  frame.title = "PIN";
  frame.addEventListener("load", () => {
    frame.contentWindow.postMessage({ operation, controlId }, edge);
    frame.focus();
  }, { once: true });
  frame.src = `${pinFrameURL}?key=${key}`;
  place.replaceChildren(frame);
};

// A phone: the web view sends the controlId in a form POST, so that the controlId is in no URL.
const showPhone = (target, { controlId, pinURL }) => {
  const form = document.createElement("form");
  const field = document.createElement("input");
  Object.assign(form, { method: "post", action: pinURL, target, hidden: true });
  Object.assign(field, { type: "hidden", name: "controlId", value: controlId });
  form.append(field);
  document.body.append(form);
  form.submit();
  form.remove();
};

const start = async (operation) => {
  const isPhone = document.querySelector("input[name=where]:checked").value === "phone";
  // A browser lets a click open a window, and no later event.
  if (isPhone) window.open("about:blank", "phone", "width=390,height=780");
  place.replaceChildren();
  frame = undefined;
  try {
    const control = await openControl(operation);
    report(`control opened: ${operation}`);
    if (isPhone) showPhone("phone", control); else showFrame(operation, control);
  } catch (error) {
    report(`failed: ${error.message}`);
  }
};

window.addEventListener("message", (message) => {
  if (message.origin !== edge || !frame || message.source !== frame.contentWindow) return;
  report(JSON.stringify(message.data));
});
for (const operation of ["set-pin", "view-pin"]) {
  document.getElementById(operation).addEventListener("click", () => start(operation));
}

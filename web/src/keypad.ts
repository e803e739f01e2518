import { icon, make } from "./elements.ts";
import { text } from "./texts.ts";

const ERASE = "M9 5h11a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1H9l-6-7zM12 9.5l5 5M17 9.5l-5 5";
/** The keys row by row. `undefined` is an empty place. */
const KEYS = [1, 2, 3, 4, 5, 6, 7, 8, 9, undefined, 0, "erase"] as const;

/**
 * The keys 0 to 9 and the erase key.
 * @param field The element that gets the focus when a key is pressed in a frame without the focus.
 */
export function keypad(press: (key: number | "erase") => void, field: HTMLElement): HTMLElement {
  const pad = make("div", { class: "keypad", role: "group", "aria-label": text("keypad"), dir: "ltr" });
  for (const key of KEYS) {
    if (key === undefined) {
      pad.append(make("span"));
      continue;
    }
    const made = make("button", { type: "button", class: "key" });
    if (key === "erase") {
      made.setAttribute("aria-label", text("delete"));
      made.append(icon(ERASE));
    } else {
      made.textContent = String(key);
    }
    made.addEventListener("click", () => press(key));
    pad.append(made);
  }
  pad.addEventListener("mousedown", (event) => {
    // A pressed key leaves the focus where it is, so that Enter does not press the key again.
    event.preventDefault();
    // Without the focus of the browser, digits that are typed next would go to the parent document.
    if (!document.hasFocus()) field.focus({ preventScroll: true });
  });
  return pad;
}

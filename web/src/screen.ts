import { button, icon, make } from "./elements.ts";
import { secondsInWords, text, type TextKey } from "./texts.ts";

const RING = "M12 3a9 9 0 1 1 0 18a9 9 0 1 1 0-18";
const SIGNS = {
  done: "M5 12.5l4.5 4.5L19 7.5",
  hidden: "M3 3l18 18M10.6 6.1A9.6 9.6 0 0 1 12 6c5 0 8.5 4 9.5 6a14 14 0 0 1-2.6 3.4M6.4 7.6A13.6 13.6 0 0 0 2.5 12c1 2 4.5 6 9.5 6a9.3 9.3 0 0 0 4-.9M9.9 9.9a3 3 0 0 0 4.2 4.2",
  eye: "M2.5 12C3.5 10 7 6 12 6s8.5 4 9.5 6c-1 2-4.5 6-9.5 6s-8.5-4-9.5-6M12 9a3 3 0 1 1 0 6a3 3 0 1 1 0-6",
  stop: "M12 7v6M12 16.5v.1M12 3a9 9 0 1 1 0 18a9 9 0 1 1 0-18",
  wait: "M12 3a9 9 0 0 1 9 9",
  clock: "M12 7v5l3 2M12 3a9 9 0 1 1 0 18a9 9 0 1 1 0-18",
};
const SOON_SECONDS = 10;

export type Sign = keyof typeof SIGNS;

export interface View {
  heading: TextKey;
  hint: string;
  sign?: Sign;
  content?: readonly Node[];
  /** The element that has the focus when the view appears. The heading by default. */
  focus?: HTMLElement;
}

/** The elements of the page, the same in every state, so that live regions exist before their texts. */
export class Screen {
  readonly #time = make("span");
  readonly #timeLabel = make("span");
  readonly #timer = make("div", { class: "timer", role: "timer" }, this.#timeLabel, this.#time);
  readonly #ring = icon(RING);
  readonly #sign = make("div", { class: "sign" });
  readonly #heading = make("h1", { id: "heading", tabindex: "-1" });
  readonly #hint = make("p", { id: "hint", class: "hint" });
  readonly #problem = make("p", { class: "problem", role: "alert" });
  readonly #content = make("div", { class: "content" });
  readonly #lossText = make("p");
  readonly #tryNow: HTMLElement;
  readonly #loss: HTMLElement;
  readonly #status = make("p", { class: "for-readers", role: "status" });
  #focus: HTMLElement = this.#heading;
  /** The last seconds of this countdown were announced. */
  #soon = false;

  constructor(
    private readonly main: HTMLElement,
    tryNow: () => void,
  ) {
    this.#ring.firstElementChild?.setAttribute("pathLength", "1");
    this.#timer.prepend(this.#ring);
    this.#tryNow = button("quiet", text("try_now"), tryNow);
    this.#loss = make("div", { class: "loss" }, this.#lossText, this.#tryNow);
    this.#loss.hidden = true;
    this.#timer.hidden = true;
    main.replaceChildren(
      this.#timer,
      this.#sign,
      this.#heading,
      this.#hint,
      this.#problem,
      this.#loss,
      this.#content,
      this.#status,
    );
  }

  show({ heading, hint, sign, content = [], focus = this.#heading }: View): void {
    const title = text(heading);
    this.#focus = focus;
    this.main.dataset.view = heading;
    this.#heading.textContent = title;
    this.#hint.textContent = hint;
    this.#problem.textContent = "";
    this.loss(undefined);
    this.#sign.replaceChildren(...(sign ? [icon(SIGNS[sign])] : []));
    this.#sign.className = `sign ${sign ?? ""}`;
    this.#content.replaceChildren(...content);
    // A frame must not take the focus from its parent window.
    if (document.hasFocus()) focus.focus({ preventScroll: true });
    this.announce(document.hasFocus() ? hint : `${title}. ${hint}`);
  }

  problem(message: string): void {
    this.#problem.textContent = message;
  }

  /** A text for screen readers alone. */
  announce(message: string): void {
    this.#status.textContent = message;
  }

  /** Shows or hides the notice that calls get no answer, with or without the button for another try. */
  loss(key: TextKey | undefined, mayTry = true): void {
    const message = key ? text(key) : "";
    const focused = this.#loss.contains(document.activeElement);
    this.#tryNow.hidden = !mayTry;
    this.#loss.classList.toggle("waiting", !mayTry);
    if (focused && !(key && mayTry) && document.hasFocus()) this.#focus.focus({ preventScroll: true });
    if (this.#loss.hidden === (key === undefined) && this.#lossText.textContent === message) return;
    this.#loss.hidden = key === undefined;
    this.main.classList.toggle("lost", key !== undefined);
    this.#lossText.textContent = message;
    if (key) this.announce(message);
  }

  time(label: TextKey, left: number, share: number): void {
    const name = text(label);
    const soon = left <= SOON_SECONDS;
    const starts = label === "hides_in" && share === 1;
    this.#timer.hidden = false;
    this.#timer.classList.toggle("soon", soon && share < 1);
    this.#timeLabel.textContent = name;
    this.#time.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    this.#ring.firstElementChild?.setAttribute("stroke-dasharray", `${share} 1`);
    if (starts || (soon && !this.#soon)) this.announce(`${name}: ${secondsInWords(left)}`);
    this.#soon = soon;
  }

  hideTime(): void {
    this.#timer.hidden = true;
    this.#soon = false;
  }
}

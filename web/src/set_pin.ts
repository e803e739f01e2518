import { encryptPin, makeDeviceKey, type DeviceKey } from "../../clients/typescript/card_pin.ts";
import { Refused } from "./connection.ts";
import { button, headphones, make } from "./elements.ts";
import type { Host } from "./host.ts";
import { keypad } from "./keypad.ts";
import type { Control, Ending, Page, PinOperation } from "./operation.ts";
import { PinEntry } from "./pin_entry.ts";
import type { Screen } from "./screen.ts";
import { text, type TextKey } from "./texts.ts";

/** How long a block without an answer is sent again after the control expired. The engine still confirms it then. */
const CONFIRM_TIME_MAX_MS = 20_000;

type Step = "choose" | "repeat" | "save";

/** Sets a PIN: the cardholder enters it twice, the page encrypts it under the tzpk of its own key. */
export class SetPin implements PinOperation {
  readonly failure = "set_pin_error";
  readonly #first = new PinEntry();
  readonly #second = new PinEntry();
  readonly #dots = make("div", { class: "dots", "aria-hidden": "true", dir: "ltr" });
  // A text field for screen readers, so that they pass the digit keys on; it never has a value.
  readonly #field = make(
    "div",
    { class: "field", role: "textbox", tabindex: "0", "aria-labelledby": "heading", "aria-describedby": "hint headphones" },
    this.#dots,
  );
  readonly #keypad = keypad((key) => this.key(key), this.#field);
  readonly #proceed = button("main", "", () => this.proceed());
  readonly #another = button("quiet", text("another"), () => this.#choose(""));
  #step: Step = "choose";
  /** A block was sent and has no answer yet. */
  #sent = false;
  #key: Promise<{ device: DeviceKey; tzpk: string }>;

  constructor(
    private readonly control: Control,
    private readonly page: Page,
    private readonly screen: Screen,
    private readonly host: Host,
  ) {
    this.#key = this.#makeKey();
    this.#choose("");
  }

  get lossText(): TextKey {
    return this.#sent ? "not_confirmed" : "no_connection";
  }

  key(key: "erase" | "clear" | number): void {
    if (this.#step === "save") return;
    const entry = this.#entry();
    this.screen.problem("");
    if (key === "erase") entry.pop();
    else if (key === "clear") entry.wipe();
    else if (entry.length < this.control.digitsMax) entry.push(key);
    this.#draw();
    this.screen.announce(text("entered", { count: entry.length }));
  }

  proceed(): void {
    if (this.#step === "save") return;
    if (this.#entry().length < this.control.digitsMin) {
      this.screen.problem(text("too_short", { min: this.control.digitsMin }));
    } else if (this.#step === "choose") {
      this.#enter("repeat");
    } else if (this.#first.equals(this.#second)) {
      this.#second.wipe();
      void this.#save();
    } else {
      this.#choose(text("mismatch"));
    }
  }

  refusePaste(): void {
    this.screen.problem(text("no_paste"));
  }

  timeUp(): boolean {
    return this.#step !== "save";
  }

  wipe(): void {
    this.#first.wipe();
    this.#second.wipe();
  }

  #entry(): PinEntry {
    return this.#step === "choose" ? this.#first : this.#second;
  }

  #choose(problem: string): void {
    this.wipe();
    this.#enter("choose");
    this.screen.problem(problem);
  }

  #enter(step: "choose" | "repeat"): void {
    this.#step = step;
    const { digitsMin: min, digitsMax: max } = this.control;
    this.#busy(false);
    this.#proceed.textContent = text(step === "choose" ? "continue" : "save");
    // Its place stays, so that no key moves between the steps.
    this.#another.classList.toggle("unseen", step === "choose");
    this.screen.show({
      heading: step,
      hint: text(min === max ? "length_one" : "length", { min, max }),
      content: [this.#field, headphones(), this.#keypad, this.#proceed, this.#another],
      focus: this.#field,
    });
    this.#draw();
  }

  /** A dot a digit, and a ring for each digit that is still needed. */
  #draw(): void {
    const { length } = this.#entry();
    const enough = length >= this.control.digitsMin;
    const rings = Math.max(length, this.control.digitsMin);
    this.#dots.replaceChildren(
      ...Array.from({ length: rings }, (_, at) => make("span", { class: at < length ? "dot" : "ring" })),
    );
    this.#proceed.setAttribute("aria-disabled", String(!enough));
    this.host.reportValid(enough);
  }

  #busy(busy: boolean): void {
    this.#keypad.inert = busy;
    this.#another.classList.toggle("unseen", busy);
    this.#proceed.classList.toggle("busy", busy);
    this.#proceed.setAttribute("aria-disabled", String(busy));
  }

  /** Fetches a tzpk for a new key. A failure ends the operation at once. */
  #makeKey(): Promise<{ device: DeviceKey; tzpk: string }> {
    const made = makeDeviceKey().then(async (device) => {
      const { tzpk } = await this.page.call<{ tzpk: string }>("tzpk", { publicKey: device.publicKey });
      return { device, tzpk };
    });
    made.catch((error: unknown) => this.#fail(error));
    return made;
  }

  async #save(): Promise<void> {
    this.#step = "save";
    this.#busy(true);
    this.#proceed.textContent = text("saving");
    this.screen.announce(text("saving"));
    try {
      const { device, tzpk } = await this.#key;
      const pinBlock = await encryptPin(device, tzpk, this.#first.take());
      this.#sent = true;
      await this.page.call("set", { pinBlock }, () => this.page.timeLeft() + CONFIRM_TIME_MAX_MS);
      this.page.end("saved", "set_pin_success");
    } catch (error) {
      if (error instanceof Refused && error.refusal === "weak") {
        this.#sent = false;
        this.host.report("set_pin_validation_error");
        // A fresh tzpk also shows whether the control allows another PIN.
        this.#key = this.#makeKey();
        this.#choose(text("weak"));
      } else {
        this.#fail(error);
      }
    }
  }

  #fail(error: unknown): void {
    this.page.end(error instanceof Refused ? this.#ending(error) : "failed", this.failure);
  }

  /** Another document of this control, such as the one before a reload, may have set a PIN and so spent the control. */
  #ending({ refusal, afterLoss }: Refused): Ending {
    if (this.#sent && afterLoss) return "unconfirmed";
    if (refusal === "no_answer") return "expired";
    if (refusal === "expired") return this.page.timeLeft() > 0 ? "failed" : "expired";
    return this.#sent ? "unchanged" : "failed";
  }
}

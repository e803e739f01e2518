import { decryptPin, makeDeviceKey, type DeviceKey } from "../../clients/typescript/card_pin.ts";
import { Refused } from "./connection.ts";
import { Countdown } from "./countdown.ts";
import { button, headphones, make } from "./elements.ts";
import type { Host } from "./host.ts";
import type { Ending, Page, PinOperation } from "./operation.ts";
import type { Screen } from "./screen.ts";
import { text } from "./texts.ts";

/** One constant text a digit: the page never makes a string of a PIN. */
const DIGITS = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"] as const;

/** Shows the PIN for a set time, and hides it when the cardholder looks elsewhere. */
export class ViewPin implements PinOperation {
  readonly failure = "view_pin_error";
  readonly lossText = "no_connection";
  readonly #device: Promise<DeviceKey>;
  readonly #show = button("main", text("show"), () => this.proceed());
  readonly #digits = make("ol", { class: "digits", dir: "ltr", translate: "no", tabindex: "-1", "aria-labelledby": "heading" });
  #state: "ask" | "fetch" | "shown" = "ask";
  #countdown: Countdown | undefined;

  constructor(
    private readonly seconds: number,
    private readonly page: Page,
    private readonly screen: Screen,
    private readonly host: Host,
    /** Ends the countdown of the control: the request spent it. */
    private readonly stopTime: () => void,
  ) {
    this.#device = makeDeviceKey();
    this.#device.catch(() => page.end("failed", this.failure));
    this.#show.setAttribute("aria-describedby", "headphones");
    const content = [this.#show, headphones()];
    screen.show({ heading: "view", hint: text("view_hint"), sign: "eye", content, focus: this.#show });
  }

  proceed(): void {
    if (this.#state === "ask") void this.#fetch();
    else if (this.#state === "shown") this.#hide();
  }

  leave(): void {
    if (this.#state === "shown") this.#hide();
  }

  timeUp(): boolean {
    return this.#state === "ask";
  }

  wipe(): void {
    this.#countdown?.stop();
    for (const digit of this.#digits.children) digit.textContent = "";
    this.#digits.replaceChildren();
  }

  async #fetch(): Promise<void> {
    this.#state = "fetch";
    this.#show.classList.add("busy");
    this.#show.setAttribute("aria-disabled", "true");
    this.#show.textContent = text("showing");
    this.screen.announce(text("showing"));
    let digits: Uint8Array | undefined;
    try {
      const device = await this.#device;
      const { tzpk, pinBlock } = await this.page.call<{ tzpk: string; pinBlock: string }>("view", {
        publicKey: device.publicKey,
      });
      digits = await decryptPin(device, tzpk, pinBlock);
      if (!this.page.isCurrent()) return;
      this.#draw(digits);
    } catch (error) {
      this.page.end(error instanceof Refused ? this.#ending(error) : "failed", this.failure);
    } finally {
      digits?.fill(0);
    }
  }

  #ending({ refusal }: Refused): Ending {
    if (refusal === "not_set" || refusal === "not_shown") return refusal;
    const isOver = refusal === "no_answer" || (refusal === "expired" && this.page.timeLeft() <= 0);
    return isOver ? "expired" : "failed";
  }

  #draw(digits: Uint8Array): void {
    this.stopTime();
    if (!document.hasFocus() || document.visibilityState === "hidden") {
      this.page.end("hidden", this.failure);
      return;
    }
    this.#state = "shown";
    for (const digit of digits) this.#digits.append(make("li", {}, DIGITS[digit] ?? ""));
    this.screen.show({
      heading: "your_pin",
      hint: text("view_hint"),
      content: [this.#digits, button("main", text("hide"), () => this.proceed())],
      focus: this.#digits,
    });
    this.host.report("view_pin_success");
    this.#countdown = new Countdown(
      this.seconds,
      0,
      (left, share) => this.screen.time("hides_in", left, share),
      () => this.#hide(),
    );
  }

  #hide(): void {
    this.wipe();
    this.page.end("hidden");
  }
}

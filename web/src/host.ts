/** What the page reports to the app or the parent window. The names are those of the Card PIN API. */
export type HostEvent =
  | "view_pin_success"
  | "view_pin_error"
  | "set_pin_success"
  | "set_pin_error"
  | "set_pin_validation_error";

export type Operation = "set-pin" | "view-pin";

interface NativeHandlers {
  android_handler?: Record<string, unknown>;
  webkit?: { messageHandlers?: { ios_handler?: { postMessage(message: object): void } } };
}

/** The app or the parent window around the page. */
export class Host {
  /** The origin of the parent window, known from its first accepted message. */
  #parentOrigin: string | undefined;

  constructor(
    private readonly framed: boolean,
    private readonly origins: readonly string[],
  ) {}

  report(event: HostEvent): void {
    this.#send(event);
  }

  /** Reports after each key whether the entry has enough digits. */
  reportValid(valid: boolean): void {
    this.#send("pin_valid", valid);
  }

  /** Calls `start` for each request of the parent window, from a configured origin. The page ignores every other message. */
  onRequest(start: (operation: Operation, controlId: string) => void): void {
    if (!this.framed || window.parent === window) return;
    window.addEventListener("message", ({ source, origin, data }: MessageEvent<unknown>) => {
      if (source !== window.parent || !this.origins.includes(origin)) return;
      const { operation, controlId } = Object(data) as Record<string, unknown>;
      if ((operation !== "set-pin" && operation !== "view-pin") || typeof controlId !== "string") return;
      this.#parentOrigin = origin;
      start(operation, controlId);
    });
  }

  #send(event: HostEvent | "pin_valid", valid?: boolean): void {
    const message = valid === undefined ? { event } : { event, pin_valid: valid };
    if (this.framed) {
      if (this.#parentOrigin !== undefined) window.parent.postMessage(message, this.#parentOrigin);
      return;
    }
    // A handler of the app that throws must not stop the page.
    const { android_handler: android, webkit } = window as unknown as NativeHandlers;
    const methods = android as Record<string, ((valid?: boolean) => void) | undefined> | undefined;
    attempt(() => (valid === undefined ? methods?.[event]?.() : methods?.[event]?.(valid)));
    attempt(() => webkit?.messageHandlers?.ios_handler?.postMessage(message));
  }
}

function attempt(call: () => void): void {
  try {
    call();
  } catch {
    // The app's own log has its error.
  }
}

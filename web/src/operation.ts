import type { HostEvent, Operation } from "./host.ts";
import type { Sign } from "./screen.ts";
import type { TextKey } from "./texts.ts";

/** The answer of `session`. */
export interface Control {
  readonly operation: Operation;
  readonly pageId: string;
  readonly secondsLeft: number;
  readonly digitsMin: number;
  readonly digitsMax: number;
}

/** Setting or viewing a PIN: the part of the page that holds digits. */
export interface PinOperation {
  /** What the page reports when the operation ends without success. */
  readonly failure: HostEvent;
  /** The notice while the operation's calls get no answer. */
  readonly lossText: TextKey;
  /** The main button, the Enter key, and for setting a PIN `set_pin()` of the app. */
  proceed(): void;
  key?(key: "erase" | "clear" | number): void;
  refusePaste?(): void;
  /** The window lost the focus or is hidden. */
  leave?(): void;
  /** The control expired. Returns whether the operation ends with it. */
  timeUp(): boolean;
  /** Overwrites every digit. */
  wipe(): void;
}

/** The last state of the page. */
export type Ending =
  | "saved"
  | "hidden"
  | "expired"
  | "unavailable"
  | "failed"
  | "unchanged"
  | "unconfirmed"
  | "not_set"
  | "not_shown"
  | "unsupported";

export const ENDINGS: Record<Ending, { heading: TextKey; hint: TextKey; sign: Sign }> = {
  saved: { heading: "saved", hint: "saved_hint", sign: "done" },
  hidden: { heading: "hidden", hint: "hidden_hint", sign: "hidden" },
  expired: { heading: "expired", hint: "expired_hint", sign: "clock" },
  unavailable: { heading: "unavailable", hint: "unavailable_hint", sign: "stop" },
  failed: { heading: "failed", hint: "failed_hint", sign: "stop" },
  unchanged: { heading: "failed", hint: "unchanged_hint", sign: "stop" },
  unconfirmed: { heading: "unconfirmed", hint: "unconfirmed_hint", sign: "stop" },
  not_set: { heading: "not_set", hint: "not_set_hint", sign: "stop" },
  not_shown: { heading: "not_shown", hint: "not_shown_hint", sign: "stop" },
  unsupported: { heading: "unsupported", hint: "unsupported_hint", sign: "stop" },
};

/** What an operation uses of the page. */
export interface Page {
  /** A call under the page session, repeated until the control ends, or as `timeLeft` says. @throws Refused */
  call<Answer>(path: string, body: object, timeLeft?: () => number): Promise<Answer>;
  /** Milliseconds until the control ends; 0 or less after it. */
  timeLeft(): number;
  /** Whether this operation is still on the page: false after another one started, and after the page closed. */
  isCurrent(): boolean;
  /** Ends the operation with this state and reports the event. */
  end(ending: Ending, event?: HostEvent): void;
}

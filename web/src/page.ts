// The page that a cardholder sees. The edge renders it with its state in `data-*` of <html>.
import { Connection, Refused } from "./connection.ts";
import { Countdown } from "./countdown.ts";
import { Host, type HostEvent, type Operation } from "./host.ts";
import { ENDINGS, type Control, type Ending, type Page, type PinOperation } from "./operation.ts";
import { Screen } from "./screen.ts";
import { SetPin } from "./set_pin.ts";
import { text } from "./texts.ts";
import { ViewPin } from "./view_pin.ts";

const DIGIT_KEYS = "0123456789٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹";

const SESSION_TIME_MAX_MS = 20_000;

const data = document.documentElement.dataset;
const framed = data.mode === "frame";
const host = new Host(framed, (data.origins ?? "").split(" "));
const screen = new Screen(document.querySelector("main") ?? document.body, () => run?.connection.tryNow());

/** One control, from its exchange to its end. */
interface Run {
  connection: Connection;
  operation?: PinOperation;
  countdown?: Countdown;
}
let run: Run | undefined;

function connect(): Run {
  stop();
  const connection = new Connection(data.base ?? "", (lost) =>
    screen.loss(lost ? (run?.operation?.lossText ?? "no_connection") : undefined),
  );
  run = { connection };
  return run;
}

/** Ends the present control: wipes its digits and stops its calls and its countdown. */
function stop(): void {
  run?.operation?.wipe();
  run?.countdown?.stop();
  run?.connection.close();
  run = undefined;
}

function end(ending: Ending, event?: HostEvent): void {
  stop();
  const { heading, hint, sign } = ENDINGS[ending];
  screen.hideTime();
  screen.show({ heading, hint: text(hint), sign });
  if (event) host.report(event);
}

/** @param elapsed The most milliseconds that can have passed since the edge counted `secondsLeft`. */
function begin(current: Run, control: Control, elapsed: number): void {
  const page: Page = {
    call: (path, body, mayRepeat = () => page.isAlive()) =>
      current.connection.post(path, { pageId: control.pageId, ...body }, mayRepeat),
    isAlive: () => current.countdown?.isOver === false,
    end: (ending, event) => {
      if (run === current) end(ending, event);
    },
  };
  const stopTime = () => {
    current.countdown?.stop();
    screen.hideTime();
  };
  current.countdown = new Countdown(
    control.secondsLeft,
    elapsed,
    (left, share) => screen.time("time_left", left, share),
    () => {
      screen.hideTime();
      if (current.operation?.timeUp() !== false) page.end("expired", current.operation?.failure);
    },
  );
  current.operation =
    control.operation === "set-pin"
      ? new SetPin(control, page, screen, host)
      : new ViewPin(Number(data.viewSeconds), page, screen, host, stopTime);
}

/** Exchanges the control of a parent window's message. */
async function exchange(operation: Operation, controlId: string): Promise<void> {
  const failure = failureOf(operation);
  if (!isSupported()) return end("unsupported", failure);
  const current = connect();
  prepare();
  const stopAt = performance.now() + SESSION_TIME_MAX_MS;
  try {
    const control = await current.connection.post<Control>("session", { controlId }, () => performance.now() < stopAt);
    if (control.operation !== operation) return end("failed", failure);
    begin(current, control, performance.now() - current.connection.sentAt);
  } catch (error) {
    end(error instanceof Refused && error.refusal === "expired" ? "expired" : "failed", failure);
  }
}

function failureOf(operation: Operation): HostEvent {
  return operation === "set-pin" ? "set_pin_error" : "view_pin_error";
}

function isSupported(): boolean {
  return typeof globalThis.crypto?.subtle?.generateKey === "function";
}

function prepare(): void {
  screen.hideTime();
  screen.show({ heading: "title", hint: text("loading"), sign: "wait" });
}

/** The control of a page that the app opened: the edge exchanged it already. */
function open(): void {
  const operation = data.operation === "view-pin" ? "view-pin" : "set-pin";
  if (data.state !== "ready") {
    // The edge does not say what the control was for.
    end("expired", "set_pin_error");
    host.report("view_pin_error");
  } else if (!isSupported()) {
    end("unsupported", failureOf(operation));
  } else {
    const [loaded] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
    const control = {
      operation,
      pageId: data.pageId ?? "",
      secondsLeft: Number(data.secondsLeft),
      digitsMin: Number(data.digitsMin),
      digitsMax: Number(data.digitsMax),
    } as const;
    begin(connect(), control, Math.max(0, performance.now() - (loaded?.requestStart ?? 0)));
  }
}

function keyDown(event: KeyboardEvent): void {
  const operation = run?.operation;
  if (!operation || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const digit = event.key.length === 1 ? DIGIT_KEYS.indexOf(event.key) : -1;
  if (digit >= 0) operation.key?.(digit % 10);
  else if (event.key === "Backspace" || event.key === "Delete") operation.key?.("erase");
  else if (event.key === "Escape") operation.key?.("clear");
  // Enter on a button presses that button.
  else if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement)) operation.proceed();
  else return;
  event.preventDefault();
}

// The entry of the history becomes a GET without the form, so that no restored session holds the controlId.
history.replaceState(null, "");
document.addEventListener("keydown", keyDown);
for (const type of ["paste", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    run?.operation?.refusePaste?.();
  });
}
for (const type of ["copy", "cut", "dragover", "dragstart"]) {
  document.addEventListener(type, (event) => event.preventDefault());
}
window.addEventListener("blur", () => run?.operation?.leave?.());
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "hidden") run?.operation?.leave?.();
});
// A page that returns from the cache of the browser has nothing left.
window.addEventListener("pagehide", () => end("expired"));

if (framed) {
  prepare();
  host.onRequest((operation, controlId) => void exchange(operation, controlId));
} else {
  Object.assign(window, { set_pin: () => run?.operation?.proceed() });
  open();
}

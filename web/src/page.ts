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
  /** What the parent window asked for. */
  requested: Operation | undefined;
  controlId: string | undefined;
  operation?: PinOperation;
  countdown?: Countdown;
}
let run: Run | undefined;

function connect(controlId?: string, requested?: Operation): Run {
  stop();
  const connection = new Connection(data.base ?? "", (lost, mayTry) =>
    screen.loss(lost ? (run?.operation?.lossText ?? "no_connection") : undefined, mayTry),
  );
  run = { connection, controlId, requested };
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
    call: (path, body, timeLeft = page.timeLeft) =>
      current.connection.post(path, { pageId: control.pageId, ...body }, timeLeft),
    timeLeft: () => current.countdown?.left ?? 0,
    isCurrent: () => run === current,
    end: (ending, event) => {
      if (page.isCurrent()) end(ending, event);
    },
  };
  const stopTime = () => {
    current.countdown?.stop();
    screen.hideTime();
  };
  current.operation =
    control.operation === "set-pin"
      ? new SetPin(control, page, screen, host)
      : new ViewPin(Number(data.viewSeconds), page, screen, host, stopTime);
  // After the operation, whose view would replace the announcement of the last seconds.
  current.countdown = new Countdown(
    control.secondsLeft,
    elapsed,
    (left, share) => screen.time("time_left", left, share),
    () => {
      screen.hideTime();
      if (current.operation?.timeUp() !== false) page.end("expired", current.operation?.failure);
    },
  );
}

/** The first call, whose answer is the control. With a controlId the edge makes a session of this id, the same one on a retry. */
interface SessionRequest {
  controlId?: string;
  /** 32 lowercase hex digits. */
  pageId: string;
}

/**
 * Starts a control: one that a parent window sent, or the one of this page's session.
 * @param expected What the parent window asked for.
 */
async function start(request: SessionRequest, expected?: Operation): Promise<void> {
  if (!isSupported()) return fail("unsupported", expected);
  const current = connect(request.controlId, expected);
  prepare();
  const stopAt = performance.now() + SESSION_TIME_MAX_MS;
  try {
    const control = await current.connection.post<Control>("session", request, () => stopAt - performance.now());
    if (expected && control.operation !== expected) return fail("failed", expected);
    begin(current, control, performance.now() - current.connection.sentAt);
  } catch (error) {
    const refusal = error instanceof Refused ? error.refusal : "failed";
    // Without a controlId the edge found no session: the browser blocks cookies, or a second page replaced this page's cookie.
    const isOver = refusal === "expired" && request.controlId !== undefined;
    fail(refusal === "no_answer" ? "unavailable" : isOver ? "expired" : "failed", expected);
  }
}

/** 16 random bytes in hexadecimal. */
function newPageId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Ends a control that did not start. Without an operation it may have been for either. */
function fail(ending: Ending, operation?: Operation): void {
  end(ending);
  if (operation !== "view-pin") host.report("set_pin_error");
  if (operation !== "set-pin") host.report("view_pin_error");
}

function isSupported(): boolean {
  return typeof globalThis.crypto?.subtle?.generateKey === "function";
}

function prepare(): void {
  screen.hideTime();
  screen.show({ heading: "title", hint: text("loading"), sign: "wait" });
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
  host.onRequest((operation, controlId) => {
    // A control starts one page: an exchange of a repeated message with another pageId would end the entry.
    if (run?.controlId === controlId && run.requested === operation) return;
    void start({ controlId, pageId: newPageId() }, operation);
  });
} else {
  Object.assign(window, {
    set_pin: () => {
      if (run?.operation instanceof SetPin) run.operation.proceed();
    },
  });
  if (data.state === "opened") void start({ pageId: data.pageId ?? "" });
  else fail(data.state === "unavailable" ? "unavailable" : "expired");
}

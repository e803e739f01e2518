/** Why a call ended without a result. */
export type Refusal = "expired" | "weak" | "not_set" | "not_shown" | "no_answer" | "failed";

/** A call of the page that the edge refused, or that got no answer in time (`no_answer`). */
export class Refused extends Error {
  constructor(
    readonly refusal: Refusal,
    /** An earlier try of this call got no answer, so the edge may have carried it out. */
    readonly afterLoss: boolean,
  ) {
    super(refusal);
  }
}

const REFUSALS: Partial<Record<string, Refusal>> = {
  PIN_REFUSED: "weak",
  PIN_NOT_SET: "not_set",
  PIN_NOT_SHOWN: "not_shown",
  CONTROL_NOT_USABLE: "expired",
  PAGE_SESSION_INVALID: "expired",
};
const ANSWER_TIME_MAX_MS = 10_000;
const PAUSES_MS = [500, 1_000, 2_000, 3_000];
const PAUSE_MAX_MS = 3_000;

/** What a try brought: an answer, or none with the time that the edge asked for before the next try (`Retry-After`). */
type Result = { ok: boolean; body: unknown } | { limited: boolean; askedMs: number };

/** The calls of the page to the edge. A call without an answer is repeated with the same body. */
export class Connection {
  readonly #closed = new AbortController();
  #wake: (() => void) | undefined;
  /** When the last try was sent, on the clock of `performance.now()`. */
  sentAt = 0;

  constructor(
    private readonly base: string,
    /** Called with true while calls get no answer, and with false when one does. `mayTry`: `tryNow` has an effect soon. */
    private readonly onLoss: (lost: boolean, mayTry: boolean) => void,
  ) {
    window.addEventListener("online", () => this.tryNow(), { signal: this.#closed.signal });
  }

  /** Ends every call. Their promises stay pending. */
  close(): void {
    this.#closed.abort();
  }

  /** Ends the pause before the next try, but not the time that the edge asked for. */
  tryNow(): void {
    this.#wake?.();
  }

  /**
   * Posts a body and returns the answer's. Repeats without an answer, and on 408, 429 and 5xx, while time is left.
   * @param timeLeft Milliseconds until the last try.
   * @throws Refused
   */
  async post<Answer>(path: string, body: object, timeLeft: () => number): Promise<Answer> {
    const sent = JSON.stringify(body);
    let lost = false;
    const isOpen = () => !this.#closed.signal.aborted;
    for (let tries = 0; isOpen(); tries++) {
      if (tries > 0 && timeLeft() <= 0) throw new Refused("no_answer", lost);
      const result = await this.#try(path, sent);
      if (!isOpen()) break;
      if ("ok" in result) {
        this.onLoss(false, true);
        if (result.ok) return result.body as Answer;
        throw new Refused(REFUSALS[(result.body as { errorCode?: string }).errorCode ?? ""] ?? "failed", lost);
      }
      // The edge refuses a call with 429 before it carries out anything.
      lost ||= !result.limited;
      const left = timeLeft();
      if (left <= 0) continue;
      this.onLoss(true, result.askedMs <= PAUSE_MAX_MS);
      await this.#pause(PAUSES_MS[tries] ?? PAUSE_MAX_MS, Math.min(result.askedMs, left));
    }
    return new Promise(() => {});
  }

  async #try(path: string, body: string): Promise<Result> {
    this.sentAt = performance.now();
    const limit = new AbortController();
    const stop = () => limit.abort();
    const timer = setTimeout(stop, ANSWER_TIME_MAX_MS);
    this.#closed.signal.addEventListener("abort", stop);
    try {
      const response = await fetch(`${this.base}/${path}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
        cache: "no-store",
        credentials: "same-origin",
        redirect: "error",
        signal: limit.signal,
      });
      const limited = response.status === 429;
      if (response.status >= 500 || limited || response.status === 408) {
        const askedMs = Number(response.headers.get("retry-after")) * 1_000;
        return { limited, askedMs: askedMs > 0 ? askedMs : 0 };
      }
      return { ok: response.ok, body: await response.json() };
    } catch {
      return { limited: false, askedMs: 0 };
    } finally {
      clearTimeout(timer);
      this.#closed.signal.removeEventListener("abort", stop);
    }
  }

  async #pause(ownMs: number, askedMs: number): Promise<void> {
    const woken = new Promise<void>((wake) => (this.#wake = wake));
    if (askedMs > 0) await sleep(askedMs);
    await Promise.race([woken, sleep(ownMs - askedMs)]);
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

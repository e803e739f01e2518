/** Why a call ended without a result. */
export type Refusal = "expired" | "weak" | "not_set" | "not_shown" | "failed";

/** A call of the page that the edge refused, or that got no answer in time. */
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

/** The calls of the page to the edge. A call without an answer is repeated with the same body. */
export class Connection {
  readonly #closed = new AbortController();
  #wake: (() => void) | undefined;
  /** When the last try was sent, on the clock of `performance.now()`. */
  sentAt = 0;

  constructor(
    private readonly base: string,
    /** Called with true while calls get no answer, and with false when one does. */
    private readonly onLoss: (lost: boolean) => void,
  ) {
    window.addEventListener("online", () => this.tryNow(), { signal: this.#closed.signal });
  }

  /** Ends every call. Their promises stay pending. */
  close(): void {
    this.#closed.abort();
  }

  /** Ends the pause before the next try. */
  tryNow(): void {
    this.#wake?.();
  }

  /**
   * Posts a body and returns the answer's. Repeats without an answer, and on 408, 429 and 5xx, while `mayRepeat` says so.
   * @throws Refused
   */
  async post<Answer>(path: string, body: object, mayRepeat: () => boolean): Promise<Answer> {
    const sent = JSON.stringify(body);
    for (let tries = 0; ; tries++) {
      const answer = this.#closed.signal.aborted ? undefined : await this.#try(path, sent);
      if (this.#closed.signal.aborted) return new Promise(() => {});
      if (answer) {
        this.onLoss(false);
        if (answer.ok) return answer.body as Answer;
        throw new Refused(REFUSALS[(answer.body as { errorCode?: string }).errorCode ?? ""] ?? "failed", tries > 0);
      }
      if (!mayRepeat()) throw new Refused("expired", true);
      this.onLoss(true);
      await this.#pause(PAUSES_MS[Math.min(tries, PAUSES_MS.length - 1)] ?? 0);
    }
  }

  async #try(path: string, body: string): Promise<{ ok: boolean; body: unknown } | undefined> {
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
      if (response.status >= 500 || response.status === 429 || response.status === 408) return undefined;
      return { ok: response.ok, body: await response.json() };
    } catch {
      return undefined;
    } finally {
      clearTimeout(timer);
      this.#closed.signal.removeEventListener("abort", stop);
    }
  }

  #pause(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

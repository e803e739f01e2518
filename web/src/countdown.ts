/** Counts seconds down. Follows both clocks of the browser: the monotonic one may stop while the device sleeps. */
export class Countdown {
  readonly #monotonic: number;
  readonly #wall: number;
  readonly #timer: number;
  #shown = -1;

  /** @param elapsed Milliseconds that passed before now. */
  constructor(
    private readonly seconds: number,
    elapsed: number,
    private readonly onSecond: (left: number, share: number) => void,
    private readonly onEnd: () => void,
  ) {
    this.#monotonic = performance.now() - elapsed;
    this.#wall = Date.now() - elapsed;
    this.#timer = window.setInterval(() => this.#tick(), 200);
    this.#tick();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  /** Milliseconds until the end; negative after it. */
  get left(): number {
    const elapsed = Math.max(performance.now() - this.#monotonic, Date.now() - this.#wall);
    return this.seconds * 1_000 - elapsed;
  }

  #tick(): void {
    const left = Math.max(0, Math.ceil(this.left / 1_000));
    if (left !== this.#shown) {
      this.#shown = left;
      this.onSecond(left, left / this.seconds);
    }
    if (left === 0) {
      this.stop();
      // The constructor must return before the end is handled.
      setTimeout(this.onEnd);
    }
  }
}

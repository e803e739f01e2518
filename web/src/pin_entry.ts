/** The most digits of a PIN (ISO 9564-1). */
const DIGITS_MAX = 12;

/** The digits that the cardholder enters: bytes 0 to 9, overwritten when they leave. */
export class PinEntry {
  readonly #digits = new Uint8Array(DIGITS_MAX);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(digit: number): void {
    if (this.#length < DIGITS_MAX) this.#digits[this.#length++] = digit;
  }

  pop(): void {
    if (this.#length > 0) this.#digits[--this.#length] = 0;
  }

  wipe(): void {
    this.#digits.fill(0);
    this.#length = 0;
  }

  equals(other: PinEntry): boolean {
    return this.#length === other.#length && this.#digits.every((digit, at) => digit === other.#digits[at]);
  }

  /** Moves the digits to an array that the caller wipes. */
  take(): Uint8Array {
    const taken = this.#digits.slice(0, this.#length);
    this.wipe();
    return taken;
  }
}

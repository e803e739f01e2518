// The device side of the Card PIN API, for browsers and Node 20: an RSA key of one session, the tzpk, and the PIN block.
// Copy this file. Its only dependency is des.js, because WebCrypto has no 3DES.
//
// The tzpk is encrypted with RSA-OAEP, SHA-256, MGF1 with SHA-256, no label. WebCrypto uses the same hash for OAEP and MGF1, so a
// browser opens the tzpk of an edge with default settings. A tzpk made with MGF1-SHA-1 cannot be opened here.
//
// A PIN is an array of bytes 0 to 9, never a string: strings stay in memory until the engine collects them.

// @ts-ignore: des.js has no type declarations.
import untypedEde from "des.js/lib/des/ede.js";

type Bytes = Uint8Array<ArrayBuffer>;

interface Cipher {
  update(data: ArrayLike<number>): number[];
  final(): number[];
  buffer: number[];
  _edeState: { ciphers: { options: { key: Uint8Array }; _desState: { keys: number[]; tmp: number[] } }[] };
}

const Ede = untypedEde as {
  create(options: { type: "encrypt" | "decrypt"; key: Uint8Array; padding: false }): Cipher;
};

const OAEP = { name: "RSA-OAEP", hash: "SHA-256" };
const BLOCK_BYTES = 8;
const TZPK_BYTES = 16;
const DIGITS_MIN = 4;
const DIGITS_MAX = 12;

/** The kind of value that a device cannot use. */
export type CardPinProblem = "tzpk" | "block" | "digits" | "base64";

/** A value that the device cannot use. The text holds nothing secret. */
export class CardPinError extends Error {
  constructor(
    readonly problem: CardPinProblem,
    message: string,
  ) {
    super(message);
    this.name = "CardPinError";
  }
}

/** The RSA-2048 key pair of one control. The private key never leaves WebCrypto. */
export interface DeviceKey {
  /** `publicKey` of the requests: base64 of the DER SubjectPublicKeyInfo. */
  readonly publicKey: string;
  readonly privateKey: CryptoKey;
}

/** Makes a key pair whose private key cannot be exported. Make one for each control. */
export async function makeDeviceKey(): Promise<DeviceKey> {
  const generation = { ...OAEP, modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) };
  const pair = await crypto.subtle.generateKey(generation, false, ["encrypt", "decrypt"]);
  const spki = await crypto.subtle.exportKey("spki", pair.publicKey);
  return { publicKey: toBase64(new Uint8Array(spki)), privateKey: pair.privateKey };
}

/**
 * Decrypts a tzpk and expands its 16 bytes K1, K2 to K1, K2, K1: 24 bytes, the key of {@link encrypt3Des}. The caller wipes them.
 * @throws CardPinError The tzpk was made for another key or with other OAEP parameters.
 */
export async function openTzpk(device: Pick<DeviceKey, "privateKey">, tzpk: string): Promise<Bytes> {
  const sealed = fromBase64(tzpk);
  let opened: Bytes;
  try {
    opened = new Uint8Array(await crypto.subtle.decrypt(OAEP, device.privateKey, sealed));
  } catch {
    throw new CardPinError(
      "tzpk",
      "the tzpk cannot be opened: it was made for another public key, or not with RSA-OAEP, SHA-256 and MGF1-SHA-256." +
        " An edge client with MGF1-SHA-1 cannot serve this device",
    );
  }
  try {
    if (opened.length !== TZPK_BYTES) throw new CardPinError("tzpk", "the tzpk does not have 16 bytes");
    const key = new Uint8Array(TZPK_BYTES + BLOCK_BYTES);
    key.set(opened);
    key.set(opened.subarray(0, BLOCK_BYTES), TZPK_BYTES);
    return key;
  } finally {
    opened.fill(0);
  }
}

/**
 * The clear ISO 9564-1 format 1 block of a PIN: control nibble 1, the number of digits, the digits, filler.
 * @param filler 8 bytes, random unless given. The nibbles after the digits stay; the others are overwritten.
 * @throws CardPinError The PIN does not have 4 to 12 digits.
 */
export function encodeIso1(digits: Uint8Array, filler: Uint8Array = randomBlock()): Uint8Array {
  if (!isPin(digits)) throw new CardPinError("digits", "a PIN has 4 to 12 digits, each a byte from 0 to 9");
  filler[0] = 0x10 | digits.length;
  digits.forEach((digit, at) => {
    const byte = 1 + (at >> 1);
    const other = filler[byte] ?? 0;
    filler[byte] = at & 1 ? (other & 0xf0) | digit : (other & 0x0f) | (digit << 4);
  });
  return filler;
}

/**
 * The digits of a clear ISO 9564-1 format 1 block. The caller wipes them.
 * @throws CardPinError The block is not of format 1.
 */
export function decodeIso1(block: Uint8Array): Uint8Array {
  const head = block[0] ?? 0;
  const digits = new Uint8Array(head & 0x0f);
  if (block.length === BLOCK_BYTES && head >> 4 === 1 && digits.length <= DIGITS_MAX) {
    for (let at = 0; at < digits.length; at++) {
      const byte = block[1 + (at >> 1)] ?? 0;
      digits[at] = at & 1 ? byte & 0x0f : byte >> 4;
    }
    if (isPin(digits)) return digits;
  }
  digits.fill(0);
  throw new CardPinError("block", "the block is not an ISO 9564 format 1 block under this tzpk");
}

function isPin(digits: Uint8Array): boolean {
  return digits.length >= DIGITS_MIN && digits.length <= DIGITS_MAX && digits.every((digit) => digit <= 9);
}

/** Encrypts whole blocks with 3DES-ECB, no padding. The key has 24 bytes. */
export function encrypt3Des(key: Uint8Array, clear: Uint8Array): Uint8Array {
  return run3Des("encrypt", key, clear);
}

/** Decrypts whole blocks with 3DES-ECB, no padding. The key has 24 bytes. */
export function decrypt3Des(key: Uint8Array, encrypted: Uint8Array): Uint8Array {
  return run3Des("decrypt", key, encrypted);
}

function run3Des(type: "encrypt" | "decrypt", key: Uint8Array, input: Uint8Array): Uint8Array {
  const cipher = Ede.create({ type, key, padding: false });
  const parts = [cipher.update(input), cipher.final()];
  const output = new Uint8Array(input.length);
  output.set(parts[0] ?? []);
  output.set(parts[1] ?? [], parts[0]?.length);
  // des.js keeps copies of the key, the round keys and the last block in arrays.
  for (const array of [...parts, cipher.buffer]) array.fill(0);
  for (const { options, _desState: state } of cipher._edeState.ciphers) {
    options.key.fill(0);
    state.keys.fill(0);
    state.tmp.fill(0);
  }
  return output;
}

/** The key check value (ANSI X9.24-1, annex A): the first 3 bytes of the encrypted zero block. */
export function keyCheckValue(key: Uint8Array): Uint8Array {
  return encrypt3Des(key, new Uint8Array(BLOCK_BYTES)).slice(0, 3);
}

/**
 * Encrypts a PIN for `pinBlock` of `POST /pin/v3/set`, base64 of 8 bytes, and wipes the digits, also when it fails.
 * To repeat a request whose reply was lost, send the same `pinBlock`: another block under the same control answers 404.
 * @throws CardPinError The tzpk cannot be opened, or the PIN does not have 4 to 12 digits.
 */
export async function encryptPin(
  device: Pick<DeviceKey, "privateKey">,
  tzpk: string,
  digits: Uint8Array,
  filler: Uint8Array = randomBlock(),
): Promise<string> {
  let key: Uint8Array | undefined;
  try {
    key = await openTzpk(device, tzpk);
    return toBase64(encrypt3Des(key, encodeIso1(digits, filler)));
  } finally {
    key?.fill(0);
    digits.fill(0);
    filler.fill(0);
  }
}

/**
 * Decrypts `tzpk` and `pinBlock` of `POST /pin/v3/view` to the digits. The caller wipes them.
 * @throws CardPinError The tzpk cannot be opened, or the block is not of format 1.
 */
export async function decryptPin(
  device: Pick<DeviceKey, "privateKey">,
  tzpk: string,
  pinBlock: string,
): Promise<Uint8Array> {
  const encrypted = fromBase64(pinBlock);
  if (encrypted.length !== BLOCK_BYTES) throw new CardPinError("block", "a pinBlock has 8 bytes");
  const key = await openTzpk(device, tzpk);
  const block = decrypt3Des(key, encrypted);
  try {
    return decodeIso1(block);
  } finally {
    key.fill(0);
    block.fill(0);
  }
}

function randomBlock(): Bytes {
  return crypto.getRandomValues(new Uint8Array(BLOCK_BYTES));
}

function toBase64(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes));
}

function fromBase64(text: string): Bytes {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    throw new CardPinError("base64", "the text is not standard base64");
  }
}

/** The purpose of a control. */
export type Scope = "SET_PIN" | "VIEW_PIN";

/** A control: `id` is the controlId. The addresses exist where the operator serves a web view. */
export interface Control {
  readonly id: string;
  readonly pinURL?: string;
  readonly pinFrameURL?: string;
}

/** An error response of the edge. */
export class EdgeError extends Error {
  constructor(
    readonly status: number,
    /** The stable code of the error, such as `CONTROL_NOT_USABLE`. */
    readonly errorCode: string,
    message: string,
    /** The id under which the edge logs the error. */
    readonly id: string,
  ) {
    super(`${status} ${errorCode}: ${message} (id ${id})`);
    this.name = "EdgeError";
  }
}

/** The calls of a back-end. A back-end holds the token; a device never does. */
export class Backend {
  readonly #edge: string;
  readonly #token: string;
  readonly #auditUser: string;

  /** @param edge The base URL of the edge, such as `https://pin.bank.example/pin`. */
  constructor(edge: string, token: string, auditUser: string) {
    this.#edge = edge.replace(/\/+$/, "");
    this.#token = token;
    this.#auditUser = auditUser;
  }

  async openControl(plasticId: string, scope: Scope): Promise<Control> {
    return (await this.#post(`/pincontrol/v2/plastic/${encodeURIComponent(plasticId)}`, { scope })) as Control;
  }

  async setTzpk(controlId: string, publicKey: string): Promise<string> {
    const answer = (await this.#post("/pin/v3/set/tzpk", { controlId, publicKey })) as { tzpk: string };
    return answer.tzpk;
  }

  async set(controlId: string, pinBlock: string): Promise<void> {
    await this.#post("/pin/v3/set", { controlId, pinBlock });
  }

  async view(controlId: string, publicKey: string): Promise<{ tzpk: string; pinBlock: string }> {
    return (await this.#post("/pin/v3/view", { controlId, publicKey })) as { tzpk: string; pinBlock: string };
  }

  /** @throws EdgeError The edge refuses the request. */
  async #post(path: string, body: object): Promise<unknown> {
    const response = await fetch(`${this.#edge}${path}?auditUser=${encodeURIComponent(this.#auditUser)}`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${this.#token}` },
      body: JSON.stringify(body),
    });
    const answer = (await response.json()) as Partial<Record<string, string>>;
    if (!response.ok) {
      throw new EdgeError(response.status, answer.errorCode ?? "", answer.message ?? "", answer.id ?? "");
    }
    return answer;
  }
}

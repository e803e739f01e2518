// Checks card_pin.ts against ../vectors.json, which the clients of all languages share, or against the file in CARD_PIN_VECTORS.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
// @ts-ignore: des.js has no type declarations.
import Ede from "des.js/lib/des/ede.js";
import * as cardPin from "./card_pin.ts";

const file = process.env.CARD_PIN_VECTORS ?? new URL("../../vectors.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8"));
const bytes = (hex: string) => new Uint8Array(Buffer.from(hex, "hex"));
const hex = (value: Uint8Array) => Buffer.from(value).toString("hex").toUpperCase();
const digits = (pin: string) => Uint8Array.from(pin, Number);
const expand = (key: string) => bytes(key + key.slice(0, 16));
// Filler as encodeIso1 takes it: every nibble of the head is overwritten.
const filler = (tail: string) => bytes(tail.padStart(16, "F"));
const ofVectors = async () => {
  const der = Buffer.from(vectors.rsa_private_key, "base64");
  const algorithm = { name: "RSA-OAEP", hash: "SHA-256" };
  return { privateKey: await crypto.subtle.importKey("pkcs8", der, algorithm, false, ["decrypt"]) };
};

test("format 1 blocks encode and decode", () => {
  assert.ok(vectors.iso1.length > 5);
  for (const { pin, filler: tail, block } of vectors.iso1) {
    assert.equal(hex(cardPin.encodeIso1(digits(pin), filler(tail))), block);
    assert.deepEqual(cardPin.decodeIso1(bytes(block)), digits(pin));
  }
});

test("filler is random", () => {
  const blocks = new Set(Array.from({ length: 20 }, () => hex(cardPin.encodeIso1(digits("1234")))));
  assert.equal(blocks.size, 20);
});

test("blocks of other formats are refused", () => {
  for (const { block, why } of [...vectors.iso1_refused, { block: "141234", why: "3 bytes" }]) {
    assert.throws(() => cardPin.decodeIso1(bytes(block)), { problem: "block" }, why);
  }
});

test("PINs of other lengths and digits are refused", () => {
  for (const pin of [[], [1, 2, 3], Array(13).fill(1), [1, 2, 3, 10]]) {
    assert.throws(() => cardPin.encodeIso1(Uint8Array.from(pin)), { problem: "digits" });
  }
});

test("3DES encrypts and decrypts", () => {
  for (const { key, clear, encrypted } of vectors.tdes_ecb) {
    assert.equal(hex(cardPin.encrypt3Des(expand(key), bytes(clear))), encrypted);
    assert.equal(hex(cardPin.decrypt3Des(expand(key), bytes(encrypted))), clear);
  }
});

test("3DES leaves no key and no block in des.js", () => {
  const { create } = Ede;
  const ciphers: { options: object }[] = [];
  Ede.create = (options: object) => {
    const cipher = create(options);
    ciphers.push(cipher);
    return cipher;
  };
  try {
    const { key, clear, encrypted } = vectors.tdes_ecb[0];
    cardPin.encrypt3Des(expand(key), bytes(clear));
    cardPin.decrypt3Des(expand(key), bytes(encrypted));
  } finally {
    Ede.create = create;
  }
  assert.equal(ciphers.length, 2);
  const kept: Iterable<unknown>[] = [];
  const collect = (value: unknown) => {
    if (Array.isArray(value) || value instanceof Uint8Array) kept.push(value);
    if (typeof value === "object" && value && !(value instanceof Uint8Array)) Object.values(value).forEach(collect);
  };
  // Its options hold the key of the caller, who wipes it.
  for (const { options, ...state } of ciphers) collect(state);
  const numbers = kept.flatMap((value) => [...value]).filter((value) => typeof value === "number");
  // For each of the three keys 8 bytes, 16 pairs of round keys and the last pair of halves.
  assert.ok(numbers.length >= 2 * 3 * (8 + 32 + 2), `${numbers.length} numbers`);
  assert.deepEqual(numbers.filter((value) => value !== 0), []);
});

test("key check values agree", () => {
  for (const { key, kcv } of vectors.kcv) assert.equal(hex(cardPin.keyCheckValue(expand(key))), kcv);
});

test("a tzpk opens and expands to 24 bytes", async () => {
  const device = await ofVectors();
  for (const { tzpk, key } of vectors.oaep) {
    assert.deepEqual(await cardPin.openTzpk(device, tzpk), expand(key));
  }
});

test("a tzpk with other parameters names MGF1 or its length", async () => {
  const device = await ofVectors();
  for (const { tzpk, why } of vectors.oaep_refused) {
    await assert.rejects(cardPin.openTzpk(device, tzpk), { problem: "tzpk", message: /MGF1-SHA-1|16 bytes/ }, why);
  }
});

test("a PIN becomes the pinBlock of the request and is wiped", async () => {
  const device = await ofVectors();
  for (const { tzpk, pin, filler: tail, pinBlock } of vectors.set) {
    const entered = digits(pin);
    assert.equal(await cardPin.encryptPin(device, tzpk, entered, filler(tail)), pinBlock);
    assert.deepEqual(entered, new Uint8Array(pin.length));
    assert.deepEqual(await cardPin.decryptPin(device, tzpk, pinBlock), digits(pin));
  }
});

test("a PIN is wiped when its tzpk cannot be opened", async () => {
  const entered = digits("1234");
  const { tzpk } = vectors.oaep_refused[0];
  await assert.rejects(cardPin.encryptPin(await ofVectors(), tzpk, entered), { problem: "tzpk" });
  assert.deepEqual(entered, new Uint8Array(4));
});

test("a device key cannot be exported", async () => {
  const device = await cardPin.makeDeviceKey();
  assert.equal(Buffer.from(device.publicKey, "base64").length, 294);
  await assert.rejects(crypto.subtle.exportKey("pkcs8", device.privateKey));
});

test("text that is not base64 is refused", async () => {
  await assert.rejects(cardPin.openTzpk(await ofVectors(), "%"), { problem: "base64" });
});

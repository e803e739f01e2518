// Sets a random PIN on a card and views it, as device and back-end at once. Prints no PIN.
import { parseArgs } from "node:util";
import { Backend, decryptPin, EdgeError, encryptPin, makeDeviceKey } from "./card_pin.ts";

const { values } = parseArgs({
  options: { edge: { type: "string" }, token: { type: "string" }, "plastic-id": { type: "string" } },
});
const { edge, token, "plastic-id": plasticId } = values;
if (!edge || !token || !plasticId) {
  console.error("usage: node build/run.js --edge URL --token TOKEN --plastic-id DIGITS");
  process.exit(2);
}
const backend = new Backend(edge, token, "typescript-client");

/** Sets a PIN of six digits. A random PIN that the PIN policy refuses is replaced. */
async function set(card: string): Promise<Uint8Array> {
  const control = await backend.openControl(card, "SET_PIN");
  const device = await makeDeviceKey();
  for (let tries = 1; ; tries++) {
    const tzpk = await backend.setTzpk(control.id, device.publicKey);
    const digits = crypto.getRandomValues(new Uint8Array(6)).map((byte) => byte % 10);
    try {
      await backend.set(control.id, await encryptPin(device, tzpk, digits.slice()));
      return digits;
    } catch (error) {
      if (!(error instanceof EdgeError && error.errorCode === "PIN_REFUSED") || tries === 3) throw error;
    }
  }
}

const chosen = await set(plasticId);
const control = await backend.openControl(plasticId, "VIEW_PIN");
const device = await makeDeviceKey();
const { tzpk, pinBlock } = await backend.view(control.id, device.publicKey);
const viewed = await decryptPin(device, tzpk, pinBlock);
const same = viewed.length === chosen.length && viewed.every((digit, at) => digit === chosen[at]);
chosen.fill(0);
viewed.fill(0);
if (!same) throw new Error("the viewed PIN is not the PIN that was set");
console.log(`card ${plasticId}: the viewed PIN is the PIN that was set`);

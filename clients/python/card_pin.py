#!/usr/bin/env python3
"""The device's part of the Card PIN API, and a command that sets and views a PIN.

A device makes an RSA key pair. The issuer encrypts the tzpk, a double-length 3DES key, to the public key: RSA-OAEP with SHA-256
for the hash and SHA-256 for MGF1 (RFC 8017). The device encrypts the PIN under the tzpk as an ISO 9564-1 format 1 block.

Needs the package `cryptography`, version 43 or later.
"""

import argparse
import base64
import json
import secrets
import sys
import urllib.error
import urllib.request

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, modes

# MGF1 has its own hash, and many libraries use SHA-1 for it by default. The tzpk needs SHA-256 in both places.
OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
# The PIN that the command sets. The key boundary refuses PINs such as 1234.
COMMAND_PIN = b"2580"


class TzpkError(Exception):
    """The private key does not decrypt the tzpk to 16 bytes."""

    def __init__(self):
        super().__init__(
            "this device's key does not decrypt the tzpk to 16 bytes: RSA-OAEP needs SHA-256 for the hash and for MGF1, and no label. "
            'If the edge makes tzpks with MGF1-SHA-1, remove oaep_mgf1 = "sha-1" from its client'
        )


class BlockError(Exception):
    """A decrypted block is not ISO 9564-1 format 1 with 4 to 12 digits."""

    def __init__(self):
        super().__init__("the block holds no PIN in ISO 9564-1 format 1: start again with a new control")


class Device:
    """A device with its RSA key pair. One device may set and view any number of PINs."""

    def __init__(self, private_key=None):
        """Uses this RSA private key of `cryptography`, or makes a key pair of 2048 bits."""
        self._key = private_key or rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def public_key(self):
        """The member `publicKey`: base64 of the DER SubjectPublicKeyInfo."""
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        return _base64(self._key.public_key().public_bytes(serialization.Encoding.DER, spki))

    def encrypt_pin(self, tzpk, pin):
        """The member `pinBlock` for a tzpk and a PIN: a bytearray of 4 to 12 ASCII digits, which this method wipes.

        Raises TzpkError, or ValueError where the PIN is malformed.
        """
        block = bytearray()
        try:
            block = format_1(pin)
            return _base64(tdes(self.decrypt_tzpk(tzpk), block, encrypt=True))
        finally:
            wipe(pin)
            wipe(block)

    def decrypt_pin(self, tzpk, pin_block):
        """The PIN of an answer to a view: a bytearray of ASCII digits, which the caller wipes after it was shown.

        Raises TzpkError or BlockError.
        """
        key = self.decrypt_tzpk(tzpk)
        try:
            block = bytearray(tdes(key, base64.b64decode(pin_block, validate=True), encrypt=False))
        except ValueError as error:
            raise BlockError from error
        try:
            return digits_of(block)
        finally:
            wipe(block)

    def decrypt_tzpk(self, tzpk):
        """The 16 bytes K1 | K2 of a tzpk in base64. Raises TzpkError."""
        try:
            key = self._key.decrypt(base64.b64decode(tzpk, validate=True), OAEP)
        except ValueError as error:
            raise TzpkError from error
        if len(key) != 16:
            raise TzpkError
        return key


def format_1(pin, filler=None):
    """The ISO 9564-1 format 1 block, 8 bytes: the nibbles 1, length, digits, filler. The filler is random unless it is given."""
    if not 4 <= len(pin) <= 12 or not all(0x30 <= digit <= 0x39 for digit in pin):
        raise ValueError("a PIN is 4 to 12 digits")
    block = bytearray(secrets.token_bytes(8) if filler is None else filler)
    for index, nibble in enumerate([1, len(pin), *(digit - 0x30 for digit in pin)]):
        high = index % 2 == 0
        block[index // 2] = block[index // 2] & (0x0F if high else 0xF0) | nibble << (4 if high else 0)
    return block


def digits_of(block):
    """The ASCII digits in a clear format 1 block, whatever its filler. Raises BlockError."""
    if len(block) != 8 or block[0] >> 4 != 1 or not 4 <= block[0] & 0x0F <= 12:
        raise BlockError
    digits = bytearray(block[0] & 0x0F)
    for index in range(len(digits)):
        byte = block[1 + index // 2]
        digits[index] = 0x30 + (byte >> 4 if index % 2 == 0 else byte & 0x0F)
    if max(digits) > 0x39:
        wipe(digits)
        raise BlockError
    return digits


def tdes(key, data, encrypt):
    """3DES-ECB without padding under a double-length key: K1, K2, K1."""
    cipher = Cipher(TripleDES(key + key[:8]), modes.ECB())
    context = cipher.encryptor() if encrypt else cipher.decryptor()
    return context.update(bytes(data)) + context.finalize()


def wipe(clear):
    """Overwrites a bytearray with zeros."""
    clear[:] = bytes(len(clear))


def _base64(data):
    return base64.b64encode(data).decode()


class BackEnd:
    """The calls of the back-end, which authenticates the cardholder, opens controls and passes the device's values on."""

    def __init__(self, edge, token):
        self._edge, self._token = edge.rstrip("/"), token

    def open_control(self, plastic_id, scope):
        return self.post(f"/pincontrol/v2/plastic/{plastic_id}", {"scope": scope})["id"]

    def post(self, path, body):
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        url = f"{self._edge}{path}?auditUser=card_pin.py"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
            return json.load(answer)


def set_and_view(back_end, plastic_id):
    device = Device()
    control = back_end.open_control(plastic_id, "SET_PIN")
    issued = back_end.post("/pin/v3/set/tzpk", {"controlId": control, "publicKey": device.public_key()})
    block = device.encrypt_pin(issued["tzpk"], bytearray(COMMAND_PIN))
    back_end.post("/pin/v3/set", {"controlId": control, "pinBlock": block})

    control = back_end.open_control(plastic_id, "VIEW_PIN")
    shown = back_end.post("/pin/v3/view", {"controlId": control, "publicKey": device.public_key()})
    pin = device.decrypt_pin(shown["tzpk"], shown["pinBlock"])
    same = secrets.compare_digest(pin, COMMAND_PIN)
    wipe(pin)
    if not same:
        raise BlockError


def check_vectors(path):
    """Checks every vector of clients/vectors.json. Returns their number."""
    with open(path, encoding="utf-8") as file:
        vectors = json.load(file)
    device = Device(serialization.load_der_private_key(base64.b64decode(vectors["rsa_private_key"]), None))

    def equal(found, expected, vector):
        if found != expected:
            raise AssertionError(f"{found} instead of {expected}: {vector}")

    def refused(error, call, vector):
        try:
            call()
        except error as found:
            return str(found)
        raise AssertionError(f"not refused: {vector}")

    def padded(vector):
        return bytes.fromhex(vector["filler"].rjust(16, "0"))

    equal(device.public_key(), vectors["rsa_public_key"], "rsa_public_key")
    for vector in vectors["iso1"]:
        equal(format_1(vector["pin"].encode(), padded(vector)).hex().upper(), vector["block"], vector)
        equal(digits_of(bytes.fromhex(vector["block"])).decode(), vector["pin"], vector)
    for vector in vectors["iso1_refused"]:
        refused(BlockError, lambda: digits_of(bytes.fromhex(vector["block"])), vector)
    for vector in vectors["tdes_ecb"]:
        key, clear, encrypted = (bytes.fromhex(vector[name]) for name in ("key", "clear", "encrypted"))
        equal(tdes(key, clear, encrypt=True), encrypted, vector)
        equal(tdes(key, encrypted, encrypt=False), clear, vector)
    for vector in vectors["kcv"]:
        equal(tdes(bytes.fromhex(vector["key"]), bytes(8), encrypt=True)[:3].hex().upper(), vector["kcv"], vector)
    for vector in vectors["oaep"]:
        equal(device.decrypt_tzpk(vector["tzpk"]).hex().upper(), vector["key"], vector)
    for vector in vectors["oaep_refused"]:
        text = refused(TzpkError, lambda: device.encrypt_pin(vector["tzpk"], bytearray(COMMAND_PIN)), vector)
        equal("MGF1" in text, True, vector)
    for vector in vectors["set"]:
        block = format_1(vector["pin"].encode(), padded(vector))
        equal(_base64(tdes(device.decrypt_tzpk(vector["tzpk"]), block, encrypt=True)), vector["pinBlock"], vector)
        equal(device.decrypt_pin(vector["tzpk"], vector["pinBlock"]).decode(), vector["pin"], vector)
        pin = bytearray(vector["pin"].encode())
        again = device.encrypt_pin(vector["tzpk"], pin)
        equal(pin, bytes(len(pin)), vector)
        equal(device.decrypt_pin(vector["tzpk"], again).decode(), vector["pin"], vector)
    return sum(len(vectors[kind]) for kind in ("iso1", "iso1_refused", "tdes_ecb", "kcv", "oaep", "oaep_refused", "set"))


def main():
    parser = argparse.ArgumentParser(description="Sets and views a PIN through an edge, or checks vectors.")
    parser.add_argument("--edge", metavar="URL", help="the edge, such as http://127.0.0.1:8080")
    parser.add_argument("--token", help="the back-end's bearer token")
    parser.add_argument("--plastic-id", metavar="N", help="the plasticId of the card")
    parser.add_argument("--vectors", metavar="FILE", help="check the vectors of this file instead")
    arguments = parser.parse_args()
    if arguments.vectors:
        print(f"{check_vectors(arguments.vectors)} vectors: ok")
        return
    if not (arguments.edge and arguments.token and arguments.plastic_id):
        parser.error("name --edge, --token and --plastic-id, or --vectors")
    try:
        set_and_view(BackEnd(arguments.edge, arguments.token), arguments.plastic_id)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.url.partition('?')[0]}: {error.code} {error.read().decode(errors='replace')}")
    except (urllib.error.URLError, TzpkError, BlockError) as error:
        sys.exit(str(error))
    print("ok")


if __name__ == "__main__":
    main()

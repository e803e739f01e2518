"""For schemathesis: the values of the formats that docs/openapi.json defines in words, controlIds of open controls, and PIN
blocks under a zone key.

environment: PINSEAL_EDGE, the URL of the edge; PINSEAL_TOKEN, the token of a client with both uses of the zone key of index
0; PINSEAL_ZONE_KEY, that key, double-length 3DES in hexadecimal
"""

import json
import os
import secrets
from base64 import b64encode
from urllib.request import Request, urlopen

import schemathesis
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from hypothesis import strategies as st

# Default_Ignorable_Code_Point, where the general category alone does not show it (crates/domain/src/caller.rs).
IGNORABLE = [
    range(0x034F, 0x0350),
    range(0x115F, 0x1161),
    range(0x17B4, 0x17B6),
    range(0x180B, 0x1810),
    range(0x3164, 0x3165),
    range(0xFE00, 0xFE10),
    range(0xFFA0, 0xFFA1),
    range(0xE0100, 0xE01F0),
]


def public_key(exponent, bits):
    key = rsa.generate_private_key(public_exponent=exponent, key_size=bits).public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b64encode(der).decode()


def open_control(scope):
    path = f"/pincontrol/v2/plastic/{secrets.randbelow(10**9)}?auditUser=schemathesis"
    headers = {"Authorization": f"Bearer {os.environ['PINSEAL_TOKEN']}", "Content-Type": "application/json"}
    request = Request(os.environ["PINSEAL_EDGE"] + path, json.dumps({"scope": scope}).encode(), headers, method="POST")
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["id"]


def zone_block(pin):
    """The PIN in ISO 9564 format 1 with random fill, under the zone key."""
    clear = bytes.fromhex(f"1{len(pin):x}{pin}" + secrets.token_hex(7)[: 14 - len(pin)])
    key = TripleDES(bytes.fromhex(os.environ["PINSEAL_ZONE_KEY"]))
    return Cipher(key, modes.ECB()).encryptor().update(clear).hex()


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Few cards, so that a card whose PIN was set is asked for its PIN, and each far below the rate of a card."""
    if context.operation.path.startswith("/pin/v2/"):
        plastic = str(path_parameters.get("plasticId"))
        if plastic.isascii() and plastic.isdigit() and len(plastic) <= 19:
            path_parameters["plasticId"] = str(int(plastic) % 16)
    return path_parameters


visible = st.characters(
    categories=("L", "M", "N", "P", "S", "Zs"),
    exclude_characters=[chr(code) for ignorable in IGNORABLE for code in ignorable],
)
keys = [public_key(exponent, bits) for exponent in (3, 65537) for bits in (2048, 3072, 4096)]

schemathesis.openapi.format("audit-user", st.text(visible, min_size=1, max_size=128).filter(lambda text: not text.startswith("web-view")))
schemathesis.openapi.format("rsa-public-key", st.sampled_from(keys))
schemathesis.openapi.format("zpk-index", st.sampled_from(("0", "0", "0", "1", "9999")))
blocks = st.from_regex("[0-9]{4,12}", fullmatch=True).filter(str.isascii).map(zone_block)
schemathesis.openapi.format("zone-pin-block", st.one_of(blocks, st.binary(min_size=8, max_size=8).map(bytes.hex)))
# Half of the controlIds are of controls that are open.
open_controls = st.sampled_from(("SET_PIN", "VIEW_PIN")).map(open_control)
schemathesis.openapi.format("uuid", st.one_of(st.uuids().map(str), open_controls))

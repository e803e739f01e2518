"""Computes verification values with psec, one a line of standard input:
pvv PVK PVKI PIN PAN | offset PVK TABLE PIN PAN FIRST LENGTH PAD."""

import sys

from psec import pin

for line in sys.stdin:
    method, key, *rest = line.split()
    if method == "pvv":
        pvki, digits, pan = rest
        print(pin.generate_visa_pvv(bytes.fromhex(key), pvki, digits, pan))
    else:
        table, digits, pan, first, length, pad = rest
        print(pin.generate_ibm3624_offset(bytes.fromhex(key), table, digits, pan, int(first), int(length), pad))

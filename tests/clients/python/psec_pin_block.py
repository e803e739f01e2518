"""Opens or makes PIN blocks under zone keys with psec, as another party would. A line of input: open FORMAT KEY PAN BLOCK | make
FORMAT KEY PAN PIN, in hexadecimal. A line of output: the PIN, or the block."""

import sys

from psec import des, pinblock

OPEN = {"iso-0": pinblock.decode_pinblock_iso_0, "iso-3": pinblock.decode_pinblock_iso_3}
MAKE = {"iso-0": pinblock.encode_pinblock_iso_0, "iso-3": pinblock.encode_pinblock_iso_3}

for line in sys.stdin:
    command, form, key, pan, value = line.split()
    key = bytes.fromhex(key)
    if command == "open":
        block = bytes.fromhex(value)
        if form == "iso-4":
            print(pinblock.decipher_pinblock_iso_4(key, block, pan))
        else:
            print(OPEN[form](des.decrypt_tdes_ecb(key, block), pan))
    elif form == "iso-4":
        print(pinblock.encipher_pinblock_iso_4(key, value, pan).hex())
    else:
        print(des.encrypt_tdes_ecb(key, MAKE[form](value, pan)).hex())

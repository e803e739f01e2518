"""Opens or writes a key block with psec, as another party would: open KEY BLOCK | write KEY HEADER SECRET, in hexadecimal."""

import sys

from psec import tr31

command, key, *rest = sys.argv[1:]
key = bytes.fromhex(key)
if command == "open":
    (block,) = rest
    header, secret = tr31.unwrap(key, block)
    print(header.key_usage, header.algorithm, header.mode_of_use, header.exportability, secret.hex().upper())
else:
    header, secret = rest
    print(tr31.wrap(key, header, bytes.fromhex(secret)))

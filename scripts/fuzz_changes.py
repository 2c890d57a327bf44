"""Random changes that damage the content of a file."""

from __future__ import annotations

import random

MOST_CHANGES = 8
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63)
WORDS = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"-1",
    b"1e400",
    b"1e999",
    b".nan",
    b".inf",
    b"0",
    b"''",
    b"&a [*a]",
    b"!!python/object/apply:os.system ['true']",
    b"\x00",
    b"\xff\xfe",
    b"\n",
    b": ",
    b"9" * 5000,
    b"[" * 2000,
    b"{a: " * 500,
    b'"',
    b"\\u0000",
    b"\xed\xa0\x80",
    b"NaN",
    b"2" * 20,
)


def change(data: bytes, draw: random.Random) -> bytes:
    """A damaged copy."""
    held = bytearray(data)
    # of a large file, what decides is its head: half of the changes are there
    for _ in range(draw.randint(1, MOST_CHANGES)):
        if not held:
            break
        reach = min(len(held), 400) if draw.random() < 0.5 else len(held)
        at = draw.randrange(reach)
        kind = draw.randrange(9)
        if kind == 0:
            held[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            held[at] = draw.randrange(256)
        elif kind == 2:
            width = draw.choice((1, 2, 4, 8))
            number = draw.choice(EDGES) % (1 << 8 * width)
            held[at : at + width] = number.to_bytes(width, draw.choice(("big", "little")))
        elif kind == 3:
            del held[at:]
        elif kind == 4:
            del held[at : at + draw.randrange(1, 20)]
        elif kind == 5:
            part = held[at : at + draw.randrange(1, 40)]
            other = draw.randrange(len(held))
            held[other:other] = part
        elif kind == 6:
            length = min(draw.randrange(1, 60), len(held) - at)
            held[at : at + length] = bytes(length)
        elif kind == 7:
            held[at:at] = draw.choice(WORDS)
        else:
            end = held.find(b"\n", at)
            held[at : end if end >= 0 else at + 4] = draw.choice(WORDS)
    return bytes(held)

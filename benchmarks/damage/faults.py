"""Damages encoded data as disks, memory and networks do."""

import numpy as np


def damage(data: bytes, kind: str, unit: int, start: int, rng: np.random.Generator) -> bytes:
    """Return encoded data, damaged from byte `start` on.

    `flip` changes a byte; `cut` leaves out the end; up to 11 neighbouring units of `unit` bytes are set to 0 (`zero`),
    left out (`lose`), or exchanged with as many others (`swap`); `insert` adds up to a unit of random bytes.
    """
    out, units = bytearray(data), (len(data) - start) // unit
    count = int(rng.integers(1, min(12, units // 3)))
    first, second = (start + int(place) * unit for place in np.sort(rng.choice(units - count, 2, replace=False)))
    place, width = start + int(rng.integers(len(data) - start)), count * unit
    if kind == "flip":
        out[place] ^= int(rng.integers(1, 256))
    elif kind == "cut":
        del out[place:]
    elif kind == "zero":
        out[first : first + width] = bytes(width)
    elif kind == "insert":
        out[place:place] = rng.bytes(int(rng.integers(1, unit)))
    elif kind == "swap":
        width = min(width, second - first)
        out[first : first + width], out[second : second + width] = (
            out[second : second + width],
            out[first : first + width],
        )
    else:
        del out[first : first + width]
    return bytes(out)

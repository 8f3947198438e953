"""The arithmetic of a patch: out = base + values · factors, over the pieces of a block of weights.

In C, compiled at installation, it is one pass over memory. NumPy needs three: the same bits, twice the time.
"""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

_INNERMOST = 256  # elements that NumPy's innermost loop should have at least


def multiply_add_numpy(
    base: NDArray[np.float32],
    values: NDArray[np.int8 | np.int16],
    factors: NDArray[np.float32],
    out: NDArray[np.float32],
    pieces: NDArray[np.int64],
) -> None:
    """Write out = base + values · factors, (n,) each; every product and sum is rounded to float32; `base` may be `out`.

    Args:
        factors: those of one piece after those of another.
        pieces: int64, (pieces, 5), C order: start in the block, start in the factors, and the lengths outer, repeat and
            inner: elements in that order, factors without `repeat`.
    """
    for start, first, outer, repeat, inner in pieces.tolist():
        factor = factors[first : first + outer * inner].reshape(outer, 1, inner)
        if repeat == 1:
            outer, inner = 1, outer * inner
            factor = factor.reshape(1, 1, inner)
        elif inner > 1:
            # Several blocks at once: the innermost loop would be short.
            least = min(repeat, -(-_INNERMOST // inner))
            copies = next(n for n in range(least, repeat + 1) if repeat % n == 0)
            factor = np.tile(factor, (1, 1, copies))
            repeat, inner = repeat // copies, inner * copies
        part = slice(start, start + outer * repeat * inner)
        shape = (outer, repeat, inner)
        # In place if possible: no further block of cold memory is written.
        change = np.empty(shape, np.float32) if base is out else out[part].reshape(shape)
        np.copyto(change, values[part].reshape(shape))
        np.multiply(change, factor, out=change)
        np.add(base[part].reshape(shape), change, out=out[part].reshape(shape))


multiply_add: Callable[..., None] = multiply_add_numpy
NAME = "NumPy"
with suppress(ImportError):
    from rws.edge.live import _kernel

    multiply_add, NAME = _kernel.multiply_add, "C"

"""The arithmetic of a patch: out = base + values · factors, over the pieces of a block of weights.

In C, compiled when the package is installed, it is one pass over memory. Where there was no compiler NumPy does it in
three: the same bits, about twice the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_RUN = 256  # elements that NumPy's innermost loop should have at least


def multiply_add_numpy(
    base: NDArray[np.float32],
    values: NDArray[np.int8 | np.int16],
    factors: NDArray[np.float32],
    out: NDArray[np.float32],
    pieces: NDArray[np.int64],
) -> None:
    """out = base + values · factors, each product and each sum rounded to float32.

    Args:
        base: float32, (n,); may be `out`.
        values: int8 or int16, (n,).
        factors: float32, those of one piece after those of another.
        out: float32, (n,), overwritten where there are pieces.
        pieces: int64, (pieces, 5), C order: start in the block, start in the factors, and the lengths outer, run and
            block: elements in that order, factors without the run.
    """
    for start, first, outer, run, block in pieces.tolist():
        factor = factors[first : first + outer * block].reshape(outer, 1, block)
        if run == 1:
            outer, block = 1, outer * block
            factor = factor.reshape(1, 1, block)
        elif block > 1:
            # Several blocks at once: the innermost loop would be short.
            repeats = next(n for n in range(1, run + 1) if run % n == 0 and (block * n >= _RUN or n == run))
            factor = np.tile(factor, (1, 1, repeats))
            run, block = run // repeats, block * repeats
        part = slice(start, start + outer * run * block)
        shape = (outer, run, block)
        # In place where that is possible: no further block of cold memory is written.
        change = np.empty(shape, np.float32) if base is out else out[part].reshape(shape)
        np.copyto(change, values[part].reshape(shape))
        np.multiply(change, factor, out=change)
        np.add(base[part].reshape(shape), change, out=out[part].reshape(shape))


def _compiled() -> Any:
    try:
        from rws.edge.live import _kernel
    except ImportError:
        return None
    return _kernel.multiply_add


multiply_add: Any = _compiled() or multiply_add_numpy
NAME = "NumPy" if multiply_add is multiply_add_numpy else "C"

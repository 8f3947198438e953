"""Symmetric integer quantisation of weight changes: `value · scale`; the paper has 8 bit, one scale per tensor."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rws.errors import InputError

Bits = Literal[4, 8, 16]
Per = Literal["channel", "tensor"]

_SMALLEST_SCALE = np.finfo(np.float32).tiny  # a smaller one would lose precision as a subnormal float


@dataclass(frozen=True)
class Quantised:
    """A quantised tensor: `values · scale`."""

    values: NDArray[np.int8 | np.int16]  # (out, ...), int8 for 4 and 8 bit, at most 2^(bits−1) − 1 in size
    scale: NDArray[np.float32]  # above 0, shape (out,) for one per channel or () for one per tensor

    @property
    def columns(self) -> NDArray[np.float32]:
        """`scale`, shaped to broadcast against `values`."""
        return self.scale.reshape(self.scale.shape + (1,) * (self.values.ndim - self.scale.ndim))


def largest_value(bits: Bits) -> int:
    """Return the largest integer of a symmetric code of `bits` bits: 7, 127 or 32767."""
    return int(2 ** (bits - 1) - 1)


def value_dtype(bits: Bits) -> type[np.int8] | type[np.int16]:
    """Return the integer type that holds values of `bits` bits in memory."""
    return np.int16 if bits == 16 else np.int8


def quantise(delta: NDArray[np.float32], bits: Bits = 8, per: Per = "channel") -> Quantised:
    """Quantise a weight change, float32 (out, ...), finite; the error of each value is at most half its scale.

    The scale is max|delta| / (2^(bits−1) − 1), and 1 where everything is zero, for the tensor or for each index of the
    first axis (a bias is then kept almost exactly). Raises InputError for any other `delta`, `bits` or `per`.
    """
    check_code(bits, per)
    if delta.dtype != np.float32 or delta.ndim == 0:
        raise InputError(f"quantise: found {delta.dtype} of shape {delta.shape}, expected float32 of shape (out, ...)")
    if not np.isfinite(delta).all():
        raise InputError("quantise: found NaN or infinity, expected finite values; check the training it came from")
    axes = tuple(range(1, delta.ndim)) if per == "channel" else None
    largest = np.abs(delta).max(axis=axes, initial=0).astype(np.float64)
    scale = (largest / largest_value(bits)).astype(np.float32)
    # Rounded towards zero: the largest code times the scale can then never overflow float32.
    scale = np.where(scale * np.float64(largest_value(bits)) > largest, np.nextafter(scale, np.float32(0)), scale)
    scale = np.where(largest > 0, np.maximum(scale, _SMALLEST_SCALE), np.float32(1))
    quantised = Quantised(np.empty(delta.shape, value_dtype(bits)), np.asarray(scale, np.float32))
    codes = np.rint(delta.astype(np.float64) / quantised.columns)
    quantised.values[...] = np.clip(codes, -largest_value(bits), largest_value(bits))
    return quantised


def dequantise(quantised: Quantised) -> NDArray[np.float32]:
    """Return `values · scale`, float32, in the shape of `values`."""
    return np.multiply(quantised.values, quantised.columns, dtype=np.float32)


def check_code(bits: int, per: str) -> None:
    """Raise InputError unless `bits` and `per` name a code that `quantise` knows."""
    if bits not in get_args(Bits) or per not in get_args(Per):
        raise InputError(f"quantise: found bits={bits}, per={per!r}; expected 4, 8 or 16, and 'channel' or 'tensor'")

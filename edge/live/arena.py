"""The memory that patches are computed in: W = W_std + Σ α_c·R_c, from the clean copy, all or nothing.

Subtracting a patch does not give float32 bits back, so nothing is ever undone. Signatures stay integers.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.kernel import multiply_add
from rws.edge.live.layout import Layout, Slots, lay_out, plain_slots
from rws.errors import InputError, SignatureError

ALPHA_STEP = 1 / 256  # strengths are rounded to its multiples: two mixes that are then equal are the same mix
_LARGEST = float(np.finfo(np.float32).max)
_CACHE_LINE = 64  # bytes


class QuantisedTensor(Protocol):
    """The change of one tensor of shape (out, …): `values · scale`."""

    @property
    def values(self) -> NDArray[np.int8 | np.int16]:
        """Integers in the tensor's shape."""

    @property
    def scale(self) -> NDArray[np.float32]:
        """Float32, above 0, shape (out,) or ()."""


Tensors = Mapping[str, NDArray[np.float32]]
Entries = Mapping[str, Mapping[str, QuantisedTensor]]


class FittedSignatures(Protocol):
    """Signatures that know the model they were made for, such as a `SignatureSet`."""

    @property
    def entries(self) -> Mapping[str, Mapping[str, QuantisedTensor]]:
        """Signature name → tensor name → change."""

    def fitted_to(self, clean: Mapping[str, NDArray[np.float32]]) -> "FittedSignatures":
        """Return them, checked against the clean tensors; raises SignatureError if they do not fit."""


Signatures = FittedSignatures | Entries


def perturbed(clean: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return other weights, each moved by a quarter of its tensor's spread, to see whether a model follows them."""
    rng = np.random.default_rng(0)
    spreads = {name: np.float32(0.25 * (array.std() or 1)) for name, array in clean.items()}
    return {name: w + spreads[name] * rng.standard_normal(w.shape, np.float32) for name, w in clean.items()}


class Arena:
    """The patched tensors of one model: a clean copy, and the working copy that the model reads, each one flat block.

    Args:
        clean: float32, in the order of the network.
        signatures: None for a model that is only ever clean; raises SignatureError if they are for other tensors.
        slots: what the model reads, if it lays its weights out otherwise (see `layout`), or the layout itself.
        publish: called after the working copy has changed, for a model that keeps its weights elsewhere.
        memory: for the working copy: float32, (size,), from a size; default: memory of this process.
    """

    def __init__(
        self,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: Signatures | None = None,
        slots: Slots | Layout | None = None,
        publish: Callable[[], None] | None = None,
        memory: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> None:
        entries = _fitting_entries(signatures, clean)
        self._shapes = {name: array.shape for name, array in clean.items()}
        if not isinstance(slots, Layout):
            slots = lay_out(self._shapes, plain_slots(self._shapes) if slots is None else slots)
        self._layout = slots
        self._publish = publish or (lambda: None)
        self._mix: dict[str, float] | None = {}
        self._overwritten = False
        self.flat = (memory or _aligned)(self._layout.size)
        self._clean = _aligned(self._layout.size)
        self._layout.fill(self._clean, _concatenated(clean.values()))
        np.copyto(self.flat, self._clean)
        dtype = np.result_type(np.int8, *(part.values for entry in entries.values() for part in entry.values()))
        self._values = dict(zip(entries, np.zeros((len(entries), self._layout.size), dtype), strict=True))
        self._scales, self._reach = {}, {}
        for name, entry in entries.items():
            values = _concatenated(entry[tensor].values for tensor in clean)
            self._layout.fill(self._values[name], values)
            scales = {tensor: np.broadcast_to(entry[tensor].scale, shape[:1]) for tensor, shape in self._shapes.items()}
            self._scales[name] = _concatenated(scales.values())
            self._reach[name] = max(int(values.max()), -int(values.min())) * float(self._scales[name].max())
        self._clean_reach = float(np.abs(self._clean).max())

    @property
    def views(self) -> dict[str, NDArray[np.float32]]:
        """The slots as the model reads them: views of the working copy that stay valid as long as the arena."""
        return self._layout.views(self.flat)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the network."""
        return tuple(self._shapes)

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect, without zeros."""
        return dict(self._mix or {})

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Put `mix` into effect; see `Patchable.apply`."""
        mix = self._checked(mix)
        if mix == self._mix and not self._overwritten:
            return False
        self._write(mix)
        return True

    def reset(self) -> None:
        """Copy the clean weights back, bit for bit."""
        self._write({})

    def overwrite(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Put other weights in place until the next change of mix or `reset`; InputError if they do not fit."""
        for name, array in tensors.items():
            if name not in self._shapes:
                raise InputError(f"tensor {name!r} is not one of those that can be written: {', '.join(self._shapes)}")
            found = np.asarray(array)
            if found.dtype != np.float32 or found.shape != self._shapes[name] or not np.isfinite(found).all():
                expected = f"finite float32 {self._shapes[name]}"
                raise InputError(f"tensor {name!r}: found {found.dtype} {found.shape}, expected {expected}")
        self.settle()
        mix, self._mix = self._mix, None
        first = 0
        for name, shape in self._shapes.items():
            if name in tensors:
                self._layout.fill(self.flat, np.ravel(tensors[name]), first)
            first += math.prod(shape)
        self._publish()
        self._mix, self._overwritten = mix, True

    def settle(self) -> None:
        """Go back to the clean weights if an interrupt has left others half-written; before every prediction."""
        if self._mix is None:
            self.reset()

    def _write(self, mix: dict[str, float]) -> None:
        # Until every tensor is in place the mix is unknown: an interrupt in between makes the next call write again.
        self._mix = None
        base = self._clean
        for name, alpha in mix.items():
            factors = (self._scales[name] * np.float32(alpha))[self._layout.channels]
            multiply_add(base, self._values[name], factors, self.flat, self._layout.pieces)
            base = self.flat
        if not mix:
            np.copyto(self.flat, self._clean)
        self._publish()
        self._mix, self._overwritten = mix, False

    def _checked(self, mix: Mapping[str, float]) -> dict[str, float]:
        """Return the mix on the grid, without zeros, in the order of the signatures, so that the sum is unique."""
        for name, alpha in mix.items():
            if name not in self._values:
                raise SignatureError(f"signature {name!r} is not there; known: {', '.join(self._values) or 'none'}")
            if not _is_finite_number(alpha):
                raise SignatureError(f"signature {name!r}: strength is {alpha!r}, expected a finite number")
        if self._clean_reach + sum(abs(float(alpha)) * self._reach[name] for name, alpha in mix.items()) > _LARGEST:
            strengths = ", ".join(f"{name} {alpha:g}" for name, alpha in mix.items())
            raise SignatureError(f"mix {strengths}: the patched weights are not finite; choose smaller strengths")
        names = [name for name in self._values if name in mix] if len(mix) > 1 else mix
        rounded = {name: round(float(mix[name]) / ALPHA_STEP) * ALPHA_STEP for name in names}
        return {name: alpha for name, alpha in rounded.items() if alpha}


def _fitting_entries(signatures: Signatures | None, clean: Tensors) -> Entries:
    if signatures is None:
        return {}
    if not isinstance(signatures, Mapping):
        return signatures.fitted_to(clean).entries
    for signature, parts in signatures.items():
        if parts.keys() != clean.keys():
            raise SignatureError(f"signature {signature!r} is for {', '.join(parts)}, expected {', '.join(clean)}")
        for name, array in clean.items():
            values, scale = np.asarray(parts[name].values), np.asarray(parts[name].scale)
            fits = values.dtype in (np.int8, np.int16) and values.shape == array.shape and scale.dtype == np.float32
            if not (fits and scale.shape in ((), array.shape[:1]) and ((scale > 0) & (scale < np.inf)).all()):
                raise SignatureError(
                    f"signature {signature!r}: {name!r} is {values.dtype} {values.shape} with a scale {scale.dtype} "
                    f"{scale.shape}, expected int8 or int16 {array.shape} and float32 above 0, {array.shape[:1]} or ()"
                )
    return signatures


def _aligned(size: int) -> NDArray[np.float32]:
    """Zeros, float32, (size,), that start on a cache line."""
    raw = np.zeros(size * 4 + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size * 4].view(np.float32)


def _concatenated(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.ravel(array) for array in arrays])


def _is_finite_number(alpha: Any) -> bool:
    try:
        return math.isfinite(alpha)
    except (TypeError, OverflowError):
        return False

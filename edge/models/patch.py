"""The memory that patches are computed in: W = W_std + Σ α_c·R_c, from the clean copy, all or nothing.

Subtracting a patch does not give float32 bits back, so nothing is ever undone: every mix starts from the clean weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import SignatureError
from edge.signatures import SignatureSet


class Arena:
    """The patched tensors of one model: a clean copy, and the working copy that the model reads, each one flat block.

    Signatures stay as integers; a patch is dequantised while it is composed.

    Args:
        clean: the clean tensors, float32, in the order of the network.
        signatures: what can be mixed, made for these tensors; None for a model that is only ever clean.
        publish: called after the working copy has changed, for a model that keeps its weights elsewhere.

    Raises:
        SignatureError: if the signatures are for other tensors.
    """

    def __init__(
        self,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        publish: Callable[[], None] | None = None,
    ) -> None:
        self._signatures = signatures.fitted_to(clean) if signatures is not None else None
        self._shapes = {name: array.shape for name, array in clean.items()}
        self._clean = np.concatenate([np.asarray(array, np.float32).ravel() for array in clean.values()])
        self._working = self._clean.copy()
        self._scratch = np.empty_like(self._clean)
        self._publish = publish
        self._mix: dict[str, float] | None = {}

    @property
    def views(self) -> dict[str, NDArray[np.float32]]:
        """The tensors as the model reads them: views of the working copy that stay valid for ever."""
        return self._split(self._working)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the network."""
        return tuple(self._shapes)

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect, without zeros."""
        return dict(self._mix or {})

    def clean_tensors(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the clean tensors."""
        return self._split(self._clean.copy())

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Put `mix` into effect; see `PatchableModel.apply`."""
        mix = self._checked(mix)
        if mix == self._mix:
            return False
        if not mix:
            self.reset()
            return True
        self._compose(mix)
        self._take(self._scratch, mix)
        return True

    def reset(self) -> None:
        """Copy the clean weights back, bit for bit."""
        self._take(self._clean, {})

    def _take(self, weights: NDArray[np.float32], mix: dict[str, float]) -> None:
        # Until every tensor is in place the mix is unknown: an interrupt in between makes the next call write again.
        self._mix = None
        np.copyto(self._working, weights)
        if self._publish is not None:
            self._publish()
        self._mix = mix

    def _compose(self, mix: Mapping[str, float]) -> None:
        """Fill the scratch block with the patched weights."""
        assert self._signatures is not None  # a mix that is not empty was checked against it
        np.copyto(self._scratch, self._clean)
        with np.errstate(over="ignore", invalid="ignore"):
            for name, alpha in mix.items():
                entry = self._signatures.entries[name]
                for tensor, weights in self._split(self._scratch).items():
                    columns = entry[tensor].columns * np.float32(alpha)
                    weights += np.multiply(entry[tensor].values, columns, dtype=np.float32)
        if not np.isfinite(self._scratch).all():
            strengths = ", ".join(f"{name} {alpha:g}" for name, alpha in mix.items())
            raise SignatureError(f"mix {strengths}: the patched weights are not finite; choose smaller strengths")

    def _checked(self, mix: Mapping[str, float]) -> dict[str, float]:
        """The mix without zeros, in the order of the signatures: the sum then has one order, and so one result."""
        known = self._signatures.names if self._signatures is not None else ()
        for name, alpha in mix.items():
            if name not in known:
                raise SignatureError(f"signature {name!r} is not there; known: {', '.join(known) or 'none'}")
            if not _is_finite_number(alpha):
                raise SignatureError(f"signature {name!r}: strength is {alpha!r}, expected a finite number")
        return {name: float(mix[name]) for name in known if mix.get(name, 0) != 0}

    def _split(self, block: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        views = {}
        start = 0
        for name, shape in self._shapes.items():
            length = math.prod(shape)
            views[name] = block[start : start + length].reshape(shape)
            start += length
        return views


class ArenaModel:
    """What every model whose weights live in an arena has in common; see `PatchableModel`."""

    _arena: Arena

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect: {signature: α}, without zeros; {} is the clean model."""
        return self._arena.mix

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The patched tensors, in the order of the network."""
        return self._arena.tensor_names

    def clean_tensors(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the clean patched tensors, in order."""
        return self._arena.clean_tensors()

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Patch with `mix`; see `PatchableModel.apply`."""
        return self._arena.apply(mix)

    def reset(self) -> None:
        """Go back to the clean weights, bit for bit."""
        self._arena.reset()


def _is_finite_number(alpha: Any) -> bool:
    try:
        return math.isfinite(alpha)
    except (TypeError, OverflowError):
        return False

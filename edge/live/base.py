"""What every patchable model does, whatever runs it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.arena import Arena
from rws.errors import InputError


class Patchable:
    """Shallow weights W = W_std + Σ α_c·R_c for the mix that was applied last. Not safe for several threads at once."""

    strategy: str  # how changed weights reach the model: `live`, `split` or `inputs` (ONNX Runtime), `torch`, …
    provider: str  # the name of ONNX Runtime's provider, or Torch's device
    description: str  # the strategy in one line; if a faster one is unavailable, why, and what that costs
    _arena: Arena

    @property
    def mix(self) -> dict[str, float]:
        """The mix in effect: {signature: α}, without zeros; {} is the clean model."""
        return self._arena.mix

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The patched tensors, in the order of the network, named as in the ONNX model."""
        return self._arena.tensor_names

    def apply(self, mix: Mapping[str, float]) -> bool:
        """Patch with `mix`, strengths rounded to multiples of 1/256; returns whether weights were changed.

        Raises SignatureError, and changes nothing, if a signature is unknown, or an α or a patched weight not finite.
        """
        return self._arena.apply(mix)

    def reset(self) -> None:
        """Go back to the clean weights, bit for bit."""
        self._arena.reset()


class PatchableModel(Patchable, ABC):
    """A classifier whose shallow weights can be patched. The backends agree to 1e-4 in the logits."""

    @abstractmethod
    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits, float32 (N, K), of float32 (3, H, W) or (N, 3, H, W), RGB, 0…1; else raise InputError."""


def as_batch(x: NDArray[np.float32], image_shape: Sequence[int | None]) -> NDArray[np.float32]:
    """Return float32 (3, H, W) or (N, 3, H, W) as a contiguous batch, N ≥ 1; InputError unless it fits (None: free)."""
    batch = x[None] if x.ndim == 3 else x
    fits = batch.ndim == 4 and len(batch) > 0 and len(image_shape) == 3
    fits = fits and all(want in (None, found) for want, found in zip(image_shape, batch.shape[1:], strict=True))
    if x.dtype != np.float32 or not fits:
        expected = ", ".join("any" if length is None else str(length) for length in image_shape)
        found = f"{x.dtype} {x.shape}, expected float32 ({expected})"
        raise InputError(f"model input is {found} or a batch of such; resize the image and scale it to 0…1")
    return np.ascontiguousarray(batch)

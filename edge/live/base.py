"""What every patchable model does, whatever runs it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.arena import Arena
from rws.errors import BundleError, InputError


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
    """A vision model whose shallow weights can be patched. The backends agree to 1e-4 in their outputs."""

    @abstractmethod
    def predict(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return the outputs for an image or a batch of images, float32 or integers, each with the batch axis first.

        `x` has the shape and dtype that the model takes, of one image without its batch axis; else an InputError.
        """


def as_batch(x: NDArray[Any], image_shape: Sequence[int | None], dtype: str = "float32") -> NDArray[Any]:
    """Return an image, or N ≥ 1, as a contiguous batch; InputError unless shape (None: free) and dtype fit."""
    batch = x[None] if x.ndim == 3 else x
    fits = batch.ndim == 4 and len(batch) > 0 and len(image_shape) == 3
    fits = fits and all(want in (None, found) for want, found in zip(image_shape, batch.shape[1:], strict=True))
    if x.dtype != dtype or not fits:
        expected = ", ".join("any" if length is None else str(length) for length in image_shape)
        found = f"{x.dtype} {x.shape}, expected {dtype} ({expected})"
        raise InputError(f"model input is {found} or a batch of such; resize the image and scale it (see preprocess)")
    return np.ascontiguousarray(batch)


def output_places(found: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Return where wanted outputs stand among a model's, all if none is wanted; BundleError if one is not there."""
    if unknown := [name for name in wanted if name not in found]:
        raise BundleError(f"model: has no output {unknown[0]!r:.80}; it has {', '.join(found)!r:.300}")
    return tuple(map(found.index, wanted or found))


def plain(output: Any) -> NDArray[Any]:
    """Return an output of a network as a model gives it: float32 if it has a fraction, else as it is."""
    array = np.asarray(output)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

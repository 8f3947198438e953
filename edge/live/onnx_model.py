"""A patchable model on ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rws.edge.live.arena import Signatures
from rws.edge.live.base import PatchableModel, as_batch, output_places, plain
from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import FREE_SIZE, random_feeds
from rws.edge.onnx.graph import data_input, read_model
from rws.errors import BundleError


class OnnxModel(LiveSession, PatchableModel):
    """A model on ONNX Runtime; see `PatchableModel`, and `LiveSession` for what is not said here and the errors.

    The model went through `prepare` and has one image input, of `image_size` (height, width) if free. Its `outputs` are
    given by name and in this order; default: all. One of a fixed batch runs in parts, the last one filled up.
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        signatures: Signatures | None,
        tensor_names: Sequence[str],
        provider: str = "auto",
        threads: int | None = None,
        strategy: str = "auto",
        image_size: tuple[int, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        proto = read_model(model)
        self._input, self._shape, self._dtype = data_input(proto)
        if len(self._shape) != 4:
            expected = "(N, 3, height, width)"
            raise BundleError(f"model: input {self._input!r} has the shape {self._shape}, expected {expected}")
        super().__init__(
            model,  # which finds what was learned of it before faster than what was read of it
            tensors=tensor_names,
            signatures=signatures,
            strategy=strategy,
            provider=provider,
            threads=threads,
            sample=random_feeds(proto, image_size or FREE_SIZE),
        )
        found = [value.name for value in self.get_outputs()]
        self._outputs = [found[place] for place in output_places(found, outputs)]

    def predict(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return the outputs for one image or several; see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape[1:], self._dtype)
        step = self._shape[0] or len(batch)
        if missing := -len(batch) % step:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        parts = (batch[start : start + step] for start in range(0, len(batch), step))
        found = [tuple(map(plain, self.run(self._outputs, {self._input: part}))) for part in parts]
        if len(found) == 1 and not missing:
            return found[0]
        return tuple(np.concatenate(output)[: len(batch) - missing] for output in zip(*found, strict=True))

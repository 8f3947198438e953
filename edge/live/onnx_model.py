"""A patchable classifier on ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from rws.edge.live.arena import Signatures
from rws.edge.live.base import PatchableModel, as_batch
from rws.edge.live.session import LiveSession
from rws.edge.live.sessions import FREE_SIZE, random_feeds
from rws.edge.onnx.graph import data_input, read_model
from rws.errors import BundleError


class OnnxModel(LiveSession, PatchableModel):
    """A classifier on ONNX Runtime; see `PatchableModel`, and `LiveSession` for what is not said here and the errors.

    The model went through `prepare` and has one image input, of `image_size` (height, width) if free, and logits first.
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
    ) -> None:
        proto = read_model(model)
        self._input, self._shape = data_input(proto)
        if len(self._shape) != 4:
            expected = "(N, 3, height, width)"
            raise BundleError(f"model: input {self._input!r} has the shape {self._shape}, expected {expected}")
        super().__init__(
            proto,
            tensors=tensor_names,
            signatures=signatures,
            strategy=strategy,
            provider=provider,
            threads=threads,
            sample=random_feeds(proto, image_size or FREE_SIZE),
        )
        self._logits = [self.get_outputs()[0].name]

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify float32 (3, H, W) or (N, 3, H, W); see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape[1:])
        step = self._shape[0] or len(batch)
        if missing := -len(batch) % step:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        parts = (batch[start : start + step] for start in range(0, len(batch), step))
        logits = [np.asarray(self.run(self._logits, {self._input: part})[0], np.float32) for part in parts]
        return logits[0] if len(logits) == 1 and not missing else np.concatenate(logits)[: len(batch) - missing]

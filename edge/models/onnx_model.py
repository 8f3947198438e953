"""A patchable model on ONNX Runtime: the shallow weights are inputs of the graph, fed from the arena."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge.errors import BundleError
from edge.models.base import as_batch
from edge.models.onnx_graph import clean_tensors, data_input, read_model, weights_to_inputs
from edge.models.patch import Arena, ArenaModel
from edge.signatures import SignatureSet


class OnnxModel(ArenaModel):
    """A classifier on ONNX Runtime; see `PatchableModel`.

    Args:
        model: path or bytes of an ONNX model that went through `onnx_graph.prepare`, with one image input.
        signatures: what can be mixed; None for a model that is only ever clean.
        tensor_names: the patched tensors, in the order of the network.
        providers: ONNX Runtime's execution providers; None for the CPU.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.

    Raises:
        BundleError: if the model cannot be read or run, or lacks one of the tensors.
        SignatureError: if the signatures are for other tensors or other weights.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        signatures: SignatureSet | None,
        tensor_names: Sequence[str],
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        proto = read_model(model)
        self._arena = Arena(clean_tensors(proto, tensor_names), signatures)
        self._input, self._shape = data_input(proto)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # The weights are inputs here, so ONNX Runtime warns that it cannot fold constants; that is the point.
        options.log_severity_level = 3
        graph = weights_to_inputs(proto, tensor_names).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(graph, options, list(providers or ["CPUExecutionProvider"]))
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise BundleError(
                f"model: ONNX Runtime cannot run it ({str(error).splitlines()[0]}); export it again"
            ) from error
        self._weights = self._arena.views

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify float32 (3, H, W) or (N, 3, H, W); see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape[1:])
        step = self._shape[0] or len(batch)
        logits = [self._run(batch[start : start + step]) for start in range(0, len(batch), step)]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: batch, **self._weights})[0], np.float32)

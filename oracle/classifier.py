"""The corruption classifier as an ONNX network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rws.errors import FormatError, InputError, first_line
from rws.oracle.belief import Belief, check_probabilities


class Oracle:
    """Names the corruption of a frame, from the model's own input; FormatError if the network does not load or fit.

    The network, a path or bytes, takes `image`, float32 (N, 3, H, W), RGB, 0…1, not normalised, and gives `joint`,
    float32 (N, 1 + C·S): calibrated probabilities of clean and of each corruption at each level (see `Belief`).
    """

    def __init__(
        self,
        network: str | Path | bytes,
        corruptions: Sequence[str],
        levels: Sequence[float],
        threads: int | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from the model (2.6 times slower).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = threads or 0
        source, where = (network, "oracle network") if isinstance(network, bytes) else (str(network), str(network))
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises types that share no base but Exception
            raise FormatError(f"{where}: ONNX Runtime cannot load it ({first_line(error)})") from error
        self.corruptions = tuple(corruptions)
        self.levels = tuple(float(level) for level in levels)
        self._states = states = 1 + len(self.corruptions) * len(self.levels)
        found = self._session.get_outputs()[0].shape[-1]
        if found != states:
            expected = f"{states} for {len(self.corruptions)} corruptions at {len(self.levels)} levels"
            raise FormatError(f"oracle gives {found} states, expected {expected}; rebuild the bundle")
        self._input = self._session.get_inputs()[0].name
        self.input_shape: tuple[int, ...] = tuple(self._session.get_inputs()[0].shape[1:])

    def observe_batch(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return joint probabilities (N, 1 + C·S) of a batch (N, 3, H, W).

        Raises InputError if the batch does not fit or what comes out is no probabilities, and FormatError if the
        network fails on it or gives another shape or dtype.
        """
        joint = self._run(x)
        check_probabilities(joint)
        return joint

    def observe(self, x: NDArray[np.float32]) -> Belief:
        """Return the belief about one frame, float32 (3, H, W); raises as `observe_batch` does."""
        return Belief(self.corruptions, self.levels, self._run(x[None])[0])

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        pairs = zip(x.shape[1:], self.input_shape, strict=False)
        fits = x.ndim == 4 and all(found == expected or not isinstance(expected, int) for found, expected in pairs)
        if not fits or x.dtype != np.float32:
            shape = x.shape[1:] if x.ndim == 4 else x.shape
            raise InputError(f"oracle: got {x.dtype} {shape}, expected float32 {self.input_shape}")
        try:
            joint = np.asarray(self._session.run(None, {self._input: x})[0])
        except Exception as error:  # as above
            raise FormatError(f"oracle: ONNX Runtime cannot run it ({first_line(error)})") from error
        if joint.shape != (expected := (len(x), self._states)) or joint.dtype != np.float32:
            raise FormatError(f"oracle: gives {joint.dtype} {joint.shape}, expected float32 {expected}")
        return joint

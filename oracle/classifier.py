"""The corruption classifier as an ONNX network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rws.errors import FormatError, InputError, first_line
from rws.oracle.belief import Belief, check_probabilities


class View(Protocol):
    """What an oracle sees of a frame."""

    def take(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the network's input for a frame, uint8 (H, W, 3), RGB, any size."""


class Oracle:
    """Names the corruption of a frame; FormatError if the network does not load or fit.

    The network, a path or bytes, takes `image`, RGB: float32 (N, 3, H, W), 0…1, not normalised, or uint8 tiles
    (N, T, 3, H, W), as `view` takes them of a frame. It gives `joint`, float32 (N, 1 + C·S): calibrated probabilities
    of clean and of each corruption at each level (see `Belief`).
    """

    def __init__(
        self,
        network: str | Path | bytes,
        corruptions: Sequence[str],
        levels: Sequence[float],
        threads: int | None = None,
        view: View | None = None,
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
        self.corruptions, self.view = tuple(corruptions), view
        self.levels = tuple(float(level) for level in levels)
        self._states = states = 1 + len(self.corruptions) * len(self.levels)
        found = self._session.get_outputs()[0].shape[-1]
        if found != states:
            expected = f"{states} for {len(self.corruptions)} corruptions at {len(self.levels)} levels"
            raise FormatError(f"oracle gives {found} states, expected {expected}; rebuild the bundle")
        given = self._session.get_inputs()[0]
        self._input, self._dtype = given.name, "uint8" if given.type == "tensor(uint8)" else "float32"
        self.input_shape: tuple[int, ...] = tuple(given.shape[1:])

    def observe_batch(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return joint probabilities (N, 1 + C·S) of a batch of the network's inputs.

        Raises InputError if the batch does not fit or what comes out is no probabilities, and FormatError if the
        network fails on it or gives another shape or dtype.
        """
        joint = self._run(x)
        check_probabilities(joint)
        return joint

    def observe(self, x: NDArray[Any]) -> Belief:
        """Return the belief about one frame; raises as `observe_batch` does."""
        return Belief(self.corruptions, self.levels, self._run(x[None])[0])

    def _run(self, x: NDArray[Any]) -> NDArray[np.float32]:
        pairs, whole = zip(x.shape[1:], self.input_shape, strict=False), x.ndim == 1 + len(self.input_shape)
        fits = whole and all(found == expected or not isinstance(expected, int) for found, expected in pairs)
        if not fits or x.dtype != self._dtype:
            shape = x.shape[1:] if whole else x.shape
            raise InputError(f"oracle: got {x.dtype} {shape}, expected {self._dtype} {self.input_shape}")
        try:
            joint = np.asarray(self._session.run(None, {self._input: x})[0])
        except Exception as error:  # as above
            raise FormatError(f"oracle: ONNX Runtime cannot run it ({first_line(error)})") from error
        if joint.shape != (expected := (len(x), self._states)) or joint.dtype != np.float32:
            raise FormatError(f"oracle: gives {joint.dtype} {joint.shape}, expected float32 {expected}")
        return joint

"""Three ways to change the weights of an ONNX Runtime session that runs.

`live` has no cost: the fully optimised graph reads its shallow weights from our memory. ONNX Runtime lays weights out
anew when it optimises (NCHWc blocks, padding), so the layout is learned by a probe: the weights are numbered, the
graph is optimised once and saved, and the numbers are read back. The saved graph is then loaded with no further
optimisation and with our memory as its initializers. Only the CPU provider reads initializers from such memory.

`split` cuts the graph after the last patched convolution and builds the small session before the cut anew at each
change. `inputs` turns the patched weights into inputs of the graph: it works with every provider, on CUDA with memory
on the device, but keeps ONNX Runtime from laying the weights out for speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from rws.edge.live.arena import Arena, Slot, plain_slots
from rws.edge.onnx.graph import data_input, replaced_tensors, split_after, weights_to_inputs
from rws.edge.signatures.signature_set import SignatureSet

CPU = "CPUExecutionProvider"

_COUNTABLE = 2**24  # float32 counts exactly up to here


class WayNotOpenError(Exception):
    """A way does not work for this model, provider or version; the message says why."""


class Way(Protocol):
    """A session that reads its shallow weights from an arena.

    Args:
        model: an `onnx.ModelProto` that went through `onnx_graph.prepare`.
        clean: its patched tensors, in the order of the network.
        signatures: what can be mixed, or None.
        maker: makes the sessions.

    Raises:
        WayNotOpenError: if it does not work for this model.
    """

    name: ClassVar[str]
    arena: Arena
    slots: Mapping[str, Slot]

    def __init__(
        self,
        model: Any,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        maker: SessionMaker,
    ) -> None: ...

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch, float32 (N, 3, H, W)."""


@dataclass(frozen=True)
class SessionMaker:
    """Makes sessions of one kind.

    Args:
        providers: ONNX Runtime's execution providers, the first one preferred.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.
    """

    providers: tuple[str, ...]
    threads: int | None

    def session(self, model: Any, options: onnxruntime.SessionOptions | None = None) -> Any:
        """An `onnxruntime.InferenceSession` of an `onnx.ModelProto`, fully optimised unless the options differ.

        It goes through a file where one can be written: a session that is made of bytes keeps them for ever.
        """
        options = options or self.options()
        try:
            with tempfile.TemporaryDirectory(prefix="rws-") as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(model.SerializeToString())
                return self.session_of_file(path, options)
        except OSError:
            return self.session_of_bytes(model.SerializeToString(), options)

    def session_of_file(self, path: Path, options: onnxruntime.SessionOptions) -> Any:
        """The same, of a file."""
        return onnxruntime.InferenceSession(str(path), options, list(self.providers))

    def session_of_bytes(self, model: bytes, options: onnxruntime.SessionOptions) -> Any:
        """The same, of a small model's file in memory."""
        return onnxruntime.InferenceSession(model, options, list(self.providers))

    def options(self) -> onnxruntime.SessionOptions:
        """Options for one session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # Weights that are inputs keep ONNX Runtime from folding constants, and a saved graph is for this machine only.
        # It warns of both; here they are the point.
        options.log_severity_level = 3
        return options


class Live(Way):
    """The optimised graph, reading its weights from the arena."""

    name = "live"

    def __init__(
        self,
        model: Any,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        maker: SessionMaker,
    ) -> None:
        if maker.providers[0] != CPU:
            raise WayNotOpenError(f"{maker.providers[0]} does not read weights from the memory of the CPU")
        with tempfile.TemporaryDirectory(prefix="rws-") as folder:
            graph = Path(folder) / "optimised.onnx"
            self.slots = _learn_layout(model, clean, maker, graph)
            self.arena = Arena(clean, signatures, self.slots)
            options = maker.options()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # The session reads this memory but does not own it.
            self._memory = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(view) for name, view in self.arena.views.items()
            }
            for name, value in self._memory.items():
                options.add_initializer(name, value)
            self._session = maker.session_of_file(graph, options)
        self._input = data_input(model)[0]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch, float32 (N, 3, H, W)."""
        return np.asarray(self._session.run(None, {self._input: batch})[0], np.float32)


class Split(Way):
    """A session up to the last patched convolution, built anew at each change, and one for the rest."""

    name = "split"

    def __init__(
        self,
        model: Any,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        maker: SessionMaker,
    ) -> None:
        try:
            self._stem_model, trunk = split_after(model, tuple(clean))
        except ValueError as error:
            raise WayNotOpenError(f"the graph cannot be split ({error})") from error
        self._maker = maker
        self._input = data_input(model)[0]
        self._trunk = maker.session(trunk)
        self._inputs = [value.name for value in self._trunk.get_inputs()]
        self._between = [name for name in self._inputs if name != self._input]
        self.slots = plain_slots(clean)
        self.arena = Arena(clean, signatures, publish=self._build_stem)
        self._build_stem()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch, float32 (N, 3, H, W)."""
        values = dict(zip(self._between, self._stem.run(self._between, {self._input: batch}), strict=True))
        values[self._input] = batch
        return np.asarray(self._trunk.run(None, {name: values[name] for name in self._inputs})[0], np.float32)

    def _build_stem(self) -> None:
        options = self._maker.options()
        # Two pools of threads that spin would take the cores from one another.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with replaced_tensors(self._stem_model, self.arena.views):
            self._stem = self._maker.session_of_bytes(self._stem_model.SerializeToString(), options)


class Inputs(Way):
    """The patched weights as inputs of the graph, bound once: to the arena, or to a copy on the provider's device."""

    name = "inputs"

    def __init__(
        self,
        model: Any,
        clean: Mapping[str, NDArray[np.float32]],
        signatures: SignatureSet | None,
        maker: SessionMaker,
    ) -> None:
        self._session = maker.session(weights_to_inputs(model, tuple(clean)))
        self._input = data_input(model)[0]
        on_gpu = maker.providers[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider")
        self.slots = plain_slots(clean)
        self.arena = Arena(clean, signatures, publish=self._copy_to_device if on_gpu else None)
        self._views = self.arena.views
        device = "cuda" if on_gpu else "cpu"
        self._memory = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(view, device, 0) for name, view in self._views.items()
        }
        self._binding = self._session.io_binding()
        for name, value in self._memory.items():
            self._binding.bind_ortvalue_input(name, value)
        self._output = self._session.get_outputs()[0].name

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a batch, float32 (N, 3, H, W)."""
        self._binding.bind_cpu_input(self._input, batch)
        self._binding.bind_output(self._output)  # anew, since its shape follows the batch
        self._session.run_with_iobinding(self._binding)
        return np.asarray(self._binding.copy_outputs_to_cpu()[0], np.float32)

    def _copy_to_device(self) -> None:
        for name, value in self._memory.items():
            value.update_inplace(self._views[name])


WAYS: tuple[type[Way], ...] = (Live, Split, Inputs)


def ways_on(provider: str) -> tuple[type[Way], ...]:
    """The ways for a provider, the fastest first: what is quick to build anew on the CPU is not on a GPU."""
    return WAYS if provider == CPU else (Inputs, Split)


def _learn_layout(
    model: Any, clean: Mapping[str, NDArray[np.float32]], maker: SessionMaker, path: Path
) -> dict[str, Slot]:
    """Write the optimised graph to `path`; returns where in it each clean value stands."""
    total = sum(array.size for array in clean.values())
    if total >= _COUNTABLE:
        raise WayNotOpenError(f"{total:,} patched weights are more than float32 can number, {_COUNTABLE - 1:,}")
    numbers = np.arange(1, total + 1, dtype=np.float32)
    ends = np.cumsum([array.size for array in clean.values()])[:-1]
    numbered = {
        name: part.reshape(array.shape)
        for (name, array), part in zip(clean.items(), np.split(numbers, ends), strict=True)
    }
    backward = _optimised(model, {name: -part for name, part in numbered.items()}, maker, path)
    forward = _optimised(model, numbered, maker, path)
    if forward.keys() != backward.keys():
        raise WayNotOpenError("ONNX Runtime builds another graph for other weights")
    slots = {}
    for name, found in forward.items():
        if np.array_equal(found, backward[name], equal_nan=True):
            continue
        if not np.array_equal(found, -backward[name]) or not np.isin(found, np.append(numbers, 0)).all():
            raise WayNotOpenError(f"ONNX Runtime computes {name!r} from the weights; it does not only lay them out")
        slots[name] = Slot(found.shape, found.ravel().astype(np.int64) - 1)
    used = np.zeros(total, bool)
    for slot in slots.values():
        used[slot.source[slot.source >= 0]] = True
    if not used.all():
        raise WayNotOpenError(f"{total - used.sum():,} of {total:,} weights are nowhere in the optimised graph")
    return slots


def _optimised(
    model: Any, tensors: Mapping[str, NDArray[np.float32]], maker: SessionMaker, path: Path
) -> dict[str, NDArray[np.float32]]:
    """Write the graph that ONNX Runtime makes of a model with these tensors; returns its float32 initializers."""
    options = maker.options()
    options.optimized_model_filepath = str(path)
    with replaced_tensors(model, tensors):
        maker.session(model, options)
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(path)).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }

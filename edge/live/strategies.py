"""Three strategies to change the weights of an ONNX Runtime session that runs; README.md compares them.

ONNX Runtime changes the layout of weights when it optimises. `live` learns the layout by a probe: weights are
numbered, the graph is optimised and saved, the numbers are read back. It is then loaded with our memory as its
initializers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from rws.edge.live.arena import Arena, Signatures, Tensors
from rws.edge.live.layout import plain_slots
from rws.edge.live.sessions import CPU, PROVIDERS, Feeds, SessionMaker, scratch_file
from rws.edge.onnx.graph import data_inputs, replaced_tensors, split_after, weights_to_inputs
from rws.errors import InputError, StrategyUnavailableError

COUNTABLE = 2**24  # float32 counts exactly up to here


@dataclass(frozen=True, eq=False)
class PatchTarget:
    """A model, its patched float32 initializers in order, what can be mixed, and what makes sessions."""

    model: onnx.ModelProto
    clean: Mapping[str, NDArray[np.float32]]
    signatures: Signatures | None
    maker: SessionMaker


class WeightUpdateStrategy(ABC):
    """Sessions that read their weights from an arena; raises StrategyUnavailableError if that does not work here."""

    name: ClassVar[str]
    exact: ClassVar[bool] = False  # the outputs equal those of a session built from a file, bit for bit
    arena: Arena
    inputs: list[Any]  # `onnxruntime.NodeArg`s, without the weights
    outputs: list[Any]
    _session: Any = None

    @abstractmethod
    def __init__(self, target: PatchTarget) -> None: ...

    def run(self, output_names: Sequence[str] | None, feeds: Feeds, run_options: Any = None) -> list[Any]:
        """Run the model; see `onnxruntime.InferenceSession.run`."""
        return list(self._session.run(output_names, feeds, run_options))

    def io_binding(self) -> onnxruntime.IOBinding:
        """Return a binding for `run_with_iobinding`; raises StrategyUnavailableError if there are two sessions."""
        return self.session.io_binding()

    @property
    def session(self) -> Any:
        """The session to which memory can be bound; raises StrategyUnavailableError if there is not just one."""
        if self._session is None:
            what = f"strategy {self.name!r} runs two sessions and cannot bind memory to them"
            raise StrategyUnavailableError(f"{what}; call run(), or take the strategy 'live' or 'inputs'")
        return self._session

    def _check(self, feeds: Feeds) -> None:
        """Raise InputError unless each input is there: a binding would silently keep an earlier one."""
        expected = [value.name for value in self.inputs]
        if feeds.keys() != set(expected):
            raise InputError(f"inputs are {', '.join(feeds) or 'none'}, expected {', '.join(expected)}")


class Live(WeightUpdateStrategy):
    """The optimised graph, reading its weights from the arena."""

    name = "live"
    exact = True

    def __init__(self, target: PatchTarget) -> None:
        maker = target.maker
        if maker.providers[0] != CPU:
            raise StrategyUnavailableError(f"{maker.providers[0]} does not read weights from the memory of the CPU")
        with scratch_file() as graph:
            self.arena = Arena(target.clean, target.signatures, _learn_slots(target, graph))
            options = maker.options()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            value_of = onnxruntime.OrtValue.ortvalue_from_numpy
            self._memory = {name: value_of(view) for name, view in self.arena.views.items()}
            for name, value in self._memory.items():
                options.add_initializer(name, value)  # which the session reads but does not own
            self._session = maker.session_of(str(graph), options)
        self.inputs, self.outputs = self._session.get_inputs(), self._session.get_outputs()


class Split(WeightUpdateStrategy):
    """A session up to the last patched convolution, rebuilt at each change, and one for the rest."""

    name = "split"

    def __init__(self, target: PatchTarget) -> None:
        try:
            self._stem_model, trunk = split_after(target.model, tuple(target.clean))
        except ValueError as error:
            raise StrategyUnavailableError(f"the graph cannot be split ({error})") from error
        self._maker = target.maker
        self._trunk = target.maker.session(trunk)
        self.arena = Arena(target.clean, target.signatures, publish=self._build_stem)
        self._build_stem()
        self._stem_inputs = [value.name for value in self._stem.get_inputs()]
        self._between = [value.name for value in self._stem.get_outputs()]
        self._trunk_inputs = [value.name for value in self._trunk.get_inputs()]
        both = (self._stem, self._trunk)
        inputs = {value.name: value for session in both for value in session.get_inputs()}
        outputs = {value.name: value for session in both for value in session.get_outputs()}
        self.inputs = [inputs[name] for name in data_inputs(target.model) if name in inputs]
        self.outputs = [outputs[value.name] for value in target.model.graph.output]
        self._output_names = [value.name for value in self.outputs]

    def run(self, output_names: Sequence[str] | None, feeds: Feeds, run_options: Any = None) -> list[Any]:
        """Run the model; see `onnxruntime.InferenceSession.run`."""
        self._check(feeds)
        stem = self._stem.run(self._between, {name: feeds[name] for name in self._stem_inputs}, run_options)
        values = dict(zip(self._between, stem, strict=True))
        wanted = output_names or self._output_names
        if late := [name for name in wanted if name not in values]:
            read = {name: values[name] if name in values else feeds[name] for name in self._trunk_inputs}
            values.update(zip(late, self._trunk.run(late, read, run_options), strict=True))
        return [values[name] for name in wanted]

    def _build_stem(self) -> None:
        options = self._maker.options()
        # Two pools of threads that spin would take the cores from one another.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with replaced_tensors(self._stem_model, self.arena.views):
            self._stem = self._maker.session_of(self._stem_model.SerializeToString(), options)


class Inputs(WeightUpdateStrategy):
    """The patched weights as inputs of the graph, bound once: to the arena, or to a copy on the provider's device."""

    name = "inputs"

    def __init__(self, target: PatchTarget) -> None:
        self._session = target.maker.session(weights_to_inputs(target.model, tuple(target.clean)))
        self.inputs = [value for value in self._session.get_inputs() if value.name not in target.clean]
        self.outputs = self._session.get_outputs()
        on_gpu = target.maker.providers[0] in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
        self.arena = Arena(target.clean, target.signatures, publish=self._copy_to_device if on_gpu else None)
        self._views = self.arena.views
        value_of, device = onnxruntime.OrtValue.ortvalue_from_numpy, "cuda" if on_gpu else "cpu"
        self._memory = {name: value_of(view, device, 0) for name, view in self._views.items()}
        self._output_names = [value.name for value in self.outputs]
        self._binding = self.io_binding()
        self._bound: list[str] = []

    def run(self, output_names: Sequence[str] | None, feeds: Feeds, run_options: Any = None) -> list[Any]:
        """Run the model; see `onnxruntime.InferenceSession.run`."""
        self._check(feeds)
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
        wanted = list(output_names or self._output_names)
        if wanted != self._bound:
            self._binding.clear_binding_outputs()
            self._bound = wanted
        for name in wanted:
            self._binding.bind_output(name)  # at each run, since its shape follows the batch
        self._session.run_with_iobinding(self._binding, run_options)
        return list(self._binding.copy_outputs_to_cpu())

    def io_binding(self) -> onnxruntime.IOBinding:
        """Return a binding in which the weights are bound already; do not clear its inputs."""
        binding = self._session.io_binding()
        for name, value in self._memory.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def _copy_to_device(self) -> None:
        for name, value in self._memory.items():
            value.update_inplace(self._views[name])


STRATEGIES: tuple[type[WeightUpdateStrategy], ...] = (Live, Split, Inputs)
ON_GPU: tuple[type[WeightUpdateStrategy], ...] = (Inputs, Split)  # what is quick to rebuild on a CPU is not on a GPU


def _learn_slots(target: PatchTarget, path: Path) -> dict[str, NDArray[np.int32]]:
    """Write the optimised graph to `path`; returns where in it each clean value stands."""
    total = sum(array.size for array in target.clean.values())
    if total >= COUNTABLE:
        raise StrategyUnavailableError(f"{total:,} patched weights are more than float32 can number, {COUNTABLE - 1:,}")
    numbers = np.arange(1, total + 1, dtype=np.float32)
    slots_of_clean = plain_slots({name: array.shape for name, array in target.clean.items()})
    numbered = {name: numbers[slot] for name, slot in slots_of_clean.items()}
    backward = _optimised(target, {name: -part for name, part in numbered.items()}, path)
    forward = _optimised(target, numbered, path)
    if forward.keys() != backward.keys():
        raise StrategyUnavailableError("ONNX Runtime builds another graph for other weights")
    slots = {}
    for name, found in forward.items():
        if np.array_equal(found, backward[name], equal_nan=True):
            continue
        if not np.array_equal(found, -backward[name]) or not np.isin(found, np.append(numbers, 0)).all():
            raise StrategyUnavailableError(
                f"ONNX Runtime computes {name!r} from the weights; it does not only lay them out"
            )
        slots[name] = found.astype(np.int32) - 1
    used = np.zeros(total + 1, bool)
    for slot in slots.values():
        used[slot + 1] = True
    if unused := total - used[1:].sum():
        raise StrategyUnavailableError(f"{unused:,} of {total:,} weights are nowhere in the optimised graph")
    return slots


def _optimised(target: PatchTarget, tensors: Tensors, path: Path) -> dict[str, NDArray[np.float32]]:
    options = target.maker.options()
    options.optimized_model_filepath = str(path)
    with replaced_tensors(target.model, tensors):
        target.maker.session(target.model, options)
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(path)).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }

"""The optimised graph that reads its weights from our memory.

ONNX Runtime changes the layout of weights when it optimises. The layout is learned by a probe: weights are numbered,
the graph is optimised and saved, the numbers are read back. The graph is then loaded with our memory as its
initializers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from rws.edge.live.arena import Arena, Signatures, Tensors
from rws.edge.live.layout import Layout, Slots, lay_out, plain_slots
from rws.edge.live.sessions import CPU, SessionMaker, scratch_file
from rws.edge.live.strategies.base import PatchTarget, WeightUpdateStrategy
from rws.edge.live.strategies.packed import MAPPED_FILE, Mapped, map_packed, mapped_block, shared_folder, start_value
from rws.edge.onnx.graph import replaced_tensors
from rws.errors import StrategyUnavailableError

COUNTABLE = 2**24  # float32 counts exactly up to here
Memory = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class LearnedGraph:
    """A graph as ONNX Runtime has optimised it, and where it reads the clean values.

    The slots are its initializers, and the packed copies of some.
    """

    file: Path
    layout: Layout
    mapped: Mapped


class Live(WeightUpdateStrategy):
    """The optimised graph, reading its weights from the arena."""

    name = "live"
    exact = True

    def __init__(self, target: PatchTarget) -> None:
        maker = target.maker
        if maker.providers[0] != CPU:
            raise StrategyUnavailableError(f"{maker.providers[0]} does not read weights from the memory of the CPU")
        graph = learn(target, target.scratch.enter_context(scratch_file()))
        self._start(graph, target.clean, target.signatures, maker)

    @classmethod
    def reopened(
        cls, graph: LearnedGraph, clean: Tensors, signatures: Signatures | None, maker: SessionMaker
    ) -> "Live":
        """Return the strategy on a graph that was learned before."""
        live = cls.__new__(cls)
        live._start(graph, clean, signatures, maker)
        return live

    def _start(self, graph: LearnedGraph, clean: Tensors, signatures: Signatures | None, maker: SessionMaker) -> None:
        self.graph = graph
        options = maker.options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with _memory(graph) as (file, memory):
            self.arena = Arena(clean, signatures, graph.layout, memory=memory)
            views = self.arena.views
            # A weight that the session copies now, instead of reading it later, gives other outputs than the clean.
            owners, packed = graph.mapped.owners, list(graph.mapped.unread)
            for name, view in views.items():
                number = packed.index(owners[name]) if name in owners else len(packed)
                np.putmask(view, graph.layout.slots[name] >= 0, start_value(number))
            value_of = onnxruntime.OrtValue.ortvalue_from_numpy
            self._memory = {name: value_of(view) for name, view in views.items() if name not in owners}
            for name, value in self._memory.items():
                options.add_initializer(name, value)  # which the session reads but does not own
            self._session = maker.session_of(str(file), options)
        self.arena.reset()
        self.inputs, self.outputs = self._session.get_inputs(), self._session.get_outputs()


@contextmanager
def _memory(graph: LearnedGraph) -> Iterator[tuple[Path, Memory | None]]:
    """Yield the graph's file as a session is to open it, and what makes memory for the weights, if it maps some."""
    if not graph.mapped.unread:
        yield graph.file, None
        return
    with shared_folder() as folder:
        (folder / "graph.onnx").symlink_to(graph.file)
        yield folder / "graph.onnx", partial(mapped_block, folder / MAPPED_FILE, graph.mapped.unread)


def learn(target: PatchTarget, path: Path) -> LearnedGraph:
    """Write the optimised graph to `path`; returns where in it each clean value stands.

    Raises StrategyUnavailableError if ONNX Runtime does more with the weights than to lay them out.
    """
    shapes = {name: array.shape for name, array in target.clean.items()}
    total = sum(array.size for array in target.clean.values())
    if total >= COUNTABLE:
        raise StrategyUnavailableError(f"{total:,} patched weights are more than float32 can number, {COUNTABLE - 1:,}")
    numbers = np.arange(1, total + 1, dtype=np.float32)
    numbered = {name: numbers[slot] for name, slot in plain_slots(shapes).items()}
    backward = _floats(_optimised(target, {name: -part for name, part in numbered.items()}, path))
    model = _optimised(target, numbered, path)
    slots = _slots(_floats(model), backward, numbers)
    slots, mapped = map_packed(model, slots, target.maker)
    if mapped.unread:
        path.write_bytes(model.SerializeToString())
    return LearnedGraph(path, lay_out(shapes, slots), mapped)


def _slots(forward: Tensors, backward: Tensors, numbers: NDArray[np.float32]) -> Slots:
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
    used = np.zeros(len(numbers) + 1, bool)
    for slot in slots.values():
        used[slot + 1] = True
    if unused := len(numbers) - used[1:].sum():
        raise StrategyUnavailableError(f"{unused:,} of {len(numbers):,} weights are nowhere in the optimised graph")
    return slots


def _optimised(target: PatchTarget, tensors: Tensors, path: Path) -> onnx.ModelProto:
    options = target.maker.options()
    options.optimized_model_filepath = str(path)
    with replaced_tensors(target.model, tensors):
        target.maker.session(target.model, options)
    return onnx.load(str(path))


def _floats(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    found = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in found}

"""The patched weights as inputs of the graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from rws.edge.live.arena import Arena
from rws.edge.live.sessions import PROVIDERS, Feeds
from rws.edge.live.strategies.base import PatchTarget, WeightUpdateStrategy
from rws.edge.onnx.graph import weights_to_inputs


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

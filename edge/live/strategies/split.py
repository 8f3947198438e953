"""The graph cut in two: the small first part is rebuilt at each change."""

from collections.abc import Sequence
from typing import Any

from rws.edge.live.arena import Arena
from rws.edge.live.sessions import Feeds
from rws.edge.live.strategies.base import PatchTarget, WeightUpdateStrategy
from rws.edge.onnx.graph import data_inputs, replaced_tensors, split_after
from rws.errors import StrategyUnavailableError


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

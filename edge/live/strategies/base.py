"""What every strategy to change the weights of a running ONNX Runtime session does; README.md compares them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rws.edge.live.arena import Arena, Signatures
from rws.edge.live.sessions import Feeds, SessionMaker
from rws.errors import InputError, StrategyUnavailableError


@dataclass(frozen=True, eq=False)
class PatchTarget:
    """A model, its patched float32 initializers in order, what can be mixed, and what makes sessions."""

    model: onnx.ModelProto
    clean: Mapping[str, NDArray[np.float32]]
    signatures: Signatures | None
    maker: SessionMaker
    scratch: ExitStack = field(default_factory=ExitStack)  # holds files that are needed until the model is open


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

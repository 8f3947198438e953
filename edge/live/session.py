"""A session of ONNX Runtime whose weights can be changed between two runs; see README.md in this folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rws.edge.live import kernel
from rws.edge.live.arena import Signatures
from rws.edge.live.base import Patchable
from rws.edge.live.self_check import SelfCheck
from rws.edge.live.sessions import CPU, Feeds, random_feeds, start
from rws.edge.live.strategies import ON_GPU, STRATEGIES, PatchTarget, WeightUpdateStrategy
from rws.edge.onnx.graph import clean_tensors, prepare, read_model, shallow_tensors
from rws.errors import InputError, StrategyUnavailableError, UsageError, first_line, from_library


class LiveSession(Patchable):
    """An ONNX Runtime session whose patched tensors can be written between two runs.

    It is called like an `onnxruntime.InferenceSession`. The fastest strategy that passes a `SelfCheck` here is taken.
    To open takes as long as five sessions do, and memory for three models. Not safe for several threads at once.

    Args:
        model: with all weights in it.
        layers: number of convolutions, shallowest first, that can be written, BatchNorm folded in (see `prepare`).
        tensors: instead of `layers`: names of float32 initializers; the model is taken as it is.
        signatures: what `apply` can mix, {signature: {tensor: values and scale}}, or a `SignatureSet`.
        strategy: `live`, `split` or `inputs`; `auto` is the fastest of them that passes the check.
        provider: `cpu`, `cuda`, `tensorrt` or a provider's full name; `auto` is CUDA where it works, and else the CPU.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.
        sample: input name → array that the check runs the model on; default: see `random_feeds`.

    Raises BundleError if the model cannot be run or lacks a tensor, or the provider is unavailable, InputError if the
    strategy is unknown, or not exactly one of `layers` and `tensors` is given, SignatureError if the signatures are for
    another model, and StrategyUnavailableError if no strategy, or not the one asked for, passes the check.
    """

    def __init__(
        self,
        model: str | Path | bytes | onnx.ModelProto,
        *,
        layers: int | None = None,
        tensors: Sequence[str] | None = None,
        signatures: Signatures | None = None,
        strategy: str = "auto",
        provider: str = "auto",
        threads: int | None = None,
        sample: Feeds | None = None,
    ) -> None:
        known = [kind.name for kind in STRATEGIES]
        if strategy not in ("auto", *known):
            raise UsageError(f"strategy is {strategy!r}, expected auto, {', '.join(known)}")
        proto = read_model(model)
        if layers is not None and tensors is None:
            proto = prepare(proto)
            tensors = shallow_tensors(proto, layers)
        elif layers is not None or tensors is None:
            raise InputError("give either layers, a number of convolutions, or tensors, names of initializers")
        clean = clean_tensors(proto, tensors)
        feeds = random_feeds(proto) if sample is None else sample
        maker, outputs = start(proto, feeds, provider, threads)
        check = SelfCheck(PatchTarget(proto, clean, signatures, maker), feeds, outputs)
        self._strategy, refused = _open(check, strategy)
        self._arena = self._strategy.arena
        self.strategy, self.provider = self._strategy.name, maker.providers[0]
        self.description = _describe(check, self._strategy, self.provider, refused)

    def get_inputs(self) -> list[Any]:
        """Return an `onnxruntime.NodeArg` for each input."""
        return self._strategy.inputs

    def get_outputs(self) -> list[Any]:
        """Return an `onnxruntime.NodeArg` for each output."""
        return self._strategy.outputs

    def run(self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None) -> list[Any]:
        """Run the model with the weights in effect; see `onnxruntime.InferenceSession.run`."""
        self._arena.settle()
        return self._strategy.run(output_names, input_feed, run_options)

    def io_binding(self) -> onnxruntime.IOBinding:
        """Return a binding whose inputs are not to be cleared; StrategyUnavailableError for `split`: two sessions."""
        return self._strategy.io_binding()

    def run_with_iobinding(self, iobinding: onnxruntime.IOBinding, run_options: Any = None) -> None:
        """Run the model on bound memory with the weights in effect; raises as `io_binding` does."""
        self._arena.settle()
        self._strategy.session.run_with_iobinding(iobinding, run_options)

    def write(self, name: str, array: NDArray[np.float32]) -> None:
        """Replace one patched tensor until `reset` or the next `apply`; raises as `Arena.overwrite` does."""
        self._arena.overwrite({name: array})


def _open(check: SelfCheck, choice: str) -> tuple[WeightUpdateStrategy, list[str]]:
    provider = check.target.maker.providers[0]
    refused: list[str] = []
    for kind in ON_GPU if choice == "auto" and provider != CPU else STRATEGIES:
        if choice not in ("auto", kind.name):
            continue
        try:
            found = kind(check.target)
            check.check(found)
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            # A bug of ours is not an error of ONNX Runtime, ONNX, the machine or the check.
            if not from_library(error) and not isinstance(error, (StrategyUnavailableError, OSError, RuntimeError)):
                raise
            refused.append(f"{kind.name}: {first_line(error)}")
        else:
            return found, refused
    raise StrategyUnavailableError(f"model: its weights cannot be changed on {provider} ({'; '.join(refused)})")


def _describe(check: SelfCheck, strategy: WeightUpdateStrategy, provider: str, refused: Sequence[str]) -> str:
    parts = [f"{strategy.name} weights on {provider}"]
    if kernel.NAME != "C":
        parts.append(f"patched by {kernel.NAME}: install with a C compiler to patch twice as fast")
    if refused:
        ratio, change_ms = check.cost(strategy)
        change = f"{change_ms:.2f} ms for a change of mix ({'; '.join(refused)})"
        parts += [f"{ratio:.2f} times the untouched session", change]
    return ", ".join(parts)

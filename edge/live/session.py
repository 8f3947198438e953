"""A session of ONNX Runtime whose weights can be changed between two runs; see README.md in this folder."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rws.edge.live import kernel
from rws.edge.live.arena import Signatures
from rws.edge.live.base import Patchable
from rws.edge.live.cache import Cache, Entry, cache_folder, digest_arrays
from rws.edge.live.self_check import SelfCheck
from rws.edge.live.sessions import CPU, FREE_SIZE, Feeds, SessionMaker, feed_specs, providers, random_arrays, start
from rws.edge.live.strategies.base import PatchTarget, WeightUpdateStrategy
from rws.edge.live.strategies.live import Live
from rws.edge.live.strategies.registry import ON_GPU, STRATEGIES
from rws.edge.onnx.graph import clean_tensors, in_one_file, prepare, read_model, shallow_tensors
from rws.errors import InputError, StrategyUnavailableError, UsageError, first_line, from_library


class LiveSession(Patchable):
    """An ONNX Runtime session whose patched tensors can be written between two runs.

    It is called like an `onnxruntime.InferenceSession`. The fastest strategy that passes a `SelfCheck` here is taken.
    The first time takes as long as five sessions do, and memory for three models; what was learned is kept on disk (see
    `cache`) and checked each time. Not safe for several threads at once.

    Args:
        model: with all weights in it.
        layers: number of convolutions, shallowest first, that can be written, BatchNorm folded in (see `prepare`).
        tensors: instead of `layers`: names of float32 initializers; the model is taken as it is.
        signatures: what `apply` can mix, {signature: {tensor: values and scale}}, or a `SignatureSet`.
        strategy: `live`, `split` or `inputs`; `auto` is the fastest of them that passes the check.
        provider: `cpu`, `cuda`, `tensorrt` or a provider's full name; `auto` is CUDA where it works, and else the CPU.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.
        sample: input name → array that the check runs the model on, or height and width of a random image, where the
            model leaves them free.
        cache: a folder; False for none. True is that of the variable RWS_CACHE (`off`: none), or else of the platform.

    Raises BundleError if the model cannot be run or lacks a tensor, or the provider is unavailable, InputError if the
    strategy is unknown, or not exactly one of `layers` and `tensors` is given, SignatureError if the signatures are for
    another model, and StrategyUnavailableError if no strategy, or not the one asked for, passes the check.
    """

    from_cache: bool  # whether what was learned at an earlier time was used

    def __init__(  # noqa: PLR0913  # as many as a session has options
        self,
        model: str | Path | bytes | onnx.ModelProto,
        *,
        layers: int | None = None,
        tensors: Sequence[str] | None = None,
        signatures: Signatures | None = None,
        strategy: str = "auto",
        provider: str = "auto",
        threads: int | None = None,
        sample: Feeds | tuple[int, int] | None = None,
        cache: str | os.PathLike[str] | bool = True,
    ) -> None:
        known = [kind.name for kind in STRATEGIES]
        if strategy not in ("auto", *known):
            raise UsageError(f"strategy is {strategy!r}, expected auto, {', '.join(known)}")
        if (layers is None) == (tensors is None):
            raise InputError("give either layers, a number of convolutions, or tensors, names of initializers")
        given = sample if isinstance(sample, Mapping) else None
        size = FREE_SIZE if sample is None or isinstance(sample, Mapping) else sample
        options: dict[str, Any] = {
            "layers": layers,
            "tensors": tensors and list(tensors),
            "threads": threads,
            "size": size,
        }
        options["sample"] = given and [*given, digest_arrays(list(given.values()))]
        cacheable = strategy in ("auto", Live.name) and providers(provider)[0] == CPU
        store = _cache(cache, model, options) if cacheable else None
        self.from_cache = store is not None and self._reopen(store, signatures, SessionMaker((CPU,), threads), given)
        if self.from_cache:
            return
        proto = read_model(model)
        if store is not None and isinstance(model, (str, Path)) and not in_one_file(Path(model)):
            store = None  # the other files are not hashed
        if layers is not None:
            proto = prepare(proto)
            tensors = shallow_tensors(proto, layers)
        clean = clean_tensors(proto, tensors or ())
        specs = {} if given is not None else feed_specs(proto, size)
        feeds = random_arrays(specs) if given is None else given
        maker, outputs = start(proto, feeds, provider, threads)
        with ExitStack() as files:
            check = SelfCheck(PatchTarget(proto, clean, signatures, maker, files), feeds, outputs)
            found, refused = _open(check, strategy)
            self._take(found, maker)
            if store is not None and isinstance(found, Live):
                store.store(Entry(found.graph, clean, specs, digest_arrays(outputs), store.digest))
            self.description = _describe(check, found, refused)

    def _reopen(self, store: Cache, signatures: Signatures | None, maker: SessionMaker, sample: Feeds | None) -> bool:
        """Take what was learned before, if it gives the same outputs; the session starts with other weights."""
        with ExitStack() as files:
            entry = store.load(files)
            if entry is None:
                return False
            try:
                found = Live.reopened(entry.graph, entry.clean, signatures, maker)
                if entry.sound is None or not entry.sound.result():
                    return False
                outputs = found.run(None, random_arrays(entry.specs) if sample is None else sample)
                if digest_arrays(outputs) != entry.outputs or store.digest != entry.model:
                    return False
            except Exception as error:  # ONNX Runtime's errors share no base but Exception
                if not _is_refusal(error):
                    raise
                return False
        self._take(found, maker)
        self.description = _describe(None, found, ())
        return True

    def _take(self, found: WeightUpdateStrategy, maker: SessionMaker) -> None:
        self._strategy, self._arena = found, found.arena
        self.strategy, self.provider = found.name, maker.providers[0]

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

    def write_all(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace several patched tensors at once; see `write`."""
        self._arena.overwrite(tensors)


def _cache(choice: str | os.PathLike[str] | bool, model: Any, options: Mapping[str, Any]) -> Cache | None:
    folder = cache_folder(choice)
    if folder is None:
        return None
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString(deterministic=True)
    try:
        return Cache(folder, model, options)
    except OSError:  # `read_model` says why it cannot be read
        return None


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
            if not _is_refusal(error):
                raise
            refused.append(f"{kind.name}: {first_line(error)}")
        else:
            return found, refused
    raise StrategyUnavailableError(f"model: its weights cannot be changed on {provider} ({'; '.join(refused)})")


def _is_refusal(error: Exception) -> bool:
    """Return whether ONNX Runtime, ONNX, the machine or a check has raised it; else it is a bug of ours."""
    return from_library(error) or isinstance(error, (StrategyUnavailableError, OSError, RuntimeError))


def _describe(check: SelfCheck | None, strategy: WeightUpdateStrategy, refused: Sequence[str]) -> str:
    """Say how weights reach the model; `check` measures what that costs if a faster strategy was refused."""
    parts = [f"{strategy.name} weights on {check.target.maker.providers[0] if check else CPU}"]
    if kernel.NAME != "C":
        parts.append(f"patched by {kernel.NAME}: install with a C compiler to patch twice as fast")
    if check and refused:
        ratio, change_ms = check.cost(strategy)
        change = f"{change_ms:.2f} ms for a change of mix ({'; '.join(refused)})"
        parts += [f"{ratio:.2f} times the untouched session", change]
    return ", ".join(parts)

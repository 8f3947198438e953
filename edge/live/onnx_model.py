"""A patchable model on ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rws.edge.live import kernel
from rws.edge.live.arena import ArenaModel, changed
from rws.edge.live.base import as_batch
from rws.edge.live.strategies import CPU, WAYS, SessionMaker, Way, WayNotOpenError, ways_on
from rws.edge.onnx.graph import clean_tensors, data_input, read_model, replaced_tensors
from rws.edge.signatures.signature_set import SignatureSet
from rws.errors import BundleError, InputError, first_line

PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_FREE_LENGTH = 224  # pixels: what a model of any input size is tested with, if nothing else is said


class OnnxModel(ArenaModel):
    """A classifier on ONNX Runtime; see `PatchableModel`.

    The fastest way to change its weights that passes a test on this machine is taken (see `rws.edge.live.strategies`):
    every patched tensor is overwritten, and the output must equal that of a session that was built from a file with
    the same weights; with clean weights it must be what it was, bit for bit.

    Args:
        model: path or bytes of an ONNX model that went through `onnx_graph.prepare`, with one image input.
        signatures: what can be mixed; None for a model that is only ever clean.
        tensor_names: the patched tensors, in the order of the network.
        provider: `cpu`, `cuda`, `tensorrt` or the full name of one of ONNX Runtime's execution providers; `auto` is
            CUDA where it works, and else the CPU.
        threads: threads inside an operator; None leaves the choice to ONNX Runtime.
        way: `live`, `split` or `inputs`; `auto` is the first of them that passes the test (on a GPU `inputs` comes
            before `split`, and there is no `live`).
        image_size: height and width of the images, pixels, where the model leaves them free.

    To load takes as long as five sessions do, and memory for three models: two for the test, two to learn the layout.

    Raises:
        BundleError: if the model cannot be read or run, lacks one of the tensors, or the provider or the way is not to
            be had.
        InputError: if the way is unknown.
        SignatureError: if the signatures are for other tensors or other weights.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        signatures: SignatureSet | None,
        tensor_names: Sequence[str],
        provider: str = "auto",
        threads: int | None = None,
        way: str = "auto",
        image_size: tuple[int, int] | None = None,
    ) -> None:
        if way != "auto" and way not in [kind.name for kind in WAYS]:
            raise InputError(f"way is {way!r}, expected auto, {', '.join(kind.name for kind in WAYS)}")
        proto = read_model(model)
        clean = clean_tensors(proto, tensor_names)
        self._shape = data_input(proto)[1]
        maker = SessionMaker(_providers(provider), threads)
        test = _Test(proto, clean, maker, provider, image_size)
        maker = test.maker
        self.provider: str = maker.providers[0]
        refused: list[str] = []
        for kind in WAYS if way != "auto" else ways_on(self.provider):
            if way not in ("auto", kind.name):
                continue
            try:
                found = kind(proto, clean, signatures, maker)
                test.check(found)
            except Exception as error:  # ONNX Runtime's errors share no base but Exception
                if not _says_no(error):
                    raise
                refused.append(f"{kind.name}: {first_line(error)}")
                continue
            break
        else:
            raise BundleError(f"model: its weights cannot be changed on {self.provider} ({'; '.join(refused)})")
        self._way = found
        self._arena = found.arena
        self.way = found.name
        self.note = f"{self.way} weights on {self.provider}"
        if kernel.NAME != "C":
            self.note += f", patched by {kernel.NAME}: install with a C compiler to patch twice as fast"
        if refused:
            ratio, change_ms = test.cost(found)
            self.note += f", {ratio:.2f} times the untouched session, {change_ms:.2f} ms for a change of mix"
            self.note += f" ({'; '.join(refused)})"
        del found.slots

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify float32 (3, H, W) or (N, 3, H, W); see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape[1:])
        self._arena.settle()
        step = self._shape[0] or len(batch)
        missing = -len(batch) % step
        if missing:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        logits = [self._way.run(batch[start : start + step]) for start in range(0, len(batch), step)]
        return logits[0] if len(logits) == 1 and not missing else np.concatenate(logits)[: len(batch) - missing]


class _Test:
    """Whether a way gives what a session gives that was built from a file with the same weights.

    `maker` makes sessions with those of the providers that start here.
    """

    def __init__(
        self,
        model: Any,
        clean: Mapping[str, NDArray[np.float32]],
        maker: SessionMaker,
        asked: str,
        image_size: tuple[int, int] | None,
    ) -> None:
        self._model = model
        name, shape = data_input(model)
        if len(shape) != 4:
            raise BundleError(f"model: input {name!r} has the shape {shape}, expected (N, 3, height, width)")
        size = [length or free for length, free in zip(shape[2:], image_size or [_FREE_LENGTH] * 2, strict=True)]
        self._x = np.random.default_rng(0).random((shape[0] or 1, 3, *size), np.float32)
        self._feed = {name: self._x}
        self._weights = dict(clean)
        self._patched = changed(clean)
        try:
            untouched = maker.session(model)
            self._clean = untouched.run(None, self._feed)[0]
        except Exception as error:  # ONNX Runtime's errors share no base but Exception
            raise BundleError(
                f"model: ONNX Runtime cannot run it on float32 {self._x.shape} ({first_line(error)}); export it again"
            ) from error
        found = tuple(untouched.get_providers())
        del untouched
        if asked != "auto" and found[0] != maker.providers[0]:
            raise BundleError(
                f"provider {asked!r} is installed but does not start here (its libraries or its device are missing); "
                f"see ONNX Runtime's message, or take the provider cpu"
            )
        if not np.isfinite(self._clean).all():
            raise BundleError("model: gives no finite logits for a random image; train or export it again")
        self.maker = replace(maker, providers=found)
        with replaced_tensors(model, self._patched):
            self._expected = self.maker.session(model).run(None, self._feed)[0]

    def check(self, way: Way) -> None:
        """Raise WayNotOpenError unless every write to the weights takes effect and can be taken back."""
        before = way.run(self._x)
        if way.name != "live":
            # Compared with a tolerance, one tensor that is stale among many that follow might not show.
            for name, array in self._patched.items():
                way.arena.overwrite({**self._weights, name: array}, way.slots)
                if np.array_equal(way.run(self._x), before):
                    raise WayNotOpenError(f"changes of {name!r} do not reach the output")
        way.arena.overwrite(self._patched, way.slots)
        found = way.run(self._x)
        way.arena.reset()
        after = way.run(self._x)
        effect = np.abs(self._expected - self._clean).max()
        error = max(np.abs(found - self._expected).max(), np.abs(before - self._clean).max())
        limit = 0.0 if way.name == "live" else min(1e-3 * np.abs(self._expected).max(), 0.1 * effect)
        if not effect > 0 or not error <= limit:
            raise WayNotOpenError(f"changed weights give outputs that are {error:.1e} off, allowed {limit:.1e}")
        if not np.abs(before - after).max() <= (0 if self.maker.providers[0] == CPU else limit):
            raise WayNotOpenError("clean weights do not give the clean output again")

    def cost(self, way: Way, runs: int = 11) -> tuple[float, float]:
        """How many times the untouched session's time a prediction takes, and the milliseconds of a change of mix.

        Medians of interleaved runs.
        """
        untouched = self.maker.session(self._model)
        durations = []
        for _ in range(1 + runs):
            marks = [time.perf_counter()]
            for step in (partial(untouched.run, None, self._feed), way.arena.reset, partial(way.run, self._x)):
                step()
                marks.append(time.perf_counter())
            durations.append(np.diff(marks))
        plain, change, predict = np.array(durations[1:]).T
        return float(np.median(predict / plain)), float(np.median(change) * 1e3)


def _providers(choice: str) -> tuple[str, ...]:
    available = onnxruntime.get_available_providers()
    if choice == "auto":
        return tuple(name for name in (PROVIDERS["cuda"], CPU) if name in available)
    wanted = PROVIDERS.get(choice, choice)
    if wanted not in available:
        raise BundleError(
            f"provider {choice!r} is not to be had: this ONNX Runtime offers {', '.join(available)}; install the build "
            f"of it that has yours (onnxruntime-gpu for CUDA and TensorRT), or take another"
        )
    preferred = [wanted, PROVIDERS["cuda"]] if wanted == PROVIDERS["tensorrt"] else [wanted]
    return tuple(dict.fromkeys([*preferred, CPU]))


def _says_no(error: Exception) -> bool:
    """Whether a way is refused by ONNX Runtime, ONNX, the machine or its test, and it is not a mistake of ours."""
    ours = isinstance(error, (WayNotOpenError, OSError, RuntimeError))
    return ours or type(error).__module__.partition(".")[0] in ("onnx", "onnxruntime")

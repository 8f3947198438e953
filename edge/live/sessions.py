"""Sessions of ONNX Runtime: which provider runs them, and how they are made."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from rws.edge.onnx.graph import data_inputs, value_shape
from rws.errors import BundleError, first_line

CPU = "CPUExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
FREE_SIZE = (224, 224)  # height and width, pixels, that a model is tested with if it leaves them free
Feeds = Mapping[str, NDArray[Any]]
FeedSpecs = Mapping[str, tuple[str, Sequence[int]]]
"""Input → dtype and shape."""


@contextmanager
def scratch_file() -> Iterator[Path]:
    """Yield the path of an empty file for this process alone; on Linux it lies in memory, and no crash can leave it.

    Raises an OSError if there can be none.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="rws-") as folder:
            yield Path(folder) / "file"
        return
    descriptor = os.memfd_create("rws")
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class SessionMaker:
    """Makes sessions with execution providers, the first one preferred, and threads inside an operator."""

    providers: tuple[str, ...]
    threads: int | None

    def session(self, model: onnx.ModelProto, options: onnxruntime.SessionOptions | None = None) -> Any:
        """Return a session of a model, through a file if one can be written: one made of bytes keeps them."""
        options = options or self.options()
        try:
            with scratch_file() as path:
                path.write_bytes(model.SerializeToString())
                return self.session_of(str(path), options)
        except OSError:
            return self.session_of(model.SerializeToString(), options)

    def session_of(self, model: str | bytes, options: onnxruntime.SessionOptions) -> Any:
        """Return a session of a file's path or of a small model's bytes."""
        return onnxruntime.InferenceSession(model, options, list(self.providers))

    def options(self) -> onnxruntime.SessionOptions:
        """Return options for one session, fully optimised."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        # Weights that are inputs keep ONNX Runtime from folding constants, and a saved graph is for this machine only.
        # It warns of both; here they are the point.
        options.log_severity_level = 3
        return options


def start(model: onnx.ModelProto, feeds: Feeds, provider: str, threads: int | None) -> tuple[SessionMaker, list[Any]]:
    """Run a model once on a provider; returns what makes sessions there, and the outputs. BundleError if it cannot."""
    maker = SessionMaker(providers(provider), threads)
    try:
        session = maker.session(model)
        outputs = session.run(None, dict(feeds))
    except Exception as error:  # ONNX Runtime's errors share no base but Exception
        given = ", ".join(f"{array.dtype} {array.shape}" for array in feeds.values())
        raise BundleError(
            f"model: ONNX Runtime cannot run it on {given} ({first_line(error)}); "
            "export it again, or give a sample that it takes"
        ) from error
    found = tuple(session.get_providers())
    if provider != "auto" and found[0] != maker.providers[0]:
        fault = "is installed but does not start here (its libraries or its device are missing)"
        raise BundleError(f"provider {provider!r} {fault}; see ONNX Runtime's message, or take the provider cpu")
    if not all(np.isfinite(output).all() for output in outputs if is_float(output)):
        raise BundleError("model: gives no finite logits for a random image; train or export it again")
    return replace(maker, providers=found), outputs


def is_float(output: Any) -> bool:
    """Return whether an output is an array of floating-point numbers."""
    return isinstance(output, np.ndarray) and output.dtype.kind == "f"


def random_feeds(model: onnx.ModelProto, image_size: tuple[int, int] = FREE_SIZE) -> dict[str, NDArray[Any]]:
    """Return one random input, 0…1 or 0…255, of `image_size` where free; BundleError if an input is not numeric."""
    return random_arrays(feed_specs(model, image_size))


def feed_specs(model: onnx.ModelProto, image_size: tuple[int, int] = FREE_SIZE) -> FeedSpecs:
    """Return dtype and shape of each input of a model; see `random_feeds`."""
    specs: dict[str, tuple[str, Sequence[int]]] = {}
    for name, value in data_inputs(model).items():
        lengths = value_shape(value)
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"model: input {name!r} is not a tensor of numbers; export it with such inputs"
            ) from error
        channels_last = len(lengths) == 4 and lengths[3] in (1, 3, 4) and lengths[1] not in (1, 3, 4)
        usual = (1, *image_size, 3) if channels_last else (1, 3, *image_size)
        free = usual if len(lengths) == 4 else (1,) * len(lengths)
        specs[name] = (str(dtype), [length or other for length, other in zip(lengths, free, strict=True)])
    return specs


def random_arrays(specs: FeedSpecs) -> dict[str, NDArray[Any]]:
    """Return random arrays, always the same ones: floats 0…1, bytes 0…255, and zeros of other integers."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {}
    for name, (kind, shape) in specs.items():
        dtype = np.dtype(kind)
        if dtype.kind == "f":
            feeds[name] = rng.random(shape, np.float32).astype(dtype, copy=False)
        else:
            feeds[name] = rng.integers(0, 256, shape).astype(dtype) if dtype == np.uint8 else np.zeros(shape, dtype)
    return feeds


def providers(choice: str) -> tuple[str, ...]:
    """Return the execution providers to try, in this order; BundleError if the chosen one is unavailable."""
    available = onnxruntime.get_available_providers()
    if choice == "auto":
        return tuple(name for name in (PROVIDERS["cuda"], CPU) if name in available)
    wanted = PROVIDERS.get(choice, choice)
    if wanted not in available:
        fault = f"provider {choice!r} is unavailable: this ONNX Runtime offers {', '.join(available)}"
        cure = "install the build of it that has yours (onnxruntime-gpu for CUDA and TensorRT), or take another"
        raise BundleError(f"{fault}; {cure}")
    preferred = [wanted, PROVIDERS["cuda"]] if wanted == PROVIDERS["tensorrt"] else [wanted]
    return tuple(dict.fromkeys([*preferred, CPU]))

"""Engines: models whose weights change, and the baseline `untouched`, a plain session (or eager Torch on a GPU)."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil  # type: ignore[import-untyped]  # types-psutil is no dependency of ours
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from rws.benchmarks.common.models import BenchmarkModel, patched_onnx, patched_weights
from rws.edge.live.base import PatchableModel
from rws.edge.live.onnx_model import OnnxModel
from rws.edge.live.torch_model import TorchModel
from rws.edge.onnx.graph import data_input, read_model
from rws.errors import RwsError, first_line

ALPHA = 0.75
PREPARED = 3  # patched files or state dicts, used in turn: more than caches hold, less than memory
MEMORY_PER_SESSION = 2.5  # times the model's file: its weights, their packed copies, and the activations
# The largest error of a patched output, as a part of what the patch changes; TF32 on a GPU needs most of it.
TOLERANCE = 0.05
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
NO_CUDA = "this ONNX Runtime has no CUDA provider that starts; install onnxruntime-gpu and its libraries"


@dataclass(frozen=True, eq=False)
class Setting:
    """What an engine is built for: a model, threads per operator, a device, and an empty folder for its files."""

    model: BenchmarkModel
    threads: int
    device: str  # `cpu` or `cuda`
    folder: Path

    @property
    def mixes(self) -> tuple[dict[str, float], ...]:
        """The mixes that an engine changes between: each signature alone, at `ALPHA`."""
        return tuple({name: ALPHA} for name in self.model.signatures.names)

    @property
    def onnx_runs(self) -> bool:
        """Whether ONNX Runtime can use the device."""
        return self.device == "cpu" or cuda_starts()

    @property
    def baseline(self) -> str:
        """What `untouched` is on this device, in words."""
        if self.onnx_runs:
            return f"ONNX Runtime session, all optimisations, {self.device}, session.run(None, inputs)"
        return "Torch module, eager, cuda: this ONNX Runtime has no CUDA provider, or it does not start"

    def synchronise(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, eq=False)
class Engine:
    """A model ready to run; `change` applies the mix at an index of `Setting.mixes`, or the clean weights for None."""

    name: str
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]]  # images, RGB, 0…1, (1, 3, H, W) → logits (1, K)
    change: Callable[[int | None], object] | None
    provider: str
    note: str = ""
    load_ms: float = float("nan")


def make_engine(name: str, setting: Setting) -> Engine:
    """Build one of `ENGINES` and time that, in milliseconds; raise RwsError if it cannot run here."""
    started = time.perf_counter()
    try:
        made = ENGINES[name](name, setting)
    # What torch raises when it cannot compile, or memory runs out; and an ONNX Runtime before 1.20 has no adapters.
    except (RuntimeError, AttributeError) as error:
        raise RwsError(f"{name}: {first_line(error)}") from error
    setting.synchronise()
    return replace(made, load_ms=(time.perf_counter() - started) * 1e3)


def expected_outputs(setting: Setting, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits (1, K) of an input (1, 3, H, W) on the CPU, with clean weights and under the first mix."""
    cpu = replace(setting, device="cpu")
    return _Session(cpu, setting.model.onnx)(x), _Session(cpu, patched_onnx(setting.model, setting.mixes[0]))(x)


def check_outputs(
    engine: Engine, x: NDArray[np.float32], clean: NDArray[np.float32], patched: NDArray[np.float32]
) -> None:
    """Raise RwsError unless the logits of `x` follow the weights: `clean`, `patched`, and clean again.

    Shapes are those of `expected_outputs`.
    """
    allowed = TOLERANCE * float(np.abs(patched - clean).max())
    steps: list[tuple[int | None, NDArray[np.float32]]] = [(None, clean)]
    if engine.change is not None:
        steps += [(0, patched), (None, clean)]
    for number, expected in steps:
        if engine.change is not None:
            engine.change(number)
        error = float(np.abs(engine.predict(x) - expected).max())
        if not error <= allowed:
            state = "clean" if number is None else "patched"
            raise RwsError(f"{engine.name}: the {state} output is wrong by {error:.2g}, allowed {allowed:.2g}")


def deployed_model(setting: Setting) -> PatchableModel:
    """Build the model as a device runs it: live weights in ONNX Runtime, else (on a GPU) a Torch CUDA graph."""
    if setting.onnx_runs:
        return _onnx_model(setting, "auto")
    return _torch_model(setting, "torch_cuda_graph")


class _Session:
    def __init__(self, setting: Setting, model: bytes | Path, level: Any = None, optimised: Path | None = None) -> None:
        if not setting.onnx_runs:
            raise RwsError(NO_CUDA)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.log_severity_level = 3
        if level is not None:
            options.graph_optimization_level = level
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        source = model if isinstance(model, bytes) else str(model)
        providers = PROVIDERS if setting.device == "cuda" else PROVIDERS[1:]
        self.session = onnxruntime.InferenceSession(source, options, providers=providers)
        self.input = self.session.get_inputs()[0].name
        self.provider = _short(self.session.get_providers()[0])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.session.run(None, {self.input: x})[0]
        return logits


@cache
def cuda_starts() -> bool:
    """Return whether ONNX Runtime's CUDA provider starts; without its libraries, a session falls back to the CPU."""
    if PROVIDERS[0] not in onnxruntime.get_available_providers():
        return False
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=PROVIDERS)
    return bool(session.get_providers()[0] == PROVIDERS[0])


def _untouched(name: str, setting: Setting) -> Engine:
    if not setting.onnx_runs:
        return Engine(name, _logits(_torch_model(setting, "torch")), None, "cuda", "Torch module, eager")
    session = _Session(setting, setting.model.onnx)
    return Engine(name, session, None, session.provider)


def _patched_in_place(name: str, setting: Setting) -> Engine:
    if name.startswith("torch"):
        model: OnnxModel | TorchModel = _torch_model(setting, name)
    elif setting.onnx_runs:
        model = _onnx_model(setting, name)
    else:
        raise RwsError(NO_CUDA)
    if model.strategy != name:
        raise RwsError(f"{name}: not possible here ({model.description})")
    mixes = setting.mixes

    def change(number: int | None) -> None:
        model.apply({} if number is None else mixes[number])

    return Engine(name, _logits(model), change, _short(model.provider), model.description)


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _reload(name: str, setting: Setting) -> Engine:
    files = []
    for number, mix in enumerate([{}, *setting.mixes[:PREPARED]]):
        files.append(setting.folder / f"{name}_{number}.onnx")
        content = patched_onnx(setting.model, mix)
        if name == "reload":
            files[-1].write_bytes(content)
        else:
            _Session(setting, content, optimised=files[-1])
    level = None if name == "reload" else onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _Session(setting, files[0], level)

    def change(number: int | None) -> None:
        nonlocal session
        session = _Session(setting, files[0 if number is None else 1 + number % PREPARED], level)

    return Engine(name, lambda x: session(x), change, session.provider)


def _sessions(name: str, setting: Setting) -> Engine:
    mixes = ({}, *setting.mixes)
    need = len(mixes) * MEMORY_PER_SESSION * len(setting.model.onnx)
    free = psutil.virtual_memory().available if setting.device == "cpu" else torch.cuda.mem_get_info()[0]
    if need > free:
        raise RwsError(f"{len(mixes)} sessions need about {need / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
    kept = [_Session(setting, patched_onnx(setting.model, mix)) for mix in mixes]
    x = np.zeros((1, 3, setting.model.size, setting.model.size), np.float32)
    for session in kept:  # a session plans its buffers in its first two runs
        session(x)
        session(x)
    current = kept[0]

    def change(number: int | None) -> None:
        nonlocal current
        current = kept[0 if number is None else 1 + number]

    return Engine(name, lambda x: current(x), change, current.provider)


def _lora(name: str, setting: Setting) -> Engine:
    proto = read_model(setting.model.onnx)
    image = data_input(proto).name
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    for tensor in setting.model.tensor_names:
        proto.graph.input.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shapes[tensor]))
    session = _Session(setting, proto.SerializeToString())
    adapters = []
    for number, mix in enumerate(setting.mixes):
        weights = patched_weights(setting.model, mix)
        content = onnxruntime.AdapterFormat()
        content.set_adapter_version(1)
        content.set_model_version(1)
        content.set_parameters({key: onnxruntime.OrtValue.ortvalue_from_numpy(array) for key, array in weights.items()})
        path = setting.folder / f"{number}.onnx_adapter"
        content.export_adapter(str(path))
        adapters.append(onnxruntime.LoraAdapter())
        adapters[-1].Load(str(path))
    options: onnxruntime.RunOptions | None = None

    def change(number: int | None) -> None:
        nonlocal options
        options = None
        if number is not None:
            options = onnxruntime.RunOptions()
            options.add_active_adapter(adapters[number])

    return Engine(name, lambda x: session.session.run(None, {image: x}, options)[0], change, session.provider)


def _load_state_dict(name: str, setting: Setting) -> Engine:
    model = _torch_model(setting, "torch")
    states = []
    shallow = name == "load_state_dict_shallow"
    for mix in ({}, *setting.mixes[:PREPARED]):
        model.apply(mix)
        state = model.module.state_dict()
        states.append({key: state[key].clone() for key in (model.parameter_names if shallow else state)})
    model.reset()

    def change(number: int | None) -> None:
        model.module.load_state_dict(states[0 if number is None else 1 + number % PREPARED], strict=not shallow)

    return Engine(name, _logits(model), change, setting.device)


def _logits(model: PatchableModel) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda x: model.predict(x)[0]


def _onnx_model(setting: Setting, name: str) -> OnnxModel:
    model = setting.model
    return OnnxModel(
        model.onnx,
        model.signatures,
        model.tensor_names,
        provider=setting.device,
        threads=setting.threads,
        strategy=name,
    )


def _torch_model(setting: Setting, strategy: str) -> TorchModel:
    model = setting.model
    torch.set_num_threads(setting.threads)
    if strategy == "torch_compile":
        # Each repeat compiles again; after eight, Dynamo would silently run eagerly.
        torch.compiler.reset()
    patches, on = (model.signatures, model.tensor_names), setting.device
    if model.module is None:
        return TorchModel.from_onnx(model.onnx, *patches, device=on, threads=setting.threads, strategy=strategy)
    shape = (3, model.size, model.size)
    return TorchModel(copy.deepcopy(model.module), *patches, image_shape=shape, device=on, strategy=strategy)


ENGINES: dict[str, Callable[[str, Setting], Engine]] = {
    "untouched": _untouched,  # a plain, fully optimised ONNX Runtime session
    "untouched_again": _untouched,  # what two equal sessions differ by
    "live": _patched_in_place,
    "split": _patched_in_place,
    "inputs": _patched_in_place,
    "reload": _reload,  # a change of mix opens a new session from a patched file
    "reload_optimised": _reload,  # the same, from a file that ONNX Runtime has optimised before
    "sessions": _sessions,  # an untouched session per mix
    "lora": _lora,  # a session whose shallow weights ONNX Runtime's LoRA adapters override
    "load_state_dict": _load_state_dict,  # Torch, eager: the whole model's weights, from memory
    "load_state_dict_shallow": _load_state_dict,  # the shallow weights only, float32, one set per mix
    "torch": _patched_in_place,
    "torch_compile": _patched_in_place,
    "torch_cuda_graph": _patched_in_place,
}


def default_engines(device: str) -> tuple[str, ...]:
    """Return the names of all engines for a device, `cpu` or `cuda`, without `untouched`, which is always measured."""
    return tuple(name for name in ENGINES if name != "untouched" and (device == "cuda" or name != "torch_cuda_graph"))

"""Models for latency and storage: a bundle, an ONNX file, or an architecture (untrained, which costs the same)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import CIFAR10_BUNDLE
from rws.edge.bundle.manifest import MODEL
from rws.edge.onnx.graph import clean_tensors, data_input, prepare, read_model, replaced_tensors, shallow_tensors
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.errors import InputError
from rws.training.corruptions import CORRUPTIONS
from rws.training.models import architectures
from rws.training.models.export import export_onnx

RELATIVE_DELTA = 0.05


@dataclass(frozen=True, eq=False)
class BenchmarkModel:
    """A model with its signatures, ready for every backend."""

    name: str
    size: int  # height and width of the input, pixels
    onnx: bytes  # of the clean model, after `rws.edge.onnx.graph.prepare`; one image input
    tensor_names: tuple[str, ...]  # those patched, in the order of the network
    signatures: SignatureSet
    module: nn.Module | None = None  # the same in Torch, in eval mode on the CPU; None if there is only ONNX
    bundle: Bundle | None = None

    @property
    def weights(self) -> str:
        """The origin of weights and signatures, for a result."""
        if self.bundle is not None:
            return "trained: the bundle's own"
        return f"{'random' if self.module is not None else 'the file’s'} weights, random signatures"


def load_models(
    specs: Sequence[str], bundle: str | Path | None = None, *, layers: int = 5, seed: int = 0
) -> list[BenchmarkModel]:
    """Load `vgg16:224`, `path/to/any.onnx`, …, the bundle first; InputError or BundleError if one is unfit."""
    found = [load_model(Bundle.load(bundle or CIFAR10_BUNDLE))] if bundle is not None or not specs else []
    for spec in specs:
        if spec.endswith(".onnx"):
            found.append(load_model(spec, layers=layers, seed=seed))
            continue
        name, _, size = spec.partition(":")
        if not size.isdecimal() or int(size) < 8:
            raise InputError(f"--model {spec!r}: expected NAME:PIXELS such as vgg16:224, or the path of an .onnx file")
        found.append(load_model(name, size=int(size), layers=layers, seed=seed))
    return found


def load_model(model: str | Path | Bundle, *, size: int = 224, layers: int = 5, seed: int = 0) -> BenchmarkModel:
    """Load a model with 19 signatures: an architecture of `rws.training.models`, an ONNX file, or a bundle.

    `size` is for an architecture or an ONNX file that leaves it free; the shallowest `layers` are patched, convolutions
    or a ResNet's blocks; a bundle has its own.

    Raises:
        InputError: if the architecture is unknown or has fewer layers.
        BundleError: if the file cannot be read, or its input is not square.
    """
    if isinstance(model, Bundle):
        signatures, spec = model.signatures, model.manifest.input
        _check_square((spec.height, spec.width), model.manifest.name)
        if spec.dtype != "float32" or spec.shape != (3, spec.height, spec.width):
            raise InputError(f"{model.path}: takes {spec}; this command needs float32 images of three channels, NCHW")
        name, content = model.manifest.name, model.read(MODEL)
        return BenchmarkModel(name, spec.height, content, signatures.tensors, signatures, bundle=model)
    if str(model).endswith(".onnx"):
        module, proto = None, prepare(read_model(model))
        shape = data_input(proto, str(model)).shape[2:]
        _check_square(shape, str(model))
        names = shallow_tensors(proto, layers)
        size = shape[0] or size
    else:
        module = _module(str(model), size, seed)
        names = architectures.shallow_tensors(module, layers)
        proto = prepare(read_model(export_onnx(module, size, keep=names)))
    signatures = _random_signatures(clean_tensors(proto, names), seed)
    return BenchmarkModel(Path(model).stem, size, proto.SerializeToString(), names, signatures, module)


def patched_weights(model: BenchmarkModel, mix: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Return the shallow tensors under a mix, float32, in the order of the network."""
    weights = {name: array.copy() for name, array in clean_tensors(read_model(model.onnx), model.tensor_names).items()}
    for signature, alpha in mix.items():
        for name, delta in model.signatures.get(signature).items():
            weights[name] += np.float32(alpha) * delta
    return weights


def patched_onnx(model: BenchmarkModel, mix: Mapping[str, float]) -> bytes:
    """Return the model under a mix as the bytes of an ONNX file, deep weights in as many bits as before."""
    proto = onnx.load_model_from_string(model.onnx)
    with replaced_tensors(proto, patched_weights(model, mix)):
        content: bytes = proto.SerializeToString()
    return content


def _module(architecture: str, size: int, seed: int) -> nn.Module:
    small = size < 100  # 10 classes and a small stem, as for CIFAR
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spec = architectures.ModelSpec(architecture, small_input=small)
        model = architectures.build_model(spec, 10 if small else 1000)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.8, 1.2)
                nn.init.normal_(layer.bias, 0, 0.1)
                layer.momentum = 1.0
        # Statistics of real activations: with invented ones, activations would vanish or explode with depth.
        with torch.no_grad():
            model.train()(torch.rand(8, 3, size, size))
    return architectures.fold_batchnorm(model)


def _random_signatures(clean: dict[str, np.ndarray], seed: int) -> SignatureSet:
    rng = np.random.default_rng(seed)
    # Biases that the export or `prepare` added are all zero, and must move too.
    spread = {name: RELATIVE_DELTA * (float(array.std()) or 0.1) for name, array in clean.items()}
    deltas = {
        corruption: {name: rng.normal(0, spread[name], array.shape).astype(np.float32) for name, array in clean.items()}
        for corruption in CORRUPTIONS
    }
    return SignatureSet.from_deltas(deltas, clean_hash=shallow_sha256(clean))


def _check_square(shape: Sequence[int | None], source: str) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(f"{source}: input of {shape} pixels, expected a square one; export it with a square input")

"""Somebody else's classifier, made ready for signatures: one ONNX graph, and the same graph as a torch module.

The graph is brought to the bundle's contract (float32 NCHW, RGB, 0…1 in, logits out, any batch) by nodes in front of
it and by what is cut off behind it; ONNX Runtime folds its constants; BatchNorm is folded into the convolutions.
onnx2torch turns it into a module that can be trained. At each step the outputs are compared with those of the model as
it came.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from torch import nn

from rws.edge.onnx.from_onnx import to_torch, unsupported_operators
from rws.edge.onnx.graph import data_input, output_shape, prepare, read_model, shallow_tensors, split_after
from rws.errors import BundleError, FormatError, InputError, first_line
from rws.training.models.export import OPSET, export_onnx

TOLERANCE = 1e-4
"""Of the largest output: what two engines may differ by."""

BUDGET = 0.006
"""Part of the model's bytes that one signature may take where no number of layers is given."""

_BYTES_A_CHANNEL = 9  # a weight's scale, and a bias with a scale of its own
_BYTES_A_TENSOR = 2 * 130  # what the file's header says about a tensor and its scale


class OperatorError(FormatError):
    """A model has an operator that cannot be trained through."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done to float32 RGB 0…1: (x · scale − mean) / std, the colours perhaps reversed.

    Args:
        scale: 1 where the model takes 0…1, 255 where it takes 0…255.
        mean, std: one number, or one for each of the model's channels, in units of the scaled range.
        bgr: the model takes its channels as blue, green, red.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        numbers = np.array([self.scale, *self.mean, *self.std])
        lengths = {len(self.mean), len(self.std)} - {1, 3}
        if lengths or not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            raise InputError(
                f"preprocessing: scale {self.scale}, mean {self.mean}, std {self.std}; expected one number or three "
                f"of each, and neither a scale nor a std of 0"
            )

    @property
    def is_none(self) -> bool:
        """Whether the model takes RGB 0…1 as it is."""
        return self == Preprocessing()


@dataclass(frozen=True)
class Adopted:
    """A classifier that meets the bundle's contract.

    Args:
        onnx: the graph: float32 (N, 3, size, size), RGB, 0…1, to logits (N, classes); went through `prepare`.
        size: side of the input, pixels.
        classes: number of logits.
        changes: what was done to the model as it came, in words.
    """

    onnx: bytes
    size: int
    classes: int
    changes: tuple[str, ...]


def load_classifier(model: str, size: int | None) -> bytes:
    """The ONNX bytes of a file, or of what a Python factory makes.

    Args:
        model: path of an `.onnx` file, or `package.module:factory`, a function without arguments that gives a
            `torch.nn.Module` for float32 (N, 3, size, size). The working folder is searched, too.
        size: side of the module's input, pixels; not needed for a file.

    Raises:
        InputError: if there is no such module or factory, it fails or gives no module that can be exported, or `size`
            is missing.
        BundleError: if the file cannot be read.
    """
    name, colon, factory = model.partition(":")
    if not colon or Path(model).is_file():
        return bytes(read_model(Path(model)).SerializeToString())
    if size is None:
        raise InputError(f"--model {model} is a torch module: say with --size how many pixels its input has")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(name), factory)
    except Exception as error:  # whatever a user's own file raises when it is read
        raise InputError(f"--model {model}: {_said(error)}; give package.module:factory") from error
    finally:
        sys.path.pop(0)
    try:
        module = found()
    except Exception as error:
        raise InputError(f"--model {model}: the factory raised {_said(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"--model {model} gave a {type(module).__name__}, expected a torch.nn.Module")
    try:
        return export_onnx(module.eval(), size)
    except Exception as error:  # the exporter's errors share no base
        raise InputError(f"--model {model}: torch cannot export it for {size} px ({_said(error)})") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def adopt_model(model: bytes, preprocessing: Preprocessing, size: int | None = None) -> Adopted:
    """Bring a classifier to the bundle's contract.

    Args:
        model: ONNX bytes of a classifier with one image input.
        preprocessing: what it wants done to RGB 0…1; it becomes a part of the graph.
        size: side of the input, pixels, where the graph leaves it free.

    Raises:
        InputError: if `size` is missing, or is not the graph's.
        BundleError: if the model is no image classifier in float32, or does not compute the same afterwards.
    """
    original = read_model(model)
    _check_weights(original)
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    changes: list[str] = []
    shape = data_input(proto)[1]
    channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or shape[3 if channels_last else 1] not in (3, None):
        raise BundleError(
            f"model: takes {_written(shape)}, expected (N, 3, H, W) or (N, H, W, 3); export it for images"
        )
    if proto.graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise BundleError("model: its input is not float32; export it in float32")
    side = _side(shape[1:3] if channels_last else shape[2:], size)
    if cut := _without_softmax(proto):
        changes.append(f"the last node, {cut}, was taken off: the bundle's model gives logits")
    if others := [value.name for value in proto.graph.output[1:]]:
        changes.append(f"of its outputs only the first was kept, not {', '.join(others)}")
        del proto.graph.output[1:]
    if shape[0] != 1 and shape[0] is not None:
        raise BundleError(f"model: takes batches of {shape[0]}, expected a free batch; export it with a dynamic batch")
    if shape[0] == 1:
        _free_batch(proto)
        changes.append("the batch of 1 was made free")
    _prepend(proto, preprocessing, side, channels_last)
    if channels_last:
        changes.append("a transpose from NCHW to its NHWC was put in front")
    if not preprocessing.is_none:
        changes.append(f"its preprocessing was put in front: {preprocessing}")
    version = _opset(proto)
    proto = _lowered(proto)
    if _opset(proto) != version:
        changes.append(f"opset {version} became {OPSET}, for which its operators can be trained through")
    proto = prepare(_simplified(proto))
    result = output_shape(proto)
    images = np.random.default_rng(0).random((2, 3, side, side), np.float32)
    try:
        found = run_onnx(proto, images)
    except Exception as error:  # ONNX Runtime raises types of its own that share no base but Exception
        raise BundleError(f"model: ONNX Runtime cannot run two images of {side} px ({first_line(error)})") from error
    if found.ndim != 2 or len(found) != 2:
        raise BundleError(f"model: gives {_written(result)}, expected logits (N, classes); export the classifier")
    expected = np.concatenate([_run_original(original, preprocessing, channels_last, image) for image in images])
    if found.min() >= 0 and np.abs(found.sum(1) - 1).max() < TOLERANCE:
        raise BundleError("model: gives probabilities, expected logits; export it without what turns them into those")
    found_there = torch.from_numpy(found).softmax(1).numpy() if cut else found
    _compare(found_there, expected, "after it was prepared")
    return Adopted(proto.SerializeToString(), side, found.shape[1], tuple(changes))


def run_onnx(proto: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """First output of an `onnx.ModelProto` for a batch, by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return output


def trainable(proto: Any, tensors: Sequence[str], size: int) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """A graph as a torch module whose named tensors can be trained; all others are frozen.

    Args:
        proto: an `onnx.ModelProto` that went through `prepare`; left as it is.
        tensors: initializers, each one of a convolution's own.
        size: side of the input, pixels.

    Returns:
        The module, in eval mode, and its parameters by tensor name.

    Raises:
        OperatorError: if an operator cannot be turned into torch; it names all of them.
        BundleError: if the module does not give what ONNX Runtime gives.
    """
    unsupported = unsupported_operators(proto)
    if unsupported:
        raise OperatorError(
            f"model: onnx2torch has no converter for {', '.join(unsupported)}; export the model without them, or train "
            f"its shallow part alone (--target shallow) where they come later"
        )
    try:
        module, names = to_torch(proto, tensors)
    except BundleError as error:
        raise OperatorError(f"{error}; or train its shallow part alone (--target shallow)") from error
    module.eval().requires_grad_(False)
    chosen = {tensor: module.get_parameter(names[tensor]) for tensor in tensors}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    images = np.random.default_rng(1).random((2, 3, size, size), np.float32)
    with torch.no_grad():
        result = module(torch.from_numpy(images)).numpy()
    _compare(result, run_onnx(proto, images), "as a torch module")
    return module.to(memory_format=torch.channels_last), chosen  # type: ignore[call-overload]  # as torch documents it


def stem(proto: Any, tensors: Sequence[str]) -> Any:
    """The part of a graph up to what its first deep layer sees, as a model of its own with one output.

    Raises:
        InputError: if no layer is deep, or the shallow part ends inside a block whose shortcut passes it by.
    """
    try:
        part, _ = split_after(proto, tensors)
    except ValueError as error:
        raise InputError(f"the shallow part cannot be cut off: {error}; sign fewer layers with --layers") from error
    if len(part.graph.output) != 1:
        raise InputError(
            f"after these layers {len(part.graph.output)} values go on, expected one; the shallow part ends inside a "
            f"block: give another --layers"
        )
    return part


def signature_bytes(proto: Any, layers: int) -> int:
    """About how many bytes a signature of the first `layers` convolutions takes at 8 bit, a scale a channel."""
    sizes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    total = 0
    for name in shallow_tensors(proto, layers)[::2]:
        total += int(np.prod(sizes[name])) + _BYTES_A_CHANNEL * sizes[name][0] + 2 * _BYTES_A_TENSOR
    return total


def layers_within(proto: Any, share: float = BUDGET) -> int:
    """The most convolutions whose signature stays within that share of the model's bytes; at least one.

    Where that ends inside a residual block, the cut goes back to the block's end: a half-trained block gains less.
    """
    limit = share * proto.ByteSize()
    convolutions = sum(node.op_type == "Conv" for node in proto.graph.node)
    fitting = 1
    for layers in range(1, convolutions):
        if signature_bytes(proto, layers) > limit:
            break
        fitting = layers
    whole = [layers for layers in range(1, fitting + 1) if _ends_whole(proto, layers)]
    return whole[-1] if whole and whole[-1] >= fitting / 2 else fitting


def _ends_whole(proto: Any, layers: int) -> bool:
    try:
        stem(proto, shallow_tensors(proto, layers))
    except InputError:
        return False
    return True


def _check_weights(proto: Any) -> None:
    if not any(node.op_type == "Conv" for node in proto.graph.node):
        kinds = ", ".join(sorted({node.op_type for node in proto.graph.node})[:6])
        raise BundleError(
            f"model: has no Conv with float32 weights (it has {kinds}, …); signatures change convolutions: give the "
            f"float32 model, not a quantised one"
        )


_ONLY_RESHAPE = ("Identity", "Reshape", "Flatten", "Squeeze", "Cast")


def _written(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if length is None else str(length) for length in shape) + ")"


def _side(found: Sequence[int | None], size: int | None) -> int:
    height, width = found
    if height != width:
        raise InputError(f"model: takes {width}x{height} pixels; only square inputs can be built for")
    if height is None and size is None:
        raise InputError("model: leaves its height and width free; say with --size how many pixels to build for")
    if height is not None and size not in (None, height):
        raise InputError(f"--size {size}, but the model takes {height}x{height} pixels; leave --size out")
    side = height if height is not None else size
    assert side is not None
    return side


def _without_softmax(proto: Any) -> str:
    """Take a last Softmax off, also from before nodes that only reshape; returns its kind, or "" if there is none."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    last = producers.get(proto.graph.output[0].name)
    while last is not None and last.op_type in _ONLY_RESHAPE:
        last = producers.get(last.input[0])
    if last is None or last.op_type != "Softmax":
        return ""
    before, name = last.input[0], last.output[0]
    proto.graph.node.remove(last)
    for node in proto.graph.node:
        for place, output in enumerate(node.output):
            if output == before:
                node.output[place] = name
        for place, entry in enumerate(node.input):
            if entry == before:
                node.input[place] = name
    return str(last.op_type)


def _opset(proto: Any) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _lowered(proto: Any) -> Any:
    """The graph in the opset of our own exports, where it has a newer one that can be brought down to it.

    onnx2torch knows no Reshape of opset 19 or later; torch.onnx writes opset 20.
    """
    if _opset(proto) <= OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception:  # the converter's errors are plain RuntimeErrors, and others; what stays may still be trainable
        return proto


def _free_batch(proto: Any) -> None:
    """Let a graph that was exported for one image take any number of them."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name not in weights and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        if node.op_type == "Constant":
            weights[node.output[0]] = node.attribute[0]
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in weights:
            continue
        shape = weights[node.input[1]]
        if isinstance(shape, onnx.AttributeProto):
            if shape.name == "value_ints":
                shape.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.array(shape.ints, np.int64))))
            shape = shape.t
        lengths = numpy_helper.to_array(shape).copy()
        if lengths.ndim == 1 and len(lengths) and lengths[0] == 1:
            lengths[0] = 0  # the length that the data has, …
            shape.CopyFrom(numpy_helper.from_array(lengths, shape.name))
            for attribute in [found for found in node.attribute if found.name == "allowzero"]:
                node.attribute.remove(attribute)  # … unless this says that it is zero


def _prepend(proto: Any, preprocessing: Preprocessing, side: int, channels_last: bool) -> None:
    """Put the preprocessing in front; the input keeps its name and becomes float32 (batch, 3, side, side)."""
    graph = proto.graph
    name = data_input(proto)[0]
    nodes: list[Any] = []

    def add(kind: str, constant: NDArray[Any] | None = None, **attributes: Any) -> None:
        value = f"rws.{len(nodes)}"
        inputs = [nodes[-1].output[0] if nodes else name]
        if constant is not None:
            graph.initializer.append(numpy_helper.from_array(constant, f"{value}.constant"))
            inputs.append(f"{value}.constant")
        nodes.append(helper.make_node(kind, inputs, [value], **attributes))

    mean, std = (np.broadcast_to(np.array(values), 3) for values in (preprocessing.mean, preprocessing.std))
    factor, offset = preprocessing.scale / std, -mean / std
    if preprocessing.bgr:
        add("Gather", np.array([2, 1, 0], np.int64), axis=1)
    if (factor != 1).any():
        add("Mul", factor.astype(np.float32).reshape(1, 3, 1, 1))
    if offset.any():
        add("Add", offset.astype(np.float32).reshape(1, 3, 1, 1))
    if channels_last:
        add("Transpose", perm=[0, 2, 3, 1])
    if nodes:
        for node in graph.node:
            for place, entry in enumerate(node.input):
                if entry == name:
                    node.input[place] = nodes[-1].output[0]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    old = next(entry for entry in graph.input if entry.name == name)
    graph.input.remove(old)
    graph.input.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, side, side]))
    del graph.value_info[:]


def _simplified(proto: Any) -> Any:
    """The graph after ONNX Runtime folded its constants and removed what does nothing; still plain ONNX."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises types of its own that share no base but Exception
            raise BundleError(f"model: ONNX Runtime cannot load it ({first_line(error)}); export it again") from error
        simpler = read_model(Path(options.optimized_model_filepath))
    used = {node.domain for node in simpler.graph.node}
    for entry in [entry for entry in simpler.opset_import if entry.domain and entry.domain not in used]:
        simpler.opset_import.remove(entry)
    return simpler


def _run_original(
    original: Any, preprocessing: Preprocessing, channels_last: bool, image: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the model as it came gives for one image (3, H, W), RGB, 0…1, preprocessed here in NumPy."""
    x = image[::-1] if preprocessing.bgr else image
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    x = ((x * preprocessing.scale - mean) / std).astype(np.float32)
    return run_onnx(original, np.ascontiguousarray(x.transpose(1, 2, 0) if channels_last else x)[None])


def _compare(found: NDArray[np.float32], expected: NDArray[np.float32], when: str) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not error <= TOLERANCE * scale:
        raise BundleError(
            f"model: {when} its outputs differ by {error:.2g}, expected at most {TOLERANCE * scale:.2g}; report this "
            f"with the model's operators"
        )

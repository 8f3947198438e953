"""Rewrite the ONNX graph of a vision model, and run it to check that its outputs stay the same."""

import re
import tempfile
from collections.abc import Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from rws.edge.onnx.check import parts
from rws.edge.onnx.graph import data_inputs, read_model, value_shape
from rws.errors import BundleError, UsageError, first_line

TOLERANCE = 1e-4  # of the largest output: what two engines may differ by
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ONLY_RESHAPE = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
_PADDED = ("Conv", "MaxPool", "AveragePool", "LpPool")
_MOST_NODES = 20_000


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done to RGB 0…1: (x · scale − mean) / std, the colours perhaps reversed (`bgr`).

    Mean and std are one number, or one for each of the model's channels, in units of the scaled range.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False

    def __post_init__(self) -> None:
        numbers = np.array([self.scale, *self.mean, *self.std])
        lengths = {len(self.mean), len(self.std)} - {1, 3}
        if lengths or not np.isfinite(numbers).all() or self.scale == 0 or 0 in self.std:
            found = f"preprocessing: scale {self.scale}, mean {self.mean}, std {self.std}"
            raise UsageError(f"{found}; expected one number or three of each, and neither a scale nor a std of 0")

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        changes = "" if (self.mean, self.std) == ((0.0,), (1.0,)) else f", minus {mean}, divided by {std}"
        return f"{'BGR' if self.bgr else 'RGB'} 0…{self.scale:g}{changes}"

    def apply(self, x: NDArray[Any], axis: int = 1) -> NDArray[Any]:
        """Return what the model takes of RGB 0…1, or of what it scales it to: x of any dtype, colours along `axis`."""
        values = np.flip(x, axis) if self.bgr else x
        if (self.scale, self.mean, self.std) == (1.0, (0.0,), (1.0,)):
            return values
        shape = (-1, *[1] * (x.ndim - axis - 1))
        mean, std = (np.reshape(numbers, shape) for numbers in (self.mean, self.std))
        scaled: NDArray[Any] = ((values.astype(np.float64) * self.scale - mean) / std).astype(x.dtype)
        return scaled


class Runner:
    """A model on ONNX Runtime's CPU; BundleError if it cannot be loaded or run."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's error types share no base but Exception
            raise _unloadable(proto, error) from error
        self.names = [value.name for value in self._session.get_outputs()]
        self._input = self._session.get_inputs()[0].name

    def __call__(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """Return all outputs for a batch."""
        try:
            found = self._session.run(None, {self._input: np.ascontiguousarray(images)})
        except Exception as error:  # ONNX Runtime's error types share no base but Exception
            given = f"{images.dtype} {images.shape}{_place(error)}"
            raise BundleError(f"model: ONNX Runtime cannot run it on {given}; give another --size") from error
        if wrong := [name for name, value in zip(self.names, found, strict=True) if not isinstance(value, np.ndarray)]:
            raise BundleError(f"model: output {wrong[0]!r:.80} is not an array; choose others with --output")
        return list(found)


def _unloadable(proto: onnx.ModelProto, error: Exception) -> BundleError:
    shape = ", ".join("?" if n is None else str(n) for value in data_inputs(proto).values() for n in value_shape(value))
    found = f"ONNX Runtime cannot load it for ({shape}){_place(error)}"
    return BundleError(f"model: {found}; export it again, or give another --size")


def _place(error: Exception) -> str:
    """Return which operator an error of ONNX Runtime speaks of; its text is of no use to who has only the model."""
    found = re.search(
        r"""Op \((\w+)\)|running (\w+) node|In Node, \("[^"]*", (\w+)|NOT_IMPLEMENTED.* for ([\w.]+)\(""", str(error)
    )
    return f" (at its operator {next(filter(None, found.groups()))})" if found else ""


def run_onnx(proto: onnx.ModelProto, images: NDArray[Any]) -> NDArray[Any]:
    """Return the first output of an `onnx.ModelProto` for a batch, by ONNX Runtime on the CPU."""
    return Runner(proto)(images)[0]


def compare(found: NDArray[Any], expected: NDArray[Any], when: str, tolerance: float = TOLERANCE) -> None:
    """Raise a BundleError if outputs differ from the expected ones by more than a part of the largest."""
    limit = tolerance * max(1.0, float(np.abs(expected).max(initial=0)))
    same = found.shape == expected.shape
    error = float(np.abs(found.astype(np.float64) - expected).max(initial=0)) if same else float("inf")
    if not error <= limit:
        differ = f"model: {when} its outputs differ by {error:.2g}, expected at most {limit:.2g}"
        raise BundleError(f"{differ}; report this with the model's operators")


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a graph."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def producers(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each value."""
    return {output: node for node in proto.graph.node for output in node.output if output}


def last_node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    """Return the node that an output comes from, nodes skipped that only reshape."""
    made = producers(proto)
    node = made.get(output)
    while node is not None and node.op_type in ONLY_RESHAPE:
        node = made.get(node.input[0])
    return node


def rename(names: MutableSequence[str], old: str, new: str) -> None:
    """Replace a name in a list of names."""
    names[:] = [new if name == old else name for name in names]


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without local functions: their nodes stand where they were called; BundleError if too many."""
    if not proto.functions:
        return proto
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Sequence[onnx.NodeProto], depth: int = 0) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in functions and key not in sizes:
                sizes[key] = size(functions[key].node, depth + 1) if depth < 24 else _MOST_NODES
            total += sizes.get(key, 1)
        return total

    if size(proto.graph.node) > _MOST_NODES:
        raise BundleError("model: its local functions hold too many nodes, or call themselves; export it without them")
    try:
        return inliner.inline_local_functions(proto, convert_version=True)
    except Exception as error:  # onnx raises types that share no base but Exception
        raise BundleError(f"model: its local functions cannot be inlined ({first_line(error)})") from error


def widened(proto: onnx.ModelProto) -> bool:
    """Turn all 16-bit numbers of a model but its input into float32; return whether there were any."""
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    found = False
    for part in parts(proto):
        if isinstance(part, TensorProto) and part.data_type == half:
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part).astype(np.float32), part.name))
            found = True
        elif isinstance(part, onnx.NodeProto):
            for attribute in part.attribute:
                if attribute.name in ("to", "dtype") and attribute.i == half:
                    attribute.i, found = full, True
    for value in proto.graph.output:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type, found = full, True
    for name, value in data_inputs(proto).items():
        if value.type.tensor_type.elem_type == half:
            for node in proto.graph.node:
                rename(node.input, name, f"{name}.float32")
            proto.graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}.float32"], to=full))
            found = True
    del proto.graph.value_info[:]
    return found


def set_input(proto: onnx.ModelProto, shape: Sequence[int | str]) -> None:
    """Declare the input's shape, and forget what was declared of all other values' shapes."""
    name, old = next(iter(data_inputs(proto).items()))
    new = helper.make_tensor_value_info(name, old.type.tensor_type.elem_type, list(shape))
    old.CopyFrom(new)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]


def keep_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make these values the model's outputs, of a type to be inferred."""
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)


def drop_unused(proto: onnx.ModelProto) -> None:
    """Remove the nodes that the outputs do not need, and the weights that no node reads."""
    needed = {value.name for value in proto.graph.output}
    for node in reversed(list(proto.graph.node)):
        if needed & set(node.output):
            needed |= set(node.input)
        else:
            proto.graph.node.remove(node)
    for tensor in [tensor for tensor in proto.graph.initializer if tensor.name not in needed]:
        proto.graph.initializer.remove(tensor)


def without_last(proto: onnx.ModelProto, output: str, kind: str) -> bool:
    """Take a last node of a kind off an output, also from before nodes that only reshape; return whether it was there.

    It stays if another node reads its result.
    """
    last, made = last_node(proto, output), producers(proto)
    if last is None or last.op_type != kind or last.input[0] not in made:
        return False
    before, name = last.input[0], last.output[0]
    if name != output and sum(name in node.input for node in proto.graph.node) > 1:
        return False
    proto.graph.node.remove(last)
    old, new = (before, name) if name == output else (name, before)
    if name == output:
        rename(made[before].output, old, new)
    for node in proto.graph.node:
        rename(node.input, old, new)
    return True


def append(proto: onnx.ModelProto, output: str, *steps: tuple[str, Sequence[str], Mapping[str, Any]]) -> None:
    """Put nodes behind an output, which keeps its name.

    Each step is an operator, its inputs and attributes; `before` stands for the output as it was, `last` for the result
    of the step before.
    """
    names = {"before": f"{output}.before", "last": ""}
    for node in proto.graph.node:
        rename(node.output, output, names["before"])
        rename(node.input, output, names["before"])
    for place, (kind, inputs, attributes) in enumerate(steps, start=1):
        result = output if place == len(steps) else f"{output}.{place}"
        read = [names.get(name, name) for name in inputs]
        proto.graph.node.append(helper.make_node(kind, read, [result], **attributes))
        names["last"] = result


def add_constant(proto: onnx.ModelProto, name: str, array: NDArray[Any]) -> str:
    """Add an initializer; returns its name."""
    proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def declare_outputs(proto: onnx.ModelProto, shapes: Sequence[Sequence[int]], batch: int | None) -> None:
    """Declare the outputs' shapes, given without the batch axis; `batch` None leaves it free."""
    for value, shape in zip(proto.graph.output, shapes, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [batch or "batch", *shape]))


def prepend(proto: onnx.ModelProto, preprocessing: Preprocessing, layout: str) -> None:
    """Put (x · scale − mean) / std in front of a model with a float input; the channels' order is the model's."""
    name, value = next(iter(data_inputs(proto).items()))
    channels = value_shape(value)[1 if layout == "NCHW" else 3]
    mean, std = (np.array(values, np.float64) for values in (preprocessing.mean, preprocessing.std))
    if max(mean.size, std.size) not in (1, channels):
        raise UsageError(f"--mean and --std have {max(mean.size, std.size)} numbers, the model {channels} channels")
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = (1, -1, 1, 1) if layout == "NCHW" else (1, 1, 1, -1)
    nodes: list[onnx.NodeProto] = []
    for kind, constant in (("Mul", preprocessing.scale / std), ("Add", -mean / std)):
        if (constant != (kind == "Mul")).any():
            before = nodes[-1].output[0] if nodes else name
            tensor = numpy_helper.from_array(constant.reshape(shape).astype(dtype), f"{name}.{kind.lower()}.constant")
            proto.graph.initializer.append(tensor)
            nodes.append(helper.make_node(kind, [before, tensor.name], [f"{name}.{kind.lower()}"]))
    for node in proto.graph.node if nodes else ():
        rename(node.input, name, nodes[-1].output[0])
    for node in reversed(nodes):
        proto.graph.node.insert(0, node)
    del proto.graph.value_info[:]


def pad_explicitly(proto: onnx.ModelProto) -> None:
    """Replace SAME padding by numbers in convolutions and pooling whose input size is known."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    sizes = {value.name: value_shape(value) for value in (*inferred.value_info, *inferred.input)}
    weights = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kind, given = said.get("auto_pad", b"").decode(), sizes.get(node.input[0], ())[2:] if node.input else ()
        kernel = said.get("kernel_shape") or (weights.get(node.input[1], ())[2:] if len(node.input) > 1 else ())
        known = given and len(kernel) == len(given) and all(given)
        if node.op_type not in _PADDED or not kind.startswith("SAME") or not known:
            continue
        ones = [1] * len(given)
        sides = zip(given, kernel, said.get("strides", ones), said.get("dilations", ones), strict=True)
        total = [max((-(-n // step) - 1) * step + (k - 1) * far + 1 - n, 0) for n, k, step, far in sides if n]
        small, large = [side // 2 for side in total], [side - side // 2 for side in total]
        for attribute in [found for found in node.attribute if found.name in ("auto_pad", "pads")]:
            node.attribute.remove(attribute)
        pads = small + large if kind == "SAME_UPPER" else large + small
        node.attribute.append(helper.make_attribute("pads", pads))


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with constants folded and idle nodes removed by ONNX Runtime; it is still plain ONNX."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's error types share no base but Exception
            raise _unloadable(proto, error) from error
        simpler = read_model(Path(options.optimized_model_filepath))
    used = {node.domain for node in simpler.graph.node}
    for entry in [entry for entry in simpler.opset_import if entry.domain and entry.domain not in used]:
        simpler.opset_import.remove(entry)
    return simpler

"""Rewrite a classifier's ONNX graph to the bundle's contract, and run it to check that its outputs stay the same."""

import tempfile
from collections.abc import MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from rws.edge.onnx.graph import data_input, read_model
from rws.errors import BundleError, UsageError, first_line
from rws.training.models.export import OPSET

TOLERANCE = 1e-4  # of the largest output: what two engines may differ by


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants done to float32 RGB 0…1: (x · scale − mean) / std, the colours perhaps reversed (`bgr`).

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


def run_onnx(proto: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first output of an `onnx.ModelProto` for a batch, by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return cast(NDArray[np.float32], session.run(None, {session.get_inputs()[0].name: images})[0])


def compare(found: NDArray[np.float32], expected: NDArray[np.float32], when: str) -> None:
    """Raise a BundleError if outputs differ from the expected ones by more than `TOLERANCE`."""
    error = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not error <= limit:
        differ = f"model: {when} its outputs differ by {error:.2g}, expected at most {limit:.2g}"
        raise BundleError(f"{differ}; report this with the model's operators")


_ONLY_RESHAPE = ("Identity", "Reshape", "Flatten", "Squeeze", "Cast")


def without_softmax(proto: onnx.ModelProto) -> bool:
    """Take a last Softmax off, also from before nodes that only reshape; return whether there was one."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    last = producers.get(proto.graph.output[0].name)
    while last is not None and last.op_type in _ONLY_RESHAPE:
        last = producers.get(last.input[0])
    if last is None or last.op_type != "Softmax":
        return False
    before, name = last.input[0], last.output[0]
    proto.graph.node.remove(last)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            _rename(names, before, name)
    return True


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    names[:] = [new if name == old else name for name in names]


def opset(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators in a graph."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def lowered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in the opset of our exports, if possible: onnx2torch knows no Reshape of opset 19 or later."""
    if opset(proto) <= OPSET:
        return proto
    try:
        return version_converter.convert_version(proto, OPSET)
    except Exception:  # the converter's errors are plain RuntimeErrors, and others; what stays may still be trainable
        return proto


def free_batch(proto: onnx.ModelProto) -> None:
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
        shape = weights.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) > 1 else None
        if shape is None:
            continue
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


def prepend(proto: onnx.ModelProto, preprocessing: Preprocessing, side: int, channels_last: bool) -> None:
    """Put the preprocessing in front; the input keeps its name and becomes float32 (batch, 3, side, side)."""
    graph = proto.graph
    name = data_input(proto).name
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
    for node in graph.node if nodes else ():
        _rename(node.input, name, nodes[-1].output[0])
    for node in reversed(nodes):
        graph.node.insert(0, node)
    old = next(entry for entry in graph.input if entry.name == name)
    graph.input.remove(old)
    graph.input.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, side, side]))
    del graph.value_info[:]


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
            raise BundleError(f"model: ONNX Runtime cannot load it ({first_line(error)}); export it again") from error
        simpler = read_model(Path(options.optimized_model_filepath))
    used = {node.domain for node in simpler.graph.node}
    for entry in [entry for entry in simpler.opset_import if entry.domain and entry.domain not in used]:
        simpler.opset_import.remove(entry)
    return simpler

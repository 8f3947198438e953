"""Small models as a third party might have exported them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support.command_line import CLASSES
from support.tiny import network

SIZE = 32


def tiny(**changes) -> onnx.ModelProto:
    return network(4, len(CLASSES), seed=5, size=SIZE, **changes)


def images(count=3, size=SIZE) -> np.ndarray:
    return np.random.default_rng(7).random((count, 3, size, size), np.float32)


def with_operator_behind(kind: str) -> onnx.ModelProto:
    """A model whose head goes through one more operator."""
    proto = tiny()
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    proto.graph.node.insert(list(proto.graph.node).index(gemm), helper.make_node(kind, [gemm.input[0]], ["strange"]))
    gemm.input[0] = "strange"
    return proto


def ending_in(*steps: tuple[str, str, str], outputs: Sequence[str], **constants: np.ndarray) -> onnx.ModelProto:
    """The tiny model with nodes behind it, (operator, inputs, output), and other outputs: its own are `logits`."""
    proto = tiny()
    for kind, inputs, output in steps:
        options = {"axis": 1} if kind in ("Softmax", "ArgMax", "Concat") else {}
        options |= {"keepdims": 0} if kind == "ArgMax" else {}
        proto.graph.node.append(helper.make_node(kind, inputs.split(), [output], **options))
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    kinds = {output: TensorProto.INT64 for kind, _, output in steps if kind == "ArgMax"}
    del proto.graph.output[:]
    for name in outputs:
        value = helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
        proto.graph.output.append(value)
    return proto


def convolutions(channels: int, *steps: tuple[str, str, str], output: str = "y", **constants: np.ndarray):
    """Two convolutions, `image` to `map` (N, channels, SIZE, SIZE), and nodes behind them."""
    rng = np.random.default_rng(11)
    tensors = {"w0": (8, 3, 3, 3), "b0": (8,), "w1": (channels, 8, 3, 3), "b1": (channels,)}
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1", "b1"], ["map"], pads=[1, 1, 1, 1]),
    ]
    for kind, inputs, result in steps:
        options = {"axis": 1} if kind in ("Softmax", "ArgMax") else {}
        nodes.append(helper.make_node(kind, inputs.split(), [result], **options))
    arrays = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in tensors.items()} | constants
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

"""Small classifiers as a third party might have exported them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

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

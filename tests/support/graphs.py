"""Small ONNX graphs of given nodes, and what ONNX Runtime gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray | list],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; an input is an example, or its shape in float32. The types of outputs are inferred."""
    given = []
    for name, value in inputs.items():
        kind = onnx.TensorProto.FLOAT if isinstance(value, list) else helper.np_dtype_to_tensor_dtype(value.dtype)
        given.append(helper.make_tensor_value_info(name, kind, value if isinstance(value, list) else list(value.shape)))
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", given, [onnx.ValueInfoProto(name=name) for name in outputs], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    kinds = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    for value in model.graph.output:
        value.CopyFrom(kinds[value.name])
    return model


def onnx_runtime(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime gives on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))

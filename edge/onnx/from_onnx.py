"""Turn an ONNX graph into a torch module with onnx2torch, and mend what onnx2torch 1.5.15 cannot do.

Torch is imported when a function is called: a device that only runs ONNX has none.
"""

import logging
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import onnx

from rws.edge.common.extras import require
from rws.errors import BundleError

if TYPE_CHECKING:
    import torch


def to_torch(model: onnx.ModelProto, tensors: Sequence[str]) -> "tuple[torch.nn.Module, dict[str, str]]":
    """Convert a graph that went through `prepare`; returns the module, and the parameter of each tensor, by name.

    Raises BundleError if onnx2torch cannot convert the model, and MissingExtraError if it is not installed.
    """
    copied = deepcopy(model)
    parameters = _name_convolutions(copied, tensors)
    onnx2torch = _onnx2torch()
    _drop_allowzero(copied)
    try:
        module: torch.nn.Module = onnx2torch.convert(copied)
    except (NotImplementedError, RuntimeError, KeyError) as error:
        raise BundleError(f"model: onnx2torch cannot convert it ({error}); use the onnx backend") from error
    _fix_reshapes(module)
    present = dict(module.named_parameters())
    for tensor, name in parameters.items():
        if name not in present:
            # An asymmetric padding is a separate module in front of the convolution.
            node, _, leaf = name.rpartition(".")
            parameters[tensor] = f"{node}.1.{leaf}"
    return module, parameters


def unsupported_operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of a graph, by name, for which onnx2torch has no converter; raises MissingExtraError."""
    _onnx2torch()
    from onnx2torch.node_converters.registry import get_converter

    logging.getLogger("onnx2torch").setLevel(logging.ERROR)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    missing = set()
    for node in model.graph.node:
        try:
            get_converter(node.op_type, versions.get(node.domain, 1), node.domain)
        except NotImplementedError:
            missing.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    return sorted(missing)


def _name_convolutions(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, str]:
    """Name the nodes after their place; returns which parameter of the converted module each tensor becomes."""
    parameters: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
        # What torch's exporter says about each node: long, and of no use here.
        del node.metadata_props[:]
        node.doc_string = ""
        for tensor, leaf in zip(node.input[1:], ("weight", "bias"), strict=False):
            if node.op_type == "Conv" and tensor in tensors:
                if tensor in parameters:
                    raise BundleError(f"model: tensor {tensor!r} is shared by two convolutions; use the onnx backend")
                parameters[tensor] = f"{node.name}.{leaf}"
    for tensor in tensors:
        if tensor not in parameters:
            raise BundleError(f"model: tensor {tensor!r} is not a convolution's own; use the onnx backend")
    return parameters


def _onnx2torch() -> Any:
    with require("torch"):
        from rws.edge.onnx import torchvision_compat  # noqa: F401  # onnx2torch imports torchvision

        import onnx2torch  # isort: skip
    _register_reduce_mean()
    return onnx2torch


def _register_reduce_mean() -> None:
    """Teach onnx2torch the ReduceMean of opset 18, which torch exports for global average pooling.

    Upstream: `node_converters/reduce.py` registers ReduceMean up to opset 13; no issue is open for 18.
    Delete when `get_converter("ReduceMean", version=18)` succeeds without it.
    """
    from onnx2torch.node_converters.reduce import OnnxReduceStaticAxes
    from onnx2torch.node_converters.registry import add_converter, get_converter
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult, get_const_value

    def convert(node: Any, graph: Any) -> Any:
        axes = node.input_values[1:] and get_const_value(node.input_values[1], graph).tolist()
        keepdims = node.attributes.get("keepdims", 1)
        mean = OnnxReduceStaticAxes(operation_type="ReduceMean", axes=axes or None, keepdims=keepdims)
        return OperationConverterResult(mean, OnnxMapping(node.input_values[:1], node.output_values))

    try:
        get_converter("ReduceMean", version=18)
    except NotImplementedError:
        add_converter("ReduceMean", version=18)(convert)


def _drop_allowzero(model: onnx.ModelProto) -> None:
    """Remove a Reshape's `allowzero` if no length is zero: onnx2torch refuses it, and torch's exporter sets it.

    Upstream: https://github.com/microsoft/onnxscript/pull/2346; no issue is open.
    Delete when onnx2torch converts a Reshape with `allowzero=1`.
    """
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.dims}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[1] in shapes and shapes[node.input[1]].all():
            for attribute in [attribute for attribute in node.attribute if attribute.name == "allowzero"]:
                node.attribute.remove(attribute)


def _fix_reshapes(module: Any) -> None:
    """Give each Reshape its shape in numbers: as a tensor it stops torch.compile and CUDA graphs.

    Upstream: https://github.com/ENOT-AutoDL/onnx2torch/issues/253.
    Delete when a converted model with a Reshape goes through `torch.compile(fullgraph=True)`.
    """
    from onnx2torch.node_converters.reshape import OnnxReshape

    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(module.get_submodule(node.target), OnnxReshape):
            continue
        data, shape = node.args
        if shape.op == "get_attr":
            with graph.inserting_before(node):
                lengths = [
                    length or graph.call_method("size", (data, axis))
                    for axis, length in enumerate(module.get_buffer(shape.target).tolist())
                ]
                node.replace_all_uses_with(graph.call_method("reshape", (data, lengths)))
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()

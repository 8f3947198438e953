"""What a network from outside must not hold, checked on the whole message before anything runs it."""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from rws.errors import BundleError, first_line

_DOMAINS = ("", "ai.onnx")
_MOST_NODES = 20_000
_LONGEST_NAME = 1024
_DEEPEST = 24  # messages inside messages: about seven graphs inside graphs
_SMALL = 512  # elements of a tensor that may hold the shape of another one
_ELSEWHERE = onnx.TensorProto.EXTERNAL
# ONNX Runtime's own operators that its quantiser writes; none holds a graph, nor makes more than it reads.
_QUANTISED = {f"QLinear{kind}" for kind in ("Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "Softmax", "AveragePool")}
_QUANTISED |= {"QLinearGlobalAveragePool", "QGemm"}
# What exporters do not write, or torch and ONNX Runtime take away.
_REFUSED = {
    onnx.FunctionProto: "local functions",
    onnx.TrainingInfoProto: "training information",
    onnx.SparseTensorProto: "a sparse tensor",
}


def parts(message: Message, source: str = "model") -> Iterator[Any]:
    """Yield a message, and each one below it through which a tensor or a node can be reached, wherever it stands.

    The places come from the format's own description, so none is forgotten. Raises BundleError if nested too deep.
    """
    waiting = [(message, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > _DEEPEST:
            raise BundleError(f"{source}: nested more than {_DEEPEST} deep; export it again as plain ONNX")
        yield part
        for name, single in _leading(part.__class__):
            if not single:
                waiting += [(item, depth + 1) for item in getattr(part, name)]
            elif part.HasField(name):
                waiting.append((getattr(part, name), depth + 1))


def check_inside(model: onnx.ModelProto, source: str) -> None:
    """Raise BundleError if the data of any tensor is in another file, or graphs are nested too deep."""
    for part in parts(model, source):
        if isinstance(part, onnx.TensorProto) and (part.data_location == _ELSEWHERE or part.external_data):
            raise BundleError(f"{source}: tensor {part.name!r:.80} is kept in another file; save the model as one file")


def check_network(model: onnx.ModelProto, source: str, shape: Sequence[int], size: int) -> None:
    """Refuse what no bundle needs and what takes time or memory out of proportion; raise BundleError.

    `shape` is that of the model's input, a batch of images, `size` that of its file, bytes. Local functions, training
    information, sparse and text tensors, operators that hold graphs or are not standard are refused, and so are tensors
    that declare more than the file can hold. Each value whose size follows from the graph is bounded: 2²⁴ elements and
    256 per pixel, 16 times that in all.
    """
    nodes = elements = 0
    try:
        for part in parts(model):
            fault = _fault(part)
            if isinstance(part, onnx.TensorProto):
                elements += prod(part.dims)
                # The densest code that ONNX has packs four elements into a byte.
                if elements > 4 * size:
                    fault = f"the tensor {part.name!r:.80} of shape {list(part.dims)!r:.80}, larger than the file"
            elif isinstance(part, onnx.NodeProto):
                nodes += 1
                if nodes > _MOST_NODES:
                    fault = f"more than {_MOST_NODES} nodes"
            if fault:
                raise BundleError(fault)  # noqa: TRY301
        _check_sizes(model, shape)
    except BundleError as error:
        raise BundleError(f"{source}: holds {error}, which no bundle needs; export it again as plain ONNX") from None


def _fault(part: Any) -> str:
    if what := _REFUSED.get(type(part)):
        return what
    if len(UnknownFieldSet(part)):
        # ONNX Runtime may read them: it brings another copy of ONNX.
        return "fields that the installed package onnx does not know"
    names: list[str] = []
    if isinstance(part, onnx.TensorProto):
        names = [part.name]
        if part.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING) or part.HasField("segment"):
            return f"the tensor {part.name!r:.80} of text, of no type or in segments"
        if min(part.dims, default=0) < 0:
            return f"the tensor {part.name!r:.80} of negative shape {list(part.dims)!r:.80}"
    elif isinstance(part, onnx.NodeProto):
        inner = any(attribute.HasField("g") or attribute.graphs for attribute in part.attribute)
        standard = part.domain in _DOMAINS or (part.domain == "com.microsoft" and part.op_type in _QUANTISED)
        if inner or not standard:
            kind = "a graph inside, in" if inner else "an operator that is not standard,"
            return f"{kind} {f'{part.domain}.{part.op_type}'.lstrip('.')!r:.80}"
        names = [part.name, part.op_type, *part.input, *part.output]
    elif isinstance(part, onnx.GraphProto):
        names = [part.name, *(value.name for value in (*part.input, *part.output))]
    # protobuf gives bytes for a name that is no UTF-8.
    sound = all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in names)
    return "" if sound else "a name that is too long or no UTF-8"


def _check_sizes(model: onnx.ModelProto, shape: Sequence[int]) -> None:
    """Raise BundleError if a value is too large, as far as its shape follows from the graph, for one batch."""
    inferred = _inferred(model, shape).graph
    channels = min(shape[1:])  # the axis of channels is the shortest
    most, total = 2**24 + 256 * prod(shape) // channels, 0
    for value in (*inferred.value_info, *inferred.output):
        size = prod(axis.dim_value for axis in value.type.tensor_type.shape.dim if axis.HasField("dim_value"))
        total += size
        if size > most or total > 16 * most:
            raise BundleError(f"the value {value.name!r:.80} of {size} elements ({total} up to there)")


def _inferred(model: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """Return a model without large weights, with the shapes that follow from it; what it declares does not count."""
    lean = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = lean.graph
    graph.name = "sizes"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    for value in graph.output:
        value.ClearField("type")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights:
            kind = value.type.tensor_type.elem_type
            graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, list(shape)))
    for tensor in weights.values():
        if prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    try:
        # Without `data_prop`, which takes memory for each element of a long shape.
        return onnx.shape_inference.infer_shapes(lean)
    except Exception as error:  # onnx raises types that share no base but Exception
        raise BundleError(f"shapes that cannot be inferred ({first_line(error)})") from error


@cache
def _leading(kind: type[Message]) -> tuple[tuple[str, bool], ...]:
    """Return each field that leads to a tensor or a node, and whether it holds one message, not several."""
    names = [field.name for field in kind.DESCRIPTOR.fields if _leads(field.message_type, frozenset())]
    return tuple((name, isinstance(getattr(kind(), name), Message)) for name in names)


def _leads(descriptor: Any, seen: frozenset[str]) -> bool:
    if descriptor is None or descriptor.name in seen:
        return False
    if descriptor.name in ("TensorProto", "SparseTensorProto", "NodeProto"):
        return True
    return any(_leads(field.message_type, seen | {descriptor.name}) for field in descriptor.fields)

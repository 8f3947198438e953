"""Turn an ONNX graph into a torch module that computes the same, and through which gradients pass.

Each node becomes a call of the function that `rws.edge.onnx.torch_operators` has for its operator; what depends on
constants alone is computed here, once.
"""

import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from operator import getitem
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from rws.edge.common.extras import require
from rws.edge.onnx.torch_numbers import NUMBERS
from rws.errors import BundleError, OperatorError, first_line

with require("torch"):
    import torch
    from torch import Tensor, fx, nn

    from rws.edge.onnx import torch_layers  # noqa: F401  # adds to the table
    from rws.edge.onnx.torch_operators import DTYPES, IDLE, Operator, find

_DOMAINS = ("", "ai.onnx")
_OLDEST = 7  # opset: before, operators broadcast by an attribute
_SHORT = 64  # elements of a constant that is combined with numbers
_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError, AttributeError)


class TorchGraph(nn.Module):
    """A graph as a module: its inputs, as the graph takes them → a tuple of its outputs.

    Raises OperatorError, which names the node, if it fails when it runs.
    """

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the graph; see the class."""
        try:
            return self.body(*inputs)  # type: ignore[no-any-return]
        except _FAULTS:
            explaining = _Explaining(self.body)
            explaining.extra_traceback = False  # or it writes the node's code into the message
            explaining.run(*inputs)
            raise


class _Explaining(fx.Interpreter):
    """Runs a graph once more, to say which node has failed."""

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except _FAULTS as error:
            _refuse(n.meta.get("onnx", n.name), error)


def _refuse(where: str, error: BaseException) -> NoReturn:
    fault = f"model: {where} cannot be computed in torch ({first_line(error)})"
    raise OperatorError(f"{fault}; export the model without it") from error


def to_torch(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[TorchGraph, dict[str, str]]:
    """Convert a graph; return the module, and the name of its parameter for each of the tensors.

    `tensors`: initializers in float32, which become parameters; all others become buffers. Raises OperatorError if an
    operator is unknown, BundleError if a tensor is missing, unused or not float32.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    version = {entry.domain: entry.version for entry in model.opset_import if entry.domain in _DOMAINS}
    opset = next(iter(version.values()), 1)
    if opset < _OLDEST:
        raise OperatorError(f"model: of opset {opset}, expected {_OLDEST} or later; export it again")
    nodes = model.graph.node
    operators = [find(node.op_type, opset) if node.domain in _DOMAINS else None for node in nodes]
    if unknown := [node for node, operator in zip(nodes, operators, strict=True) if operator is None]:
        names = sorted({f"{node.domain}.{node.op_type}".removeprefix("ai.onnx").lstrip(".") for node in unknown})
        raise OperatorError(f"model: torch has no counterpart of {', '.join(names)}; export the model without it")
    return _Builder(model.graph, tensors).build([operator for operator in operators if operator])


class _Builder:
    """Writes a graph down as one of torch.fx.

    A value is a Tensor (a constant), an `fx.Node` or None (an absent input). Nodes in `numbers` give Python numbers or
    lists of them, not tensors.
    """

    def __init__(self, graph: onnx.GraphProto, tensors: Sequence[str]) -> None:
        self.source, self.graph, self.root = graph, fx.Graph(), nn.Module()
        self.numbers: set[Any] = set()
        self.kept: dict[int, fx.Node] = {}
        self.values: dict[str, Any] = {"": None} | {tensor.name: _tensor(tensor) for tensor in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in self.values]
        self.values |= {name: self.graph.placeholder(f"input{index}") for index, name in enumerate(inputs)}
        self.like = self.values[inputs[0]] if inputs else None
        self.parameters: dict[str, str] = {}
        for name in tensors:
            value = self.values.get(name)
            if not isinstance(value, Tensor) or value.dtype != torch.float32:
                raise BundleError(f"model: {name!r} is not a float32 initializer; name one that it has")
            self.parameters[name] = re.sub(r"\W", "_", f"p{len(self.parameters)}_{name}")
            self.root.register_parameter(self.parameters[name], nn.Parameter(value))
            self.values[name] = self.graph.get_attr(self.parameters[name])

    def build(self, operators: Sequence[Operator]) -> tuple[TorchGraph, dict[str, str]]:
        """Convert all nodes, whose operators are given; see `to_torch`."""
        for node, operator in zip(self.source.node, operators, strict=True):
            where = f"node {node.name or node.output[0]!r} ({node.op_type})"
            try:
                self._convert(node, operator, where)
            except _FAULTS as error:
                _refuse(where, error)
        if unread := [name for name in self.parameters if not self.values[name].users]:
            raise BundleError(f"model: no node reads the tensor {unread[0]!r}; name another")
        self.graph.output(tuple(self._output(value) for value in self.source.output))
        self.graph.eliminate_dead_code()
        body = fx.GraphModule(self.root, self.graph)
        return TorchGraph(body), {name: f"body.{attribute}" for name, attribute in self.parameters.items()}

    def _convert(self, node: onnx.NodeProto, operator: Operator, where: str) -> None:
        inputs = [self.values[name] for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {found.name: _attribute(found) for found in node.attribute}
        fixed = not any(isinstance(value, fx.Node) for value in inputs)
        how = _fitting(operator.function, attributes, len(node.output), torch.empty(0) if fixed else self.like)
        if fixed:
            arguments = [_list(value) if place in operator.host else value for place, value in enumerate(inputs)]
            with torch.no_grad():
                result = operator.function(*arguments, **how)
            result = result if operator.many else torch.as_tensor(result)
        elif function := self._numeric(node, operator, inputs, attributes):
            how = {name: _list(value) for name, value in attributes.items()}
            how |= {"outputs": len(node.output)} if operator.many else {}
            result = self._call(function, [_list(value) for value in inputs], how, where)
            self.numbers.add(result)
        else:
            arguments = [self._argument(operator, place, value) for place, value in enumerate(inputs)]
            how = {name: self._keep(value) for name, value in how.items()}
            result = self._call(operator.function, arguments, how, where)
            self.numbers |= {result} if node.op_type in ("Shape", "Size") else set()
        if not operator.many and any(node.output[1:]):
            raise NotImplementedError("more outputs than the first")
        for index, name in enumerate(node.output if operator.many else node.output[:1]):
            part = result
            if operator.many:
                part = result[index] if fixed else self.graph.call_function(getitem, (result, index))
                self.numbers |= {part} if result in self.numbers else set()
            self.values |= {name: part} if name else {}

    def _numeric(self, node: onnx.NodeProto, operator: Operator, inputs: list[Any], attributes: dict[str, Any]) -> Any:
        """Return the function on numbers for this node if it computes with them alone, or None."""
        function = NUMBERS.get(node.op_type)
        if node.op_type == "ConstantOfShape":
            # A list as long as a shape: all others are tensors that may be large.
            return function if getattr(inputs[0], "target", None) is NUMBERS["Shape"] else None
        data = [value for place, value in enumerate(inputs) if place not in operator.host]
        if function is None or not any(value in self.numbers for value in data if isinstance(value, fx.Node)):
            return None
        for value in inputs:
            if value not in self.numbers if isinstance(value, fx.Node) else value is None or value.numel() > _SHORT:
                return None
        try:
            found = inspect.signature(function).bind(*inputs, **attributes).arguments
        except TypeError:
            return None
        first = all(_list(found.get(name, 0)) in (0, -1, [0], [-1]) for name in ("axis", "axes"))
        return function if first else None

    def _argument(self, operator: Operator, place: int, value: Any) -> Any:
        number = isinstance(value, fx.Node) and value in self.numbers
        if place in operator.host:
            given = isinstance(value, fx.Node) and not number
            return self.graph.call_function(_list, (value,)) if given else _list(value)
        if number:
            return self.graph.call_function(_as_tensor, (value, self.like))
        if place in operator.scalars and isinstance(value, Tensor) and value.dim() == 0:
            return value.item()
        return self._keep(value)

    def _call(self, function: Any, arguments: list[Any], how: dict[str, Any], where: str) -> fx.Node:
        with suppress(ValueError):  # a builtin has no signature
            inspect.signature(function).bind(*arguments, **how)
        node = self.graph.call_function(function, tuple(arguments), how)
        node.meta["onnx"] = where
        return node

    def _keep(self, value: Any) -> Any:
        """Return the node of a tensor, which becomes a buffer; and anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.kept:
            name = f"constant{len(self.kept)}"
            self.root.register_buffer(name, value)
            self.kept[id(value)] = self.graph.get_attr(name)
        return self.kept[id(value)]

    def _output(self, output: onnx.ValueInfoProto) -> fx.Node:
        value: fx.Node = self._keep(self.values[output.name])
        if value in self.numbers:
            value = self.graph.call_function(_as_tensor, (value, self.like))
        dtype = DTYPES.get(output.type.tensor_type.elem_type, torch.float32)
        return value if dtype.is_floating_point else self.graph.call_method("to", (value, dtype))


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    if tensor.data_type not in DTYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise OperatorError(f"model: tensor {tensor.name!r} is {kind}, which torch does not compute with")
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor), order="C"))


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _fitting(function: Any, attributes: dict[str, Any], outputs: int, like: Any) -> dict[str, Any]:
    """Return the arguments that a function takes by name; raise if an attribute is not among them that matters."""
    try:
        taken = inspect.signature(function).parameters
    except ValueError:  # a builtin, none of which has attributes
        return {}
    free = any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken.values())
    for name, value in attributes.items():
        if name not in taken and name not in IDLE and value and not free:
            raise NotImplementedError(f"{name} = {value!r:.40}")
    attributes = {name: value for name, value in attributes.items() if name in taken or (free and name not in IDLE)}
    return attributes | {name: value for name, value in (("outputs", outputs), ("like", like)) if name in taken}


def _list(value: Any) -> Any:
    """Return a tensor's elements as numbers, and anything else as it is."""
    return value.tolist() if isinstance(value, Tensor) else value


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    """Return numbers as a tensor; it is filled on the device, where a copy would stop a CUDA graph."""
    if isinstance(value, list):
        each = [_as_tensor(number, like) for number in value]
        return torch.stack(each) if each else torch.zeros(0, dtype=torch.int64, device=like.device)
    return torch.full((), value, device=like.device)

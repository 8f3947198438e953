"""Turn an ONNX graph into a torch module that computes the same, and through which gradients pass.

Each node becomes a call of the function that `rws.edge.onnx.torch_operators` has for its operator; what depends on
constants alone is computed here, once.
"""

import inspect
import re
from collections.abc import Sequence
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
    from rws.edge.onnx.torch_operators import DTYPES, IDLE, OPERATORS, Operator

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
            _Explaining(self.body).run(*inputs)
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
    kinds = {f"{node.domain}.{node.op_type}".removeprefix("ai.onnx").lstrip("."): node for node in model.graph.node}
    if unknown := sorted(kind for kind, node in kinds.items() if _find(node, opset) is None):
        raise OperatorError(f"model: torch has no counterpart of {', '.join(unknown)}; export the model without it")
    return _Builder(model.graph, tensors, opset).build()


def _find(node: onnx.NodeProto, opset: int) -> Operator | None:
    forms = OPERATORS.get(node.op_type, []) if node.domain in _DOMAINS else []
    return max((form for form in forms if form.since <= opset), key=lambda form: form.since, default=None)


class _Builder:
    """Writes a graph down as one of torch.fx.

    A value is a Tensor (a constant), an `fx.Node` or None (an absent input). Nodes in `numbers` give Python numbers or
    lists of them, not tensors.
    """

    def __init__(self, graph: onnx.GraphProto, tensors: Sequence[str], opset: int) -> None:
        self.source, self.opset = graph, opset
        self.graph, self.root = fx.Graph(), nn.Module()
        self.values: dict[str, Any] = {"": None}
        self.numbers: set[fx.Node] = set()
        self.kept: dict[int, fx.Node] = {}
        self.parameters: dict[str, str] = {}
        named = set(tensors)
        for tensor in graph.initializer:
            value = _tensor(tensor)
            if tensor.name in named:
                if value.dtype != torch.float32:
                    raise BundleError(f"model: tensor {tensor.name!r} is {value.dtype}, expected torch.float32")
                self.parameters[tensor.name] = self._free(tensor.name)
                self.root.register_parameter(self.parameters[tensor.name], nn.Parameter(value))
                self.values[tensor.name] = None  # its node comes after those of the inputs
            else:
                self.values[tensor.name] = value
        if missing := sorted(named - set(self.parameters)):
            raise BundleError(f"model: tensor {missing[0]!r} is no initializer of it; name those that it has")
        inputs = [value.name for value in graph.input if value.name not in self.values]
        for index, name in enumerate(inputs):
            self.values[name] = self.graph.placeholder(f"input{index}")
        self.like = self.values[inputs[0]] if inputs else None
        for name, attribute in self.parameters.items():
            self.values[name] = self.graph.get_attr(attribute)

    def build(self) -> tuple[TorchGraph, dict[str, str]]:
        """Convert all nodes; see `to_torch`."""
        for node in self.source.node:
            where = f"node {node.name or node.output[0]!r} ({node.op_type})"
            try:
                self._convert(node, where)
            except _FAULTS as error:
                if isinstance(error, BundleError):
                    raise
                _refuse(where, error)
        for name, attribute in self.parameters.items():
            if not self.values[name].users:
                raise BundleError(f"model: no node reads the tensor {name!r}; name another")
        self.graph.output(tuple(self._output(value) for value in self.source.output))
        self.graph.eliminate_dead_code()
        body = fx.GraphModule(self.root, self.graph)
        return TorchGraph(body), {name: f"body.{attribute}" for name, attribute in self.parameters.items()}

    def _convert(self, node: onnx.NodeProto, where: str) -> None:
        operator = _find(node, self.opset)
        assert operator is not None
        inputs = [self.values[name] for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attributes = {found.name: _attribute(found) for found in node.attribute}
        if not any(isinstance(value, fx.Node) for value in inputs):
            result = self._fold(operator, node, inputs, attributes)
        elif function := self._numeric(node, inputs, attributes):
            arguments = [_list(value) for value in inputs]
            if operator.many:
                attributes["outputs"] = len(node.output)
            result = self._call(function, arguments, _plain(attributes), where)
            self.numbers.add(result)
        else:
            arguments = [self._argument(operator, place, value) for place, value in enumerate(inputs)]
            how = _fitting(operator.function, node, attributes, self.like)
            how = {name: self._keep(value) if isinstance(value, Tensor) else value for name, value in how.items()}
            _bind(operator.function, arguments, how)
            result = self._call(operator.function, arguments, how, where)
            if node.op_type in ("Shape", "Size"):
                self.numbers.add(result)
        self._name(node, operator, result)

    def _fold(self, operator: Operator, node: onnx.NodeProto, inputs: list[Any], attributes: dict[str, Any]) -> Any:
        arguments = [_list(value) if place in operator.host else value for place, value in enumerate(inputs)]
        with torch.no_grad():
            result = operator.function(*arguments, **_fitting(operator.function, node, attributes, torch.empty(0)))
        return result if operator.many else torch.as_tensor(result)

    def _name(self, node: onnx.NodeProto, operator: Operator, result: Any) -> None:
        if not operator.many:
            if any(node.output[1:]):
                raise NotImplementedError("more outputs than the first")
            self.values[node.output[0]] = result
            return
        for index, name in enumerate(node.output):
            value = result[index] if isinstance(result, tuple) else self.graph.call_function(_item, (result, index))
            if result in self.numbers if isinstance(result, fx.Node) else False:
                self.numbers.add(value)
            if name:
                self.values[name] = value

    def _numeric(self, node: onnx.NodeProto, inputs: list[Any], attributes: dict[str, Any]) -> Any:
        """Return the function on numbers for this node if that is what it is about, or None."""
        operator, function = _find(node, self.opset), NUMBERS.get(node.op_type)
        data = [value for place, value in enumerate(inputs) if operator and place not in operator.host]
        if node.op_type == "ConstantOfShape":
            # A list of so many numbers as a shape has: all others are tensors that may be large.
            return function if getattr(inputs[0], "target", None) is NUMBERS["Shape"] else None
        if function is None or not any(value in self.numbers for value in data if isinstance(value, fx.Node)):
            return None
        for value in inputs:
            if value not in self.numbers if isinstance(value, fx.Node) else value is None or value.numel() > _SHORT:
                return None
        found = inspect.signature(function).bind(*inputs, **_plain(attributes)).arguments
        first = all(_list(found.get(name, 0)) in (0, -1, [0], [-1]) for name in ("axis", "axes"))
        return function if first else None

    def _argument(self, operator: Operator, place: int, value: Any) -> Any:
        number = value in self.numbers if isinstance(value, fx.Node) else False
        if place in operator.host:
            if isinstance(value, fx.Node) and not number:
                return self.graph.call_function(_list, (value,))
            return _list(value)
        if place in operator.scalars and (number or (isinstance(value, Tensor) and value.dim() == 0)):
            return self.graph.call_function(_scalar, (value, self.like)) if number else value.item()
        if number:
            return self.graph.call_function(_as_tensor, (value, self.like))
        return self._keep(value) if isinstance(value, Tensor) else value

    def _call(self, function: Any, arguments: list[Any], how: dict[str, Any], where: str) -> fx.Node:
        node = self.graph.call_function(function, tuple(arguments), how)
        node.meta["onnx"] = where
        return node

    def _keep(self, value: Tensor) -> fx.Node:
        """Return the node of a constant, which becomes a buffer."""
        if id(value) not in self.kept:
            name = next((name for name, other in self.values.items() if other is value), "constant")
            attribute = self._free(name)
            self.root.register_buffer(attribute, value)
            self.kept[id(value)] = self.graph.get_attr(attribute)
        return self.kept[id(value)]

    def _free(self, name: str) -> str:
        """Return a free attribute of the module for a tensor."""
        attribute = re.sub(r"\W", "_", name)
        attribute = attribute if attribute[:1].isalpha() else f"t{attribute}"
        number = 2
        while hasattr(self.root, attribute) or hasattr(fx.GraphModule, attribute):
            attribute, number = f"{attribute}_{number}", number + 1
        return attribute

    def _output(self, output: onnx.ValueInfoProto) -> fx.Node:
        value = self.values[output.name]
        value = self._keep(value) if isinstance(value, Tensor) else value
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


def _fitting(function: Any, node: onnx.NodeProto, attributes: dict[str, Any], like: Any) -> dict[str, Any]:
    """Return the arguments that a function takes by name; raise if an attribute is not among them that matters."""
    taken = _signature(function).parameters
    free = any(parameter.kind == parameter.VAR_KEYWORD for parameter in taken.values())
    how = {}
    for name, value in ({"outputs": len(node.output), "like": like} | attributes).items():
        if name in taken or (free and name in attributes and name not in IDLE):
            how[name] = value
        elif name in attributes and name not in IDLE and value:
            raise NotImplementedError(f"{name} = {value!r:.40}")
    return how


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _list(value) for name, value in attributes.items()}


def _list(value: Any) -> Any:
    """Return a tensor's elements as numbers, and anything else as it is."""
    return value.tolist() if isinstance(value, Tensor) else value


def _item(values: Any, index: int) -> Any:
    return values[index]


def _scalar(value: Any, like: Tensor) -> Any:
    return _as_tensor(value, like) if isinstance(value, list) else value


def _as_tensor(value: Any, like: Tensor) -> Tensor:
    """Return numbers as a tensor; it is filled on the device, where a copy would stop a CUDA graph."""
    if isinstance(value, list):
        each = [_as_tensor(number, like) for number in value]
        return torch.stack(each) if each else torch.zeros(0, dtype=torch.int64, device=like.device)
    return torch.full((), value, device=like.device)


def _signature(function: Any) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:  # a builtin, none of which has attributes
        return inspect.signature(lambda *x: x)


def _bind(function: Any, arguments: list[Any], how: dict[str, Any]) -> None:
    """Raise TypeError if a function does not take these."""
    _signature(function).bind(*arguments, **how)

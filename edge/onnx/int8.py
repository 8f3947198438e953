"""Turn a quantised ONNX graph, or its first convolutions, to float32, which signatures can change.

Operators on integers become float operators, weights are dequantised, and each QuantizeLinear with its DequantizeLinear
becomes a Clip to the range of its integers: quantisers drop a Relu that this range implies. A pair that stayed would
make ONNX Runtime quantise the weights again (`WeightBiasQuantization`).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rws.edge.onnx.check import parts
from rws.edge.onnx.graph import data_inputs
from rws.errors import BundleError, RwsError, first_line

# Operator on integers → float operator; where its data stand, each followed by scale and zero point; where the output's
# scale stands, and the bias.
_INTEGER: dict[str, tuple[str, tuple[int, ...], int, int | None]] = {
    "QLinearConv": ("Conv", (0, 3), 6, 8),
    "QLinearMatMul": ("MatMul", (0, 3), 6, None),
    "QGemm": ("Gemm", (0, 3), 7, 6),
    "QLinearConcat": ("Concat", (), 0, None),
}
_INTEGER |= {f"QLinear{kind}": (kind, (0, 3), 6, None) for kind in ("Add", "Mul")}
_INTEGER |= {f"QLinear{kind}": (kind, (0,), 3, None) for kind in ("LeakyRelu", "Sigmoid", "Softmax")}
_INTEGER |= {f"QLinear{kind}": (kind, (0,), 3, None) for kind in ("AveragePool", "GlobalAveragePool")}
_DYNAMIC = {"ConvInteger": ("Conv", 0), "MatMulInteger": ("MatMul", -1)}  # float operator, axis of the weight's scales
_DYNAMIC_KINDS = ["DynamicQuantizeLinear", "Cast", "Mul", "Mul"]
_CONVOLUTIONS = {"Conv", "QLinearConv", "ConvInteger"}
_PAIR = {"QuantizeLinear", "DequantizeLinear"}
_FOLDED = _PAIR | {"Cast", "Constant", "Identity", "Reshape", "Transpose"}  # none makes more elements than it reads
# What moves or chooses the integers of its first input, and what belongs to the convolution before it.
_CARRIES = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Gather", "Slice"}
_CARRIES |= {"Split", "Resize", "DepthToSpace", "SpaceToDepth"}
_FOLLOWS = {"Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Elu"}


def is_quantised(model: onnx.ModelProto) -> str:
    """Return in words how a model is quantised; "" if it is not."""
    found = {node.op_type for node in model.graph.node}
    kinds = {
        "int8, dynamic": found & _DYNAMIC.keys(),
        "int8 operators (QOperator)": found & _INTEGER.keys(),
        "int8 between QuantizeLinear and DequantizeLinear (QDQ)": found & _PAIR,
    }
    return next((kind for kind, there in kinds.items() if there), "")


def float_shallow(model: onnx.ModelProto, layers: int) -> onnx.ModelProto:
    """Return a copy whose first `layers` convolutions, and all that leads to them, compute in float32.

    Other nodes, their weights, inputs and outputs stay as they are. Raises BundleError, which names the node, if there
    are fewer convolutions, or one is quantised in an unknown form.
    """
    return _Rewrite(model).shallow(layers)


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that computes in float32 throughout; its inputs stay.

    Its answers differ by what rounding the activations does. Raises BundleError as `float_shallow` does.
    """
    return _Rewrite(model).whole()


def float_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose outputs are not rounded to integers last; a Softmax or Sigmoid there computes in float32."""
    changed = deepcopy(model)
    makers = {name: node for node in changed.graph.node for name in node.output}
    read = [name for node in changed.graph.node for name in node.input]
    for value in changed.graph.output:
        last = makers.get(value.name, onnx.NodeProto())
        ends = last.op_type == "DequantizeLinear" and read.count("".join(last.input[:1])) == 1
        made = makers.get(last.input[0], last) if ends else last
        if made.op_type == "QuantizeLinear":
            last.CopyFrom(helper.make_node("Identity", made.input[:1], [value.name]))
        elif made.op_type in ("QLinearSoftmax", "QLinearSigmoid") and len(made.input) > 2:
            name, attributes = f"{made.output[0]}.logits", [each for each in made.attribute if each.name == "axis"]
            last.CopyFrom(helper.make_node(made.op_type.removeprefix("QLinear"), [name], [value.name]))
            last.attribute.extend(attributes)
            made.CopyFrom(helper.make_node("DequantizeLinear", made.input[:3], [name]))
    return changed


@dataclass
class _Quantised:
    """A removed integer value: the float32 value before it, the QuantizeLinear that made it, and the Clip instead."""

    value: str
    node: onnx.NodeProto
    clipped: str = ""


class _Rewrite:
    """The rewriting of a copy: the nodes of a part of it, one after the other, are replaced by nodes on float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = deepcopy(model)
        self._graph = self._model.graph
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._inputs = data_inputs(self._model)
        self._outputs = {value.name for value in self._graph.output}
        self._made = {"", *self._tensors, *self._inputs}
        nodes = _in_order(model.graph.node, set(self._made))
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._all = list(self._graph.node)
        self._makers = {name: node for node in self._all for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._all:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._taken = {*self._makers, *self._made}
        self._needed: set[str] = set()  # values of the part that other nodes read, or that are outputs
        self._arrays: dict[str, NDArray[Any]] = {}  # constants that were computed
        self._floats: dict[str, str] = {}  # value → the float32 value in its place
        self._quantised: dict[str, _Quantised] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._at = onnx.NodeProto()
        self._opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)

    def shallow(self, layers: int) -> onnx.ModelProto:
        heads = [node for node in self._all if node.op_type in _CONVOLUTIONS]
        if not 1 <= layers <= len(heads):
            found = f"model has {len(heads)} convolutions, expected at least 1 and at most that many"
            raise BundleError(f"{found}, not {layers}")
        with self._typed_errors():
            part = self._leading_to(heads[:layers])
            inside = {id(node) for node in part}
            outside = [node for node in self._all if id(node) not in inside]
            read = {name for node in outside for each in parts(node) for name in getattr(each, "input", ())}
            self._needed = (read | self._outputs) & {name for node in part for name in node.output}
            self._rewrite(part)
            for name in sorted(self._needed):
                self._restore(name)
        return self._finished(outside)

    def whole(self) -> onnx.ModelProto:
        with self._typed_errors():
            self._rewrite(self._all)
            for value in self._graph.output:
                if (name := value.name) not in self._made:
                    self._add("Identity", [self._clipped(name) if name in self._quantised else self._read(name)], name)
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
        return self._finished([])

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except RwsError:
            raise
        except Exception as error:  # a node that lacks inputs, a malformed tensor, ONNX Runtime: they share no base
            said = f"{type(error).__name__}: …{first_line(error)[-160:]}"
            raise self._refused(f"is malformed ({said})") from error

    def _refused(self, found: str) -> BundleError:
        name = f"{self._at.op_type} {self._at.name or ' '.join(self._at.output)}"
        cure = "quantise the float32 model with onnxruntime.quantization, or give that model"
        return BundleError(f"model: node {name!r:.80} {found}; {cure}")

    def _reader(self, name: str) -> onnx.NodeProto | None:
        """Return the one node that reads a value, unless there are others."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def _leading_to(self, heads: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Return these convolutions, the activation after each, and all that they are computed from."""
        waiting: list[onnx.NodeProto] = []
        for head in heads:
            waiting += [head, *(self._tail(head)[0] if head.op_type in _DYNAMIC else ())]
            pair: list[onnx.NodeProto] = []
            after = self._reader(waiting[-1].output[0])
            for _ in range(9):  # an activation may be two operators, each behind a pair
                if after is None or after.op_type not in _PAIR | _FOLLOWS:
                    break
                pair.append(after)
                if after.op_type in _FOLLOWS:
                    waiting, pair = waiting + pair, []
                after = self._reader(after.output[0])
        found: set[int] = set()
        while waiting:
            node = waiting.pop()
            if id(node) not in found:
                found.add(id(node))
                waiting += [self._makers[name] for name in node.input if name in self._makers]
        return [node for node in self._all if id(node) in found]

    def _tail(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], str, str]:
        """Return what follows a dynamic operator, last the node with its float output; the weight's scale; a bias."""
        self._at = node
        source, cast = self._makers.get(node.input[0]), self._reader(node.output[0])
        scaled = self._reader(cast.output[0]) if cast else None
        product = self._makers.get(_other(scaled, cast.output[0])) if cast and scaled else None
        kinds = [each.op_type if each else "" for each in (source, cast, scaled, product)]
        if not source or not cast or not scaled or not product or kinds != _DYNAMIC_KINDS:
            raise self._refused(f"stands between other operators than {', '.join(_DYNAMIC_KINDS)}")
        if source.output[1] not in product.input:
            raise self._refused("is not scaled by its input's scale")
        nodes, bias = [product, cast, scaled], ""
        added = self._reader(scaled.output[0]) if node.op_type == "ConvInteger" else None
        if added and added.op_type == "Add":
            shaped = self._makers.get(_other(added, scaled.output[0]))
            if shaped and shaped.op_type == "Reshape" and shaped.input[0] in self._tensors:
                nodes, bias = [*nodes, added], shaped.input[0]
        return nodes, _other(product, source.output[1]), bias

    def _rewrite(self, part: Sequence[onnx.NodeProto]) -> None:
        self._fold(part)
        tails = {id(node): self._tail(node) for node in part if node.op_type in _DYNAMIC}
        absorbed = {id(each) for nodes, _, _ in tails.values() for each in nodes}
        for node in part:
            self._at = node
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise self._refused("holds a graph")
            if id(node) in absorbed or all(name in self._arrays for name in node.output):
                continue
            if id(node) in tails:
                self._open_dynamic(node, *tails[id(node)])
            elif node.op_type in _INTEGER:
                self._open(node)
            elif node.op_type == "QuantizeLinear":
                self._quantised[node.output[0]] = _Quantised(self._read(node.input[0]), node)
            elif node.op_type == "DequantizeLinear":
                self._floats[node.output[0]] = self._dequantised(*node.input)
            elif node.op_type != "DynamicQuantizeLinear":
                self._keep(node)

    def _fold(self, part: Sequence[onnx.NodeProto]) -> None:
        """Compute the constants of a part, such as weights, by ONNX Runtime."""
        known, nodes = set(self._tensors), []
        for node in part:
            if node.op_type in _FOLDED and known.issuperset(filter(None, node.input)):
                nodes.append(node)
                known.update(node.output)
        if not nodes:
            return
        self._at = nodes[0]
        names = [name for node in nodes for name in node.output]
        read = {name for node in nodes for name in node.input}
        tensors = [tensor for name, tensor in self._tensors.items() if name in read]
        graph = helper.make_graph(nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in names], tensors)
        versions, ir_version = self._model.opset_import, self._model.ir_version
        model = helper.make_model(graph, opset_imports=versions, ir_version=ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self._arrays = dict(zip(names, session.run(names, {}), strict=True))

    def _open(self, node: onnx.NodeProto) -> None:
        """Replace an operator on integers."""
        kind, places, scale_at, bias_at = _INTEGER[node.op_type]
        given = dict(enumerate(node.input))
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute if each.name != "opset"}
        if attributes.pop("channels_last", 0):
            raise self._refused("takes NHWC")
        axis = 0 if kind == "Conv" or attributes.get("transB") else -1
        places = places or tuple(range(2, len(given), 3))
        inputs = [self._dequantised(given[place], given[place + 1], given[place + 2], axis) for place in places]
        if bias_at is not None and given.get(bias_at):
            scale = self._array(given[places[0] + 1]) * self._array(given[places[1] + 1])
            bias = self._array(given[bias_at]) * (scale * np.float32(attributes.get("alpha", 1)))
            inputs.append(self._put(f"{given[bias_at]}.float", bias.astype(np.float32)))
        output = node.output[0]
        value = self._free(f"{output}.exact") if given.get(scale_at) else output  # a QGemm may give float32
        self._add(kind, inputs, value, **attributes)
        if value != output:
            scales = [given[scale_at], given.get(scale_at + 1, "")]
            self._quantised[output] = _Quantised(value, helper.make_node("QuantizeLinear", [value, *scales], [output]))

    def _open_dynamic(self, node: onnx.NodeProto, tail: Sequence[onnx.NodeProto], scale: str, bias: str) -> None:
        kind, axis = _DYNAMIC[node.op_type]
        inputs = [self._read(self._makers[node.input[0]].input[0])]
        inputs.append(self._dequantised(node.input[1], scale, node.input[3] if len(node.input) > 3 else "", axis))
        inputs += [self._read(bias)] if bias else []
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self._add(kind, inputs, tail[-1].output[0], **attributes)

    def _keep(self, node: onnx.NodeProto) -> None:
        """Add a node as it is, on float32."""
        kept = deepcopy(node)
        carried = self._quantised.get(node.input[0]) if node.input and node.op_type in _CARRIES else None
        first = [self._clipped(node.input[0])] if carried else []
        kept.input[:] = first + [self._read(name) for name in node.input[len(first) :]]
        for place, name in enumerate(node.output):
            if carried:
                kept.output[place] = new = self._free(f"{name}.float")
                self._quantised[name] = _Quantised(new, carried.node, new)
        self._nodes.append(kept)
        self._made.update(kept.output)

    def _read(self, name: str) -> str:
        """Return the float32 value in the place of one that is no integers, or the value itself."""
        if name not in self._floats and name in self._arrays:
            self._floats[name] = self._put(name, self._array(name), name not in self._needed)
        elif name not in self._floats and name not in self._made:
            raise self._refused(f"reads {name!r:.80}, which are integers or computed nowhere before")
        return self._floats.get(name, name)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._arrays and name not in self._tensors:
            raise self._refused(f"reads {name!r:.80}, expected a constant there")
        return self._arrays[name] if name in self._arrays else numpy_helper.to_array(self._tensors[name])

    def _dequantised(self, name: str, scale: str, zero: str = "", axis: int = -1) -> str:
        """Return the float32 value of integers: those of a QuantizeLinear, a constant or an input of the model."""
        scales, zeros = self._array(scale), self._array(zero) if zero else np.zeros((), np.uint8)
        if name in self._quantised:
            made = [self._array(other).ravel() for other in self._quantised[name].node.input[1:] if other]
            if not all(map(np.array_equal, made, (scales.ravel(), zeros.ravel()))):
                raise self._refused(f"reads {name!r:.80} with another scale or zero point than it was made with")
            return self._clipped(name)
        if name in self._arrays or name in self._tensors:
            values = self._array(name).astype(np.int32)
            shape = [1] * values.ndim
            if max(scales.size, zeros.size) > 1:
                shape[axis] = values.shape[axis]
            values = (values - np.broadcast_to(zeros.astype(np.int32), scales.shape).reshape(shape)) * scales.reshape(
                shape
            )
            return self._put(f"{name}.float", values.astype(np.float32))
        value = self._add("Cast", [self._read(name)], self._free(f"{name}.cast"), to=TensorProto.FLOAT)
        zero = self._put(f"{name}.zero", zeros.astype(np.float32))
        value = self._add("Sub", [value, zero], self._free(f"{name}.centred"))
        return self._add("Mul", [value, self._put(f"{name}.scale", scales)], self._free(f"{name}.float"))

    def _clipped(self, name: str) -> str:
        """Return the float32 value of integers that a QuantizeLinear made, clipped to what these could hold."""
        found = self._quantised[name]
        if not found.clipped:
            scale, *zeros = (self._array(other) for other in found.node.input[1:] if other)
            zero = zeros[0] if zeros else np.zeros((), np.uint8)
            if scale.size != 1 or self._opset < 11:
                raise self._refused("quantises activations per channel, or is of an opset below 11")
            info, steps = np.iinfo(zero.dtype), float(scale.item())
            low, high = ((end - int(zero.item())) * steps for end in (info.min, info.max))
            found.clipped = found.value
            if found.value not in self._inputs:
                ends = [
                    self._put(f"{name}.{end}", np.array(limit, np.float32))
                    for end, limit in (("low", low), ("high", high))
                ]
                found.clipped = self._add("Clip", [found.value, *ends], self._free(f"{name}.float"))
        return found.clipped

    def _restore(self, name: str) -> None:
        """Add what computes a value of the part as it was, for other nodes."""
        if name in self._made:
            return
        node = deepcopy(self._makers[name])
        if name in self._quantised:
            node = deepcopy(self._quantised[name].node)
            node.input[0], node.output[0] = self._quantised[name].value, name
        else:
            for read in node.input:
                self._restore(read)
        self._nodes.append(node)
        self._made.update(node.output)

    def _add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self._made.add(name)
        return name

    def _put(self, name: str, array: NDArray[Any], own: bool = False) -> str:
        """Add a constant, under a free name like the one that is given unless that is its own; return the name."""
        name = name if own else self._free(name)
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self._made.add(name)
        return name

    def _free(self, name: str) -> str:
        free = next(each for each in chain([name], (f"{name}_{n}" for n in count(2))) if each not in self._taken)
        self._taken.add(free)
        return free

    def _finished(self, outside: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        graph, nodes = self._graph, [deepcopy(node) for node in (*self._nodes, *outside)]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for each in parts(graph) if isinstance(each, onnx.NodeProto) for name in each.input}
        stale = self._tensors.keys() - used - self._outputs
        kept = self._needed | {name for node in outside for name in node.output}
        stale |= {value.name for value in graph.value_info if value.name not in kept}
        for values in (graph.initializer, graph.value_info, graph.input):
            for value in [value for value in values if value.name in stale]:
                values.remove(value)
        return self._model


def _other(node: onnx.NodeProto, name: str) -> str:
    return next((other for other in node.input if other != name), "")


def _in_order(nodes: Iterable[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Return nodes so that each reads only what is known before it; what reads itself comes last."""
    ordered: list[onnx.NodeProto] = []
    waiting = list(nodes)
    for _ in range(100):
        later: list[onnx.NodeProto] = []
        for node in waiting:
            ready = known.issuperset(node.input)
            (ordered if ready else later).append(node)
            known.update(node.output if ready else ())
        waiting = later
    return ordered + waiting

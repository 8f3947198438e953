"""Let a graph that was exported for a fixed number of images take any number of them, where that is safe."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from rws.edge.onnx.graph import data_inputs, value_shape

_MARK = 9973  # a batch that no other length is a multiple of: where it goes is seen in the inferred shapes
_SMALL = 512  # elements of a constant that may be a shape
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Where", "Pow", "MatMul", "Max", "Min", "PRelu")
_RECURRENT = ("LSTM", "GRU", "RNN")
Shape = tuple[int, ...]


def freed(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy whose batch is free, or None if that cannot be.

    Its constants were folded for a fixed batch. Lengths that hold it are rewritten: in Reshape, Resize, Slice, and in
    constants with a copy for each image. That the outputs stay the same must be checked by running it.
    """
    (name, value), *others = data_inputs(proto).items()
    shape = value_shape(value)
    if others or not shape or shape[0] is None:
        return None
    work = _Work(proto, name, shape[0])
    try:
        for node in list(work.graph.node):
            for added in work.rewrite(node):
                work.insert(added, node)
            work.infer(node)
    except (ValueError, KeyError, shape_inference.InferenceError, onnx.defs.SchemaError):
        return None
    if any((work.shapes.get(value.name) or (_MARK,))[0] != _MARK for value in work.graph.output):
        return None
    for value in [*data_inputs(work.proto).values(), *work.graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del work.graph.value_info[:]
    return work.proto


class _Work:
    """A graph that is being rewritten, and the shapes of its values for a batch of `_MARK` as far as they are known."""

    def __init__(self, proto: onnx.ModelProto, name: str, batch: int) -> None:
        self.proto, self.batch = onnx.ModelProto(), batch
        self.proto.CopyFrom(proto)
        self.graph = self.proto.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        inferred = shape_inference.infer_shapes(proto).graph
        self.fixed = {
            value.name: value_shape(value) for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }
        self.types: dict[str, onnx.TypeProto] = {
            name: helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            for name, tensor in self.constants.items()
        }
        image = onnx.TypeProto.FromString(data_inputs(proto)[name].type.SerializeToString())
        image.tensor_type.shape.dim[0].dim_value = _MARK
        self.types[name] = image
        self.shapes: dict[str, Shape | None] = {name: _known(image) for name, image in self.types.items()}
        self.opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.count = 0

    def infer(self, node: onnx.NodeProto) -> None:
        """Infer the shapes of a node's outputs."""
        schema = onnx.defs.get_schema(node.op_type, self.opsets.get(node.domain, 1), node.domain)
        types = {name: self.types[name] for name in node.input if name in self.types}
        if not schema.has_type_and_shape_inference_function or types.keys() < set(filter(None, node.input)):
            return
        small = {name: self.constants[name] for name in node.input if prod(self._dims(name)) <= _SMALL}
        versions = list(self.proto.opset_import)
        found = shape_inference.infer_node_outputs(schema, node, types, small, opset_imports=versions)
        for name, kind in found.items():
            self.types[name], self.shapes[name] = kind, _known(kind)

    def _dims(self, name: str) -> Sequence[int]:
        return self.constants[name].dims if name in self.constants else (_SMALL + 1,)

    def insert(self, added: onnx.NodeProto, before: onnx.NodeProto) -> None:
        """Put a node in front of another one, and infer its shapes."""
        self.graph.node.insert(list(self.graph.node).index(before), added)
        self.infer(added)

    def axis(self, name: str) -> int | None:
        """Return the axis of a value along which the images lie, None if there is none or it is unknown."""
        shape = self.shapes.get(name) or ()
        return next((axis for axis, length in enumerate(shape) if length and length % _MARK == 0), None)

    def constant(self, array: NDArray[Any]) -> str:
        """Add an initializer; returns its name."""
        self.count += 1
        name = f"rws.batch.{self.count}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(tensor)
        self.constants[name] = tensor
        self.types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        self.shapes[name] = tuple(array.shape)
        return name

    def rewrite(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Free a node of the fixed batch; yields nodes that must stand in front of it. ValueError if that fails."""
        kind, axis = node.op_type, self.axis(node.input[0]) if node.input else None
        if kind in _RECURRENT:
            for index in range(5, min(len(node.input), 7)):  # zeros are the default of the first state
                if node.input[index] in self.constants and not self._value(node.input[index]).any():
                    node.input[index] = ""
        elif kind == "Concat":
            yield from self._concat(node)
        elif kind in _BROADCAST:
            self._broadcast(node)
        elif axis is None:
            return
        elif kind == "Reshape" and node.input[1] in self.constants:
            self._reshape(node, axis)
        elif kind == "Gather" and node.input[1] in self.constants:
            self._gather(node)
        elif kind == "Expand" and node.input[1] in self.constants:
            lengths = self._value(node.input[1]).copy()
            lengths[axis + len(lengths) - len(self.shapes[node.input[0]] or ())] = 1
            node.input[1] = self.constant(lengths)
        elif kind == "Resize" and len(node.input) > 3 and node.input[3] in self.constants:
            yield from self._resize(node, axis)
        elif kind == "Slice" and len(node.input) > 3 and node.input[3] in self.constants:
            axes, ends = self._value(node.input[3]), self._value(node.input[2]).copy()
            rank = len(self.shapes[node.input[0]] or ())
            whole = (
                (axes % rank == axis) & (self._value(node.input[1]) == 0) & (ends == self.fixed[node.input[0]][axis])
            )
            if whole.any():
                ends[whole] = np.iinfo(ends.dtype).max
                node.input[2] = self.constant(ends)

    def _value(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[name])

    def _reshape(self, node: onnx.NodeProto, axis: int) -> None:
        """Leave the length open along which the images lie afterwards; a merged axis, as in [24, 2, 1936], too."""
        given, result = self.shapes[node.input[0]] or (), [length or 0 for length in self.fixed[node.output[0]]]
        if not all(result):
            raise ValueError(f"{node.output[0]} has no known shape")
        merged = given[axis] // _MARK * self.batch
        span = merged * prod(given[axis + 1 :])
        ends = [place for place in range(len(result)) if prod(result[place:]) == span]
        fits = [place for place in ends if result[place] % self.batch == 0]
        place = axis if axis in fits and result[axis] == self.batch else next(iter(fits), None)
        if place is None:
            raise ValueError(f"{node.output[0]} mixes the images")
        lengths = np.array(result, np.int64)
        lengths[place] = -1
        node.input[1] = self.constant(lengths)

    def _gather(self, node: onnx.NodeProto) -> None:
        """Turn the addresses that torch writes for a flattening of `as_strided` into a Reshape."""
        index = self._value(node.input[1])
        flat = len(self.shapes[node.input[0]] or ()) == 1 and index.ndim > 1 and index.shape[0] == self.batch
        if flat and np.array_equal(index.ravel(), np.arange(self.fixed[node.input[0]][0] or 0)):
            lengths = np.array([-1, *index.shape[1:]], np.int64)
            node.CopyFrom(helper.make_node("Reshape", [node.input[0], self.constant(lengths)], node.output))

    def _resize(self, node: onnx.NodeProto, axis: int) -> Iterator[onnx.NodeProto]:
        given, sizes = self.fixed[node.input[0]], self._value(node.input[3])
        if len(sizes) != len(given):  # it is given for the axes that change
            return
        scales = np.array(sizes, np.float32) / np.array(given, np.float32)
        if np.array_equal(np.floor(scales * np.array(given, np.float32)), sizes):
            node.input[2] = self.constant(scales)
            del node.input[3:]
        else:
            yield from self._lengths(node.input[0], axis, sizes.tolist())
            node.input[3] = f"rws.batch.{self.count}.lengths"

    def _lengths(self, like: str, axis: int, lengths: Sequence[int]) -> Iterator[onnx.NodeProto]:
        """Yield nodes that compute these lengths with that of `like` along an axis: `rws.batch.N.lengths`."""
        index = self.constant(np.array([axis], np.int64))
        before = self.constant(np.array(lengths[:axis], np.int64))
        after = self.constant(np.array(lengths[axis + 1 :], np.int64))
        name = after
        yield helper.make_node("Shape", [like], [f"{name}.shape"])
        yield helper.make_node("Gather", [f"{name}.shape", index], [f"{name}.batch"])
        yield helper.make_node("Concat", [before, f"{name}.batch", after], [f"{name}.lengths"], axis=0)

    def _concat(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Give each image its copy of a constant, as of a class token."""
        like = next((name for name in node.input if self.axis(name) is not None), None)
        axis = None if like is None else self.axis(like)
        for index, name in enumerate(node.input):
            shape = self.shapes.get(name)
            if like is None or axis is None or shape is None or shape[axis] != self.batch:
                continue
            one = list(shape)
            one[axis] = 1
            row = self._row(name, axis) if self.batch > 1 else name
            yield from self._lengths(like, axis, one)
            lengths = f"rws.batch.{self.count}.lengths"
            node.input[index] = f"{lengths}.each"
            yield helper.make_node("Expand", [row, lengths], [f"{lengths}.each"])
            self.types[f"{lengths}.each"] = helper.make_tensor_type_proto(
                self.types[name].tensor_type.elem_type, [*one[:axis], _MARK, *one[axis + 1 :]]
            )
            self.shapes[f"{lengths}.each"] = _known(self.types[f"{lengths}.each"])

    def _broadcast(self, node: onnx.NodeProto) -> None:
        """Let a constant that holds the same for each image hold it once."""
        like = next((name for name in node.input if self.axis(name) is not None), None)
        if like is None or self.batch == 1:
            return
        place = len(self.shapes[like] or ()) - (self.axis(like) or 0)
        if node.op_type == "MatMul" and place <= 2:
            return
        for index, name in enumerate(node.input):
            shape = self.shapes.get(name) or ()
            if name in self.constants and len(shape) >= place and shape[-place] == self.batch:
                node.input[index] = self._row(name, len(shape) - place)

    def _row(self, name: str, axis: int) -> str:
        if name not in self.constants:
            raise ValueError(f"{name} is not a constant")
        array = self._value(name)
        one = array.take([0], axis)
        if not (array == one).all():
            raise ValueError(f"{name} differs between the images")
        return self.constant(one)


def _known(kind: onnx.TypeProto) -> Shape | None:
    dims = kind.tensor_type.shape.dim
    known = kind.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in dims)
    return tuple(axis.dim_value for axis in dims) if known else None

"""What has to be done to an ONNX graph so that its shallow convolutions can be patched.

Each weight and bias must be a separate initializer. Exporters fold, drop or share them; `prepare` undoes all of it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from rws.edge.common.files import open_regular, read_regular
from rws.edge.onnx.check import check_inside, parts
from rws.edge.onnx.kinds import other_kind
from rws.errors import BundleError, first_line

_LARGEST = 2**31 - 1  # bytes: protobuf's limit
_IMAGE_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
_NARROW = (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def read_model(model: str | Path | bytes | onnx.ModelProto, source: str = "model") -> onnx.ModelProto:
    """Read an ONNX model with all its weights, those that are stored in fewer bits in 32; BundleError if it is none.

    A weight is no longer an input, as in files of IR version 3: ONNX Runtime 1.24 can crash on one that is both.
    Of a path, weights are read from other files in its folder, too; none of the files is a link, pipe or device.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    source = source if isinstance(model, bytes) else str(model)
    try:
        data = model if isinstance(model, bytes) else read_regular(model, _LARGEST)
        if kind := other_kind(data):
            raise BundleError(f"{source}: {kind}")  # noqa: TRY301
        proto = onnx.load_model_from_string(data)
        if not isinstance(model, bytes):
            _load_neighbours(proto, Path(model).parent)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{source}: cannot be read ({error.strerror or error}); give an ONNX file") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError, OverflowError, MemoryError) as error:
        raise BundleError(f"{source}: not a whole ONNX model ({first_line(error)}); export it again") from error
    if not proto.graph.node or not proto.graph.output:
        raise BundleError(f"{source}: an ONNX model without nodes or outputs; export it again")
    check_inside(proto, source)
    inputs = [*data_inputs(proto).values()]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    try:
        _widen(proto)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{source}: a malformed tensor ({first_line(error)}); export it again") from error
    return proto


def _load_neighbours(model: onnx.ModelProto, folder: Path) -> None:
    tensors = (part for part in parts(model) if isinstance(part, onnx.TensorProto))
    for place in {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}:
        if Path(place).name != place:
            raise ValueError(f"weights in {place!r:.80}, expected a file in the same folder")
        open_regular(folder / place, follow=False).close()
    onnx.load_external_data_for_model(model, str(folder))


def in_one_file(model: Path) -> bool:
    """Return whether the file of a model that could be read holds all its weights."""
    proto = onnx.load_model_from_string(read_regular(model, _LARGEST))
    return not any(part.external_data for part in parts(proto) if isinstance(part, onnx.TensorProto))


def _widen(model: onnx.ModelProto) -> None:
    """Replace a Cast of a float16 or int8 initializer to float32, and its product with a scale, by an initializer.

    Only where nothing else reads them: so at most four bytes are made of one that is stored.
    """
    graphs = [part for part in parts(model) if isinstance(part, onnx.GraphProto)]
    fixed = {value.name for graph in graphs for value in (*graph.input, *graph.output)}
    readers = Counter(name for graph in graphs for node in graph.node for name in node.input)
    stored = {t.name: t for t in model.graph.initializer if readers[t.name] == 1 and min(t.dims, default=0) >= 0}
    cast: dict[str, onnx.TensorProto] = {}  # of Casts, float32
    kept, made, used = [], dict[str, onnx.TensorProto](), set[str]()
    for node in model.graph.node:
        names = [*node.input]
        if len(node.output) == 1 and not node.domain and not fixed & {*names, *node.output}:
            wide = None
            if node.op_type == "Cast" and len(names) == 1 and names[0] in stored:
                wide = _as_float32(node, stored[names[0]])
            elif node.op_type == "Mul" and len(names) == 2 and names[0] in cast and names[1] in stored:
                wide = _scaled(cast[names[0]], stored[names[1]])
            if wide is not None:
                name = node.output[0]
                used |= {*names}
                for gone in names:
                    made.pop(gone, None)
                made[name] = tensor = numpy_helper.from_array(wide, name)
                if node.op_type == "Cast" and readers[name] == 1:
                    cast[name] = tensor
                continue
        kept.append(node)
    if made:
        tensors = [tensor for tensor in model.graph.initializer if tensor.name not in used]
        for field, new in ((model.graph.node, kept), (model.graph.initializer, [*tensors, *made.values()])):
            del field[:]
            field.extend(new)


def _as_float32(node: onnx.NodeProto, tensor: onnx.TensorProto) -> NDArray[np.float32] | None:
    to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
    if tensor.data_type not in _NARROW or to != [onnx.TensorProto.FLOAT]:
        return None
    return numpy_helper.to_array(tensor).astype(np.float32)


def _scaled(tensor: onnx.TensorProto, scale: onnx.TensorProto) -> NDArray[np.float32] | None:
    if scale.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != len(scale.dims):
        return None
    if not all(one in (1, many) for one, many in zip(scale.dims, tensor.dims, strict=True)):
        return None
    product: NDArray[np.float32] = np.multiply(numpy_helper.to_array(tensor), numpy_helper.to_array(scale))
    return product


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model in inference mode that computes the same, and whose convolutions can all be patched.

    BatchNorm is folded into them, and each has a weight and a bias that only convolutions with both the same read, as
    in a Siamese network. Opset and IR version stay.
    """
    model = fold_batchnorm(_constants_to_initializers(model))
    taken = {name for node in model.graph.node if node.op_type != "Conv" for name in node.input}
    own: dict[tuple[str, ...], list[str]] = {}
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        shared = tuple(filter(None, node.input[1:]))
        if shared not in own:
            tensors, names = _initializers(model), list(shared)
            for index, name in enumerate(shared):
                if name in taken and name in tensors:
                    names[index] = _add_initializer(model, name, numpy_helper.to_array(tensors[name]))
            if len(names) == 1 and (weight := tensors.get(shared[0])) is not None:
                bias = np.zeros(weight.dims[0], onnx.helper.tensor_dtype_to_np_dtype(weight.data_type))
                names.append(_add_initializer(model, f"{weight.name.removesuffix('.weight')}.bias", bias))
            own[shared] = names
            taken |= set(names)
        del node.input[1:]
        node.input.extend(own[shared])
    return model


def fold_batchnorm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model in inference mode, each BatchNormalization after a convolution folded into it.

    W′ = W·γ/√(σ²+ε), b′ = (b−μ)·γ/√(σ²+ε) + β for each output channel, in float64. A BatchNorm whose convolution has
    another reader, or whose parameters are not initializers, stays. The weight keeps its name; a new bias is named
    after it. Opset and IR version stay.
    """
    folded = deepcopy(model)
    graph = folded.graph
    done: dict[tuple[object, ...], list[str]] = {}  # convolutions that share all of it share the result
    for batchnorm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convolution = _foldable(folded, batchnorm)
        if convolution is None:
            continue
        tensors = _initializers(folded)
        weight = numpy_helper.to_array(tensors[convolution.input[1]])
        parameters = (numpy_helper.to_array(tensors[name]) for name in batchnorm.input[1:5])
        gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
        epsilon = next((attribute.f for attribute in batchnorm.attribute if attribute.name == "epsilon"), 1e-5)
        given = (*convolution.input[1:], "", *batchnorm.input[1:], epsilon)
        names = [convolution.input[1], f"{convolution.input[1].removesuffix('.weight')}.bias"]
        bias: NDArray[Any] | float = 0.0
        if len(convolution.input) > 2 and convolution.input[2]:
            names[1] = convolution.input[2]
            bias = numpy_helper.to_array(tensors[names[1]])
        scale = gamma / np.sqrt(variance + epsilon)
        new_weight = (weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1))).astype(weight.dtype)
        new_bias = ((bias - mean) * scale + beta).astype(weight.dtype)
        stale = set(batchnorm.input[1:5]) | set(convolution.input[1:3])
        output, previous_output = batchnorm.output[0], convolution.output[0]
        del convolution.input[1:]
        graph.node.remove(batchnorm)
        convolution.output[0] = output
        for value in [value for value in graph.value_info if value.name == previous_output]:
            graph.value_info.remove(value)
        _drop_unused(folded, stale)
        if given not in done:
            arrays = (new_weight, new_bias)
            done[given] = [_add_initializer(folded, *pair) for pair in zip(names, arrays, strict=True)]
        convolution.input.extend(done[given])
    return folded


def shallow_tensors(model: onnx.ModelProto, count: int) -> tuple[str, ...]:
    """Return weight and bias of a prepared model's first `count` convolutions, each once; BundleError without them."""
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    if not 1 <= count <= len(nodes):
        raise BundleError(
            f"model has {len(nodes)} convolutions, expected at least 1 and at most that many, not {count}"
        )
    tensors = _initializers(model)
    names: dict[str, tuple[str, ...]] = {}
    for node in nodes[:count]:
        own = tuple(name for name in node.input[1:3] if name in tensors)
        if len(own) != 2 or any(names.setdefault(name, own) != own for name in own):
            found = "shares only its weight or its bias, or has none"
            raise BundleError(f"convolution {node.name!r:.80} {found}; call prepare() first")
    return tuple(names)


def clean_tensors(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
    """Return initializers, in order; BundleError if none is named, or one is missing, empty or not finite float32."""
    tensors = _initializers(model)
    clean = {}
    for name in names:
        if name not in tensors:
            raise BundleError(
                f"model has no tensor {name!r} to patch; export it with its shallow weights as initializers"
            )
        try:
            array = numpy_helper.to_array(tensors[name])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"model: tensor {name!r} is malformed ({first_line(error)}); export it again") from error
        if array.dtype != np.float32:
            raise BundleError(f"model: tensor {name!r} is {array.dtype}, expected float32; export the model in float32")
        if not array.ndim or not array.size:
            raise BundleError(f"model: tensor {name!r} has the shape {array.shape}, expected an axis and no zero")
        if not np.isfinite(array).all():
            raise BundleError(f"model: tensor {name!r} has NaN or infinity; train or export the model again")
        clean[name] = array
    if not clean:
        raise BundleError("model: no tensor to patch is named; name at least one (see shallow_tensors)")
    return clean


def data_inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return each input that is not a weight, by name."""
    weights = _initializers(model)
    return {value.name: value for value in model.graph.input if value.name not in weights}


class DataInput(NamedTuple):
    """An image input: its name, its shape (None: a free length), and its dtype by NumPy's name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def data_input(model: onnx.ModelProto, source: str = "model") -> DataInput:
    """Return the one image input; BundleError unless there is one, of float32, float16 or uint8."""
    inputs = data_inputs(model)
    if len(inputs) != 1:
        found = f"{', '.join(inputs) or 'none'!r:.80}"
        raise BundleError(f"{source}: found the inputs {found}, expected one image input; export it with one input")
    name, value = next(iter(inputs.items()))
    dtype = _IMAGE_TYPES.get(value.type.tensor_type.elem_type)
    if dtype is None:
        kinds = ", ".join(_IMAGE_TYPES.values())
        raise BundleError(f"{source}: input {name!r:.80} is of another type than {kinds}; export it with one of those")
    return DataInput(name, value_shape(value), dtype)


def value_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the shape of an input or output; None stands for a free length, () for an unknown shape."""
    # Some exporters write a free length as -1 or 0.
    return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in value.type.tensor_type.shape.dim)


def weights_to_inputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a model in which the named initializers are graph inputs of fixed shape instead."""
    opened = deepcopy(model)
    already = {value.name for value in opened.graph.input}
    for name in names:
        tensor = _initializers(opened)[name]
        if name not in already:
            opened.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        opened.graph.initializer.remove(tensor)
    return opened


@contextmanager
def replaced_tensors(model: onnx.ModelProto, tensors: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
    """Give the named initializers other values inside the context."""
    replaced = [tensor for tensor in model.graph.initializer if tensor.name in tensors]
    kept = deepcopy(replaced)
    for tensor in replaced:
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(tensors[tensor.name]), tensor.name))
    try:
        yield
    finally:
        for tensor, before in zip(replaced, kept, strict=True):
            tensor.CopyFrom(before)


def split_after(model: onnx.ModelProto, names: Sequence[str]) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Cut a model, its nodes in order of computation, after the last node that reads one of the named initializers.

    The cut is moved on to where the fewest values cross it, but not past the next node that computes with weights.
    Inputs of the second part are outputs of the first or inputs of the whole. Each output is one of either.
    Raises ValueError if everything lies before the cut, or the type of a value at the cut is unknown.
    """
    nodes = list(model.graph.node)
    last = max(index for index, node in enumerate(nodes) if set(node.input) & set(names))
    heavy = (index for index in range(last + 1, len(nodes)) if nodes[index].op_type in _HEAVY)
    crossing = {cut: _crossing(model, cut) for cut in range(last + 1, next(heavy, len(nodes) - 1) + 1)}
    if not crossing:
        raise ValueError("there is nothing after the patched convolutions")
    cut, between = min(reversed(crossing.items()), key=lambda item: len(item[1]))
    inputs = data_inputs(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    inferred.graph.value_info.extend(inferred.graph.output)  # where onnx before 1.19 looks for them
    extractor = onnx.utils.Extractor(inferred)
    stem = extractor.extract_model(_read(nodes[:cut], inputs), [name for name in between if name not in inputs])
    outputs = [value.name for value in model.graph.output if value.name not in between]
    return stem, extractor.extract_model(_read(nodes[cut:], between), outputs)


def _read(nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> list[str]:
    read = {name for node in nodes for name in node.input}
    return [name for name in names if name in read]


def _crossing(model: onnx.ModelProto, cut: int) -> list[str]:
    """Return the values, other than initializers, that exist before node `cut` and are read from there on."""
    nodes = list(model.graph.node)
    before = [*data_inputs(model), *(name for node in nodes[:cut] for name in node.output)]
    after = {name for node in nodes[cut:] for name in node.input} | {value.name for value in model.graph.output}
    return [name for name in before if name in after]


def _constants_to_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which Constants and Identities that feed a Conv or BatchNorm are initializers."""
    changed = deepcopy(model)
    graph = changed.graph
    producers = {output: node for node in graph.node for output in node.output}
    for node in [node for node in graph.node if node.op_type in ("Conv", "BatchNormalization")]:
        for index, name in enumerate(node.input[1:], start=1):
            while name in producers and producers[name].op_type == "Identity":
                name = producers[name].input[0]
            producer = producers.get(name)
            value = producer.attribute[0] if producer is not None and producer.op_type == "Constant" else None
            if value is not None and value.name == "value" and name not in _initializers(changed):
                tensor = graph.initializer.add()
                tensor.CopyFrom(value.t)
                tensor.name = name
                graph.node.remove(producer)
            if name in _initializers(changed):
                node.input[index] = name
    return changed


def _foldable(model: onnx.ModelProto, batchnorm: onnx.NodeProto) -> onnx.NodeProto | None:
    tensors = _initializers(model)
    producers = [node for node in model.graph.node if batchnorm.input[0] in node.output]
    training = any(attribute.name == "training_mode" and attribute.i for attribute in batchnorm.attribute)
    convolution: onnx.NodeProto | None = producers[0] if producers else None
    if training or convolution is None or convolution.op_type != "Conv":
        return None
    parameters = [*convolution.input[1:], *batchnorm.input[1:5]]
    readers = sum(list(node.input).count(batchnorm.input[0]) for node in model.graph.node)
    is_output = any(value.name == batchnorm.input[0] for value in model.graph.output)
    if readers != 1 or is_output or any(name and name not in tensors for name in parameters):
        return None
    return convolution


def _initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _add_initializer(model: onnx.ModelProto, name: str, array: NDArray[Any]) -> str:
    """Add a tensor under `name`, or under a free name like it; returns the name."""
    taken = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input}
    taken |= {part for node in model.graph.node for part in (*node.input, *node.output)}
    free = next(free for free in chain([name], (f"{name}_{number}" for number in count(2))) if free not in taken)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), free))
    return free


def _drop_unused(model: onnx.ModelProto, names: set[str]) -> None:
    """Remove those of the named initializers that no node reads, also if they are listed as inputs."""
    used = {name for node in model.graph.node for name in node.input}
    for part in (model.graph.initializer, model.graph.input):
        for item in [item for item in part if item.name in names - used]:
            part.remove(item)

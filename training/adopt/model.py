"""Convert a third-party model to what a bundle holds; its outputs stay the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from rws.edge.onnx.check import check_network
from rws.edge.onnx.graph import data_input, prepare, read_model
from rws.edge.onnx.int8 import dequantised, float_outputs, float_shallow, is_quantised
from rws.edge.preprocess import Fit, InputSpec
from rws.edge.tasks.base import TaskSpec
from rws.errors import BundleError, InputError, UsageError
from rws.training.adopt import graph
from rws.training.adopt.batch import freed
from rws.training.adopt.graph import Preprocessing, Runner, opset
from rws.training.adopt.outputs import Reading, Wanted, check_wanted, count_classes, find_task
from rws.training.adopt.trainable import layers_within
from rws.training.data.names import fitted, names_in_metadata

_HALF = 0.02  # what numbers of 16 bits may change, as a part of the largest output
_COLOUR: Mapping[int, str] = {1: "GREY", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class ImportOptions:
    """What the user states about a model; the rest is read from it.

    `size` is height and width of the input, pixels, if the graph leaves them free, `fit` as in `InputSpec`; `names` are
    class names as `read_names` gives them. Of an int8 model `layers` convolutions become float32, 0: see
    `layers_within`.
    """

    size: tuple[int, int] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    wanted: Wanted = field(default_factory=Wanted)
    names: Sequence[str] | None = None
    fit: Fit | None = None
    layers: int = 0


@dataclass(frozen=True)
class ImportedModel:
    """A model that a bundle can hold; its graph went through `prepare` and has exactly the outputs that the task reads.

    `shapes` are those of one image, without batch axis; `batch` is None if it is free. `classes` are names in the order
    of the outputs if they are known; `changes` says in words what was done to the model, `reason` why it has that task.
    """

    onnx: bytes = field(repr=False)
    input: InputSpec
    task: TaskSpec
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    batch: int | None
    classes: tuple[str, ...] | None
    changes: tuple[str, ...]
    reason: str = ""

    @property
    def class_count(self) -> int | None:
        """How many classes the outputs speak of; None if they do not say."""
        known = count_classes(self.task, self.shapes)
        return len(self.classes) if known is None and self.classes is not None else known


def adopt_model(model: bytes, options: ImportOptions | None = None) -> ImportedModel:
    """Convert a model, ONNX bytes, to what a bundle holds; the preprocessing becomes a part of the graph.

    Raises UsageError, which names the option, if it is not safe to tell what an input or output means, and BundleError
    if the model cannot be patched or run, or its outputs change.
    """
    options = options or ImportOptions()
    original = read_model(model)
    changes: list[str] = []
    proto, spec, given, tolerance = _float_graph(original, options, changes)
    images = _random_images(spec, 2 * given)
    changes += _images_first(proto, images[:given])
    expected = _run_parts(Runner(proto), images, given)
    proto = graph.simplified(proto)
    graph.pad_explicitly(proto)
    names = options.names or names_in_metadata(original)
    count = None if names is None else len([name for name in names if name])
    plain = dequantised(proto) if is_quantised(proto) else proto
    reading = find_task(plain, expected, (spec.height, spec.width), options.wanted, count)
    graph.keep_outputs(proto, reading.outputs)
    graph.drop_unused(proto)
    if others := [value.name for value in original.graph.output if value.name not in reading.outputs]:
        changes.append(f"outputs that were left out: {', '.join(others)}"[:200])
    steps = dict(_shaped(proto, reading, expected[reading.outputs[0]].shape[1:]))
    changes += steps.values()
    wanted = {name: expected[name] for name in reading.outputs}
    proto, batch, found = _settled(prepare(proto), images, given, wanted, tolerance, list(steps))
    if batch is None and (data_input(original).shape or (None,))[0] is not None:
        changes.append(f"its batch of {given} was made free")
    shapes = tuple(found[name].shape[1:] for name in reading.outputs)
    graph.declare_outputs(proto, shapes, batch)
    check_network(proto, "model", (batch or 1, *spec.shape), proto.ByteSize())
    spec = replace(spec, fit=options.fit or ("letterbox" if reading.task.name in ("detect", "segment") else "crop"))
    classes = _classes(reading, shapes, names, must=options.names is not None)
    content, outputs, said = proto.SerializeToString(), reading.outputs, tuple(changes)
    imported = ImportedModel(content, spec, reading.task, outputs, shapes, batch, classes, said, reading.reason)
    return with_preprocessing(imported, options.preprocessing)


def _float_graph(
    original: onnx.ModelProto, options: ImportOptions, changes: list[str]
) -> tuple[onnx.ModelProto, InputSpec, int, float]:
    """Return a copy whose shallow part is float32, its input's shape known, with the wanted outputs.

    Returns also what the input takes, for how many images at once, and how much its outputs may change.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    if proto.functions:
        proto = graph.inlined(proto)
        changes.append("its local functions were inlined")
    _check(proto)
    if half := graph.widened(proto):
        changes.append("its 16-bit numbers became float32, which patches are")
    shape, spec = _input(proto, options)
    graph.set_input(proto, shape)
    if kind := is_quantised(proto):
        layers = options.layers or layers_within(prepare(dequantised(proto)))
        proto = float_outputs(float_shallow(proto, layers))
        changes.append(f"its first {layers} convolutions became float32, the others stay {kind}")
    check_wanted(options.wanted, proto)
    if options.wanted.outputs:
        graph.keep_outputs(proto, options.wanted.outputs)
    return proto, spec, shape[0], _HALF if half or kind else graph.TOLERANCE


def with_preprocessing(model: ImportedModel, preprocessing: Preprocessing) -> ImportedModel:
    """Return the model with its preprocessing: colour order and range in `input`, all else in front of the graph."""
    spec = model.input
    if spec.dtype == "uint8" and replace(preprocessing, bgr=False, scale=1.0) != Preprocessing():
        raise UsageError("model: takes uint8, 0…255, so --mean and --std cannot be put in front of it; leave them out")
    if preprocessing.bgr and spec.colour != "RGB":
        raise UsageError(f"model: takes {spec.colour} images, which have no other order of colours; leave --bgr out")
    high: Literal[1, 255] = 255 if preprocessing.scale == 255 or spec.dtype == "uint8" else 1
    proto = onnx.load_model_from_string(model.onnx)
    graph.prepend(proto, replace(preprocessing, scale=1.0 if high == 255 else preprocessing.scale), spec.layout)
    spec = replace(spec, high=high, colour="BGR" if preprocessing.bgr else spec.colour)
    changed = proto.SerializeToString() != model.onnx
    note = (f"its preprocessing was put in front: {preprocessing}",) if changed else ()
    return replace(model, onnx=proto.SerializeToString(), input=spec, changes=(*model.changes, *note))


def _check(proto: onnx.ModelProto) -> None:
    """Refuse what cannot become a bundle, whatever else is in it."""
    known = onnx.defs.onnx_opset_version()
    if opset(proto) > known:
        raise BundleError(f"model: is of opset {opset(proto)}, the installed onnx knows {known}; export it for that")
    for value in (*proto.graph.input, *proto.graph.output):
        if not value.name.isprintable():
            raise BundleError(f"model: the name {value.name!r:.80} is not printable text; export it with other names")
    kinds = sorted({node.op_type for node in proto.graph.node})
    if not {"Conv", "QLinearConv", "ConvInteger"} & set(kinds):
        raise BundleError(f"model: has no Conv (it has {', '.join(kinds[:6])}, …); signatures change convolutions")


def _input(proto: onnx.ModelProto, options: ImportOptions) -> tuple[tuple[int, ...], InputSpec]:
    """Return the input's shape, all lengths known, and what it takes."""
    name, found, dtype = data_input(proto)
    shape: list[int | None] = list(found) or [None] * 4
    if len(shape) != 4:
        raise BundleError(
            f"model: takes {_written(found)}, expected images, (N, C, H, W) or (N, H, W, C); export it for those"
        )
    readers = [node for node in proto.graph.node if name in node.input]
    turned = any(
        helper.get_node_attr_value(node, "perm")[:2] == [0, 3]
        for node in readers
        if node.op_type == "Transpose" and node.attribute
    )
    last = shape[1] not in _COLOUR and (shape[3] in _COLOUR or turned)
    axes = (3, 1, 2) if last else (1, 2, 3)
    channels, *sides = (shape[axis] for axis in axes)
    channels = _channels(proto) if channels is None else channels
    if channels not in _COLOUR:
        raise BundleError(f"model: takes {_written(found)}, expected 1, 3 or 4 channels; export it for images")
    height, width = _size(sides, options.size, proto)
    layout = "NHWC" if last else "NCHW"
    spec = InputSpec(height, width, _COLOUR[channels], layout, dtype, 255 if dtype == "uint8" else 1)  # type: ignore[arg-type]
    return (shape[0] or 1, *spec.shape), spec


def _channels(proto: onnx.ModelProto) -> int:
    """Return how many channels the first convolution reads."""
    sizes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    return sizes[first.input[1]][1] if first.input[1] in sizes else 3


def _written(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if length is None else str(length) for length in shape) + ")"


def _by(sides: Sequence[int | None]) -> str:
    return "x".join("?" if side is None else str(side) for side in sides)


def _size(found: Sequence[int | None], given: tuple[int, int] | None, proto: onnx.ModelProto) -> tuple[int, int]:
    written = next((entry.value for entry in proto.metadata_props if entry.key == "imgsz"), "")  # Ultralytics
    numbers = [int(word) for word in written.strip("[] ").split(",") if word.strip().isdecimal()]
    sizes = given or (tuple(numbers) if len(numbers) == 2 else (None, None))
    result = [one or other for one, other in zip(found, sizes, strict=True)]
    if given is not None and tuple(result) != given:
        raise UsageError(
            f"--size {_by(given)}, but the model takes {_by(found)} pixels (height x width); leave --size out"
        )
    if None in result:
        raise UsageError(f"model: leaves its size free, {_by(found)}: say with --size HEIGHTxWIDTH what to build for")
    height, width = (int(length or 0) for length in result)
    if not 8 <= min(height, width) <= max(height, width) <= 4096:
        raise InputError(f"model: takes {height}x{width} pixels, expected sides of 8 to 4096")
    return height, width


def _random_images(spec: InputSpec, count: int) -> NDArray[Any]:
    images = np.random.default_rng(0).random((count, *spec.shape), np.float32)
    return (images * 255).astype(np.uint8) if spec.dtype == "uint8" else images.astype(spec.dtype)


def _images_first(proto: onnx.ModelProto, images: NDArray[Any]) -> Iterator[str]:
    """Turn outputs whose second axis is that of the images, as recurrent layers give them; yields what was done."""
    run = Runner(proto)
    for name, shape in zip(run.names, [output.shape for output in run(images)], strict=True):
        if len(shape) > 2 and shape[0] != len(images) == shape[1]:
            graph.append(proto, name, ("Transpose", ["before"], {"perm": [1, 0, *range(2, len(shape))]}))
            yield f"its output {name} had the images along the second axis, which became the first"


def _run_parts(run: Runner, images: NDArray[Any], batch: int) -> dict[str, NDArray[Any]]:
    """Run images in parts of a batch; returns each output, with one row per image. BundleError if it has not."""
    parts = [run(images[start : start + batch]) for start in range(0, len(images), batch)]
    for name, results in zip(run.names, zip(*parts, strict=True), strict=True):
        shapes = [shape for shape, _ in groupby(result.shape for result in results)]
        if len(shapes) > 1 or not shapes[0] or shapes[0][0] != batch:
            each = f"{' or '.join(map(str, shapes[:2]))} for {batch} image{'s' * (batch > 1)}"
            cure = "export it with the images first and without NMS, or name values before that with --output"
            raise BundleError(f"model: output {name} has the shape {each}, expected one row per image; {cure}")
    return {name: np.concatenate(results) for name, results in zip(run.names, zip(*parts, strict=True), strict=True)}


def _settled(
    fixed: onnx.ModelProto,
    images: NDArray[Any],
    batch: int,
    expected: Mapping[str, NDArray[Any]],
    tolerance: float,
    taken: Sequence[str],
) -> tuple[onnx.ModelProto, int | None, dict[str, NDArray[Any]]]:
    """Return the graph with a free batch if two different images at once give what each gives alone, else as it is.

    Returns also the batch, None if it is free, and the outputs. BundleError if they are not as expected.
    """
    free = freed(fixed)
    for proto, size in ((free, 2 * batch), (fixed, batch)):
        try:
            if proto is not None:
                found = _run_parts(Runner(proto), images, size)
                for name, before in expected.items():
                    after = _as_before(found[name], taken).reshape(before.shape)
                    graph.compare(after, before, "after it was prepared", tolerance)
                return proto, None if proto is free else batch, found
        except BundleError:
            if proto is fixed:
                raise
    raise BundleError("model: cannot be prepared")


def _shaped(proto: onnx.ModelProto, reading: Reading, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Take off what turns logits into probabilities, and bring class vectors to (N, K).

    Yields the kind of each node that was taken off or added, and what was done in words.
    """
    if reading.task.name in ("raw", "detect"):
        return
    name = reading.outputs[0]
    for kind in ("Softmax", "Sigmoid"):
        if graph.without_last(proto, name, kind):
            yield kind, f"the last {kind} was taken off: the bundle's model gives logits"
    if reading.task.name == "segment" and shape[0] == 1:
        graph.append(proto, name, ("Sub", ["before", "before"], {}), ("Concat", ["last", "before"], {"axis": 1}))
        yield "Concat", "its map of one probability became logits of background and foreground"
    elif reading.task.name != "segment" and len(shape) != 1:
        lengths = graph.add_constant(proto, f"{name}.lengths", np.array([-1, max(shape, default=1)], np.int64))
        graph.append(proto, name, ("Reshape", ["before", lengths], {}))
        yield "", f"its output of shape {shape} per image was flattened"


def _as_before(values: NDArray[Any], taken: Sequence[str]) -> NDArray[Any]:
    """Apply to an output what the removed nodes computed."""
    if "Softmax" in taken or "Concat" in taken:
        powers = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
        values = powers / powers.sum(1, keepdims=True)
        return values[:, 1:] if "Concat" in taken else values
    return 1 / (1 + np.exp(-values.astype(np.float64))) if "Sigmoid" in taken else values


def _classes(
    reading: Reading, shapes: Sequence[tuple[int, ...]], names: Sequence[str] | None, *, must: bool
) -> tuple[str, ...] | None:
    """Return the class names in the order of the outputs; None if they are unknown. InputError if they `must` fit."""
    count = count_classes(reading.task, shapes)
    if names is None or reading.task.name == "raw":
        return None
    fits = fitted(names, count)
    if fits is None and must:
        raise InputError(f"{len(names)} class names, but the model gives {count} classes ({reading.reason})")
    return None if fits is None else tuple(fits)

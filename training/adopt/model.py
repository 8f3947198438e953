"""Convert a third-party classifier so that signatures can be trained for it; its outputs stay the same."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from rws.edge.onnx.check import check_network
from rws.edge.onnx.graph import data_input, output_shape, prepare, read_model
from rws.errors import BundleError, InputError, UsageError, first_line
from rws.training.adopt import graph
from rws.training.adopt.graph import Preprocessing, opset, run_onnx
from rws.training.models.export import OPSET, export_onnx


@dataclass(frozen=True)
class ImportedModel:
    """A classifier that meets the bundle's contract: float32 (N, 3, size, size), RGB, 0…1, to logits (N, classes).

    Its graph went through `prepare`; `changes` says in words what was done to the model as it came.
    """

    onnx: bytes
    size: int
    classes: int
    changes: tuple[str, ...]


def load_classifier(model: str, size: int | None) -> bytes:
    """Return the ONNX bytes of an `.onnx` file, or of the module that `package.module:factory` without arguments gives.

    The working folder is searched for it, too. The module takes float32 (N, 3, size, size); a file needs no size.
    Raises InputError if the factory cannot be used, UsageError without `size`, BundleError for an unreadable file.
    """
    name, colon, factory = model.partition(":")
    if not colon or Path(model).is_file():
        return bytes(read_model(Path(model)).SerializeToString())
    if size is None:
        raise UsageError(f"{model} is a torch module: say with --size how many pixels its input has")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(name), factory)
    except Exception as error:  # whatever a user's own file raises when it is read
        raise InputError(f"{model}: {_said(error)}; give package.module:factory") from error
    finally:
        sys.path.pop(0)
    try:
        module = found()
    except Exception as error:
        raise InputError(f"{model}: the factory raised {_said(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{model} gave a {type(module).__name__}, expected a torch.nn.Module")
    try:
        return export_onnx(module.eval(), size)
    except Exception as error:  # the exporter's errors share no base
        raise InputError(f"{model}: torch cannot export it for {size} px ({_said(error)})") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def adopt_model(model: bytes, preprocessing: Preprocessing, size: int | None = None) -> ImportedModel:
    """Bring a classifier, ONNX bytes, to the bundle's contract; `preprocessing` becomes a part of the graph.

    `size` is the side of the input, pixels, if the graph leaves it free; UsageError if it is missing or differs.
    BundleError if the model is not an image classifier in float32, or its outputs change.
    """
    original = read_model(model)
    _check_weights(original)
    proto = onnx.ModelProto()
    proto.CopyFrom(original)
    changes: list[str] = []
    shape = data_input(proto).shape
    channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or shape[3 if channels_last else 1] not in (3, None):
        takes = _written(shape)
        raise BundleError(f"model: takes {takes}, expected (N, 3, H, W) or (N, H, W, 3); export it for images")
    if proto.graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise BundleError("model: its input is not float32; export it in float32")
    side = _side(shape[1:3] if channels_last else shape[2:], size)
    if cut := graph.without_softmax(proto):
        changes.append("the last node, Softmax, was taken off: the bundle's model gives logits")
    if others := [value.name for value in proto.graph.output[1:]]:
        changes.append(f"of its outputs only the first was kept, not {', '.join(others)}")
        del proto.graph.output[1:]
    if shape[0] != 1 and shape[0] is not None:
        raise BundleError(f"model: takes batches of {shape[0]}, expected a free batch; export it with a dynamic batch")
    if shape[0] == 1:
        graph.free_batch(proto)
        changes.append("the batch of 1 was made free")
    graph.prepend(proto, preprocessing, side, channels_last)
    if channels_last:
        changes.append("a transpose from NCHW to its NHWC was put in front")
    if preprocessing != Preprocessing():
        changes.append(f"its preprocessing was put in front: {preprocessing}")
    version = opset(proto)
    proto = graph.lowered(proto)
    if opset(proto) != version:
        changes.append(f"opset {version} became {OPSET}, for which its operators can be trained through")
    proto = prepare(graph.simplified(proto))
    check_network(proto, "model", (1, 3, side, side), proto.ByteSize())
    images = np.random.default_rng(0).random((2, 3, side, side), np.float32)
    try:
        found = run_onnx(proto, images)
    except Exception as error:  # ONNX Runtime's error types share no base but Exception
        raise BundleError(f"model: ONNX Runtime cannot run two images of {side} px ({first_line(error)})") from error
    if found.ndim != 2 or len(found) != 2:
        shape = output_shape(proto)
        raise BundleError(f"model: gives {_written(shape)}, expected logits (N, classes); export the classifier")
    expected = np.concatenate([_run_original(original, preprocessing, channels_last, image) for image in images])
    if found.min() >= 0 and np.abs(found.sum(1) - 1).max() < graph.TOLERANCE:
        raise BundleError("model: gives probabilities, expected logits; export it without what turns them into those")
    graph.compare(torch.from_numpy(found).softmax(1).numpy() if cut else found, expected, "after it was prepared")
    return ImportedModel(proto.SerializeToString(), side, found.shape[1], tuple(changes))


def _check_weights(proto: onnx.ModelProto) -> None:
    if not any(node.op_type == "Conv" for node in proto.graph.node):
        kinds = ", ".join(sorted({node.op_type for node in proto.graph.node})[:6])
        found = f"model: has no Conv with float32 weights (it has {kinds}, …); signatures change convolutions"
        raise BundleError(f"{found}: give the float32 model, not a quantised one")


def _written(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if length is None else str(length) for length in shape) + ")"


def _side(found: Sequence[int | None], size: int | None) -> int:
    height, width = found
    if height != width:
        raise InputError(f"model: takes {width}x{height} pixels; only square inputs can be built for")
    if height is None and size is None:
        raise UsageError("model: leaves its height and width free; say with --size how many pixels to build for")
    if height is not None and size not in (None, height):
        raise UsageError(f"--size {size}, but the model takes {height}x{height} pixels; leave --size out")
    return cast(int, size if height is None else height)


def _run_original(
    original: onnx.ModelProto, preprocessing: Preprocessing, channels_last: bool, image: NDArray[np.float32]
) -> NDArray[np.float32]:
    x = image[::-1] if preprocessing.bgr else image
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    x = ((x * preprocessing.scale - mean) / std).astype(np.float32)
    return run_onnx(original, np.ascontiguousarray(x.transpose(1, 2, 0) if channels_last else x)[None])

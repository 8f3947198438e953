"""A whole bundle, tiny: three convolutions at 8 x 8 pixels, three corruptions, made without torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rws.edge.bundle.edit import BundleParts
from rws.edge.onnx.graph import clean_tensors, shallow_tensors
from rws.edge.preprocess import InputSpec
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.oracle.policy import GainTable

CLASSES = ("circle", "square", "star", "wave")
CORRUPTIONS = ("gaussian_noise", "fog", "contrast")
LEVELS = (1.0, 3.0, 5.0)
SIZE = 8


def network(convolutions: int, outputs: int, seed: int, softmax: bool = False, size: int = SIZE) -> onnx.ModelProto:
    """Convolutions of 6 channels with ReLU, global average pooling, one linear layer."""
    rng = np.random.default_rng(seed)
    tensors, nodes = {}, []
    value, channels = "image", 3
    for index in range(convolutions):
        tensors[f"features.{index}.weight"] = rng.normal(0, 0.4, (6, channels, 3, 3)).astype(np.float32)
        tensors[f"features.{index}.bias"] = rng.normal(0, 0.1, 6).astype(np.float32)
        inputs = [value, f"features.{index}.weight", f"features.{index}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{index}"], name=f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]))
        value, channels = f"relu{index}", 6
    tensors["head.weight"] = rng.normal(0, 1, (outputs, 6)).astype(np.float32)
    tensors["head.bias"] = np.zeros(outputs, np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], transB=1))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["joint"], axis=1))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("joint" if softmax else "logits", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def make_signatures(clean: dict[str, np.ndarray], names=CORRUPTIONS, seed: int = 0, **code) -> SignatureSet:
    rng = np.random.default_rng(seed)
    deltas = {
        name: {tensor: rng.normal(0, 0.2, array.shape).astype(np.float32) for tensor, array in clean.items()}
        for name in names
    }
    return SignatureSet.from_deltas(deltas, clean_hash=shallow_sha256(clean), **code)


def clean() -> dict[str, np.ndarray]:
    """The patched tensors of the bundle that `bundle_parts` makes."""
    model = network(3, len(CLASSES), seed=1)
    return clean_tensors(model, shallow_tensors(model, 2))


def bundle_parts(**changes) -> BundleParts:
    """What `write_bundle` takes, with changes of its fields."""
    model = network(3, len(CLASSES), seed=1)
    states, actions = 1 + len(CORRUPTIONS) * len(LEVELS), 1 + 2 * len(CORRUPTIONS)
    rng = np.random.default_rng(2)
    parts = BundleParts(
        name="tiny",
        classes=CLASSES,
        input=InputSpec(SIZE, SIZE, "RGB"),
        model=model.SerializeToString(),
        signatures=make_signatures(clean()),
        oracle=network(1, states, seed=3, softmax=True).SerializeToString(),
        table=GainTable(
            CORRUPTIONS,
            LEVELS,
            signature=np.array([-1, 0, 0, 1, 1, 2, 2], np.int64),
            alpha=np.array([0, 0.5, 1, 0.5, 1, 0.5, 1], np.float32),
            accuracy=rng.uniform(20, 90, (states, actions)).astype(np.float32),
        ),
        policy={"margin": 0.5},
        filter={"jump": 0.05},
        provenance={"seed": 1},
        measured={"ta": 25.0},
    )
    return replace(parts, **changes)


def failing_oracle(kind: str) -> bytes:
    """An oracle that fails on images with a white pixel only: `nan`, `inf`, `shape` (no row) or `error` (no answer)."""
    proto = network(1, 1 + len(CORRUPTIONS) * len(LEVELS), seed=3, softmax=True)
    graph = proto.graph
    graph.node[-1].output[0] = "good"
    one, factor = np.ones(1, np.float32), np.full((1, 1), np.inf, np.float32)
    graph.initializer.extend([numpy_helper.from_array(one, "one"), numpy_helper.from_array(factor, "infinite")])
    steps = {
        "nan": [("Div", ["room", "room"], "factor"), ("Mul", ["good", "factor"], "joint")],
        "inf": [("Where", ["dark", "good", "infinite"], "joint")],
        "shape": [("Compress", ["good", "dark"], "joint")],
        "error": [("Cast", ["brightest"], "row"), ("Gather", ["good", "row"], "joint")],
    }
    # The brightest value is 1 in a white pixel: no room is left above it, and row 1 of one row is out of bounds.
    before = [
        ("ReduceMax", ["image"], "brightest_of_all"),
        ("Reshape", ["brightest_of_all", "length"], "brightest"),
        ("Sub", ["one", "brightest"], "room"),
        ("Less", ["brightest", "one"], "dark"),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "length"))
    for operator, inputs, output in before + steps[kind]:
        options = {"axis": 0} if operator in ("Compress", "Gather") else {}
        options |= {"to": TensorProto.INT64} if operator == "Cast" else {}
        graph.node.append(helper.make_node(operator, inputs, [output], **options))
    return proto.SerializeToString()


def taking(spec: InputSpec, model: onnx.ModelProto, batch: int | None = None) -> onnx.ModelProto:
    """Let a model of float32 (N, 3, height, width), RGB, 0…1, take images as `spec` says, and a fixed batch."""
    graph = model.graph
    given = graph.input[0]
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}
    channels = {"RGB": (0, 1, 2), "BGR": (2, 1, 0), "GREY": (0, 0, 0), "RGBA": (0, 1, 2)}[spec.colour]
    steps = [("Cast", ["given"], {"to": TensorProto.FLOAT})]
    if spec.layout == "NHWC":
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    steps += [("Gather", ["channels"], {"axis": 1}), ("Div", ["high"], {})]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(channels, np.int64), "channels"),
            numpy_helper.from_array(np.float32(spec.high), "high"),
        ]
    )
    value = "given"
    for index, (operator, others, options) in reversed(list(enumerate(steps))):
        before = "given" if index == 0 else f"step{index - 1}"
        after = given.name if index == len(steps) - 1 else f"step{index}"
        inputs = [before] if index == 0 else [before, *others]
        graph.node.insert(0, helper.make_node(operator, inputs, [after], **options))
    graph.input.remove(given)
    graph.input.append(helper.make_tensor_value_info(value, kinds[spec.dtype], [batch or "N", *spec.shape]))
    if batch:
        for output in graph.output:
            output.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def with_features(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give the values before the linear layer as a second output, `flat`, (N, 6)."""
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 6]))
    return model

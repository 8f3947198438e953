"""ONNX graphs as torch modules: the graph itself, its parameters, and what is refused."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from rws.edge.onnx.graph import shallow_tensors
from rws.edge.onnx.torch_graph import to_torch
from rws.errors import BundleError, OperatorError
from support.graphs import graph_of, onnx_runtime
from support.tiny import network

X = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    module, _ = to_torch(model, [])
    with torch.inference_mode():
        return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]


def pooled_by(kind: str) -> onnx.ModelProto:
    """The tiny network, whose pooling or flattening is exported as torch does it."""
    model = network(2, 4, seed=0)
    nodes = {node.op_type: node for node in model.graph.node}
    if kind == "ReduceMean":
        node, shape = nodes["GlobalAveragePool"], np.array([2, 3])
        node.attribute.append(helper.make_attribute("keepdims", 1))
    else:
        node, shape = nodes["Flatten"], np.array([-1, 6])
        node.attribute.append(helper.make_attribute("allowzero", 1))
    node.op_type = kind
    node.input.append("shape")
    model.graph.initializer.append(numpy_helper.from_array(shape.astype(np.int64), "shape"))
    return model


@pytest.mark.parametrize("kind", ["ReduceMean", "Reshape"])
def test_the_module_computes_the_same_from_the_same_weights_and_the_model_stays_as_it_is(kind):
    model = pooled_by(kind)
    before = model.SerializeToString()
    module, parameters = to_torch(model, shallow_tensors(model, 2))
    assert model.SerializeToString() == before
    with torch.inference_mode():
        (found,) = module(torch.from_numpy(X))
    np.testing.assert_allclose(found.numpy(), onnx_runtime(model, X)[0], atol=1e-5)
    assert dict(module.named_parameters()).keys() == set(parameters.values())
    for tensor, name in parameters.items():
        wanted = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == tensor)
        assert module.get_parameter(name).detach().numpy().tobytes() == wanted.tobytes()


def test_a_tensor_of_any_operator_becomes_a_parameter_and_one_that_several_share_one_parameter():
    weight = np.random.default_rng(1).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "factor"], ["y"]),
    ]
    factor = np.float32([0.5, 2, -1]).reshape(3, 1, 1)
    model = graph_of(nodes, {"x": X}, {"w": weight, "factor": factor})
    module, names = to_torch(model, ["factor", "w"])
    assert list(names) == ["factor", "w"]
    y = module(torch.from_numpy(X))[0]
    np.testing.assert_allclose(y.detach().numpy(), onnx_runtime(model, X)[0], atol=1e-5)
    y.square().sum().backward()
    gradients = {tensor: module.get_parameter(name).grad for tensor, name in names.items()}
    assert all(
        gradient.shape == value.shape for gradient, value in zip(gradients.values(), (factor, weight), strict=True)
    )
    step, grown = 1e-3, weight.copy()
    grown[1, 2] += step
    change = [onnx_runtime(graph_of(nodes, {"x": X}, {"w": w, "factor": factor}), X)[0] for w in (weight, grown)]
    slope = (
        sum(float((each.astype(np.float64) ** 2).sum()) * sign for each, sign in zip(change, (-1, 1), strict=True))
        / step
    )
    assert gradients["w"][1, 2].item() == pytest.approx(slope, rel=0.05)


def shapes_at_run_time() -> onnx.ModelProto:
    """A network whose Reshape, padding and interpolation follow from the shape of its input, as exporters do."""
    constants = {
        "zero": np.int64(0),
        "two": np.int64(2),
        "first": np.int64([0]),
        "minus": np.int64([-1]),
        "factor": np.float32(1.5),
        "ends": np.int64([2]),
        "starts": np.int64([0]),
        "none": np.int64([0, 0, 0]),
        "no": np.int64([0]),
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["height"], axis=0),
        helper.make_node("Cast", ["height"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "factor"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["length"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["length", "first"], ["one"]),
        helper.make_node("Slice", ["shape", "starts", "ends", "first"], ["front"]),
        helper.make_node("Concat", ["front", "one", "one"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["larger"], mode="linear"),
        helper.make_node("Mod", ["length", "two"], ["odd"]),
        helper.make_node("Unsqueeze", ["odd", "first"], ["odd1"]),
        helper.make_node("Concat", ["none", "no", "none", "odd1"], ["pads"], axis=0),
        helper.make_node("Pad", ["larger", "pads"], ["even"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "minus"], ["flat"], axis=0),
        helper.make_node("Reshape", ["even", "flat"], ["y"]),
    ]
    return graph_of(nodes, {"x": ["n", 3, "h", "w"]}, constants)


def test_shapes_are_numbers_so_that_the_whole_graph_compiles():
    model = shapes_at_run_time()
    module, _ = to_torch(model, [])
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for compute, size in ((compiled, (2, 3, 6, 6)), (compiled, (3, 3, 6, 6)), (module, (1, 3, 8, 8))):
        x = np.random.default_rng(size[0]).random(size, np.float32)
        np.testing.assert_allclose(compute(torch.from_numpy(x))[0].numpy(), onnx_runtime(model, x)[0], atol=1e-5)


def test_an_expansion_to_the_length_of_the_batch_as_the_old_exporter_writes_it():
    constants = {
        "token": np.float32([[[1, 2]]]),
        "zero": np.int64(0),
        "first": np.int64([0]),
        "all": np.int64([-1, -1]),
    }
    constants |= {"minus": np.int64(-1)}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "all"], ["wanted"], axis=0),
        helper.make_node("Shape", ["wanted"], ["rank"]),
        helper.make_node("ConstantOfShape", ["rank"], ["ones"], value=numpy_helper.from_array(np.int64([1]))),
        helper.make_node("Mul", ["ones", "minus"], ["negative"]),
        helper.make_node("Equal", ["wanted", "negative"], ["same"]),
        helper.make_node("Where", ["same", "ones", "wanted"], ["lengths"]),
        helper.make_node("Expand", ["token", "lengths"], ["y"]),
    ]
    model = graph_of(nodes, {"x": ["n", 3, 8, 8]}, constants)
    (y,) = run(model, X)
    np.testing.assert_array_equal(y, onnx_runtime(model, X)[0])
    assert y.shape == (2, 1, 2)


def test_every_output_is_given_in_its_type_also_a_constant_and_a_shape():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Add", ["c", "c"], ["twice"]),
        helper.make_node("ArgMax", ["x"], ["top"], axis=1),
    ]
    names = ["y", "twice", "top", "shape"]
    model = graph_of(nodes, {"x": X}, {"c": np.float32([1, 2])}, names)
    for found, wanted in zip(run(model, X), onnx_runtime(model, X), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


def test_local_functions_are_put_in_place():
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "NegRelu", ["a"], ["c"], body, opsets)
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": X})
    model.graph.node[0].CopyFrom(helper.make_node("NegRelu", ["x"], ["y"], domain="mine"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    np.testing.assert_array_equal(run(model, X)[0], -np.maximum(X, 0))


def test_operators_that_are_unknown_are_all_named_in_one_line():
    model = network(2, 4, seed=0)
    model.graph.node[1].op_type = "Shrink"
    model.graph.node[2].domain = "vendor"
    with pytest.raises(
        OperatorError, match=r"^model: torch has no counterpart of Shrink, vendor\.Conv; export [^\n]*$"
    ):
        to_torch(model, [])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), r"dilations = \[2, 2\]"),
        (helper.make_node("MaxPool", ["x"], ["y", "places"], kernel_shape=[2, 2]), "more outputs"),
        (helper.make_node("Relu", ["missing"], ["y"]), "missing"),
        (helper.make_node("Relu", ["x", "x"], ["y"]), "argument"),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING), "8"),
    ],
)
def test_a_node_that_cannot_be_computed_is_named_with_its_operator(node, message):
    with pytest.raises(OperatorError, match=rf"^model: node 'y' \({node.op_type}\) cannot[^\n]*{message}[^\n]*$"):
        run(graph_of([node], {"x": X}), X)


def test_a_graph_that_fails_only_when_it_runs_names_the_node_in_one_line():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["y"], name="/head/Reshape"),
    ]
    module, _ = to_torch(graph_of(nodes, {"x": X}, {"shape": np.int64([2, 7])}), [])
    with pytest.raises(OperatorError, match=r"^model: node '/head/Reshape' \(Reshape\) cannot be computed[^\n]*$"):
        module(torch.from_numpy(X))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [("other", "'other' is not a float32"), ("unread", "no node reads"), ("shape", "'shape' is not a float32")],
)
def test_a_tensor_that_cannot_be_a_parameter(tensor, message):
    model = pooled_by("Reshape")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "unread"))
    with pytest.raises(BundleError, match=message):
        to_torch(model, [tensor])


def test_what_is_too_old_or_of_a_type_that_torch_lacks():
    model = network(2, 4, seed=0)
    model.opset_import[0].version = 6
    with pytest.raises(OperatorError, match="opset 6, expected 7"):
        to_torch(model, [])
    model = network(2, 4, seed=0)
    model.graph.initializer.append(TensorProto(name="f8", data_type=TensorProto.FLOAT8E4M3FN, dims=[1], raw_data=b"0"))
    with pytest.raises(OperatorError, match="'f8' is FLOAT8E4M3FN"):
        to_torch(model, [])


def test_a_strided_1x1_convolution_of_few_channels_trains_without_a_crash():
    """In a separate process: torch's own, with 3 to 15 channels, kills it."""
    code = """
import numpy as np, torch
from onnx import helper
from rws.edge.onnx.torch_graph import to_torch
from support.graphs import graph_of
for channels in (3, 8, 15):
    for side in (64, 65, 112):
        w = np.random.default_rng(0).normal(size=(16, channels, 1, 1)).astype(np.float32)
        node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2])
        module, names = to_torch(graph_of([node], {"x": ["n", channels, side, side]}, {"w": w}), ["w"])
        module.to(memory_format=torch.channels_last)
        for layout in (torch.channels_last, torch.contiguous_format):
            x = torch.rand(2, channels, side, side).contiguous(memory_format=layout)
            y = module(x)[0]
            assert torch.allclose(y, torch.conv2d(x, torch.from_numpy(w), stride=2), atol=1e-5)
            y.square().sum().backward()
"""
    paths = f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}\n"
    done = subprocess.run([sys.executable, "-c", paths + code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

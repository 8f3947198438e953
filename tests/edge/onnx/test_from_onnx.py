"""ONNX graphs as torch modules, with what onnx2torch cannot do by itself."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from rws.edge.onnx.from_onnx import to_torch, unsupported_operators
from rws.edge.onnx.graph import shallow_tensors
from rws.errors import BundleError
from support.tiny import network

X = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)


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
def test_what_torch_exports_is_converted_and_the_model_stays_as_it_is(kind):
    model = pooled_by(kind)
    before = model.SerializeToString()
    module, parameters = to_torch(model, shallow_tensors(model, 2))
    assert model.SerializeToString() == before
    expected, _ = to_torch(network(2, 4, seed=0), [])
    with torch.inference_mode():
        found, wanted = (each(torch.from_numpy(X)).numpy() for each in (module.eval(), expected.eval()))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for tensor, name in parameters.items():
        wanted = next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == tensor)
        assert module.get_parameter(name).detach().numpy().tobytes() == wanted.tobytes()


def test_operators_without_a_converter_are_named():
    model = network(2, 4, seed=0)
    assert unsupported_operators(pooled_by("ReduceMean")) == []
    model.graph.node[1].op_type = "Shrink"
    model.graph.node[2].domain = "vendor"
    assert unsupported_operators(model) == ["Shrink", "vendor.Conv"]


def test_a_tensor_of_another_operator():
    with pytest.raises(BundleError, match=r"'head\.weight' is not a convolution's own"):
        to_torch(network(2, 4, seed=0), ["head.weight"])

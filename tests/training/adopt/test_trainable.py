import numpy as np
import torch

from rws.edge.onnx.graph import read_model, shallow_tensors
from rws.training.adopt.graph import run_onnx
from rws.training.adopt.model import adopt_model
from rws.training.adopt.trainable import layers_within, signature_bytes, stem, trainable
from support.classifiers import SIZE, images, tiny


def test_the_module_computes_what_the_graph_does_and_only_its_shallow_tensors_can_change():
    adopted = adopt_model(tiny().SerializeToString())
    proto = read_model(adopted.onnx)
    names = shallow_tensors(proto, 2)
    module, parameters = trainable(proto, names, SIZE)
    x = images()
    expected = run_onnx(tiny(), x)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, atol=1e-4)
    free = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert free == {id(parameter) for parameter in parameters.values()}
    assert tuple(parameters) == names


def test_the_shallow_part_alone_gives_what_the_first_deep_layer_sees():
    proto = read_model(adopt_model(tiny().SerializeToString()).onnx)
    names = shallow_tensors(proto, 2)
    part = stem(proto, names)
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 2
    module, _ = trainable(part, names, SIZE)
    with torch.no_grad():
        assert module(torch.from_numpy(images())).shape[1] == 6


def test_a_byte_budget_chooses_the_cut():
    proto = read_model(adopt_model(tiny().SerializeToString()).onnx)
    share = signature_bytes(proto, 2) / proto.ByteSize()
    assert layers_within(proto, share * 1.01) == 2
    assert layers_within(proto, 1e-6) == 1
    assert layers_within(proto, 10) == 3  # one layer stays deep

import numpy as np
import torch

from rws.edge.onnx.graph import read_model, shallow_tensors
from rws.training.adopt.graph import run_onnx
from rws.training.adopt.model import adopt_model
from rws.training.adopt.trainable import AnyBatch, layers_within, signature_bytes, stem, trainable
from support.classifiers import images, tiny


def test_the_module_computes_what_the_graph_does_and_only_its_shallow_tensors_can_change():
    adopted = adopt_model(tiny().SerializeToString())
    proto = read_model(adopted.onnx)
    names = shallow_tensors(proto, 2)
    module, parameters = trainable(proto, names, adopted.input)
    x = images()
    expected = run_onnx(tiny(), x)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x))[0].numpy(), expected, atol=1e-4)
    free = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert free == {id(parameter) for parameter in parameters.values()}
    assert tuple(parameters) == names


def test_the_shallow_part_alone_gives_what_the_first_deep_layer_sees():
    adopted = adopt_model(tiny().SerializeToString())
    proto = read_model(adopted.onnx)
    names = shallow_tensors(proto, 2)
    part = stem(proto, names)
    assert sum(node.op_type == "Conv" for node in part.graph.node) == 2
    module, _ = trainable(part, names, adopted.input)
    with torch.no_grad():
        assert module(torch.from_numpy(images()))[0].shape[1] == 6


def test_a_byte_budget_chooses_the_cut():
    proto = read_model(adopt_model(tiny().SerializeToString()).onnx)
    share = signature_bytes(proto, 2) / proto.ByteSize()
    assert layers_within(proto, share * 1.01) == 2
    assert layers_within(proto, 1e-6) == 1
    assert layers_within(proto, 10) == 3  # one layer stays deep


def test_a_network_of_a_fixed_batch_takes_any_number_of_images():
    class OfTwo(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x.reshape(2, -1).sum(1), x.reshape(2, 3, 4)

    x = torch.arange(5 * 12.0).reshape(5, 1, 3, 4)
    sums, same = AnyBatch(OfTwo(), 2)(x)
    torch.testing.assert_close(sums, x.flatten(1).sum(1))
    torch.testing.assert_close(same, x[:, 0])

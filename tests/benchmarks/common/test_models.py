import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rws.benchmarks.common.models import load_model, load_models
from rws.edge.bundle.bundle import Bundle
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.errors import BundleError, InputError
from rws.training.corruptions import CORRUPTIONS
from support.tiny import SIZE, network


@pytest.fixture(scope="module")
def named():
    return load_model("resnet18", size=32, layers=2, seed=3)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(network(3, 4, seed=1), path)
    return path


@pytest.mark.slow
def test_an_architecture_is_the_same_in_onnx_and_torch(named):
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    session = onnxruntime.InferenceSession(named.onnx)
    logits = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert logits.shape == (1, 10)
    np.testing.assert_allclose(named.module(torch.from_numpy(x)).detach(), logits, atol=1e-4)
    assert 0.01 < logits.std() < 100  # activations neither vanish nor explode
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in named.module.modules())
    assert "random" in named.weights


def test_signatures_are_a_twentieth_of_each_tensors_spread(named):
    assert named.signatures.names == tuple(CORRUPTIONS)
    assert named.signatures.tensors == named.tensor_names
    assert len(named.tensor_names) == 6
    clean = clean_tensors(read_model(named.onnx), named.tensor_names)
    for name, delta in named.signatures.get("fog").items():
        if delta.size > 500:
            assert delta.std() == pytest.approx(0.05 * clean[name].std(), rel=0.1)
        assert delta.any()


@pytest.mark.slow
def test_a_seed_decides_everything_and_leaves_torchs_own_alone(named):
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    again = load_model("resnet18", size=32, layers=2, seed=3)
    assert torch.rand(1) == first
    for key, value in again.module.state_dict().items():
        assert torch.equal(value, named.module.state_dict()[key])
    assert again.signatures.to_bytes() == named.signatures.to_bytes()


def test_any_onnx_file_and_any_bundle(tiny_file):
    file, bundle = load_models([str(tiny_file)], Bundle.load("cifar10").path, layers=2)[::-1]
    assert (file.name, file.size, file.module) == ("tiny", SIZE, None)
    assert len(file.tensor_names) == 4
    assert bundle.signatures.names == Bundle.load("cifar10").signatures.names
    assert bundle.weights.startswith("trained")
    assert [model.name for model in load_models([])] == [bundle.name]


@pytest.mark.parametrize("spec", ["vgg16", "vgg16:", "vgg16:4", "vgg16:large"])
def test_an_architecture_needs_a_size(spec):
    with pytest.raises(InputError, match="NAME:PIXELS"):
        load_models([spec])


def test_a_missing_model_is_refused(tmp_path, tiny_file):
    with pytest.raises(InputError, match="no classifier"):
        load_models(["resnet51:32"])
    with pytest.raises(BundleError, match="cannot be read"):
        load_models([str(tmp_path / "none.onnx")])
    with pytest.raises(BundleError, match="3 convolutions"):
        load_model(tiny_file, layers=4)
    wide = network(1, 4, seed=0)
    wide.graph.input[0].type.tensor_type.shape.dim[3].dim_value = SIZE * 2
    onnx.save(wide, tmp_path / "wide.onnx")
    with pytest.raises(InputError, match="square"):
        load_model(tmp_path / "wide.onnx", layers=1)
